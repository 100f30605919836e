package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A lock is held by the one daemon of a socket, or by who does a daemon's work
// where there is none. It ends with the process.
type lock struct{ file *os.File }

// errLocked says that another process holds the lock.
var errLocked = errors.New("another daemon runs")

// takeLock takes the lock beside the socket.
func takeLock(socket string) (*lock, error) {
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
			return nil, fmt.Errorf("%w on %s: see `thole status --socket %[2]s`, or give this one another --socket", errLocked, socket)
		}
		return nil, fmt.Errorf("locking %s: %v", f.Name(), err)
	}
	return &lock{file: f}, nil
}

// release gives the lock up. The file stays: removing it could take away the lock
// of who has just opened it.
func (l *lock) release() error { return l.file.Close() }

// listen opens the socket. Who holds the lock may remove the one that a daemon
// before left behind. Everybody may connect: what he may do is decided by who he is.
func listen(path string, log *slog.Logger) (*peerListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing the old socket: %v", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %v", path, err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s to all users: %v", path, err), l.Close())
	}
	return &peerListener{UnixListener: l, log: log, users: map[uint32]int{}}, nil
}
