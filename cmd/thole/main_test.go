package main

import (
	"os"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"thole/internal/nstest"
)

// TestMain lets this binary be thole, for scripts and for tests in namespaces.
func TestMain(m *testing.M) {
	if strings.HasPrefix(os.Args[0], "nstest-") {
		nstest.Main(m) // a process of a test host: it does not come back
	}
	testscript.Main(underNstest{m}, map[string]func(){"thole": main})
}

type underNstest struct{ m *testing.M }

func (u underNstest) Run() int { return nstest.Run(u.m) }

// TestScript runs the stories in testdata/script. None of them needs root, a daemon
// or a kernel.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE") != "",
	})
}
