package legit

import (
	"bytes"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/nstest"
	"thole/internal/nstest/baseline"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

var only = flag.String("only", "", "run only the cases whose name this regular expression matches")

func TestMain(m *testing.M) {
	var play func() error
	switch {
	case len(os.Args) == 2 && os.Args[1] == workerFlag:
		play = playWorker
	case len(os.Args) == 3 && os.Args[1] == childFlag:
		play = func() error { return playChild(os.Args[2]) }
	default:
		nstest.Main(m)
	}
	if err := play(); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[1:], err)
		os.Exit(1)
	}
	os.Exit(0)
}

// exceptions are cases that may fail with the table, and why: what docs/SECURITY.md says that an allowed connection may
// wait for.
var exceptions = []struct {
	name   *regexp.Regexp
	reason string
}{
	{regexp.MustCompile("^UDP, (client|socket) bound to a device, "),
		"nftables looks for sockets of lo only"},
	{regexp.MustCompile("^before the table: (.*server first|.*half closed|.*data under way)"),
		"who opened a connection that is older than the table is not known before the client's next packet"},
}

// excepted returns the reason of the case's exception, "" if it is none.
func excepted(name string) string {
	for _, e := range exceptions {
		if e.name.MatchString(name) {
			return e.reason
		}
	}
	return ""
}

// Whatever works without a table works with it, where the policies allow it. THOLE_LEGIT=all tells of the table of the
// old program, too.
func TestLegitimateUses(t *testing.T) {
	nstest.Need(t, "nft", "ip")
	all := cases(t)
	without := pass(t, "no table", all, func(*node) loader { return nil })
	with := pass(t, "the table", all, (*node).present)
	for _, c := range all {
		if without[c.name()] != nil || with[c.name()] == nil {
			continue
		}
		if reason := excepted(c.name()); reason != "" {
			t.Logf("%s: it fails, as is known: %s", c.name(), reason)
			continue
		}
		t.Errorf("%s: it passes without the table, but with it: %v", c.name(), with[c.name()])
	}
	if os.Getenv("THOLE_LEGIT") == "all" {
		pass(t, "the table of "+baseline.Commit[:7], all, (*node).oldTable)
	}
}

// A testCase is a situation at an address between two parties.
type testCase struct {
	*situation
	who  who
	side side // the address, and the ports of the last attempt
}

func (c *testCase) name() string {
	return fmt.Sprintf("%s, %v, %s", c.situation.name, c.side.at, c.who.name)
}

func cases(t testing.TB) (list []*testCase) {
	t.Helper()
	filter, err := regexp.Compile(*only)
	must(t, err)
	known := situations()
	for i := range known {
		s := &known[i]
		if s.whos == nil {
			s.whos = everyone
		}
		if s.addrs == nil {
			s.addrs = addresses
		}
		for _, at := range s.addrs {
			for _, w := range s.whos {
				if c := (&testCase{situation: s, who: w, side: side{at: at}}); filter.MatchString(c.name()) {
					list = append(list, c)
				}
			}
		}
	}
	return list
}

// pass runs all cases and returns the error of each that failed twice.
func pass(t *testing.T, what string, all []*testCase, table func(*node) loader) (failed map[string]error) {
	t.Helper()
	begin := time.Now()
	ran := t.Run(what, func(t *testing.T) { // its end is the end of the node
		n := newNode(t)
		n.table = table(n)
		failed = n.round(all)
		again := slices.DeleteFunc(slices.Clone(all), func(c *testCase) bool { return failed[c.name()] == nil })
		first := failed
		if failed = n.round(again); len(failed) < len(first) {
			t.Logf("%s: %d of %d failures did not come again", what, len(first)-len(failed), len(first))
		}
		for name, err := range first {
			if failed[name] == nil {
				t.Logf("failed once: %s: %v", name, err)
			}
		}
	})
	if !ran {
		t.Fatalf("%s: the cases were not run", what)
	}
	t.Logf("%s: %d of %d cases passed in %v", what, len(all)-len(failed), len(all),
		time.Since(begin).Round(time.Millisecond))
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		t.Logf("%s: failed: %s: %v", what, name, failed[name])
	}
	return failed
}

