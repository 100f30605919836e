package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/internal/doctor"
	"thole/internal/nstest"
)

// A machine is a host of its own on which thole is used as a user would.
type machine struct {
	*nstest.Host
	t      *testing.T
	dir    string
	socket string
	state  string
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	nstest.Need(t, "root", "cgroup2", "nft")
	dir := t.TempDir()
	letIn(t, dir)
	return &machine{
		Host:   nstest.New(t),
		t:      t,
		dir:    dir,
		socket: filepath.Join(dir, "thole.sock"),
		state:  filepath.Join(dir, "state"),
	}
}

// letIn lets other users into a test's directory and its parent, which must be a
// test's, too.
func letIn(t *testing.T, dir string) {
	t.Helper()
	if filepath.Dir(dir) == filepath.Clean(os.TempDir()) {
		t.Fatalf("%s is the machine's", filepath.Dir(dir))
	}
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// write writes a file and returns its path.
func (m *machine) write(name, content string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

// A result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// thole runs a command of thole to its end.
func (m *machine) thole(args ...string) result {
	m.t.Helper()
	return m.finish(m.Command("thole", args...))
}

func (m *machine) finish(cmd *exec.Cmd) result {
	m.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		m.t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// succeed is thole where the exit code must be 0.
func (m *machine) succeed(args ...string) result {
	m.t.Helper()
	r := m.thole(args...)
	if r.code != 0 {
		m.t.Fatalf("thole %s: exit status %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r
}

// startDaemon starts a daemon and waits until it enforces.
func (m *machine) startDaemon(args ...string) *nstest.Process {
	m.t.Helper()
	args = append([]string{"daemon", "--socket", m.socket, "--state", m.state}, args...)
	p := m.In("").Start("thole", args...)
	nstest.WaitFor(m.t, patience, "the daemon to enforce", func() bool {
		select {
		case <-p.Done():
			m.t.Fatalf("the daemon ended: %v\n%s", p.Wait(), p.Output())
		default:
		}
		return m.thole("status", "--socket", m.socket).code == 0
	})
	return p
}

const patience = 10 * time.Second

// webAndDB isolates what runs in two cgroups.
const webAndDB = `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
    ports: ["5432/tcp"]
---
apiVersion: thole/v1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {cgroup: web}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: db, labels: {app: db}}
spec: {cgroup: db}
`

const otherTable = `table inet other {
	chain input {
		type filter hook input priority filter; policy accept;
		tcp dport 9999 counter packets 0 bytes 0 drop
	}
}
`

func TestApplyThenCleanup(t *testing.T) {
	m := newMachine(t)
	if err := m.Nft(otherTable); err != nil {
		t.Fatal(err)
	}
	before := m.NftList()
	m.MkCgroup("web")
	m.MkCgroup("db")
	file := m.write("policy.yaml", webAndDB)

	dry := m.succeed("apply", "-f", file, "--dry-run", "--socket", m.socket, "--state", m.state)
	if got := m.NftList(); got != before {
		t.Fatalf("a dry run changed the ruleset:\n%s", got)
	}
	if !strings.Contains(dry.stdout, "table inet thole {") {
		t.Errorf("the dry run printed no table:\n%s", dry.stdout)
	}

	applied := m.succeed("apply", "-f", file, "--socket", m.socket, "--state", m.state)
	if !strings.Contains(applied.stdout, "applied: 1 policy, 2 workloads in 2 classes, +") {
		t.Errorf("summary: %q", applied.stdout)
	}
	loaded := m.NftList()
	for _, want := range []string{"table inet other", "table inet thole", "hook input", "socket cgroupv2"} {
		if !strings.Contains(loaded, want) {
			t.Errorf("the ruleset lacks %q:\n%s", want, loaded)
		}
	}

	again := m.succeed("apply", "-f", file, "--socket", m.socket, "--state", m.state)
	if !strings.Contains(again.stdout, "nothing to change") {
		t.Errorf("applying the same again: %q", again.stdout)
	}

	m.succeed("cleanup", "--socket", m.socket, "--state", m.state)
	if got := m.NftList(); got != before {
		t.Errorf("cleanup left a ruleset other than the one before:\n%s\nwant:\n%s", got, before)
	}
	m.succeed("cleanup", "--socket", m.socket, "--state", m.state) // nothing is there: that is fine
}

// TestGetWithoutDaemon lists the set that was kept and what runs.
func TestGetWithoutDaemon(t *testing.T) {
	m := newMachine(t)
	m.MkCgroup("web")
	get := func(args ...string) result {
		r := m.succeed(append([]string{"get", "--socket", m.socket, "--state", m.state}, args...)...)
		if !strings.Contains(r.stderr, "no daemon answers") {
			t.Errorf("get %v does not say that no daemon answers: %q", args, r.stderr)
		}
		return r
	}
	if r := get("policies"); !strings.Contains(r.stdout, "same-labels") {
		t.Errorf("policies before any is applied: %q", r.stdout)
	}
	m.succeed("apply", "-f", m.write("policy.yaml", webAndDB), "--socket", m.socket, "--state", m.state)
	if r := get("policies"); !strings.Contains(r.stdout, "db     ingress    enforce       0") ||
		strings.Contains(r.stdout, "same-labels") {
		t.Errorf("policies: %q", r.stdout)
	}
	if r := get("workloads"); !strings.Contains(r.stdout, "web    cgroup   open    app=web   -         -") {
		t.Errorf("workloads: %q", r.stdout)
	}
	if r := get("classes", "-o", "json"); !strings.Contains(r.stdout, `"web"`) {
		t.Errorf("classes: %q", r.stdout)
	}
}

func TestBadPolicyLeavesTheTable(t *testing.T) {
	m := newMachine(t)
	m.MkCgroup("web")
	m.MkCgroup("db")
	m.succeed("apply", "-f", m.write("good.yaml", webAndDB), "--socket", m.socket, "--state", m.state)
	before := m.NftList()

	bad := m.write("bad.yaml", strings.Replace(webAndDB, "ingress:", "ingres:", 1))
	r := m.thole("apply", "-f", bad, "--socket", m.socket, "--state", m.state)
	if r.code != 1 || !strings.Contains(r.stderr, bad+":6:3: ") {
		t.Errorf("exit status %d, %q; want 1 and the place of the mistake", r.code, r.stderr)
	}
	if got := m.NftList(); got != before {
		t.Errorf("the ruleset changed:\n%s", got)
	}
}

func TestDaemonTakesOverApply(t *testing.T) {
	m := newMachine(t)
	daemon := m.startDaemon()
	m.MkCgroup("web")
	m.MkCgroup("db")

	m.succeed("apply", "--socket", m.socket, "-f", m.write("policy.yaml", webAndDB))
	policies := m.succeed("get", "policies", "--socket", m.socket)
	if !strings.Contains(policies.stdout, "db") || strings.Contains(policies.stdout, "same-labels") {
		t.Errorf("policies: %s", policies.stdout)
	}
	workloads := m.succeed("get", "workloads", "web", "--socket", m.socket)
	if want := "web"; !strings.Contains(workloads.stdout, want) || strings.Contains(workloads.stdout, "app=db") {
		t.Errorf("workloads web: %s", workloads.stdout)
	}
	if r := m.thole("get", "workloads", "nobody", "--socket", m.socket); r.code != 1 {
		t.Errorf("a workload that is not there: exit status %d", r.code)
	}

	r := m.succeed("cleanup", "--socket", m.socket, "--state", m.state)
	if !strings.Contains(r.stdout, "goes on running") || !strings.Contains(r.stdout, "the table is removed") ||
		strings.Contains(m.NftList(), "table inet thole") {
		t.Errorf("cleanup beside a daemon: %q", r.stdout)
	}
	r = m.succeed("arm", "--socket", m.socket, "--state", m.state)
	if !strings.Contains(r.stdout, "armed: 1 policy, 2 workloads") ||
		!strings.Contains(m.NftList(), "table inet thole") {
		t.Errorf("arm: %q", r.stdout)
	}

	if r := m.thole("doctor", "--socket", m.socket); r.code != 0 {
		t.Errorf("doctor beside a daemon: exit status %d\n%s", r.code, r.stdout)
	}

	for _, signal := range []os.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		if err := daemon.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	if err := daemon.Wait(); err != nil {
		t.Errorf("the daemon after SIGTERM: %v", err)
	}
	if !strings.Contains(daemon.Output(), "stays in force") {
		t.Error("the daemon does not say that the table stays")
	}
	if !strings.Contains(m.NftList(), "table inet thole") {
		t.Error("the table is gone with the daemon")
	}
	m.succeed("cleanup", "--socket", m.socket, "--state", m.state)
	if strings.Contains(m.NftList(), "table inet thole") {
		t.Error("cleanup left the table")
	}
}

func TestRun(t *testing.T) {
	m := newMachine(t)
	m.startDaemon()
	run := func(args ...string) *exec.Cmd {
		return m.Command("thole", append([]string{"run", "--socket", m.socket, "-l", "app=web"}, args...)...)
	}

	t.Run("exit status and standard input", func(t *testing.T) {
		cmd := run("--", "sh", "-c", "cat; exit 7")
		cmd.Stdin = strings.NewReader("from outside")
		if r := m.finish(cmd); r.code != 7 || r.stdout != "from outside" || r.stderr != "" {
			t.Errorf("got %+v, want exit status 7 and its input as its output", r)
		}
	})

	t.Run("cgroup, also of children", func(t *testing.T) {
		r := m.finish(run("--name", "job", "sh", "-c", "grep 0:: /proc/self/cgroup; grep 0:: /proc/$$/cgroup; true"))
		if got, want := r.stdout, "0::/thole.slice/job.scope\n"; got != want+want {
			t.Errorf("cgroups: got %q, want twice %q (%s)", got, want, r.stderr)
		}
	})

	t.Run("signals", func(t *testing.T) {
		p := m.In("").Start("thole", "run", "--socket", m.socket, "-l", "app=web", "sleep", "1000")
		nstest.WaitFor(t, patience, "sleep to be executed", func() bool {
			return commandName(p.Pid) == "sleep"
		})
		if err := p.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		err := p.Wait()
		ended, ok := errors.AsType[*exec.ExitError](err)
		if !ok || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGUSR1 {
			t.Errorf("got %v, want death by SIGUSR1", err)
		}
	})

	t.Run("terminal", func(t *testing.T) {
		nstest.Need(t, "script")
		line := "thole run --socket " + m.socket + " -l app=web -- sh -c 'test -t 0 && test -t 1 && tty'"
		r := m.finish(m.Command("script", "--quiet", "--return", "--command", line, "/dev/null"))
		if r.code != 0 || !strings.HasPrefix(r.stdout, "/dev/pts/") {
			t.Errorf("got %+v, want the name of a terminal", r)
		}
	})

	t.Run("nothing else of the process is changed", func(t *testing.T) {
		const look = "grep -e ^SigBlk -e ^SigIgn -e ^Cap -e ^Umask /proc/self/status; ulimit -S -n; ls /proc/$$/fd; " +
			"pwd; env"
		direct := m.Command("sh", "-c", look)
		direct.Dir, direct.Env = m.dir, append(os.Environ(), "GREETING=hello")
		labelled := run("--", "sh", "-c", look)
		labelled.Dir, labelled.Env = direct.Dir, direct.Env
		want, got := m.finish(direct), m.finish(labelled)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(result{})); diff != "" {
			t.Errorf("(-direct +thole run):\n%s", diff)
		}
	})

	t.Run("predecessor's form", func(t *testing.T) {
		if r := m.finish(run("echo", "--", "hello")); r.stdout != "hello\n" {
			t.Errorf("got %+v", r)
		}
	})

	t.Run("empty cgroups are removed", func(t *testing.T) {
		nstest.WaitFor(t, patience, "thole.slice to be empty", func() bool {
			scopes, err := filepath.Glob(m.CgroupDir("thole.slice") + "/*.scope")
			return err == nil && len(scopes) == 0
		})
	})
}

// TestRunMoved: a command that is moved out of its cgroup is named in the status; with --kill-on-move it ends.
func TestRunMoved(t *testing.T) {
	m := newMachine(t)
	m.startDaemon()
	session := m.In("user.slice/session-1.scope")
	session.ID()
	move := func(args ...string) *nstest.Process {
		p := m.In("").Start("thole", append([]string{"run", "--socket", m.socket, "-l", "app=web", "--name", "shell"},
			args...)...)
		nstest.WaitFor(t, patience, "sleep to be executed", func() bool { return commandName(p.Pid) == "sleep" })
		m.Shell("echo " + strconv.Itoa(p.Pid) + " >/sys/fs/cgroup/user.slice/session-1.scope/cgroup.procs")
		return p
	}
	says := func(text string) func() bool {
		return func() bool {
			r := m.succeed("status", "--socket", m.socket)
			return strings.Contains(r.stdout, "thole.slice/shell.scope: another program moved the command") &&
				strings.Contains(r.stdout, text)
		}
	}
	p := move("sleep", "1000")
	nstest.WaitFor(t, patience, "a notice", says("session-1.scope: what it does there does not have the labels"))
	if commandName(p.Pid) != "sleep" {
		t.Error("it was ended")
	}
	p.Kill()
	p = move("--kill-on-move", "sleep", "1000")
	nstest.WaitFor(t, patience, "a notice", says("user.slice/session-1.scope. It was ended (--kill-on-move)"))
	ended, ok := errors.AsType[*exec.ExitError](p.Wait())
	if !ok || ended.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL", ended)
	}
}

func commandName(pid int) string {
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(name))
}

func TestDoctor(t *testing.T) {
	m := newMachine(t)
	before := m.NftList()
	r := m.thole("doctor", "--socket", m.socket)
	if r.code != 0 || !strings.Contains(r.stdout, "Nothing is missing") {
		t.Errorf("exit status %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	var found diagnosis
	if err := json.Unmarshal([]byte(m.thole("doctor", "--socket", m.socket, "-o", "json").stdout), &found); err != nil {
		t.Fatal(err)
	}
	for _, f := range found.Findings {
		if f.Status != doctor.OK && (f.Follows == "" || f.Mend == "") {
			t.Errorf("a finding does not say what follows and what mends it: %+v", f)
		}
	}
	if got := m.NftList(); got != before {
		t.Errorf("doctor changed the ruleset:\n%s", got)
	}
	if left, _ := filepath.Glob(m.CgroupDir("") + "/thole-doctor-*"); len(left) > 0 {
		t.Errorf("doctor left cgroups: %v", left)
	}
}

// TestWithoutPrivileges has commands that need root say so.
func TestWithoutPrivileges(t *testing.T) {
	m := newMachine(t)
	program, err := exec.LookPath("thole")
	if err != nil {
		t.Fatal(err)
	}
	letIn(t, filepath.Dir(program))
	const nobody = 65534
	policy := m.write("policy.yaml", webAndDB)
	for _, args := range [][]string{
		{"doctor", "--socket", m.socket},
		{"apply", "-f", policy, "--socket", m.socket, "--state", m.state},
		{"cleanup", "--socket", m.socket, "--state", m.state},
		{"daemon", "--socket", m.socket, "--state", m.state},
	} {
		t.Run(args[0], func(t *testing.T) {
			r := m.finish(m.In("").As(nobody).Command("thole", args...))
			if r.code != 1 || !strings.Contains(r.stdout+r.stderr, "try: sudo thole "+args[0]) {
				t.Errorf("exit status %d\n%s%s", r.code, r.stdout, r.stderr)
			}
		})
	}
}
