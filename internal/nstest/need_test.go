package nstest_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/tbtest"
)

func TestNeed(t *testing.T) {
	loud, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	defer func(stderr *os.File) { os.Stderr = stderr }(os.Stderr)
	os.Stderr = loud

	missing := func(t testing.TB) { nstest.Need(t, "sh", "no-such-program") }
	for _, tt := range []struct{ ci, must, want string }{
		{"", "", "skip: "},
		{"false", "0", "skip: "},
		{"true", "", "fatal: "},
		{"", "1", "fatal: "},
	} {
		t.Setenv("CI", tt.ci)
		t.Setenv("THOLE_MUST", tt.must)
		got := tbtest.Record(t, missing)
		if !strings.HasPrefix(got, tt.want+"this machine lacks no-such-program (") {
			t.Errorf("CI=%s THOLE_MUST=%s: %q, want %s…", tt.ci, tt.must, got, tt.want)
		}
		if got := tbtest.Record(t, func(t testing.TB) { nstest.Need(t, "sh") }); got != "" {
			t.Errorf("nothing is missing: %q", got)
		}
	}
	said, err := os.ReadFile(loud.Name())
	if got := strings.Count(string(said), "*** SKIPPED TestNeed: this machine lacks no-such-program ("); err != nil ||
		got != 2 {
		t.Errorf("%d skips out of 2 were told on stderr: %v\n%s", got, err, said)
	}
}

func TestWaitFor(t *testing.T) {
	n := 0
	got := tbtest.Record(t, func(t testing.TB) {
		nstest.WaitFor(t, time.Minute, "the third look", func() bool { n++; return n == 3 })
	})
	if got != "" || n != 3 {
		t.Errorf("a condition that comes true: %q after %d looks", got, n)
	}
	got = tbtest.Record(t, func(t testing.TB) {
		nstest.WaitFor(t, 10*time.Millisecond, "the impossible", func() bool { return false })
	})
	if want := "fatal: waited 10ms for the impossible"; got != want {
		t.Errorf("a condition that does not: %q, want %q", got, want)
	}
}
