package daemon

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A lock is held by the one daemon of a socket, or by who does a daemon's work
// where there is none. It ends with the process.
type lock struct{ file *os.File }

// errLocked says that another process holds the lock.
var errLocked = errors.New("another daemon runs")

// takeLock takes the lock beside the socket, and notes there which state directory belongs to it.
func takeLock(socket, state string) (*lock, error) {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("making the socket's directory: %v: are you root?", err)
	}
	f, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the lock: %v: are you root?", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w on %s: see `thole status --socket %[2]s`, or give this one another --socket",
				errLocked, socket)
		}
		return nil, fmt.Errorf("locking %s: %v", f.Name(), err)
	}
	note(f, state)
	return &lock{file: f}, nil
}

// note writes the state directory into the lock's file. Nothing depends on it but what a command assumes without a
// daemon, so a full disk does not keep the daemon from starting.
func note(f *os.File, state string) {
	if absolute, err := filepath.Abs(state); err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(absolute+"\n"), 0) // half a line is not read
	}
}

// StateOf returns the state directory of the last daemon that had this socket since the machine was started, "" if
// there was none or it is not known.
func StateOf(socket string) string {
	data, err := os.ReadFile(socket + ".lock")
	path, whole := strings.CutSuffix(string(data), "\n")
	if err != nil || !whole || !filepath.IsAbs(path) {
		return ""
	}
	return path
}

// release gives the lock up. The file stays: removing it could take away the lock
// of who has just opened it.
func (l *lock) release() error { return l.file.Close() }
