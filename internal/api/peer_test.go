package api

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

func TestPeerKnowsItsProcess(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(dead.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := dead.Wait(); err != nil {
		t.Fatal(err)
	}
	own, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		peer *peer
		want error
	}{
		{"itself", &peer{pid: os.Getpid(), pidfd: self, started: own}, nil},
		{"its pid is another's", &peer{pid: os.Getpid(), pidfd: pidfd, started: own}, errPeerGone},
		{"another start", &peer{pid: os.Getpid(), pidfd: self, started: "1"}, errPeerGone},
		{"closed", &peer{pid: os.Getpid(), pidfd: -1, started: own}, errPeerGone},
	}
	for _, tt := range tests {
		if err := tt.peer.check(); !errors.Is(err, tt.want) {
			t.Errorf("%s: check = %v; want %v", tt.name, err, tt.want)
		}
	}
	tests[0].peer.close()
	tests[1].peer.close()
}

// Before Linux 6.5 the pid is looked up after the connection was made.
func TestPeerWithoutSOPeerPidfd(t *testing.T) {
	p := &peer{pid: os.Getpid(), uid: uint32(os.Geteuid())}
	if err := p.openPID(); err != nil || !p.alive() {
		t.Errorf("own process: %v", err)
	}
	p.close()
	other := &peer{pid: os.Getpid(), uid: 4242}
	if err := other.openPID(); !errors.Is(err, errPeerGone) {
		t.Errorf("a process of another user: %v; want %v", err, errPeerGone)
	}
}
