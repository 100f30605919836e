package attack

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/baseline"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
	"thole/policies"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

func TestMain(m *testing.M) {
	code := nstest.Run(m, probe.NewMode(operations), engine.NewMode(operations), setgidMode, setgidChildMode)
	if scratch != "" {
		os.RemoveAll(scratch)
	}
	os.Exit(code)
}

const jailPolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: jail}
spec: {selector: {matchLabels: {app: jail}}, ingress: [], egress: []}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: feed}
spec:
  selector: {matchLabels: {app: reader}}
  egress: [{to: [{any: true}]}]
---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: alice}
spec: {users: ["1234"], labels: {app: [jail]}}
`

// gone waits until nothing is left of the scope.
func (m *machine) gone(name string) {
	m.t.Helper()
	m.ended(name)
	nstest.WaitFor(m.t, 10*time.Second, "the table without "+name, func() bool { return m.status().Ended == 0 })
}

// ended waits until the daemon knows that the scope is gone.
func (m *machine) ended(name string) {
	m.t.Helper()
	nstest.WaitFor(m.t, 10*time.Second, "the end of "+name, func() bool {
		_, err := os.Stat(m.CgroupDir("thole.slice/" + name + ".scope"))
		return os.IsNotExist(err)
	})
	running := strings.Count(m.Shell("ls /sys/fs/cgroup/thole.slice"), ".scope")
	nstest.WaitFor(m.t, 10*time.Second, "the daemon to notice the end of "+name, func() bool {
		return m.status().Workloads == running
	})
}

// openDB lets db do everything. It divides workloads as closedDB does, so that
// classes keep their numbers from the one to the other.
const openDB = `apiVersion: thole/v1
kind: Policy
metadata: {name: closed-db}
spec: {selector: {matchLabels: {app: db}}, ingress: [{}], egress: [{}]}
`

// A node is a host with labelled cgroups and a table, without a daemon.
type node struct {
	*nstest.Host
	t         testing.TB
	workloads []policy.Workload
	numbers   compiler.Numbers
	epoch     uint16
	loaded    *ruleset.Table
	program   string // the table is that of this program; "": of this package's compiler
}

func newNode(t testing.TB) *node {
	return &node{t: t, Host: nstest.New(t), program: os.Getenv("THOLE_BINARY")}
}

// label makes a cgroup a workload, from the next enforce on.
func (n *node) label(path string, labels policy.Labels) *nstest.Cgroup {
	n.t.Helper()
	cg := n.In(path)
	n.workloads = append(n.workloads, policy.Workload{
		Name: path, Kind: policy.KindRun, Labels: labels, Cgroup: policy.Cgroup{Path: path, ID: cg.ID()},
	})
	return cg
}

// enforce loads the table; open connections are decided again.
func (n *node) enforce(yaml string) {
	n.t.Helper()
	n.epoch++
	n.load(yaml)
}

// load loads the table in the same epoch.
func (n *node) load(yaml string) {
	n.t.Helper()
	if n.program != "" {
		must(n.t, n.Nft(n.dryRun(yaml)))
		return
	}
	docs, err := policy.Parse([]policy.File{{Name: "policies.yaml", Data: []byte(yaml)}})
	must(n.t, err)
	result, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: n.workloads,
		Numbers: n.numbers, Options: compiler.Options{Epoch: n.epoch}})
	must(n.t, err)
	n.numbers = result.Numbers
	n.apply(&result.Table)
}

// apply loads a table as the daemon does: nft 1.0.6 cannot load every text of ours on every kernel.
func (n *node) apply(want *ruleset.Table) {
	n.t.Helper()
	var err error
	must(n.t, n.Do(func() {
		var conn *kernel.Conn
		if conn, err = kernel.Open(kernel.Options{}); err != nil {
			return
		}
		defer conn.Close()
		err = conn.Apply(ruleset.Diff(n.loaded, want))
	}))
	must(n.t, err)
	n.loaded = want
}

// dryRun returns the table that the program would load. An epoch follows from the table that is loaded.
func (n *node) dryRun(yaml string) string {
	n.t.Helper()
	for i, w := range n.workloads {
		labels, err := json.Marshal(w.Labels)
		must(n.t, err)
		yaml += fmt.Sprintf("\n---\napiVersion: thole/v1\nkind: Workload\nmetadata: {name: w%d, labels: %s}\n"+
			"spec: {cgroup: %s}\n", i, labels, w.Cgroup.Path)
	}
	cmd := n.Command(n.program, "apply", "--dry-run", "--state", "/run/state", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	var errs strings.Builder
	cmd.Stderr = &errs
	table, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("%s apply --dry-run: %v: %s", n.program, err, errs.String())
	}
	return string(table)
}

// A scene is a node with a link to a machine outside and four parties: web and
// web2 of equal labels, db of others, free without any.
type scene struct {
	*node
	web, web2, db, free *agent
	outside             *nstest.Host
}

const (
	ours, theirs   = "10.0.0.1", "10.0.0.2"
	ours6, theirs6 = "fd00::1", "fd00::2"
)

func newScene(t testing.TB, yaml string) *scene {
	return newSceneOf(t, os.Getenv("THOLE_BINARY"), yaml)
}

// newSceneOf is newScene with the table of a program.
func newSceneOf(t testing.TB, program, yaml string) *scene {
	s := &scene{node: newNode(t), outside: nstest.New(t)}
	s.program = program
	nstest.Link(s.Host, ours+"/24", ours6+"/64", s.outside, theirs+"/24", theirs6+"/64")
	s.web = newAgent(t, s.Host, s.label("thole.slice/web", policy.Labels{"app": "web"}))
	s.web2 = newAgent(t, s.Host, s.label("thole.slice/web2", policy.Labels{"app": "web"}))
	s.db = newAgent(t, s.Host, s.label("thole.slice/db", policy.Labels{"app": "db"}))
	s.free = newAgent(t, s.Host, s.In("elsewhere"))
	s.free.unlabelled = true
	s.enforce(yaml)
	return s
}

// linkLocal gives the node the address fe80::1 of one device.
func (s *scene) linkLocal() {
	s.t.Helper()
	s.Shell("ip addr replace fe80::1/64 dev veth0 nodad")
	nstest.WaitFor(s.t, 5*time.Second, "the address to be usable", func() bool {
		return !strings.Contains(s.Shell("ip -6 addr show dev veth0"), "tentative")
	})
}

// stranger is an agent on the machine outside.
func (s *scene) stranger() *agent { return newAgent(s.t, s.outside, s.outside.In("")) }

var sameLabels = string(policies.Default)

const denyAll = `apiVersion: thole/v1
kind: Policy
metadata: {name: deny-all}
spec: {selector: {}, ingress: [], egress: []}
`

// closedDB isolates db alone.
const closedDB = `apiVersion: thole/v1
kind: Policy
metadata: {name: closed-db}
spec: {selector: {matchLabels: {app: db}}, ingress: [], egress: []}
`

// reaches says whether c gets data to a listener of TCP, from a source or "".
func reaches(c *agent, from, to string, l *sock) bool {
	c.t.Helper()
	if from == "" {
		from = "0.0.0.0:0"
		if to[0] == '[' {
			from = "[::]:0"
		}
	}
	s := c.tcp(from)
	defer s.abort()
	if errno := s.connect(to); errno != 0 {
		return false
	}
	s.send("hello")
	conn := l.accept()
	if conn == nil {
		return false
	}
	defer conn.abort()
	return conn.got() == "hello"
}

// reachesUDP says whether a datagram of c gets to u.
func reachesUDP(c *agent, from, to string, u *sock) bool {
	c.t.Helper()
	if from == "" {
		from = "0.0.0.0:0"
		if to[0] == '[' {
			from = "[::]:0"
		}
	}
	s := c.udp(from)
	defer s.close()
	s.set([3]int{unix.SOL_SOCKET, unix.SO_BROADCAST, 1})
	s.sendTo(to, "hello")
	return strings.Contains(u.got(), "hello")
}

// must not, and may: the two outcomes of an attack and of its control.
func denied(t testing.TB, what string, reached bool) {
	t.Helper()
	if reached {
		t.Errorf("%s: it went through, want it denied", what)
	}
}

func allowed(t testing.TB, what string, reached bool) {
	t.Helper()
	if !reached {
		t.Errorf("%s: it was denied, want it allowed", what)
	}
}

// withBoth runs a test with the table of the program of baseline.Commit, through which the attacks go, and with the
// present one; or only with that of the program THOLE_BINARY, which must be as good as the present one.
func withBoth(t *testing.T, yaml string, test func(t *testing.T, s *scene, old bool)) {
	t.Helper()
	given := os.Getenv("THOLE_BINARY")
	if given == "" && !nstest.Slow() {
		t.Run(baseline.Commit[:7], func(t *testing.T) { test(t, newSceneOf(t, baseline.Program(t), yaml), true) })
	}
	t.Run("now", func(t *testing.T) { test(t, newSceneOf(t, given, yaml), false) })
}

// closed fails unless the payload of an attack arrives with the old table, and not with the new one.
func closed(t testing.TB, old bool, what string, reached bool) {
	t.Helper()
	if reached != old {
		t.Errorf("%s: arrived: %t, want %t", what, reached, old)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratch is where the program is built; TestMain removes it.
var scratch string

// tholeBinary builds the program once for all tests that run one, unless THOLE_BUILT says where it is. THOLE_BINARY
// says another thing: of which program the table is that is attacked.
var tholeBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("THOLE_BUILT"); path != "" {
		return path, nil
	}
	var err error
	if scratch, err = os.MkdirTemp("", "thole-attack-"); err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "thole")
	out, err := exec.Command("go", "build", "-o", path, "thole/cmd/thole").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, os.Chmod(scratch, 0o755)
})

// A machine is a host with a daemon.
type machine struct {
	*nstest.Host
	t       testing.TB
	thole   string
	process *nstest.Process // the daemon
}

const daemonSocket = "/run/thole/thole.sock"

func newMachine(t testing.TB, args ...string) *machine {
	t.Helper()
	thole, err := tholeBinary()
	must(t, err)
	m := &machine{Host: nstest.New(t), t: t, thole: thole}
	m.start(args...)
	return m
}

func (m *machine) start(args ...string) {
	m.t.Helper()
	m.process = m.In("daemon").Start(m.thole, append([]string{"daemon", "--state", "/run/state"}, args...)...)
	nstest.WaitFor(m.t, 10*time.Second, "the daemon to enforce", func() bool { return m.status().Enforcing })
}

func (m *machine) status() (status api.Status) {
	out, _ := m.Command(m.thole, "status", "-o", "json").Output() // it fails where there is a problem to tell of
	_ = json.Unmarshal(out, &status)
	return status
}

func (m *machine) apply(yaml string) {
	m.t.Helper()
	cmd := m.Command(m.thole, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("apply: %v: %s", err, out)
	}
}

// run starts an agent and has it ask the daemon for labels, as thole run does.
func (m *machine) run(uid int, name string, labels policy.Labels) *agent {
	m.t.Helper()
	a := newAgent(m.t, m.Host, m.In("users").As(uid))
	if answer := a.askRun(name, labels); !strings.Contains(answer, " 200 ") {
		m.t.Fatalf("run %s: %s", name, answer)
	}
	return a
}

// askRun asks the daemon to label the agent and returns the whole answer.
func (a *agent) askRun(name string, labels policy.Labels) string {
	a.t.Helper()
	body, err := json.Marshal(api.RunRequest{Name: name, Labels: labels, Command: "agent"})
	must(a.t, err)
	return a.request("POST /v1/run", string(body))
}

// request sends one HTTP request to the daemon.
func (a *agent) request(line, body string) string {
	a.t.Helper()
	r := a.do(call{Op: "ask", To: daemonSocket,
		Data: fmt.Appendf(nil, "%s HTTP/1.1\r\nHost: thole\r\nContent-Length: %d\r\n\r\n%s", line, len(body), body)})
	return string(r.Data)
}

// end ends the agent's process.
func (a *agent) end() {
	a.t.Helper()
	must(a.t, unix.Kill(a.PID(), unix.SIGKILL))
}
