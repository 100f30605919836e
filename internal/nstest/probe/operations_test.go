package probe_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/tbtest"
)

func TestMain(m *testing.M) {
	nstest.Main(m, probe.NewMode(probe.Operations{
		"thread": func(json.RawMessage) (any, error) { return unix.Gettid(), nil },
		"length": func(args json.RawMessage) (any, error) {
			var s string
			err := json.Unmarshal(args, &s)
			return len(s), err
		},
		"fail": func(json.RawMessage) (any, error) { return nil, errors.New("as told") },
	}))
}

// Operations run in the probe's process, all on one thread. Their arguments may be longer than a socket's buffer.
func TestOperations(t *testing.T) {
	p := probe.Start(nstest.New(t).In("x"), "p")
	for range 100 {
		var thread int
		if p.Call("thread", nil, &thread); thread != p.PID() {
			t.Fatalf("an operation ran on thread %d, want the process's first, %d", thread, p.PID())
		}
	}
	var length int
	if p.Call("length", strings.Repeat("x", 4<<20), &length); length != 4<<20 {
		t.Errorf("4 MiB of arguments: %d bytes came", length)
	}
}

// The error of an operation fails the test.
func TestOperationThatFails(t *testing.T) {
	got := tbtest.Record(t, func(t testing.TB) {
		var result any
		probe.Start(nstest.New(t).In("x"), "p").Call("fail", nil, &result)
	})
	if !strings.HasPrefix(got, "fatal: nstest: probe p: ") || !strings.HasSuffix(got, ": as told") {
		t.Errorf("the test ended with %q", got)
	}
}
