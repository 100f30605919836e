package api

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// Without a file descriptor the listener waits; it does not end, and nobody who waits is lost.
func TestAcceptWithoutFiles(t *testing.T) {
	log := &syncBuffer{}
	path := filepath.Join(t.TempDir(), "s")
	listener, err := listen(path, itself, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(client)
	silent := &place{user: 1000, conn: &fakeConn{}}
	listener.connections.admit(silent)

	restore := takeFiles(t)
	accepted := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = conn.Close()
		}
		accepted <- err
	}()
	err = unix.Connect(client, &unix.SockaddrUnix{Name: path})
	nstest.WaitFor(t, patience, "the lack in the log", func() bool {
		return strings.Contains(log.String(), "cannot be accepted")
	})
	restore()
	if err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Errorf("Accept: %v", err)
	}
	if s := listener.connections.status(); !gone(silent) || s.Evicted != 1 || s.Now != 0 {
		t.Errorf("the silent connection was not closed: %+v", s)
	}
}

// takeFiles leaves this process no file descriptor until restore is called.
func takeFiles(t *testing.T) (restore func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	free, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.Close(free)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free), Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	return func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }
}

// A syncBuffer holds what was logged.
type syncBuffer struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.lines.String()
}
