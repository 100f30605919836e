package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/reference"
	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// BenchmarkScale measures what a change costs at 100 and at 10,000 workloads of up to
// 200 classes under 1,000 policies: to compile and load all of it into an empty kernel,
// and to compile, compare and load one workload more.
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

				one := in
				one.Workloads, one.Numbers = all, r.Numbers
				began = time.Now()
				after, err := compiler.Compile(one)
				must(b, err)
				must(b, conn.Apply(ruleset.Diff(&r.Table, &after.Table)))
				more = append(more, time.Since(began))
			}
			must(b, conn.Close())
			for _, m := range []struct {
				what  string
				times []time.Duration
			}{{"compile", compile}, {"load", load}, {"compile and load", whole}, {"one workload more", more}} {
				reportTimes(b, fmt.Sprintf("ms/%s@%d", strings.ReplaceAll(m.what, " ", "-"), workloads), time.Millisecond, m.times)
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
