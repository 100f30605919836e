package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/internal/api"
	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch/docker/dockertest"
)

// The size of a scale benchmark. Policies name more classes than there are, so that a new label set is a class that
// policies say something of.
const (
	scaleClasses  = 200
	scaleSpare    = 20
	scalePolicies = 1000
	scaleCIDRs    = 10_000 // in one rule, where there is a list of them
	scaleMore     = 10     // workloads that begin one after the other
)

// BenchmarkScale measures what changes cost at 1,000 and at 10,000 workloads, each without and with a long list of
// CIDRs: the time from the event to the commit, and processor time. What is measured through a daemon has the
// processor time of the daemon, until it has nothing more to do.
func BenchmarkScale(b *testing.B) {
	for b.Loop() {
		costs := map[string]cost{}
		for _, workloads := range []int{1000, 10_000} {
			for _, list := range []string{"", "+list"} {
				s := scale{workloads, list != ""}
				for _, measured := range []map[string]cost{s.compiled(b), s.daemon(b)} {
					for what, c := range measured {
						costs[fmt.Sprintf("%s@%d%s", what, workloads, list)] = c
					}
				}
			}
		}
		for _, what := range slices.Sorted(maps.Keys(costs)) {
			c := costs[what]
			reportTimes(b, "ms/"+what, time.Millisecond, c.times)
			report(b, "cpu-ms/"+what, c.cpu)
			if len(c.memory) > 0 {
				report(b, "MB/"+what, c.memory)
			}
			if less := strings.Replace(what, "@10000", "@1000", 1); less != what {
				b.ReportMetric(c.median()/costs[less].median(), "ratio/"+what)
			}
		}
	}
}

// A cost is what something took, each time.
type cost struct {
	times  []time.Duration
	cpu    []float64 // ms
	memory []float64 // MB
}

func (c cost) median() float64 {
	times := slices.Sorted(slices.Values(c.times))
	return float64(times[len(times)/2])
}

// A scale is what a benchmark measures a change of.
type scale struct {
	workloads int
	list      bool
}

// policies are those of the scale.
func (s scale) policies() string {
	text := reference.ScalePolicies(scaleClasses+scaleSpare, scalePolicies)
	if !s.list {
		return text
	}
	var cidrs []string
	for i := range scaleCIDRs {
		cidrs = append(cidrs, fmt.Sprintf("{cidr: 172.%d.%d.%d/31}", 16+i>>14, i>>6&255, i<<2&255))
	}
	return text + scalePolicy("list", "egress: [{to: ["+strings.Join(cidrs, ", ")+"]}]")
}

// scalePolicy is one policy more, of one class.
func scalePolicy(name, rules string) string {
	return fmt.Sprintf("---\napiVersion: thole/v1\nkind: Policy\nmetadata: {name: %s}\n"+
		"spec: {selector: {matchLabels: {app: app003}}, %s}\n", name, rules)
}

// scaleLabels are those of a class.
func scaleLabels(class int) map[string]string {
	return map[string]string{"app": fmt.Sprintf("app%03d", class), "env": []string{"prod", "dev"}[class%2],
		"team": fmt.Sprintf("t%02d", class%20)}
}

// input is what the compiler is given.
func (s scale) input(b *testing.B) compiler.Input {
	in := reference.Scale(s.workloads+scaleMore, scaleClasses, 0)
	docs, err := policy.Parse(reference.Files(s.policies()))
	must(b, err)
	in.Policies = docs.Policies
	return in
}

