package e2e

import (
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/baseline"
)

// eachProgram runs a test with the program of baseline.Commit, which has the fault, and with the present one. A slow
// machine is a virtual one, on which there is no compiler to build the old one.
func eachProgram(t *testing.T, test func(t *testing.T, old bool, program string)) {
	t.Helper()
	if !nstest.Slow() {
		t.Run(baseline.Commit[:7], func(t *testing.T) { test(t, true, baseline.Program(t)) })
	}
	t.Run("now", func(t *testing.T) {
		program, err := tholeBinary()
		must(t, err)
		test(t, false, program)
	})
}

// withBoth is eachProgram on a new machine each, whose daemon was not started yet.
func withBoth(t *testing.T, test func(t *testing.T, m *machine, old bool)) {
	t.Helper()
	eachProgram(t, func(t *testing.T, old bool, program string) {
		m := bareMachine(t)
		m.thole = program
		test(t, m, old)
	})
}
