package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/enforce"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/faults"
	"thole/internal/nstest/probe"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

var chaosTime = flag.Duration("chaos", 8*time.Second, "how long everything goes wrong")

// A policy change every 100 ms, calls of the kernel that fail, daemons that take over, a full
// disk, cgroups and containers that come and go, and another program that flushes or edits the table. There is
// no moment without our table but after the other program's change, which is mended; what is
// loaded in the end is what a fresh compile says, and nothing has piled up in the daemon.
func TestChaos(t *testing.T) {
	r := chance(t)
	m := newMachine(t, func(m *machine) {
		m.faults = faults.New(r.Uint64())
		m.state = "/run/chaos"
		m.args = []string{strconv.FormatUint(r.Uint64(), 10)}
		m.host.Shell("mkdir /run/chaos && mount -t tmpfs -o size=256k,mode=700 none /run/chaos")
		// The table of the other program is the only one that is flushed.
		m.engine = engine.StartDocker(t, m.host, "--bridge=none", "--iptables=false", "--ip6tables=false")
	})
	c := &chaos{machine: m, r: r, image: m.engine.Image("box", nil), witness: m.witness(), running: map[string]bool{}}
	web := m.host.In(m.patientRun(map[string]string{"app": "web"}).Answer.Cgroup)
	c.server = probe.Start(web, "server").Listen("tcp",
		"127.0.0.1:80")
	c.enemy = probe.Start(m.host.In(m.patientRun(map[string]string{"app": "dev"}).Answer.Cgroup), "enemy")
	c.container = m.engine.Probe("enemy", "--net=host", "-l", "app=dev", c.image)

	c.goOn(*chaosTime / 5)
	c.rest()
	warm := m.footprint()
	c.goOn(*chaosTime * 4 / 5)
	c.rest()
	end := m.footprint()
	t.Logf("the daemon took %+v after a fifth of the time, %+v in the end", warm, end)
	if *chaosTime < time.Minute { // it is still finding its size
		end.heap, end.resident = 0, 0
	}
	warm.mayGrowTo(t, end)
	c.witness.judge(t, "under faults", 0)
	log := m.log.String()
	t.Logf("tries of a change that failed: %d; changes that were put off, as all tries at once failed: %d",
		strings.Count(log, "trying again"),
		strings.Count(log, "the table could not be changed: the previous table"))
	t.Logf("system calls that failed: %v", c.faults.Count())
	c.fullDisk()
}

// A chaos is a machine on which all goes wrong.
type chaos struct {
	*machine
	r         *rand.Rand
	image     string
	witness   *witness
	server    *probe.Listener
	enemy     *probe.Process // may not reach the server
	container *probe.Process // nor may this one, in a container that is restarted now and then
	attempts  int            // of these two while the table was surely loaded

	running map[string]bool // containers that come and go
	edits   atomic.Int64    // of the other program: one more before each, and behind it
}

// callRate is how many system calls on netlink sockets there are to one that fails, beside
// those of faulty: a change of the table takes some hundred.
const callRate = 500

var chaosSets = []string{allowWeb + units, allowFrom("other") + units, allowFrom("more") + units}

// goOn has all go wrong for some time.
func (c *chaos) goOn(long time.Duration) {
	c.t.Helper()
	stop := c.churn(chaosSets, c.r.Uint64())
	c.faults.Set(callRate)
	done := make(chan struct{})
	var all sync.WaitGroup
	ofVandal, ofDocker := rand.New(rand.NewPCG(c.r.Uint64(), 3)), rand.New(rand.NewPCG(c.r.Uint64(), 4))
	all.Go(func() { c.vandalise(ofVandal, done) })
	all.Go(func() { c.dockerChurn(ofDocker, done) })
	for begun := time.Now(); time.Since(begun) < long; {
		c.cgroupChurn(c.r)
		if c.r.IntN(20) == 0 {
			c.engine.Docker("restart", "-t=0", "enemy")
			c.container.Stop() // a server's end of a Unix connection holds the client's cgroup
			c.container = c.engine.ProbeAgain("enemy")
		}
		if c.r.IntN(20) == 0 {
			c.takeOver()
		}
		for _, enemy := range []*probe.Process{c.enemy, c.container} {
			edits := c.edits.Load()
			whole := edits%2 == 0 && c.unlikeAll(chaosSets) == ""
			v := enemy.TCP(c.server.Addr)
			if !whole || c.edits.Load() != edits {
				continue // another program's change is there, or one is under way
			}
			c.attempts++
			if v.Allowed() {
				c.t.Errorf("with the table loaded, what is forbidden succeeded: %s → %s", enemy.Name, v)
			}
		}
	}
	c.faults.Set(0)
	close(done)
	all.Wait()
	stop()
	c.host.Shell("rm -f /run/chaos/fill")
}

