package nstest_test

import (
	"os/exec"
	"strings"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/tbtest"
)

func TestRequireMode(t *testing.T) {
	if got := tbtest.Record(t, func(t testing.TB) { nstest.RequireMode(t, probe.Mode.Name) }); got != "" {
		t.Errorf("a mode that Main was called with: %q", got)
	}
	got := tbtest.Record(t, func(t testing.TB) { nstest.RequireMode(t, "nstest-other") })
	want := `fatal: nstest: TestMain must call nstest.Main with the mode "nstest-other"`
	if !strings.HasPrefix(got, want) {
		t.Errorf("another mode: %q, want %q", got, want)
	}
}

// A process for a mode that Main was not called with ends: it does not run the tests once more.
func TestUnknownModeEnds(t *testing.T) {
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: []string{"nstest-other"}}
	out, err := cmd.CombinedOutput()
	if want := "nstest-other: nstest.Main was not called with this mode\n"; string(out) != want ||
		cmd.ProcessState.ExitCode() != 125 {
		t.Errorf("%v, %q; want exit code 125 and %q", err, out, want)
	}
}
