package watch

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"thole/internal/condition"
	"thole/watch/process"
	"thole/watch/workload"
)

// started makes a scope and moves a process into it, as thole run does.
func (tr *tree) started(name string, killOnMove bool) (Run, *exec.Cmd) {
	tr.t.Helper()
	p := sleeper(tr.t)
	run := aRun(name)
	run.Command, run.KillOnMove = process.Find(p.Process.Pid), killOnMove
	run, err := tr.scopes.Create(run)
	if err != nil {
		tr.t.Fatal(err)
	}
	if err := tr.scopes.Move(run, p.Process.Pid); err != nil {
		tr.t.Fatal(err)
	}
	tr.scopes.Settle(run)
	return run, p
}

// move moves a process into a cgroup, as systemd does for su.
func (tr *tree) move(p *exec.Cmd, cgroup string) {
	tr.t.Helper()
	tr.in(cgroup).ID()
	pid := []byte(strconv.Itoa(p.Process.Pid))
	if err := os.WriteFile(tr.root.Path(cgroup+"/cgroup.procs"), pid, 0); err != nil {
		tr.t.Fatal(err)
	}
}

const session = "user.slice/user-1000.slice/session-1.scope"

// A command that is moved out of its scope is named, until it ends.
func TestMovedCommand(t *testing.T) {
	tr := newTree(t)
	_, other := tr.started("other", false)
	run, p := tr.started("web", false)
	if s := tr.cgroups.Scan(nil); len(s.Workloads) != 2 || len(s.Conditions) != 0 {
		t.Fatalf("before the move: %+v", s)
	}
	tr.move(p, session)
	want := condition.Condition{Code: condition.RunMoved, Where: run.Cgroup.Path, Text: fmt.Sprintf(
		"another program moved the command (process %d) into the cgroup %s: what it does there does not have the "+
			"labels app=web. su, runuser -l and sudo -i move themselves. "+
			"`thole run --kill-on-move` ends such a command",
		p.Process.Pid, session)}
	found := func(s workload.Snapshot) bool { return slices.Contains(s.Conditions, want) }
	// The look at the single cgroup is not enough.
	deadline := time.After(patience)
	for !found(tr.cgroups.Changes(nil)) {
		select {
		case <-tr.cgroups.Changed():
		case <-deadline:
			t.Fatalf("no look tells that the command was moved: %+v", tr.cgroups.Scan(nil))
		}
	}
	if s := tr.cgroups.Scan(nil); len(s.Workloads) != 1 || len(s.Conditions) != 1 || !found(s) {
		t.Errorf("after the move: %+v", s)
	}
	end(p)
	if s := tr.cgroups.Scan(nil); len(s.Conditions) != 0 {
		t.Errorf("after its end: %+v", s)
	}
	end(other)
	if s := tr.cgroups.Scan(nil); len(s.Workloads)+len(s.Conditions) != 0 {
		t.Errorf("after the end of one that stayed: %+v", s)
	}
}

// With --kill-on-move, a command that is moved ends.
func TestMovedCommandIsEnded(t *testing.T) {
	tr := newTree(t)
	_, p := tr.started("web", true)
	tr.move(p, session)
	s := tr.until("the end of the command", nil, func(s workload.Snapshot) bool { return len(s.Conditions) > 0 })
	if text := s.Conditions[0].Text; len(s.Conditions) != 1 || !strings.HasSuffix(text, session+
		". It was ended (--kill-on-move)") {
		t.Errorf("conditions %v", s.Conditions)
	}
	if err := p.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the command: %v", err)
	}
	moved := &tr.scopes.moved
	if n := len(moved.conditions(moved.list[0].ended.Add(movedShown + 1))); n != 0 {
		t.Errorf("after %v, %d conditions tell of it", movedShown, n)
	}
}

// A command that asks for labels again, and one that makes cgroups in its scope, were not moved by another program.
func TestCommandsThatAreNotMoved(t *testing.T) {
	tr := newTree(t)
	_, p := tr.started("web", true)
	tr.move(p, "thole.slice/web.scope/inner")
	again := aRun("db")
	again.Command, again.KillOnMove = process.Find(p.Process.Pid), true
	again, err := tr.scopes.Create(again)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.scopes.Move(again, p.Process.Pid); err != nil {
		t.Fatal(err)
	}
	tr.scopes.Settle(again)
	s := tr.until("the first scope's end", nil, func(s workload.Snapshot) bool { return len(s.Workloads) == 1 })
	if len(s.Conditions) != 0 || !again.Command.Lives() {
		t.Errorf("conditions %v; it lives: %t", s.Conditions, again.Command.Lives())
	}
}

// A scope that is still there after a restart says which process its command is.
func TestMovedAfterARestart(t *testing.T) {
	tr := newTree(t)
	_, p := tr.started("web", false)
	tr.restart()
	tr.cgroups.Scan(nil)
	tr.move(p, session)
	tr.until("the notice", nil, func(s workload.Snapshot) bool { return len(s.Conditions) == 1 })
}

// At the bound the oldest command of the user with most is forgotten, and counted.
func TestMovedCommandsAreBounded(t *testing.T) {
	tr := newTree(t)
	now := time.Now()
	p := sleeper(t)
	tr.move(p, session)
	command := process.Find(p.Process.Pid)
	m := &tr.scopes.moved
	add := func(uid uint32, n int) {
		run := aRun(strconv.Itoa(n))
		run.UID, run.Command = uid, process.Find(os.Getpid())
		m.list = append(m.list, movedCommand{run: run, to: session})
	}
	add(7, 0)
	for n := range maxMoved - 1 {
		add(1000, n)
	}
	if n := len(m.conditions(now)); n != maxMoved {
		t.Fatalf("%d conditions, want %d", n, maxMoved)
	}
	run := aRun("more")
	run.Command = command
	m.look(tr.scopes, run, now)
	found := m.conditions(now)
	if len(found) != maxMoved+1 || m.list[0].run.UID != 7 || m.list[1].run.Name != "1" {
		t.Errorf("%d conditions; the first are of uid %d and %q", len(found), m.list[0].run.UID, m.list[1].run.Name)
	}
	if text := found[maxMoved].Text; text != "Thole remembers 64 moved commands at most, and forgot 1" {
		t.Errorf("the last one: %q", text)
	}
}