// compiled measures compiler and kernel alone.
func (s scale) compiled(b *testing.B) map[string]cost {
	const rounds = 5
	h := nstest.New(b)
	var conn *kernel.Conn
	var err error
	must(b, h.Do(func() { conn, err = kernel.Open(kernel.Options{}) }))
	must(b, err)
	defer conn.Close()
	in := s.input(b)
	last := in.Workloads[s.workloads:]
	in.Workloads = in.Workloads[:s.workloads]
	var compile, everything, more, remote cost
	for range rounds {
		must(b, conn.Delete("thole"))
		var r compiler.Result
		began, worked := time.Now(), ownTime(b)
		in.Options.Epoch = 1
		compile.measure(b, func() { r, err = compiler.Compile(in) })
		must(b, err)
		must(b, conn.Apply(ruleset.Diff(nil, &r.Table)))
		everything.times = append(everything.times, time.Since(began))
		everything.cpu = append(everything.cpu, milliseconds(ownTime(b)-worked))
		for i := range last {
			after := in
			after.Workloads = slices.Concat(in.Workloads, last[:i+1])
			more.measure(b, func() { change(b, conn, &r, compiler.Change{Began: last[i : i+1]}, after) })
		}
	}
	in.Fleet = &compiler.Fleet{Networks: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, Queue: 5448}
	met := func(i int) []policy.Remote {
		return []policy.Remote{{Node: fmt.Sprint("node", i), Labels: scaleLabels(scaleClasses + i),
			Address: netip.AddrFrom4([4]byte{192, 168, 1, byte(i)})}}
	}
	in.Remotes = met(0)
	must(b, conn.Delete("thole"))
	r, err := compiler.Compile(in)
	must(b, err)
	must(b, conn.Apply(ruleset.Diff(nil, &r.Table)))
	for i := 1; i < scaleSpare; i++ {
		in.Remotes = slices.Concat(in.Remotes, met(i))
		remote.measure(b, func() { change(b, conn, &r, compiler.Change{Met: met(i)}, in) })
	}
	return map[string]cost{"compile": compile, "compile-and-load": everything, "difference-and-load": more,
		"remote-new": remote}
}

// change makes a change of a compiled table that is loaded, as the daemon does: everything is compiled where the step
// cannot be loaded. after is all that there is then.
func change(b *testing.B, conn *kernel.Conn, r *compiler.Result, c compiler.Change, after compiler.Input) {
	step, ok := r.Change(c)
	if !ok {
		b.Fatal("the change needs all to be compiled")
	}
	patch := step.Patch(1)
	if conn.Apply(patch.Change("thole")) == nil {
		r.Table.Patch(patch)
		return
	}
	have, err := conn.Read("thole")
	must(b, err)
	after.Numbers, after.Options.Epoch = r.Numbers, 1
	again, err := compiler.Compile(after)
	must(b, err)
	must(b, conn.Apply(ruleset.Diff(have, &again.Table)))
	*r = again
}

// measure adds what something takes in this process.
func (c *cost) measure(b *testing.B, do func()) {
	began, worked := time.Now(), ownTime(b)
	do()
	c.times = append(c.times, time.Since(began))
	c.cpu = append(c.cpu, milliseconds(ownTime(b)-worked))
}

// ownTime is the processor time of this process.
func ownTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// A scaleDaemon is a daemon that knows many workloads, and what is seen of it.
type scaleDaemon struct {
	*benchedDaemon
	b       *testing.B
	engine  *dockertest.Engine
	client  *api.Client
	tree    *fsnotify.Watcher
	made    chan madeCgroup // cgroups of thole run
	emptied chan time.Time  // by the last process of one that is watched
	commits chan time.Time
	files   []api.File // the policy set
}

// A madeCgroup is a cgroup, and when it was made.
type madeCgroup struct {
	path string
	at   time.Time
}

// daemon measures changes through a daemon.
func (s scale) daemon(b *testing.B) map[string]cost {
	d := s.newDaemon(b)
	defer d.end()
	defer schedule(b, "--other", "0")
	costs := map[string]cost{}
	costs["one-workload-more"], costs["one-workload-less"] = d.oneMoreAndLess(50)
	costs["container-more"] = d.containers(20, func(i int) int { return i % scaleClasses })
	costs["container-new"] = d.containers(20, func(i int) int { return scaleClasses + i%scaleSpare })
	costs["policy-more"] = d.policyMore(7)
	costs["start"] = d.startAgain(3)
	return costs
}

