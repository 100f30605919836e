package main

import (
	"fmt"
	"strings"
)

// A table is one of docs/PERFORMANCE.md.
type table struct {
	name string
	rows []row
}

// A row is one figure.
type row struct {
	what   string
	metric string
	unit   string
	aim    aim
}

// An aim is what a figure is held against; the zero value is none.
type aim struct {
	most, least float64
}

func atMost(x float64) aim  { return aim{most: x} }
func atLeast(x float64) aim { return aim{least: x} }

// allTables are the tables and which metrics of the benchmarks are in them.
var allTables = []table{
	{"connect", []row{
		{"p50, default policy, against conntrack alone", "connect-p50/conntrack", "", atMost(1.05)},
		{"p50, default policy, against nothing at all", "connect-p50/nothing", "", aim{}},
		{"p99, default policy, against conntrack alone", "connect-p99/conntrack", "", aim{}},
		{"p99, default policy, against nothing at all", "connect-p99/nothing", "", aim{}},
		{"p50, default policy", "us/connect", "µs", aim{}},
		{"p50, conntrack alone", "us/connect-conntrack", "µs", aim{}},
		{"p50, nothing at all", "us/connect-nothing", "µs", aim{}},
		{"p50, 1 workload, 1,000 policies, against conntrack alone", "connect-p50@1/conntrack", "", atMost(1.05)},
		{"p50, 100 workloads, 1,000 policies, against conntrack alone", "connect-p50@100/conntrack", "", atMost(1.05)},
		{"p50, 10,000 workloads, 1,000 policies, against conntrack alone", "connect-p50@10000/conntrack", "", atMost(1.05)},
		{"p50, 10,000 workloads against 1", "connect-p50@10000/connect-p50@1", "", atMost(1.02)},
	}},
	{"steps", []row{
		{"OUTPUT and INPUT are hooked, and answers accepted", "step-hooks/conntrack", "", aim{}},
		{"and who sends: two lookups of its cgroup (SYN, last ACK), the mark is written", "step-sender/conntrack", "", aim{}},
		{"and who listens: the kernel looks for the listener, a lookup of its cgroup", "step-listener/conntrack", "", aim{}},
		{"and the decision: one lookup, the epoch is written, one counter", "step-decided/conntrack", "", aim{}},
		{"Thole's table, default policy", "step-thole/conntrack", "", aim{}},
		{"Thole's table, both sides isolated by port", "step-by-port/conntrack", "", aim{}},
	}},
	{"traffic", []row{
		{"throughput of TCP, against nothing at all", "bulk/nothing", "", atLeast(0.98)},
		{"throughput of TCP, against conntrack alone", "bulk/conntrack", "", aim{}},
		{"throughput of TCP", "MB/s-bulk", "MB/s", aim{}},
		{"UDP datagrams of 32 bytes a second, against nothing at all", "datagrams/nothing", "", aim{}},
		{"UDP datagrams of 32 bytes a second, against conntrack alone", "datagrams/conntrack", "", aim{}},
		{"UDP datagrams of 32 bytes", "packets/s-datagrams", "a second", aim{}},
	}},
	{"fleet", []row{
		{"p50, known peer, against the same packets accepted in userspace", "fleet-p50/userspace", "", atMost(1.3)},
		{"p99, known peer, against the same packets accepted in userspace", "fleet-p99/userspace", "", aim{}},
		{"p50, known peer, against conntrack alone", "fleet-p50/conntrack", "", aim{}},
		{"p99, known peer, against conntrack alone", "fleet-p99/conntrack", "", aim{}},
		{"p50, known peer", "us/fleet-connect", "µs", aim{}},
		{"p50, the same packets accepted in userspace", "us/fleet-userspace", "µs", aim{}},
		{"p50, first contact", "us/fleet-first", "µs", aim{}},
		{"p99, first contact", "us/fleet-first-p99", "µs", aim{}},
		{"p50, first contact, against conntrack alone", "fleet-first/conntrack", "", aim{}},
		{"p50, first contact, against the packets of a known peer accepted in userspace", "fleet-first/userspace", "", aim{}},
		{"connections that a node takes, for a second of its daemon's processor time", "connections/cpu-second", "", atLeast(5000)},
		{"connections a second, with both nodes and the clients on this machine", "connections/second", "", aim{}},
		{"throughput of TCP behind the handshake, against conntrack alone", "fleet-bulk/conntrack", "", atLeast(0.98)},
	}},
	{"syn", []row{
		{"3 labels, first contact", "bytes/syn-first@3", "bytes", aim{}},
		{"3 labels, known peer", "bytes/syn-known@3", "bytes", atMost(76)},
		{"20 labels, first contact", "bytes/syn-first@20", "bytes", aim{}},
		{"20 labels, known peer", "bytes/syn-known@20", "bytes", atMost(76)},
		{"40 labels, first contact", "bytes/syn-first@40", "bytes", aim{}},
		{"40 labels, known peer", "bytes/syn-known@40", "bytes", atMost(76)},
	}},
	{"flooded", []row{
		{"p99 of a connect over lo, against the equal load", "flooded-p99/equal-load", "", atMost(2)},
		{"p50 of a connect over lo, against the equal load", "flooded-p50/equal-load", "", aim{}},
		{"p99 of a connect over lo", "us/flooded-p99", "µs", aim{}},
		{"packets of the flood", "packets/s-flood", "a second", aim{}},
		{"processor time of the daemon, as a part of one processor", "share/flooded-daemon", "", aim{}},
	}},
	{"scale", []row{
		{"one workload more, 100 workloads", "ms/one-workload-more@100", "ms", atMost(1)},
		{"one workload more, 10,000 workloads", "ms/one-workload-more@10000", "ms", atMost(1)},
		{"one workload less, 100 workloads", "ms/one-workload-less@100", "ms", aim{}},
		{"one workload less, 10,000 workloads", "ms/one-workload-less@10000", "ms", aim{}},
		{"of that more: worked out and loaded, 100 workloads", "ms/difference-and-load@100", "ms", aim{}},
		{"of that more: worked out and loaded, 10,000 workloads", "ms/difference-and-load@10000", "ms", aim{}},
		{"compile all, 100 workloads", "ms/compile@100", "ms", aim{}},
		{"compile and load all, 100 workloads", "ms/compile-and-load@100", "ms", aim{}},
		{"compile all, 10,000 workloads", "ms/compile@10000", "ms", aim{}},
		{"compile and load all, 10,000 workloads", "ms/compile-and-load@10000", "ms", atMost(1000)},
	}},
	{"daemon", []row{
		{"start, nothing loaded", "ms/daemon-start", "ms", atMost(2000)},
		{"start, nothing loaded, processor time", "cpu-ms/daemon-start", "ms", aim{}},
		{"start, its table is loaded", "ms/daemon-start-adopting", "ms", atMost(2000)},
		{"start, its table is loaded, processor time", "cpu-ms/daemon-start-adopting", "ms", aim{}},
		{"memory, resident", "MB/daemon-resident", "MB", atMost(150)},
		{"memory, the most so far", "MB/daemon-peak", "MB", aim{}},
		{"50 containers, Docker's return to a fresh table", "ms/return", "ms", atMost(1000)},
	}},
}