// A node is a host with the workers, linked to another machine.
type node struct {
	*nstest.Host
	t       testing.TB
	workers map[string]*worker
	table   loader // nil: there is none
	port    atomic.Int64
}

// A loader loads a table where there is none.
type loader func(*nstest.Host) error

// conntrackTable has conntrack follow connections, and nothing else.
const conntrackTable = `table inet legit { chain output { type filter hook output priority 0; ct state new accept; }; }
`

const natTable = `table ip legit { chain output { type nat hook output priority -100; }; }
`

func newNode(t testing.TB) *node {
	n := &node{Host: nstest.New(t), t: t, workers: map[string]*worker{}}
	outside := nstest.New(t)
	nstest.Link(n.Host, ours4+"/24", ours6+"/64", outside, "10.0.0.2/24", "fd00::2/64")
	for name, path := range map[string]string{
		"web": "thole.slice/web", "web2": "thole.slice/web2", "client": "thole.slice/client", "free": "a", "free2": "b",
	} {
		n.workers[name] = newWorker(t, n.In(path))
	}
	n.workers["outside"] = newWorker(t, outside.In(""))
	n.port.Store(10_000)
	n.Shell("sysctl -qw net.ipv4.tcp_fastopen=3 net.ipv4.tcp_max_syn_backlog=4096 net.core.somaxconn=4096")
	return n
}

// labels are of the workloads.
var labels = map[string]string{"web": "web", "web2": "web", "client": "client"}

// present is the table of the present program.
func (n *node) present() loader {
	n.t.Helper()
	var workloads []policy.Workload
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		workloads = append(workloads, workload(n.Host, name, labels[name]))
	}
	return compiled(n.t, policyYAML, workloads)
}

// workload is the cgroup of this name as a workload.
func workload(host *nstest.Host, name, app string) policy.Workload {
	path := "thole.slice/" + name
	return policy.Workload{Name: name, Kind: policy.KindRun, Labels: policy.Labels{"app": app},
		Cgroup: policy.Cgroup{Path: path, ID: host.In(path).ID()}}
}

// compiled is the table of policies and workloads. It is loaded as the daemon does: nft 1.0.6 cannot load every text
// of ours on every kernel.
func compiled(t testing.TB, policies string, workloads []policy.Workload) loader {
	t.Helper()
	docs, err := policy.Parse([]policy.File{{Name: "policies.yaml", Data: []byte(policies)}})
	must(t, err)
	result, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: workloads,
		Options: compiler.Options{Epoch: 1}})
	must(t, err)
	return func(host *nstest.Host) (err error) {
		enterErr := host.Do(func() {
			var conn *kernel.Conn
			if conn, err = kernel.Open(kernel.Options{}); err != nil {
				return
			}
			defer conn.Close()
			err = conn.Apply(ruleset.Diff(nil, &result.Table))
		})
		return errors.Join(enterErr, err)
	}
}

// oldTable is the table of the old program.
func (n *node) oldTable() loader {
	n.t.Helper()
	yaml := policyYAML
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		yaml += fmt.Sprintf(`---
apiVersion: thole/v1
kind: Workload
metadata: {name: %s, labels: {app: %s}}
spec: {cgroup: thole.slice/%s}
`, name, labels[name], name)
	}
	file := filepath.Join(n.t.TempDir(), "policy.yaml")
	must(n.t, os.WriteFile(file, []byte(yaml), 0o600))
	cmd := n.Command(baseline.Program(n.t), "apply", "--dry-run", "-f", file)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		n.t.Fatalf("the old program: %v: %s", err, errs.String())
	}
	return func(host *nstest.Host) error { return host.Nft(string(out)) }
}

