package account

import (
	"errors"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"testing"
	"time"

	"thole/internal/nstest"
)

// opened returns the accounts of a file with this content, and a clock that tests move.
func opened(t *testing.T, content string) (a *Accounts, path string, now *time.Time) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "subuid")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	now = new(time.Time)
	a = &Accounts{path: path, now: func() time.Time { return *now }, log: slog.New(slog.DiscardHandler),
		lookup: func(name string) (*user.User, error) {
			if name == "alice" {
				return &user.User{Uid: "1000"}, nil
			}
			return nil, errors.New("unknown")
		}}
	a.load()
	return a, path, now
}

func TestOf(t *testing.T) {
	a, _, _ := opened(t, "# comment\n\nalice:100000:65536\n1001:165536:10\nroot:300000:10\nghost:400000:10\n"+
		"alice:100:\nalice:x:1\nalice:500000:0\n:600000:5\nalice:4294967290:65536\nbob:1:2:3\n")
	a.lookup = nil // names are looked up when the file is read
	for uid, want := range map[uint32]uint32{
		0: 0, 1000: 1000, 99_999: 99_999,
		100_000: 1000, 165_535: 1000, // alice's, by name
		165_536: 1001, 165_545: 1001, 165_546: 165_546, // by number
		300_000: 300_000, 300_009: 300_000, // root's are not root
		400_009: 400_000,                                 // of a user that does not exist
		100:     100, 500_000: 500_000, 600_000: 600_000, // lines that say nothing
		4_294_967_294: 1000,
	} {
		if got := a.Of(uid); got != want {
			t.Errorf("uid %d is charged to %d, want %d", uid, got, want)
		}
	}
}

// A range of root by its number is no more root than by its name.
func TestRangeOfRoot(t *testing.T) {
	a, _, _ := opened(t, "0:300000:10\n")
	if got := a.Of(300_005); got != 300_000 {
		t.Errorf("charged to %d, want 300000", got)
	}
}

func TestChangesAreRead(t *testing.T) {
	a, path, now := opened(t, "")
	if got := a.Of(100_000); got != 100_000 {
		t.Fatalf("charged to %d before anybody holds it", got)
	}
	if err := os.WriteFile(path, []byte("1000:100000:65536\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := a.Of(100_000); got != 100_000 {
		t.Errorf("the file was looked at too early: charged to %d", got)
	}
	*now = now.Add(checkEvery)
	nstest.WaitFor(t, 10*time.Second, "the change to be read", func() bool { return a.Of(100_000) == 1000 })
}

func TestNoFile(t *testing.T) {
	a := Open(filepath.Join(t.TempDir(), "none"), time.Now, slog.New(slog.DiscardHandler))
	if got := a.Of(100_000); got != 100_000 {
		t.Errorf("charged to %d, want the uid itself", got)
	}
}
