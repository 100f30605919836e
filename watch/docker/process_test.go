package docker

import (
	"os"
	"os/exec"
	"testing"

	"thole/internal/nstest"
)

func TestFindProcess(t *testing.T) {
	self := findProcess(os.Getpid())
	if !self.lives() || self.started == "" {
		t.Errorf("this process: %+v, lives %t", self, self.lives())
	}
	if (process{}).lives() || (process{pid: self.pid, started: "1"}).lives() {
		t.Error("no process, or an earlier one of the same number, lives")
	}
	child := exec.Command("true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, patience, "the child to be a zombie", func() bool {
		return findProcess(child.Process.Pid) == process{}
	})
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if p := findProcess(child.Process.Pid); p.lives() {
		t.Errorf("%+v has ended, and lives", p)
	}
}
