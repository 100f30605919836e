package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"thole/compiler"
	"thole/compiler/reference"
	"thole/internal/api"
	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// BenchmarkScale measures what a change costs at 100 and at 10,000 workloads of up to
// 200 classes under 1,000 policies: to compile and load all of it into an empty kernel,
// to work out and load what one workload more of a class changes, and, through the
// daemon, one workload of thole run more and less.
func BenchmarkScale(b *testing.B) {
	const policies, rounds = 1000, 9
	for b.Loop() {
		for _, workloads := range []int{100, 10_000} {
			h := nstest.New(b)
			var conn *kernel.Conn
			var err error
			must(b, h.Do(func() { conn, err = kernel.Open(kernel.Options{}) }))
			must(b, err)
			in := reference.Scale(workloads+1, min(200, workloads), policies)
			all := in.Workloads
			in.Workloads = all[:workloads]
			var compile, load, whole, more []time.Duration
			for range rounds {
				must(b, conn.Delete("thole"))
				began := time.Now()
				r, err := compiler.Compile(in)
				must(b, err)
				compiled := time.Now()
				must(b, conn.Apply(ruleset.Diff(nil, &r.Table)))
				compile, load = append(compile, compiled.Sub(began)), append(load, time.Since(compiled))
				whole = append(whole, time.Since(began))

				began = time.Now()
				step, ok := r.Change(compiler.Change{Began: all[workloads:]})
				if !ok {
					b.Fatal("one workload more of a class needs all to be compiled")
				}
				patch := step.Patch(1)
				must(b, conn.Apply(patch.Change("thole")))
				r.Table.Patch(patch)
				more = append(more, time.Since(began))
			}
			must(b, conn.Close())
			began, ended := changesOfOne(b, workloads, min(200, workloads), policies)
			for _, m := range []struct {
				what  string
				times []time.Duration
			}{{"compile", compile}, {"load", load}, {"compile-and-load", whole}, {"difference-and-load", more},
				{"one-workload-more", began}, {"one-workload-less", ended}} {
				reportTimes(b, fmt.Sprintf("ms/%s@%d", m.what, workloads), time.Millisecond, m.times)
			}
			if data, err := os.ReadFile("/proc/self/status"); err == nil {
				for line := range strings.Lines(string(data)) {
					if strings.HasPrefix(line, "RssAnon") {
						fmt.Printf("%6d workloads, memory of this process: %s", workloads, line)
					}
				}
			}
		}
	}
}

// changesOfOne measures, through a daemon that knows so many workloads, how long it takes
// from the making of a cgroup of thole run to the commit that has it, and from the kill of
// its process to the commit that has it no more.
func changesOfOne(b *testing.B, workloads, classes, policies int) (began, ended []time.Duration) {
	const rounds = 100
	thole, err := tholeBinary()
	must(b, err)
	dir := b.TempDir()
	d := &benchedDaemon{machine: &machine{Host: nstest.New(b), t: b, thole: thole}, workloads: workloads,
		policies: filepath.Join(dir, "policies"), socket: filepath.Join(dir, "sock")}
	must(b, os.Mkdir(d.policies, 0o755))
	must(b, os.WriteFile(filepath.Join(d.policies, "scale.yaml"),
		[]byte(reference.ScalePolicies(classes, policies)+bindClasses(classes)), 0o644))
	for i := range workloads {
		must(b, os.MkdirAll(d.CgroupDir(fmt.Sprintf("scale/c%03d/w%05d", i%classes, i)), 0o755))
	}
	d.begin()
	defer d.end()
	run := func(i int) *nstest.Process {
		return d.In("").Start(thole, "run", "--socket", d.socket, "--label", fmt.Sprintf("app=app%03d", i%classes),
			"--", "sleep", "infinity")
	}
	run(0) // it makes the parent of all
	count := func(n int) func() bool {
		client := api.NewClient(d.socket)
		return func() bool {
			s, err := client.Status(context.Background())
			return err == nil && s.Runs == n
		}
	}
	nstest.WaitFor(b, time.Minute, "the first", count(1))

	tree, err := fsnotify.NewWatcher()
	must(b, err)
	defer tree.Close()
	must(b, tree.Add(d.CgroupDir("thole.slice")))
	made, commits := make(chan time.Time, 1000), make(chan time.Time, 1000)
	go func() {
		for e := range tree.Events {
			if e.Has(fsnotify.Create) {
				made <- time.Now()
			}
		}
	}()
	var writes *kernel.Listener
	must(b, d.Do(func() { writes, err = kernel.Listen(kernel.Options{}, "thole") }))
	must(b, err)
	defer writes.Close()
	go func() {
		for _, err := writes.Next(); err == nil; _, err = writes.Next() {
			commits <- time.Now()
		}
	}()
	for i := range rounds {
		p := run(i)
		at := <-made
		began = append(began, (<-commits).Sub(at))
		nstest.WaitFor(b, time.Minute, "the process to be what it runs", func() bool {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.Pid))
			return string(name) == "sleep\n"
		})
		killed := time.Now()
		must(b, p.Kill())
		ended = append(ended, (<-commits).Sub(killed))
		nstest.WaitFor(b, time.Minute, "its end", count(1))
	}
	return began, ended
}
