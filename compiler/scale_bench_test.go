package compiler_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/compiler/reference"
)

// These benchmarks grow one thing of the input by ten: the time grows by about as much.

// Everything, at 10,000 workloads.
func BenchmarkEverything(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		benchmarkCompile(b, fmt.Sprintf("workloads=%d", n), reference.Scale(n, 200, 1000))
	}
}

// A container with many labels, in a set that compares all labels.
func BenchmarkLabels(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		benchmarkCompile(b, fmt.Sprintf("labels=%d", n), manyLabels(b, n))
	}
}

// As many classes as policies: each class has a policy of its own, or all have the same one.
func BenchmarkClasses(b *testing.B) {
	for _, n := range []int{100, 1000, 5000} { // with its workloads, a class needs two numbers of 16,383
		benchmarkCompile(b, fmt.Sprintf("classes=%d/own", n), reference.Scale(n, n, n))
		benchmarkCompile(b, fmt.Sprintf("classes=%d/sameLabels", n), sameLabels(b, n))
	}
}

// A list of CIDRs in the egress of one class, and the same CIDRs over a thousand policies.
func BenchmarkAddresses(b *testing.B) {
	for _, workloads := range []int{1000, 10_000} {
		for _, n := range []int{1000, 10_000} {
			for _, policies := range []int{1, 1000} {
				name := fmt.Sprintf("workloads=%d/policies=%d/cidrs=%d", workloads, policies, n)
				in := reference.Scale(workloads, 200, 1000)
				in.Policies = append(in.Policies, manyCIDRs(b, 200, policies, n)...)
				benchmarkCompile(b, name, in)
			}
		}
	}
}

// Ports that rules name, and peers that they name: each policy has a port of its own.
func BenchmarkPorts(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		benchmarkCompile(b, fmt.Sprintf("ports=%d", n), manyPorts(b, n))
	}
}

// Exceptions of one CIDR.
func BenchmarkExceptions(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		benchmarkCompile(b, fmt.Sprintf("exceptions=%d", n), manyExceptions(b, n))
	}
}

// Workloads of other nodes, each of which is a class of its own.
func BenchmarkRemotes(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		benchmarkCompile(b, fmt.Sprintf("remotes=%d", n), manyRemotes(b, n))
	}
}

func benchmarkCompile(b *testing.B, name string, in compiler.Input) {
	b.Run(name, func(b *testing.B) {
		b.ReportAllocs()
		before := cpuTime(b)
		for b.Loop() {
			if _, err := compiler.Compile(in); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
	})
}

// cpuTime is what this process has used, the garbage collector included: unlike the time of a clock, it says about the
// same on a machine that others use too.
func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	return usage(t, syscall.RUSAGE_SELF)
}

func usage(t testing.TB, who int) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(who, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// manyLabels is a set of two classes, one of which has many labels.
func manyLabels(t testing.TB, n int) compiler.Input {
	in := sameLabels(t, 2)
	for i := range n {
		in.Workloads[0].Labels[fmt.Sprintf("key%05d", i)] = fmt.Sprintf("a value of some length, %05d", i)
	}
	return in
}

// sameLabels is a set of so many classes, each of which reaches itself alone.
func sameLabels(t testing.TB, classes int) compiler.Input {
	in := reference.Scale(classes, classes, 0)
	in.Policies = parsed(t, policyNamed("same",
		"{selector: {}, ingress: [{from: [{sameLabels: all}]}], egress: [{to: [{sameLabels: all}]}]}"))
	return in
}

// manyCIDRs are so many policies of so many classes, which allow so many CIDRs together.
func manyCIDRs(t testing.TB, classes, policies, cidrs int) []policy.Policy {
	var text strings.Builder
	for i := range policies {
		var to []string
		for j := i; j < cidrs; j += policies {
			to = append(to, fmt.Sprintf("{cidr: 172.%d.%d.%d/31}", 16+j>>14, j>>6&255, j<<2&255))
		}
		text.WriteString(policyNamed(fmt.Sprintf("list%04d", i), fmt.Sprintf(
			"{selector: {matchLabels: {app: app%03d}}, egress: [{to: [%s]}]}", i%classes, strings.Join(to, ", "))))
	}
	return parsed(t, text.String())
}

// manyPorts is a set of 100 classes and as many policies as ports.
func manyPorts(t testing.TB, ports int) compiler.Input {
	in := reference.Scale(100, 100, 0)
	var text strings.Builder
	for i := range ports {
		text.WriteString(policyNamed(fmt.Sprintf("port%05d", i), fmt.Sprintf(`{
  selector: {matchLabels: {app: app%03d}},
  ingress: [{from: [{workloads: {matchLabels: {app: app%03d}}}], ports: [%d/tcp]}]}`, i%100, (i+1)%100, 1+2*i)))
	}
	in.Policies = parsed(t, text.String())
	return in
}

// manyExceptions is a set of one class, which reaches one network but for some addresses.
func manyExceptions(t testing.TB, n int) compiler.Input {
	in := reference.Scale(1, 1, 0)
	var except []string
	for i := range n {
		except = append(except, fmt.Sprintf("10.%d.%d.%d/31", i>>14, i>>6&255, i<<2&255))
	}
	in.Policies = parsed(t, policyNamed("but", fmt.Sprintf(
		"{selector: {}, egress: [{to: [{cidr: 10.0.0.0/8, except: [%s]}]}]}", strings.Join(except, ", "))))
	return in
}

// manyRemotes is a set of so many workloads of other nodes, which policies name by their labels and by their addresses.
func manyRemotes(t testing.TB, n int) compiler.Input {
	in := reference.Scale(20, 20, 0)
	in.Policies = slices.Concat(sameLabels(t, 1).Policies, manyCIDRs(t, 20, n/10, n))
	in.Fleet = &compiler.Fleet{Queue: 1}
	for i := range n {
		in.Remotes = append(in.Remotes, policy.Remote{
			Labels:  policy.Labels{"app": fmt.Sprintf("app%03d", i%200), "team": "t01"},
			Node:    fmt.Sprintf("node%05d", i),
			Address: netip.AddrFrom4([4]byte{172, 16, byte(i >> 6), byte(i << 2)}),
		})
	}
	return in
}

func policyNamed(name, spec string) string {
	return fmt.Sprintf("---\napiVersion: thole/v1\nkind: Policy\nmetadata: {name: %s}\nspec: %s\n", name, spec)
}

func parsed(t testing.TB, text string) []policy.Policy {
	t.Helper()
	docs, err := policy.Parse(reference.Files(text))
	if err != nil {
		t.Fatal(err)
	}
	return docs.Policies
}