// takeOver has another daemon begin.
func (c *chaos) takeOver() {
	c.witness.mu.Lock()
	defer c.witness.mu.Unlock()
	c.witness.ends = append(c.witness.ends, time.Now())
	_ = c.daemon.Process.Signal(syscall.SIGUSR2) // it lives until the test's end
}

// rest waits until the table is that of a fresh compile of what runs.
func (c *chaos) rest() {
	c.t.Helper()
	c.t.Logf("%d attempts of what is forbidden were made while the table was surely loaded", c.attempts)
	nstest.WaitFor(c.t, 3*patience, "the table to be that of a fresh compile", func() bool {
		return c.unlikeAll(chaosSets) == ""
	})
	nstest.WaitFor(c.t, patience, "the workloads to be what runs", func() bool { return c.unknown() == "" })
	c.denied("in the end")
}

// denied checks that what is forbidden is.
func (c *chaos) denied(when string) {
	c.t.Helper()
	for _, enemy := range []*probe.Process{c.enemy, c.container} {
		nstest.WaitFor(c.t, patience, when+", what is forbidden to be denied", func() bool {
			return !enemy.TCP(c.server.Addr).Allowed()
		})
	}
}

// unknown says which workload the daemon knows that is none, or does not know.
func (c *chaos) unknown() string {
	runs := map[string]bool{}
	for line := range strings.Lines(c.engine.Docker("ps", "--format={{.ID}}", "--no-trunc")) {
		runs["docker/"+strings.TrimSpace(line)] = true
	}
	for line := range strings.Lines(c.host.Shell("cd /sys/fs/cgroup && ls -d thole.slice/*.scope " +
		"system.slice/one.service system.slice/two.service 2>/dev/null || true")) {
		runs[strings.TrimSpace(line)] = true
	}
	known, err := c.client.Workloads(context.Background())
	if err != nil {
		return err.Error()
	}
	for _, w := range known {
		if !runs[w.Cgroup] {
			return w.Cgroup + " does not run"
		}
		delete(runs, w.Cgroup)
	}
	for cgroup := range runs {
		return cgroup + " is not known"
	}
	return ""
}

// fullDisk fills the state directory. What is enforced is what was asked for, and the status
// tells; when there is space again, all is written, and the next daemon takes it over.
func (c *chaos) fullDisk() {
	t := c.t
	t.Helper()
	set := allowFrom("last") + units
	apply := func() error {
		_, err := c.client.Apply(context.Background(),
			api.ApplyRequest{Files: []api.File{{Name: "test.yaml", Data: set}}})
		return err
	}
	full := func(said string) bool { return strings.Contains(said, "no space left on device") }
	nstest.WaitFor(t, patience, "apply to say that the disk is full", func() bool {
		c.host.Shell("dd if=/dev/zero of=/run/chaos/fill bs=4k 2>/dev/null || true")
		err := apply()
		return err != nil && full(err.Error())
	})
	nstest.WaitFor(t, patience, "the status to say that the disk is full", func() bool {
		s, err := c.client.Status(context.Background())
		return err == nil && s.LastError != nil && full(s.LastError.Text)
	})
	nstest.WaitFor(t, patience, "what was applied to be enforced", func() bool { return c.unlike(set) == "" })
	c.denied("with a full disk")

	c.host.Shell("rm /run/chaos/fill")
	nstest.WaitFor(t, patience, "the state to be written", func() bool {
		s, err := c.client.Status(context.Background())
		return err == nil && s.LastError == nil
	})
	before := c.read()
	c.args = nil // a daemon without faults would not have to mend what they did
	c.kill()
	c.start()
	if s := c.status(); s.Source != api.SourceApplied || s.Policies != 2 {
		t.Errorf("the next daemon enforces %d policies from %s; want the 2 that were applied", s.Policies, s.Source)
	}
	if change := ruleset.Diff(before, c.read()); !change.Empty() {
		t.Errorf("the next daemon did not adopt the table:\n%s", change)
	}
	if unlike := c.unlike(set); unlike != "" {
		t.Errorf("the next daemon's table differs from a fresh compile:\n%s", unlike)
	}
}

