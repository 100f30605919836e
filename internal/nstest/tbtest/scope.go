package tbtest

import (
	"slices"
	"testing"
)

// A Scope is a test whose clean-ups run when End is called.
type Scope struct {
	testing.TB
	cleanups []func()
}

// Cleanup has fn called by End, the last one first.
func (s *Scope) Cleanup(fn func()) { s.cleanups = append(s.cleanups, fn) }

// End calls the clean-ups.
func (s *Scope) End() {
	for _, fn := range slices.Backward(s.cleanups) {
		fn()
	}
}