func (s scale) newDaemon(b *testing.B) *scaleDaemon {
	dir := b.TempDir()
	d := &scaleDaemon{b: b, benchedDaemon: &benchedDaemon{machine: bareMachine(b), socket: filepath.Join(dir, "sock")},
		made: make(chan madeCgroup, 1000), emptied: make(chan time.Time, 1000), commits: make(chan time.Time, 1000)}
	docker := filepath.Join(dir, "docker.sock")
	d.engine, d.client = dockertest.Start(b, docker), api.NewClient(d.socket)
	d.args = []string{"--docker", "unix://" + docker}
	for i := range s.workloads {
		must(b, os.MkdirAll(d.CgroupDir(fmt.Sprintf("scale/c%03d/w%05d", i%scaleClasses, i)), 0o755))
	}
	d.MkCgroup("docker")
	d.begin()
	for i, f := range reference.Files(s.policies() + bindClasses(scaleClasses)) {
		d.files = append(d.files, api.File{Name: fmt.Sprintf("scale%02d.yaml", i), Data: string(f.Data)})
	}
	d.apply()
	d.run(0) // it makes the parent of all
	d.workloads = s.workloads + 1
	d.wait("all workloads", func(s api.Status) bool { return s.Workloads == d.workloads })
	d.watch()
	// What this process sees, it has to see as soon as the daemon does, which is scheduled like that.
	schedule(b, "--rr", "1")
	return d
}

// schedule has the kernel schedule all threads of this process in another way, but not those that begin later.
func schedule(b *testing.B, policy, priority string) {
	out, err := exec.Command("chrt", "--reset-on-fork", "--all-tasks", policy, "--pid", priority,
		strconv.Itoa(os.Getpid())).CombinedOutput()
	if err != nil {
		b.Fatalf("chrt: %v: %s", err, out)
	}
}

// apply applies the policy set, and more.
func (d *scaleDaemon) apply(more ...api.File) {
	_, err := d.client.Apply(context.Background(), api.ApplyRequest{Files: append(slices.Clone(d.files), more...)})
	must(d.b, err)
}

func (d *scaleDaemon) run(i int) *nstest.Process {
	return d.In("").Start(d.thole, "run", "--socket", d.socket, "--label", fmt.Sprintf("app=app%03d", i%scaleClasses),
		"--", "sleep", "infinity")
}

func (d *scaleDaemon) wait(what string, is func(api.Status) bool) {
	nstest.WaitFor(d.b, time.Minute, what, func() bool {
		s, err := d.client.Status(context.Background())
		return err == nil && is(s)
	})
}

// watch sees what becomes of cgroups of thole run, and of the table.
func (d *scaleDaemon) watch() {
	var err error
	d.tree, err = fsnotify.NewWatcher()
	must(d.b, err)
	d.b.Cleanup(func() { d.tree.Close() })
	must(d.b, d.tree.Add(d.CgroupDir("thole.slice")))
	go func() {
		for e := range d.tree.Events {
			switch {
			case e.Has(fsnotify.Create):
				d.made <- madeCgroup{e.Name, time.Now()}
			case e.Has(fsnotify.Write) && filepath.Base(e.Name) == "cgroup.events":
				d.emptied <- time.Now()
			}
		}
	}()
	var writes *kernel.Listener
	must(d.b, d.Do(func() { writes, err = kernel.Listen(kernel.Options{}, "thole") }))
	must(d.b, err)
	d.b.Cleanup(func() { writes.Close() })
	go func() {
		for _, err := writes.Next(); err == nil; _, err = writes.Next() {
			d.commits <- time.Now()
		}
	}()
}

// quiet waits until the daemon has nothing to do, forgets what was seen, and returns the processor time that the daemon
// has had, in ms.
func (d *scaleDaemon) quiet() float64 {
	last, same := -1.0, 0
	nstest.WaitFor(d.b, time.Minute, "the daemon to have nothing to do", func() bool {
		now := d.worked()
		if same++; now != last {
			last, same = now, 0
		}
		return same >= 5
	})
	for len(d.commits) > 0 {
		<-d.commits
	}
	for len(d.emptied) > 0 {
		<-d.emptied
	}
	for len(d.made) > 0 {
		<-d.made
	}
	return last
}