// dockerChurn starts, restarts and removes containers on the host's network.
func (c *chaos) dockerChurn(r *rand.Rand, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		default:
		}
		name := fmt.Sprintf("box-%d", r.IntN(4))
		var args []string
		switch {
		case !c.running[name]:
			args = []string{"run", "-d", "--name", name, "--net=host", "-l", "app=" + name, c.image, "nc", "-l", "-p",
				"90" + name[len(name)-1:] + "0"}
		case r.IntN(2) == 0:
			args = []string{"restart", "-t=0", name}
		default:
			args = []string{"rm", "-f", name}
		}
		if _, err := c.engine.TryDocker(args...); err != nil {
			c.t.Errorf("docker %v: %v", args, err)
			return
		}
		c.running[name] = args[0] != "rm"
	}
}

// units binds units that come and go.
var units = strings.ReplaceAll(bindUnit("one.service"), "name: it",
	"name: one") + strings.ReplaceAll(bindUnit("two.service"), "name: it", "name: two")

// patientRun is run where the daemon may say that it could not.
func (m *machine) patientRun(labels map[string]string) *process {
	m.t.Helper()
	var p *process
	nstest.WaitFor(m.t, patience, "a workload", func() bool {
		p = begin(m.t, m.in("", clientArgs(m.t, m.socket(), api.RunRequest{Labels: labels, Command: "test"}, nil)...))
		return p.Error == ""
	})
	return p
}

// cgroupChurn makes or removes a unit.
func (m *machine) cgroupChurn(r *rand.Rand) {
	unit := []string{"system.slice/one.service", "system.slice/two.service"}[r.IntN(2)]
	if m.host.CgroupID(unit) == 0 {
		m.host.MkCgroup(unit)
	} else {
		m.host.Rmdir(unit)
	}
}

// vandalise is another program that writes our table, and somebody who fills the disk.
func (c *chaos) vandalise(r *rand.Rand, done <-chan struct{}) {
	edits := []string{
		"flush ruleset", "delete table inet thole", "flush chain inet thole input", "add rule inet thole output accept",
		"insert rule inet thole input accept", "add chain inet thole mine",
		"add table inet other; delete table inet other",
	}
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(200+r.IntN(600)) * time.Millisecond):
		}
		switch i := r.IntN(len(edits) + 2); i {
		case len(edits):
			c.host.Shell("dd if=/dev/zero of=/run/chaos/fill bs=4k 2>/dev/null || true")
		case len(edits) + 1:
			c.host.Shell("rm -f /run/chaos/fill")
		default:
			c.edits.Add(1)
			_ = c.host.Nft(edits[i]) // it fails where the table is not there just now
			c.edits.Add(1)
		}
	}
}

// A witness watches our table by the kernel's notifications.
type witness struct {
	mu     sync.Mutex
	writes []seenWrite
	ends   []time.Time // when a daemon was told to give way to the next
	lost   bool
}

type seenWrite struct {
	kernel.Write
	at time.Time
}