// render writes the table in Markdown.
func (t table) render(found metrics) (string, error) {
	var b strings.Builder
	b.WriteString("| what | median | quartiles | aim | met |\n|---|---|---|---|---|\n")
	for _, r := range t.rows {
		value, ok := found[r.metric]
		if !ok {
			return "", fmt.Errorf("the metric %s, of the table %q, was not measured", r.metric, t.name)
		}
		spread := ""
		if low, ok := found[r.metric+":low"]; ok {
			spread = number(low) + " to " + number(found[r.metric+":high"])
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.what, strings.TrimSpace(number(value)+" "+r.unit), spread, r.aim, r.aim.met(value))
	}
	return b.String(), nil
}

// number writes three digits that count, and of ratios three behind the point.
func number(x float64) string {
	switch {
	case x < 10:
		return fmt.Sprintf("%.3f", x)
	case x < 100:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.0f", x)
}

func (a aim) String() string {
	switch {
	case a.most != 0:
		return fmt.Sprintf("at most %g", a.most)
	case a.least != 0:
		return fmt.Sprintf("at least %g", a.least)
	}
	return ""
}

func (a aim) met(value float64) string {
	switch {
	case a == aim{}:
		return ""
	case a.most != 0 && value > a.most || value < a.least:
		return "**no**"
	}
	return "yes"
}
