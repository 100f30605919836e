package api

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"thole/watch/process"
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
	own := process.Find(os.Getpid())
	earlier := process.Process{PID: own.PID, Started: "1"}
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		peer *peer
		want error
	}{
		{"itself", &peer{process: own, pidfd: self}, nil},
		{"its pid is another's", &peer{process: own, pidfd: pidfd}, errPeerGone},
		{"another start", &peer{process: earlier, pidfd: self}, errPeerGone},
		{"closed", &peer{process: own, pidfd: -1}, errPeerGone},
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
	p := &peer{process: process.Process{PID: os.Getpid()}, uid: uint32(os.Geteuid())}
	if err := p.openPID(); err != nil || !p.alive() {
		t.Errorf("own process: %v", err)
	}
	p.close()
	other := &peer{process: process.Process{PID: os.Getpid()}, uid: 4242}
	if err := other.openPID(); !errors.Is(err, errPeerGone) {
		t.Errorf("a process of another user: %v; want %v", err, errPeerGone)
	}
}
