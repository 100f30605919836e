package api

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// listen opens the socket. Who holds the lock may remove the one that a daemon
// before left behind. Everybody may connect: what he may do is decided by who he is.
//
// account says whom a uid is charged to.
func listen(path string, account func(uid uint32) uint32, log *slog.Logger) (*userListener, error) {
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
	return &userListener{UnixListener: l, log: log, account: account,
		connections: newConnections(fileLimits(raiseFiles(log)))}, nil
}

// raiseFiles asks for as many file descriptors as the daemon may need, and returns how many it may have.
func raiseFiles(log *slog.Logger) uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("the limit of file descriptors cannot be read", "error", err)
		return 0
	}
	want := unix.Rlimit{Cur: max(limit.Cur, wantFiles), Max: max(limit.Max, wantFiles)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return want.Cur
	}
	want = unix.Rlimit{Cur: limit.Max, Max: limit.Max} // more needs CAP_SYS_RESOURCE
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &want) == nil {
		return want.Cur
	}
	return limit.Cur
}

// fileLimits bounds the connections so that those of users never take the reserved file descriptors.
func fileLimits(files uint64) connectionLimits {
	total := int(min(files, wantFiles)) - reservedFiles
	total = min(maxConnections, max(leastConnections, total/filesPerRequest))
	left := int(min(files, wantFiles)) - reservedFiles - total*filesPerRequest
	return connectionLimits{
		root: maxConnectionsOfRoot, user: min(maxConnectionsPerUser, total), total: total,
		lingering: min(maxLingering, max(0, left)),
	}
}

// A userListener accepts connections whose user is known and that have a place among the others.
type userListener struct {
	*net.UnixListener
	connections *connections
	account     func(uid uint32) uint32 // whom a uid is charged to
	log         *slog.Logger
}

// A userConn is a connection with the user and the process that opened it, as the kernel says.
type userConn struct {
	*net.UnixConn
	place
	uid uint32 // who it is; what it costs is charged to the place's user
	pid int
	all *connections
}

// Accept returns the next connection. It waits for nobody: what it asks the kernel of a connection, the kernel
// knows. Only a listener that was closed or does not work is an error.
func (l *userListener) Accept() (net.Conn, error) {
	var pause time.Duration
	for {
		conn, err := l.AcceptUnix()
		if lacks(err) {
			pause = l.wait(pause, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		pause = 0
		cred, err := peerCredentials(conn)
		if err != nil {
			l.log.Debug("connection refused", "error", err)
			_ = conn.Close()
			continue
		}
		c := &userConn{UnixConn: conn, place: place{user: l.account(cred.Uid)}, uid: cred.Uid, pid: int(cred.Pid),
			all: l.connections}
		c.conn = c
		if l.connections.admit(&c.place) {
			return c, nil
		}
	}
}

// Close ends the listener, and the connections that have no place any more.
func (l *userListener) Close() error {
	err := l.UnixListener.Close()
	l.connections.lingering.end()
	return err
}

// lacks reports whether accept(2) failed for a lack of file descriptors or memory, or because of the one
// connection. Both pass.
func lacks(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// wait makes room for the connection that could not be accepted, and returns how long it waited.
func (l *userListener) wait(last time.Duration, err error) time.Duration {
	if last == 0 {
		l.log.Warn("a connection cannot be accepted: silent ones are closed until it can", "error", err)
	}
	l.connections.shed()
	pause := min(max(2*last, acceptRetryFirst), acceptRetryLast)
	time.Sleep(pause)
	return pause
}

// heard notes that the request was read completely.
func (c *userConn) heard() { c.all.heard(&c.place) }

// Close ends the connection and gives up its place.
func (c *userConn) Close() error {
	c.all.leave(&c.place)
	return c.UnixConn.Close()
}

// detach ends the connection here. What it returns keeps it open for the peer.
func (c *userConn) detach() io.Closer {
	var copied openFile = -1
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				copied = openFile(n)
			}
		})
	}
	_ = c.UnixConn.Close()
	if copied < 0 {
		return nil
	}
	return copied
}

// An openFile is a file descriptor of the kernel.
type openFile int

func (f openFile) Close() error { return unix.Close(int(f)) }
