package process

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestFind(t *testing.T) {
	self := Find(os.Getpid())
	if !self.Lives() || self.Started == "" {
		t.Errorf("this process: %+v, lives %t", self, self.Lives())
	}
	if (Process{}).Lives() || (Process{PID: self.PID, Started: "1"}).Lives() {
		t.Error("no process, or an earlier one of the same number, lives")
	}
	child := exec.Command("true")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 10*time.Second, "the child to be a zombie", func() bool {
		return Find(child.Process.Pid) == Process{}
	})
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	if p := Find(child.Process.Pid); p.Lives() {
		t.Errorf("%+v has ended, and lives", p)
	}
}

// A process ends with its children and their children, and nothing else does.
func TestKill(t *testing.T) {
	// The shells wait for their children, so none is adopted by init.
	script := "echo $$; sh -c 'echo $$; sleep infinity & echo $!; wait' & sleep infinity & echo $!; wait"
	cmd := exec.Command("sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	bystander := exec.Command("sleep", "infinity")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = bystander.Process.Kill(); _ = bystander.Wait() })

	family := make([]Process, 4)
	for i := range family {
		var pid int
		if _, err := fmt.Fscanln(out, &pid); err != nil {
			t.Fatal(err)
		}
		if family[i] = Find(pid); !family[i].Lives() {
			t.Fatalf("process %d does not live", pid)
		}
	}
	if err := (Process{PID: cmd.Process.Pid, Started: "1"}).Kill(); err != nil || !family[0].Lives() {
		t.Fatalf("an earlier process of the same number: %v, lives %t", err, family[0].Lives())
	}
	root := Find(cmd.Process.Pid)
	if err := root.Kill(); err != nil {
		t.Fatal(err)
	}
	nstest.WaitFor(t, 10*time.Second, "the end of them all", func() bool {
		for _, p := range family {
			if p.Lives() {
				return false
			}
		}
		return true
	})
	if !Find(bystander.Process.Pid).Lives() {
		t.Error("a process of another family was ended")
	}
	if err := root.Kill(); err != nil {
		t.Errorf("a process that has ended: %v", err)
	}
}

func TestCgroup(t *testing.T) {
	host := nstest.New(t)
	p := host.In("a/b").Start("sleep", "infinity")
	if got := Cgroup(p.Pid); !strings.HasSuffix(got, "/a/b") {
		t.Errorf("its cgroup is %q, want …/a/b", got)
	}
}
