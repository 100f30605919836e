package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// connecting is to connect 200 times; the median and the 99th percentile are measured, in µs.
var connecting = game{server: roleAccepter, client: roleConnecter, n: 200, arrives: true}

// BenchmarkConnect measures how long a connect takes between two processes of the
// same labels, as ratios to namespaces without Thole.
func BenchmarkConnect(b *testing.B) {
	thole := newContestant(b, connecting, enforceDefault)
	conntrack := newContestant(b, connecting, onlyConntrack)
	nothing := newContestant(b, connecting, func(*node) {})
	for b.Loop() {
		compete(b, connecting, thole, conntrack, nothing)
	}
	for i, p := range []string{"p50", "p99"} {
		reportRatio(b, "connect-"+p+"/conntrack", i, thole, conntrack)
		reportRatio(b, "connect-"+p+"/nothing", i, thole, nothing)
	}
	report(b, "us/connect", thole.column(0))
	report(b, "us/connect-conntrack", conntrack.column(0))
	report(b, "us/connect-nothing", nothing.column(0))
}

// BenchmarkConnectScale measures connects beside other workloads: that many of up to 200
// classes, under 1,000 policies. The two that connect are isolated in both directions, by port.
func BenchmarkConnectScale(b *testing.B) {
	sizes := []int{1, 100, 10_000}
	all := []*contestant{newContestant(b, connecting, onlyConntrack)}
	for _, n := range sizes {
		all = append(all, newContestant(b, connecting, func(node *node) { node.enforceScale(n) }))
	}
	for b.Loop() {
		compete(b, connecting, all...)
	}
	for i, n := range sizes {
		reportRatio(b, fmt.Sprintf("connect-p50@%d/conntrack", n), 0, all[i+1], all[0])
	}
	reportRatio(b, "connect-p50@10000/connect-p50@1", 0, all[3], all[1])
}

// bothWays admits, and lets out, one port between workloads of the app web.
const bothWays = `apiVersion: thole/v1
kind: Policy
metadata: {name: both}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [4242/tcp]}]
  egress: [{to: [{workloads: {matchLabels: {app: web}}}], ports: [4242/tcp]}]
`

// enforceScale loads 1,000 policies more, for as many workloads of 200 classes.
func (n *node) enforceScale(workloads int) {
	n.t.Helper()
	in := reference.Scale(workloads, 200, 1000)
	docs, err := compiler.Parse([]compiler.File{{Name: "both.yaml", Data: []byte(bothWays)}})
	must(n.t, err)
	in.Policies = append(in.Policies, docs.Policies...)
	in.Workloads = append(in.Workloads, n.workloads...)
	result, err := compiler.Compile(in)
	must(n.t, err)
	var conn *kernel.Conn
	must(n.t, n.Do(func() { conn, err = kernel.Open(kernel.Options{}) }))
	must(n.t, err)
	defer conn.Close()
	must(n.t, n.Do(func() { err = conn.Apply(ruleset.Diff(nil, &result.Table)) })) // levels count from the cgroup namespace
	must(n.t, err)
}

// serveConnects listens; for each line it accepts and closes what waits.
func serveConnects() error { return serveConnectsAt(benchAddress) }

func serveConnectsAt(at unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, at); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return err
	}
	return drained(func() (n int) {
		for {
			conn, _, err := unix.Accept(fd)
			if err != nil {
				return n
			}
			unix.Close(conn)
			n++
		}
	})
}

// connectTimes connects n times and returns the median and the 99th percentile, in µs.
func connectTimes(n int) ([]float64, error) { return connectTimesTo(benchAddress, n) }

func connectTimesTo(to unix.Sockaddr, n int) ([]float64, error) {
	times := make([]time.Duration, n)
	for i := range times {
		var err error
		if times[i], err = connectOnce(to); err != nil {
			return nil, err
		}
	}
	slices.Sort(times)
	us := func(t time.Duration) float64 { return float64(t) / float64(time.Microsecond) }
	return []float64{us(times[n/2]), us(times[n*99/100])}, nil
}

// connectOnce times a connect. It closes with a reset, so that ports are not used up.
func connectOnce(to unix.Sockaddr) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	start := time.Now()
	if err := unix.Connect(fd, to); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
