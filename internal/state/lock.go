package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A Lock is held by the one daemon of a socket, or by a command that does a daemon's
// work where there is none. It ends with the process.
type Lock struct{ file *os.File }

// ErrLocked says that another process holds the lock.
var ErrLocked = errors.New("another daemon runs")

// TakeLock takes the lock beside the socket, and notes there which state directory belongs to it.
func TakeLock(socket, state string) (*Lock, error) {
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
				ErrLocked, socket)
		}
		return nil, fmt.Errorf("locking %s: %v", f.Name(), err)
	}
	note(f, state)
	return &Lock{file: f}, nil
}

// note writes the state directory into the lock's file. Nothing depends on it but what a command assumes without a
// daemon, so a full disk does not keep the daemon from starting.
func note(f *os.File, state string) {
	if absolute, err := filepath.Abs(state); err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(absolute+"\n"), 0) // half a line is not read
	}
}

// PathOf returns the state directory of the last daemon that had this socket since the machine was started, "" if
// there was none or it is not known.
func PathOf(socket string) string {
	data, err := os.ReadFile(socket + ".lock")
	path, whole := strings.CutSuffix(string(data), "\n")
	if err != nil || !whole || !filepath.IsAbs(path) {
		return ""
	}
	return path
}

// Release gives the lock up. The file stays: removing it could take away the lock
// of another process that has just opened it.
func (l *Lock) Release() error { return l.file.Close() }
