package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/compiler/reference"
	"thole/internal/api"
	"thole/internal/daemon"
	"thole/internal/nstest"
)

// BenchmarkDaemon measures a daemon that finds 10,000 workloads of 200 classes and 1,000
// policies: how long until it enforces and answers, where nothing is loaded and where its
// table is, and the memory it then takes.
func BenchmarkDaemon(b *testing.B) {
	const workloads, classes, policies, rounds = 10_000, 200, 1000, 5
	thole, err := tholeBinary()
	must(b, err)
	d := &benchedDaemon{machine: &machine{Host: nstest.New(b), t: b, thole: thole}, workloads: workloads}
	dir := filepath.Join(b.TempDir(), "policies")
	d.socket, d.args = filepath.Join(b.TempDir(), "sock"), []string{"--policies", dir, "--docker", daemon.DockerOff}
	must(b, os.Mkdir(dir, 0o755))
	must(b, os.WriteFile(filepath.Join(dir, "scale.yaml"),
		[]byte(reference.ScalePolicies(classes, policies)+bindClasses(classes)), 0o644))
	for i := range workloads {
		must(b, os.MkdirAll(d.CgroupDir(fmt.Sprintf("scale/c%03d/w%05d", i%classes, i)), 0o755))
	}
	var anew, adopting []time.Duration
	var work, workAdopting, resident, peak []float64
	for b.Loop() {
		for range rounds {
			anew = append(anew, d.begin())
			work = append(work, d.cpu())
			d.end()
			adopting = append(adopting, d.begin())
			workAdopting = append(workAdopting, d.cpu())
			resident, peak = append(resident, d.memory("VmRSS")), append(peak, d.memory("VmHWM"))
			d.end()
			d.Shell("nft flush ruleset && rm -r /run/state")
		}
	}
	reportTimes(b, "ms/daemon-start", time.Millisecond, anew)
	reportTimes(b, "ms/daemon-start-adopting", time.Millisecond, adopting)
	report(b, "cpu-ms/daemon-start", work)
	report(b, "cpu-ms/daemon-start-adopting", workAdopting)
	report(b, "MB/daemon-resident", resident)
	report(b, "MB/daemon-peak", peak)
}

// bindClasses makes the cgroups of each class workloads of it, with reference.Scale's labels.
func bindClasses(classes int) string {
	var text strings.Builder
	for c := range classes {
		fmt.Fprintf(&text, `---
apiVersion: thole/v1
kind: Workload
metadata: {name: c%03d, labels: {app: app%03d, env: %s, team: t%02d}}
spec: {cgroup: scale/c%03d/w*}
`, c, c, []string{"prod", "dev"}[c%2], c%20, c)
	}
	return text.String()
}

// A benchedDaemon is started and ended on one machine.
type benchedDaemon struct {
	*machine
	socket    string
	workloads int
}

// begin starts the daemon, and returns how long it took to enforce and to answer.
func (d *benchedDaemon) begin() time.Duration {
	began := time.Now()
	command := append([]string{"--rr", "1", d.thole, "daemon", "--state", "/run/state", "--socket", d.socket},
		d.args...)
	d.daemon = d.In("daemon").Start("chrt", command...) // it is scheduled as thole.service says
	client := api.NewClient(d.socket)
	nstest.WaitFor(d.t, 5*time.Minute, "the daemon to enforce", func() bool {
		s, err := client.Status(context.Background())
		return err == nil && s.Enforcing && s.Workloads == d.workloads
	})
	return time.Since(began)
}

func (d *benchedDaemon) end() {
	must(d.t, d.daemon.Signal(os.Interrupt))
	must(d.t, d.daemon.Wait())
}

// memory is a line of the daemon's /proc/PID/status, in MB.
func (d *benchedDaemon) memory(line string) float64 {
	var kB float64
	_, err := fmt.Sscan(d.Shell(fmt.Sprintf("awk '/^%s:/ {print $2}' /proc/%d/status", line, d.daemon.Pid)), &kB)
	must(d.t, err)
	return kB * 1024 / 1e6
}

// cpu is the processor time that the daemon has had, in ms: unlike time it does not depend on
// what else the machine does.
func (d *benchedDaemon) cpu() (ms float64) {
	// ticks are 1/100 s
	_, err := fmt.Sscan(d.Shell(fmt.Sprintf("awk '{print 10 * ($14 + $15)}' /proc/%d/stat", d.daemon.Pid)), &ms)
	must(d.t, err)
	return ms
}
