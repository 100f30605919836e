package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thole/datapath"
	"thole/datapath/sockets"
	"thole/internal/api"
	"thole/internal/enforce/enforcetest"
	"thole/internal/fleet"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/faults"
	"thole/internal/nstest/probe"
	"thole/ruleset"
	"thole/watch/cgroupfs"
)

// The test binary runs itself again as a program that asks the daemon for labels,
// or as a daemon.
const (
	modeClient = "daemon-test-client" // SOCKET REQUEST [listen ADDRESS | dial ADDRESS | flood N]
	modeDaemon = "daemon-test-daemon" // STATE SOCKET DOCKER [SEED]
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case modeClient:
		os.Exit(playClient(os.Args[1], os.Args[2], os.Args[3:]))
	case modeDaemon:
		os.Exit(playDaemon(os.Args[1], os.Args[2], os.Args[3], os.Args[4:]))
	}
	nstest.Main(m, probe.Mode, engine.Mode, faults.Mode)
}

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// triesAtOnce is how often package enforce tries a change before it waits.
const triesAtOnce = 3

// An outcome is what a client process reports, as one line of JSON.
type outcome struct {
	Answer  api.RunResponse
	Error   string
	Code    int    // of a Refusal
	Network string // of listen and dial: "ok", or the error
	Codes   map[int]int
}

// playClient asks for labels and stays until its standard input ends.
func playClient(socket, request string, then []string) int {
	var req api.RunRequest
	if err := json.Unmarshal([]byte(request), &req); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out outcome
	if len(then) > 0 && then[0] == "flood" {
		out.Codes = flood(socket, req, then[1])
	} else {
		out = ask(socket, req)
	}
	if out.Error == "" && len(then) > 0 {
		out.Network = network(then)
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

func ask(socket string, req api.RunRequest) outcome {
	answer, err := api.NewClient(socket).Run(context.Background(), req)
	out := outcome{Answer: answer}
	if err != nil {
		out.Error = err.Error()
	}
	if refusal, ok := errors.AsType[*api.Refusal](err); ok {
		out.Code = refusal.Code
	}
	return out
}

// flood sends many requests, several at once, and counts the answers by their code.
func flood(socket string, req api.RunRequest, times string) map[int]int {
	var n int
	_, _ = fmt.Sscan(times, &n)
	var mu sync.Mutex
	codes := map[int]int{}
	work := make(chan struct{}, n)
	for range n {
		work <- struct{}{}
	}
	close(work)
	var all sync.WaitGroup
	for range 64 { // twice as many as one user may have at once
		all.Go(func() {
			for range work {
				o := ask(socket, req)
				if o.Error == "" {
					o.Code = 200
				}
				mu.Lock()
				codes[o.Code]++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return codes
}

// network listens for one connection after the other, or dials once.
func network(then []string) string {
	switch then[0] {
	case "listen":
		l, err := net.Listen("tcp", then[1])
		if err != nil {
			return err.Error()
		}
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_ = conn.Close()
			}
		}()
	case "dial":
		conn, err := net.DialTimeout("tcp", then[1], patience)
		if err != nil {
			return err.Error()
		}
		_ = conn.Close()
	}
	return "ok"
}

// playDaemon runs a daemon; with a seed, one whose calls of the kernel fail by chance.
// That is started anew when it fails, as a service manager does. SIGUSR1 has it log what
// it takes (footprint_test.go).
func playDaemon(state, socket, docker string, seed []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	config := Config{State: state, Socket: socket, Docker: docker, Logger: logger}
	go reportFootprints(config.Logger)
	var err error
	if len(seed) == 0 {
		var d *Daemon
		if d, err = New(config); err == nil {
			err = d.Run(ctx)
		}
	} else {
		err = runFaulty(ctx, config.withDefaults(), seed[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// A process is a client that was started.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	outcome
}

// client starts a process that asks for labels, as user uid, and waits for the answer.
func startClient(t *testing.T, uid uint32, socket string, req api.RunRequest, then ...string) *process {
	t.Helper()
	cmd := &exec.Cmd{Path: "/proc/self/exe", Args: clientArgs(t, socket, req, then)}
	if uid != 0 {
		credential := &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid, 4321}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	}
	return begin(t, cmd)
}

func clientArgs(t *testing.T, socket string, req api.RunRequest, then []string) []string {
	t.Helper()
	request, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{modeClient, socket, string(request)}, then...)
}

// begin starts a client's command and reads what it reports.
func begin(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin = stdin
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.end() })
	if err := json.NewDecoder(stdout).Decode(&p.outcome); err != nil {
		t.Fatalf("reading what the client reports: %v", err)
	}
	return p
}

// end ends the process and waits for it.
func (p *process) end() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// sameTable compares two tables, nil being none.
func sameTable(a, b *ruleset.Table) bool {
	if a == nil || b == nil {
		return a == b
	}
	return ruleset.Same(*a, *b)
}

// A bench is a daemon in this process, over real cgroups and a fake kernel.
type bench struct {
	t      *testing.T
	host   *nstest.Host
	root   cgroupfs.Root
	kernel *enforcetest.Kernel
	config Config
	client *api.Client
	logs   *logs
	daemon *Daemon
	stop   func()
	engine func(datapath.Config) (fleet.Engine, error) // of a fleet
	routes fakeRoutes

	replace func(*host) // other effects than these; nil: none

	mu      sync.Mutex
	sockets map[uint64]bool // that the host says there are
}

// logs collects what the daemon logs.
type logs struct {
	mu    sync.Mutex
	lines strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines.String()
}

// newBench starts a daemon. The configuration may be changed before.
func newBench(t *testing.T, configure ...func(*bench)) *bench {
	t.Helper()
	host := nstest.New(t)
	dir, err := os.MkdirTemp("", "thole-daemon-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil { // other users' clients come in
		t.Fatal(err)
	}
	root, err := cgroupfs.RootAt(host.CgroupDir(""))
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, host: host, root: root, kernel: &enforcetest.Kernel{}, logs: &logs{}}
	b.config = Config{
		State:   filepath.Join(dir, "state"),
		Socket:  filepath.Join(dir, "run", "thole.sock"),
		Version: "test",
		Docker:  DockerOff,
		Logger:  slog.New(slog.NewTextHandler(b.logs, nil)),
	}
	b.client = api.NewClient(b.config.Socket)
	for _, f := range configure {
		f(b)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", b.logs)
		}
	})
	b.start()
	return b
}

