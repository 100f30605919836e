package daemon

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/faults"
	"thole/internal/nstest/probe"
)

// A machine is a host in which a daemon runs as a program of its own, with the
// kernel's nftables.
type machine struct {
	t      *testing.T
	host   *nstest.Host
	dir    string
	state  string         // the daemon's state directory
	engine *engine.Docker // that the daemon follows; nil: none
	args   []string       // more for the daemon
	daemon *exec.Cmd
	faults *faults.Injector // of its netlink; nil: none
	log    *logs            // the daemon's
	client *api.Client
}

func newMachine(t *testing.T, configure ...func(*machine)) *machine {
	t.Helper()
	m := &machine{t: t, host: nstest.New(t)}
	var err error
	if m.dir, err = os.MkdirTemp("", "thole-daemon-test-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(m.dir) })
	if err := os.Chmod(m.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m.state = filepath.Join(m.dir, "state")
	m.client = api.NewClient(m.socket())
	for _, f := range configure {
		f(m)
	}
	m.start()
	return m
}

func (m *machine) socket() string { return filepath.Join(m.dir, "thole.sock") }

// start starts the daemon and waits until it answers.
func (m *machine) start() {
	m.t.Helper()
	m.launch()
	m.t.Cleanup(m.stop)
	nstest.WaitFor(m.t, patience, "the daemon's answer", func() bool {
		_, err := m.client.Status(context.Background())
		return err == nil
	})
}

// launch starts the daemon.
func (m *machine) launch() {
	m.t.Helper()
	docker := DockerOff
	if m.engine != nil {
		docker = "unix://" + m.engine.Socket
	}
	argv := append([]string{modeDaemon, m.state, m.socket(), docker}, m.args...)
	m.daemon = m.in("", argv...)
	if m.faults != nil {
		self, err := os.Executable()
		if err != nil {
			m.t.Fatal(err)
		}
		command := m.faults.Wrap(m.t, self, argv...)
		m.daemon = m.host.In("").Command(command[0], command[1:]...)
	}
	log := &logs{}
	m.log, m.daemon.Stderr = log, log
	if err := m.daemon.Start(); err != nil {
		m.t.Fatal(err)
	}
	if m.faults != nil {
		m.faults.Follow(m.t, m.daemon.Process.Pid)
	}
	m.t.Cleanup(func() {
		if m.t.Failed() {
			m.t.Logf("the daemon's log:\n%s", log)
		}
	})
}

// stop ends the daemon, if it was not ended before.
func (m *machine) stop() {
	if m.daemon.ProcessState != nil {
		return
	}
	if err := m.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		m.t.Errorf("ending the daemon: %v", err)
	}
	if err := m.daemon.Wait(); err != nil {
		m.t.Errorf("the daemon's end: %v", err)
	}
}

// in makes the test binary a command in a cgroup of the host.
func (m *machine) in(cgroup string, args ...string) *exec.Cmd {
	cmd := m.host.In(cgroup).Command("/proc/self/exe", args[1:]...)
	for i, arg := range cmd.Args {
		if arg == "/proc/self/exe" && i > 0 && cmd.Args[i-1] == "/proc/self/exe" {
			cmd.Args[i] = args[0] // argv[0] says what it plays
		}
	}
	return cmd
}

// run starts a labelled process in the host.
func (m *machine) run(labels map[string]string, then ...string) *process {
	m.t.Helper()
	p := begin(m.t, m.in("", clientArgs(m.t, m.socket(), api.RunRequest{Labels: labels, Command: "test"}, then)...))
	if p.Error != "" {
		m.t.Fatalf("run %v: %s", labels, p.Error)
	}
	return p
}

// dial dials as a workload with these labels and returns what became of it.
func (m *machine) dial(labels map[string]string, address string) string {
	m.t.Helper()
	p := m.run(labels, "dial", address)
	defer p.end()
	return p.Network
}

// The story with the kernel: labels decide, and go on deciding when the daemon is gone.
func TestKernelEnforces(t *testing.T) {
	m := newMachine(t)
	web, db := map[string]string{"app": "web"}, map[string]string{"app": "db"}
	server := m.run(web, "listen", "127.0.0.1:80")
	if server.Network != "ok" {
		t.Fatalf("listen: %s", server.Network)
	}
	judge := func(when string) {
		t.Helper()
		if got := m.dial(web, "127.0.0.1:80"); got != "ok" {
			t.Errorf("%s, web → web: %s; want ok", when, got)
		}
		if got := m.dial(db, "127.0.0.1:80"); !strings.Contains(got, "refused") {
			t.Errorf("%s, db → web: %s; want refused", when, got)
		}
	}
	curl := func() error { return m.host.Command("curl", "-s", "-m", "5", "http://127.0.0.1").Run() }
	refused := func(err error) bool {
		e, ok := errors.AsType[*exec.ExitError](err)
		return ok && e.ExitCode() == 7 // could not connect
	}
	judge("at first")
	if err := curl(); !refused(err) {
		t.Errorf("unlabelled → web: %v; want refused", err)
	}
	before := m.host.NftList()

	m.stop()
	if err := curl(); !refused(err) {
		t.Errorf("without a daemon, unlabelled → web: %v; want refused", err)
	}
	if after := m.host.NftList(); !strings.Contains(after, "table inet thole") {
		t.Errorf("the table went with the daemon:\n%s", after)
	}
	m.start()
	if s := m.status(); s.Runs != 1 || !s.Enforcing {
		t.Errorf("after a restart: status %+v", s)
	}
	if !strings.Contains(before, "table inet thole") {
		t.Errorf("the table was not there:\n%s", before)
	}
	judge("after a restart")
	if s := m.status(); len(s.Counters) == 0 {
		t.Error("the status has no counters")
	}
}

func (m *machine) status() api.Status {
	m.t.Helper()
	s, err := m.client.Status(context.Background())
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func TestSocketCgroups(t *testing.T) {
	host := nstest.New(t)
	id := host.MkCgroup("born/here")
	holder := probe.Start(host.In("born/here"), "holder")
	holder.Listen("tcp", "[::]:80")
	udp := probe.Start(host.In("born/too"), "other")
	udp.OpenUDP("udp", "127.0.0.1:53")
	var got map[uint64]bool
	if err := host.Do(func() {
		var err error
		if got, err = socketCgroups(); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if !got[id] || !got[host.CgroupID("born/too")] {
		t.Errorf("sockets of %v; want %d and %d", got, id, host.CgroupID("born/too"))
	}
}
