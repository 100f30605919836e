package tbtest

import (
	"fmt"
	"runtime"
	"testing"
)

// recorder is a test whose end is written down.
type recorder struct {
	testing.TB
	said string
}

func (r *recorder) end(how, message string) {
	r.said = how + ": " + message
	runtime.Goexit()
}

func (r *recorder) Helper()                           {}
func (r *recorder) Skip(args ...any)                  { r.end("skip", fmt.Sprint(args...)) }
func (r *recorder) Fatal(args ...any)                 { r.end("fatal", fmt.Sprint(args...)) }
func (r *recorder) Fatalf(format string, args ...any) { r.end("fatal", fmt.Sprintf(format, args...)) }

// Record runs a function as a test and returns how it ended: "skip: …", "fatal: …", or "" if it returned.
func Record(t testing.TB, test func(t testing.TB)) string {
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(r)
	}()
	<-done
	return r.said
}