// worked is the processor time of all threads of the daemon, in ms: finer than the kernel's ticks.
func (d *scaleDaemon) worked() (ms float64) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", d.machine.daemon.Pid))
	must(d.b, err)
	for _, thread := range threads {
		var ns float64
		if data, err := os.ReadFile(thread); err == nil { // else it has ended
			_, err = fmt.Sscan(string(data), &ns)
			must(d.b, err)
		}
		ms += ns / 1e6
	}
	return ms
}

// commit adds the time from an event to the commit that follows it.
func (c *cost) commit(event, commit time.Time) {
	c.times = append(c.times, max(0, commit.Sub(event))) // this process may see them in the other order
}

// oneMoreAndLess measures from the making of a cgroup of thole run to the commit that has it, and from the kernel's
// event that the cgroup is empty to the commit that has it no more.
func (d *scaleDaemon) oneMoreAndLess(rounds int) (more, less cost) {
	for i := range rounds {
		before := d.quiet()
		p := d.run(i)
		made := <-d.made
		more.commit(made.at, <-d.commits)
		nstest.WaitFor(d.b, time.Minute, "the process to be what it runs", func() bool {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Pid))
			return string(name) == "sleep\n"
		})
		between := d.quiet()
		must(d.b, d.tree.Add(filepath.Join(made.path, "cgroup.events")))
		must(d.b, p.Kill())
		less.commit(<-d.emptied, <-d.commits)
		d.wait("its end", func(s api.Status) bool { return s.Runs == 1 })
		more.cpu, less.cpu = append(more.cpu, between-before), append(less.cpu, d.quiet()-between)
	}
	return more, less
}

// containers measures from the engine's answer what a container is to the commit that has it. Each has the labels of a
// class, and has ended before the next one begins.
func (d *scaleDaemon) containers(rounds int, class func(i int) int) (c cost) {
	for i := range rounds {
		id := fmt.Sprintf("%064x", i+1)
		d.engine.Put(dockertest.Container{ID: id, Name: fmt.Sprint("box", i), Network: "host", Running: true,
			Labels: scaleLabels(class(i))})
		before := d.quiet()
		d.MkCgroup("docker/" + id)
		commit := <-d.commits
		answer, ok := d.engine.Answered(id)
		if !ok {
			d.b.Fatal("the table was changed for a container before the engine was asked")
		}
		c.commit(answer, commit)
		c.cpu = append(c.cpu, d.quiet()-before)
		d.Rmdir("docker/" + id)
		<-d.commits
		d.engine.Remove(id)
	}
	return c
}

// policyMore measures from a request with one policy more to the commit.
func (d *scaleDaemon) policyMore(rounds int) (c cost) {
	one := api.File{Name: "one.yaml", Data: scalePolicy("one",
		"ingress: [{from: [{workloads: {matchLabels: {app: app007}}}], ports: [999/tcp]}]")}
	for range rounds {
		before, began := d.quiet(), time.Now()
		d.apply(one)
		c.commit(began, <-d.commits)
		c.cpu = append(c.cpu, d.quiet()-before)
		d.apply()
	}
	return c
}

// startAgain measures a daemon that finds everything loaded.
func (d *scaleDaemon) startAgain(rounds int) (c cost) {
	for range rounds {
		d.end()
		d.quietTable()
		c.times = append(c.times, d.begin())
		c.cpu = append(c.cpu, d.worked())
		c.memory = append(c.memory, d.memory("VmRSS"))
		if len(d.commits) > 0 {
			d.b.Error("the daemon that began again changed the table")
		}
	}
	return c
}

// quietTable forgets which commits were seen, where no daemon runs.
func (d *scaleDaemon) quietTable() {
	for len(d.commits) > 0 {
		<-d.commits
	}
}