// round runs cases, phase after phase, and returns the errors of those that fail. It leaves the node as it found it.
func (n *node) round(list []*testCase) (failed map[string]error) {
	failed = map[string]error{}
	var mu sync.Mutex
	phases := map[phase][]*testCase{}
	for _, c := range list {
		phases[c.phase] = append(phases[c.phase], c)
	}
	run := func(of phase, atATime int, p *pauses) {
		room := make(chan struct{}, atATime)
		var all sync.WaitGroup
		for _, c := range phases[of] {
			room <- struct{}{}
			all.Go(func() {
				if err := n.run(c, p); err != nil {
					mu.Lock()
					failed[c.name()] = err
					mu.Unlock()
				}
				<-room
			})
		}
		all.Wait()
	}

	before := func(of phase) {
		p := newPauses(2 * len(phases[of]))
		go func() {
			p.sides.Wait()
			n.load()
			close(p.over)
		}()
		run(of, 1+len(phases[of]), p)
		<-p.over
	}
	before(early)
	n.unload()
	n.Shell("nft -f - <<'.'\n" + conntrackTable + ".")
	before(tracked)
	n.Shell("nft delete table inet legit")
	run(usual, atOnce, nil)
	n.Shell("sysctl -qw net.ipv4.tcp_syncookies=2")
	run(cookies, atOnce, nil)
	n.Shell("sysctl -qw net.ipv4.tcp_syncookies=1; ip link set lo mtu 1500")
	run(smallMTU, atOnce, nil)
	n.Shell("ip link set lo mtu 65536")
	n.prepare(phases[translated])
	run(translated, atOnce, nil)
	n.Shell("nft delete table ip legit")
	n.unload()
	return failed
}

// load loads the table, if the pass has one.
func (n *node) load() {
	if n.table == nil {
		return
	}
	if err := n.table(n.Host); err != nil {
		n.t.Errorf("the table: %v", err)
	}
}

func (n *node) unload() {
	if n.table != nil {
		n.Shell("nft delete table inet thole")
	}
}

// atOnce is how many cases of a phase are done at a time.
const atOnce = 32

// prepare loads the rules that the cases want.
func (n *node) prepare(list []*testCase) {
	var rules strings.Builder
	rules.WriteString(natTable)
	for _, c := range list {
		c.side.port = n.ports()
		rules.WriteString(c.situation.prepare(&c.side))
	}
	must(n.t, n.Nft(rules.String()))
}

func (n *node) ports() int { return int(n.port.Add(portsOfCase)) }

// pauses are where sides of early cases wait for the table.
type pauses struct {
	sides sync.WaitGroup
	over  chan struct{}
}

func newPauses(sides int) *pauses {
	p := &pauses{over: make(chan struct{})}
	p.sides.Add(sides)
	return p
}

// run runs a case and returns what failed in it.
func (n *node) run(c *testCase, p *pauses) error {
	if c.phase != translated {
		c.side.port = n.ports()
	}
	o := order{Situation: c.situation.name, At: c.side.at, Port: c.side.port}
	client, server := n.workers[c.who.client], n.workers[c.who.server]
	clientID, clientEvents := client.start(o)
	o.Server = true
	serverID, serverEvents := server.start(o)

	results := make(chan error, 2)
	go func() { results <- follow(serverEvents, "server", p, server, serverID, client, clientID) }()
	go func() { results <- follow(clientEvents, "client", p, client, clientID, server, serverID) }()
	first, second := <-results, <-results
	return cmp.Or(first, second)
}

// follow does what the events of a side ask for, until it is done.
func follow(events chan event, name string, p *pauses, own *worker, id int, other *worker, otherID int) error {
	paused := false
	for e := range events {
		switch e.Kind {
		case "tell":
			other.tell(otherID, e.Text)
		case "pause":
			paused = true
			p.sides.Done()
			go func() {
				<-p.over
				own.tell(id, "go on")
			}()
		case "done":
			if p != nil && !paused {
				p.sides.Done()
			}
			other.tell(otherID, "ended")
			if e.Text != "" {
				return fmt.Errorf("%s: %s", name, e.Text)
			}
			return nil
		}
	}
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