func (b *bench) newDaemon() (*Daemon, error) {
	h := &host{
		root:    b.root,
		kernel:  b.kernel,
		marks:   b.kernel,
		sockets: b.socketCgroups,
		dying:   b.dying,
		bound:   func(func(sockets.Socket) bool) error { return nil },
		routes:  &b.routes,
		now:     time.Now,
		engine:  b.engine,
		close:   func() error { return nil },
	}
	if b.replace != nil {
		b.replace(h)
	}
	return newDaemon(b.config, h)
}

// dying says of every cgroup that something is left of what was removed below it, as long as there are sockets.
func (b *bench) dying(cgroup string) (id uint64, some bool, err error) {
	id, some, err = b.root.Dying(cgroup)
	held, _ := b.socketCgroups() // it does not fail
	return id, some || len(held) > 0, err
}

func (b *bench) socketCgroups() (map[uint64]bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sockets, nil
}

// start starts the daemon; it ends with the test, or by stop.
func (b *bench) start() {
	b.t.Helper()
	d, err := b.newDaemon()
	if err != nil {
		b.t.Fatal(err)
	}
	b.daemon = d
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
	b.t.Cleanup(func() { b.stop() })
}

func (b *bench) status() api.Status {
	b.t.Helper()
	s, err := b.client.Status(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// apply replaces the policy set.
func (b *bench) apply(policies string) {
	b.t.Helper()
	files := []api.File{{Name: "test.yaml", Data: policies}}
	_, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: files})
	if err != nil {
		b.t.Fatal(err)
	}
}

// run labels a process of root's.
func (b *bench) run(name string, labels map[string]string) *process {
	b.t.Helper()
	p := startClient(b.t, 0, b.config.Socket, api.RunRequest{Name: name, Labels: labels, Command: "test"})
	if p.Error != "" {
		b.t.Fatalf("run %s: %s", name, p.Error)
	}
	return p
}

// until waits for a condition on what the daemon does by itself.
func (b *bench) until(what string, cond func() bool) {
	b.t.Helper()
	nstest.WaitFor(b.t, patience, what, cond)
}

// knows reports whether the loaded table has the cgroup in one of its sets.
func (b *bench) knows(id uint64) bool { return knows(b.kernel.Loaded(), id) }

func knows(table *ruleset.Table, id uint64) bool {
	if table == nil {
		return false
	}
	for _, set := range table.Sets {
		for i, typ := range set.Key {
			if typ == ruleset.CgroupV2 && slices.ContainsFunc(set.Elements, func(e ruleset.Element) bool {
				return e.Key[i].From == ruleset.WordOf(id)
			}) {
				return true
			}
		}
	}
	return false
}

// empty reports whether no cgroup of thole run is left.
func (b *bench) empty() bool {
	names, err := filepath.Glob(b.root.Path("thole.slice/*.scope"))
	return err == nil && len(names) == 0
}

const (
	allowWeb = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}]}]
`
	grantAlice = `---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: alice}
spec:
  users: [4242]
  labels: {app: [web, db], env: ["*"]}
  require: {team: a}
`
)