func (m *machine) witness() *witness {
	m.t.Helper()
	w := &witness{}
	var l *kernel.Listener
	var err error
	if doErr := m.host.Do(func() {
		l, err = kernel.Listen(kernel.Options{}, enforce.TableName)
	}); errors.Join(doErr, err) != nil {
		m.t.Fatal(doErr, err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			write, err := l.Next()
			w.mu.Lock()
			switch {
			case errors.Is(err, kernel.ErrLost):
				w.lost = true
			case err == nil:
				w.writes = append(w.writes, seenWrite{write, time.Now()})
			}
			w.mu.Unlock()
			if err != nil && !errors.Is(err, kernel.ErrLost) {
				return
			}
		}
	}()
	m.t.Cleanup(func() {
		_ = l.Close()
		<-ended
	})
	return w
}

// whole says whether nobody but the daemon has written the table last.
func (w *witness) whole() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.writes) > 0 && w.writes[len(w.writes)-1].Program != "nft"
}

// foreign counts the other program's changes.
func (w *witness) foreign() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, write := range w.writes {
		if write.Program == "nft" {
			n++
		}
	}
	return n
}

// judge holds what was seen against what may be, and how soon the table came back
// against an aim, unless that is 0.
func (w *witness) judge(t *testing.T, when string, aim time.Duration) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lost {
		t.Error("the witness lost notifications")
	}
	var took, anew []time.Duration
	changes := 0
	for i, a := range w.writes {
		if a.Program != "nft" {
			changes++
			if a.Removed {
				t.Errorf("%s: %s removed the table", when, a)
			}
			continue
		}
		mended := slices.IndexFunc(w.writes[i:], func(b seenWrite) bool { return b.Program != "nft" })
		if mended < 0 {
			t.Errorf("%s: the change by %s was never mended", when, a)
			continue
		}
		at := w.writes[i+mended].at
		if slices.ContainsFunc(w.ends, func(end time.Time) bool {
			return end.After(a.at.Add(-time.Second)) && end.Before(at)
		}) {
			anew = append(anew, at.Sub(a.at))
		} else {
			took = append(took, at.Sub(a.at))
		}
	}
	if len(took) == 0 {
		t.Fatalf("%s: nobody changed the table", when)
	}
	slices.Sort(took)
	t.Logf("%s: %d changes by the daemon; %d by another program, mended after: median %v, p99 %v, longest %v",
		when, changes, len(took)+len(anew), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
	if len(anew) > 0 {
		slices.Sort(anew)
		t.Logf("%s: %d of them within a second of a daemon's end, mended by it or the next after: median %v, "+
			"longest %v", when, len(anew), anew[len(anew)/2], anew[len(anew)-1])
	}
	if p99 := took[len(took)*99/100]; aim != 0 && p99 > aim {
		t.Errorf("%s: p99 %v; want at most %v", when, p99, aim)
	}
}

var (
	flushes = flag.Int("flushes", 30, "how often another program removes the table")
	soon    = flag.Duration("soon", patience, "99 of 100 times it must be back so soon")
)

// How soon the table is back, with workloads in it and nothing else going on.
func TestMendedSoon(t *testing.T) {
	m := newMachine(t)
	m.apply(allowWeb)
	for _, app := range []string{"web", "db", "dev"} {
		m.run(map[string]string{"app": app})
	}
	w := m.witness()
	for n := range *flushes {
		if err := m.host.Nft("flush ruleset"); err != nil {
			t.Fatal(err)
		}
		nstest.WaitFor(t, patience, "the table to be mended", func() bool { return w.foreign() == n+1 && w.whole() })
	}
	nstest.WaitFor(t, patience, "the program's name", func() bool {
		s := m.status()
		return s.Mended == *flushes && s.LastMended != nil && s.LastMended.Program == "nft"
	})
	if unlike := m.unlike(allowWeb); unlike != "" {
		t.Errorf("the table differs from a fresh compile:\n%s", unlike)
	}
	w.judge(t, "alone", *soon)
}
