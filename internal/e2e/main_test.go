package e2e

import (
	"os"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/faults"
	"thole/internal/nstest/probe"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == roleFlag {
		playRole(os.Args[2])
	}
	code := nstest.Run(m, probe.Mode, engine.Mode, faults.Mode)
	if scratch != "" {
		os.RemoveAll(scratch)
	}
	os.Exit(code)
}
