package main

import (
	"fmt"
	"strings"
)

// A table is one of docs/PERFORMANCE.md.
type table struct {
	name string
	// the spread is that of the median, with 95 percent confidence, and has to meet the aims; else it is the quartiles
	bounds bool
	rows   []row
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
	{name: "connect", bounds: true, rows: []row{
		{"connect, default policy", "connect/default", "", atMost(1.10)},
		{"connect by port, 1,000 policies, 1 workload", "connect/port@1", "", atMost(1.20)},
		{"connect by port, 1,000 policies, 100 workloads", "connect/port@100", "", atMost(1.20)},
		{"connect by port, 1,000 policies, 10,000 workloads", "connect/port@10000", "", atMost(1.20)},
		{"the ratio with 10,000 workloads against that with 1", "connect/port@10000/port@1", "", atMost(1.02)},
		{"connect with a byte each way, default policy", "greeting/default", "", atMost(1.15)},
		{"connect with a byte each way, by port, 1,000 policies", "greeting/port", "", atMost(1.25)},
		{"99th percentile of connect, default policy", "connect-p99/default", "", aim{}},
		{"a connect, default policy", "us/connect", "µs", aim{}},
		{"a connect, conntrack alone", "us/connect-conntrack", "µs", aim{}},
	}},
	{name: "steps", bounds: true, rows: []row{
		{"OUTPUT and INPUT are hooked, and answers accepted", "step-hooks", "", aim{}},
		{"and who sends: two lookups of its cgroup (SYN, last ACK), the mark is written", "step-sender", "", aim{}},
		{"and who listens: the kernel looks for the listener, a lookup of its cgroup", "step-listener", "", aim{}},
		{"and the decision: one lookup, the epoch is written, one counter", "step-decided", "", aim{}},
		{"and at PREROUTING, what no socket sent is marked", "step-injected", "", aim{}},
	}},
	{name: "traffic", bounds: true, rows: []row{
		{"UDP requests with answers, a new socket each, default policy", "requests-short/default", "", atLeast(0.85)},
		{"UDP requests with answers, a new socket each, by port", "requests-short/port", "", atLeast(0.75)},
		{"UDP requests with answers, 8 sockets, default policy", "requests-long/default", "", atLeast(0.85)},
		{"UDP requests with answers, 8 sockets, by port", "requests-long/port", "", atLeast(0.75)},
		{"datagrams of 32 bytes, default policy", "datagrams/default", "", atLeast(0.80)},
		{"datagrams of 32 bytes, by port", "datagrams/port", "", atLeast(0.70)},
		{"bulk over TCP, default policy", "bulk/default", "", atLeast(0.97)},
		{"bulk over TCP, by port", "bulk/port", "", atLeast(0.97)},
		{"a UDP request with its answer, 8 sockets, default policy", "us/requests-long-default", "µs", aim{}},
		{"ten datagrams, default policy", "us/datagrams-default", "µs", aim{}},
		{"a mebibyte over TCP, default policy", "us/bulk-default", "µs", aim{}},
	}},
	{name: "programs", bounds: true, rows: []row{
		{"nginx, 1 KiB, a new connection each, default policy", "nginx-new/default", "", atLeast(0.95)},
		{"nginx, 1 KiB, a new connection each, by port", "nginx-new/port", "", aim{}},
		{"nginx, 1 KiB, one connection, default policy", "nginx-kept/default", "", atLeast(0.98)},
		{"nginx, 1 KiB, one connection, by port", "nginx-kept/port", "", aim{}},
		{"dnsmasq, a new socket each, default policy", "dnsmasq/default", "", atLeast(0.90)},
		{"dnsmasq, a new socket each, by port", "dnsmasq/port", "", aim{}},
		{"unbound, a new socket each, default policy", "unbound/default", "", atLeast(0.90)},
		{"unbound, a new socket each, by port", "unbound/port", "", aim{}},
		{"Redis, redis-benchmark with 50 clients, GET, default policy", "redis/default", "", atLeast(0.97)},
		{"Redis, redis-benchmark with 50 clients, GET, by port", "redis/port", "", aim{}},
		{"PostgreSQL, pgbench -S, default policy", "pgbench/default", "", atLeast(0.97)},
		{"PostgreSQL, pgbench -S, by port", "pgbench/port", "", aim{}},
	}},
	{name: "fleet", rows: []row{
		{"p50, known peer, against the same packets accepted in userspace", "fleet-p50/userspace", "", atMost(1.3)},
		{"p99, known peer, against the same packets accepted in userspace", "fleet-p99/userspace", "", aim{}},
		{"p50, known peer, against conntrack alone", "fleet-p50/conntrack", "", aim{}},
		{"p99, known peer, against conntrack alone", "fleet-p99/conntrack", "", aim{}},
		{"p50, known peer", "us/fleet-connect", "µs", aim{}},
		{"p50, the same packets accepted in userspace", "us/fleet-userspace", "µs", aim{}},
		{"p50, first contact", "us/fleet-first", "µs", aim{}},
		{"p99, first contact", "us/fleet-first-p99", "µs", aim{}},
		{"p50, first contact, against conntrack alone", "fleet-first/conntrack", "", aim{}},
		{"p50, first contact, against the packets of a known peer accepted in userspace", "fleet-first/userspace", "",
			aim{}},
		{"connections that a node takes, for a second of its daemon's processor time", "connections/cpu-second", "",
			atLeast(5000)},
		{"connections a second, with both nodes and the clients on this machine", "connections/second", "", aim{}},
		{"throughput of TCP behind the handshake, against conntrack alone", "fleet-bulk/conntrack", "", atLeast(0.98)},
	}},
	{name: "syn", rows: []row{
		{"3 labels, first contact", "bytes/syn-first@3", "bytes", aim{}},
		{"3 labels, known peer", "bytes/syn-known@3", "bytes", atMost(76)},
		{"20 labels, first contact", "bytes/syn-first@20", "bytes", aim{}},
		{"20 labels, known peer", "bytes/syn-known@20", "bytes", atMost(76)},
		{"40 labels, first contact", "bytes/syn-first@40", "bytes", aim{}},
		{"40 labels, known peer", "bytes/syn-known@40", "bytes", atMost(76)},
	}},
	{name: "flooded", rows: []row{
		{"p99 of a connect over lo, against the equal load", "flooded-p99/equal-load", "", atMost(2)},
		{"p50 of a connect over lo, against the equal load", "flooded-p50/equal-load", "", aim{}},
		{"p99 of a connect over lo", "us/flooded-p99", "µs", aim{}},
		{"packets of the flood", "packets/s-flood", "a second", aim{}},
		{"processor time of the daemon, as a part of one processor", "share/flooded-daemon", "", aim{}},
	}},
	{name: "scale", rows: scaleRows("ms/", "ms", true)},
	{name: "scale-cpu", rows: scaleRows("cpu-ms/", "ms", false)},
	{name: "scale-ratio", rows: ratioRows()},
	{name: "daemon", rows: []row{
		{"start, nothing loaded", "ms/daemon-start", "ms", atMost(2000)},
		{"start, nothing loaded, processor time", "cpu-ms/daemon-start", "ms", aim{}},
		{"start, its table is loaded", "ms/daemon-start-adopting", "ms", atMost(2000)},
		{"start, its table is loaded, processor time", "cpu-ms/daemon-start-adopting", "ms", aim{}},
		{"memory, resident", "MB/daemon-resident", "MB", atMost(150)},
		{"memory, the most so far", "MB/daemon-peak", "MB", aim{}},
		{"50 containers, Docker's return to a fresh table", "ms/return", "ms", atMost(1000)},
	}},
}

// A scaled figure is measured at several sizes.
type scaled struct {
	what   string
	metric string
	aim    aim  // of its time
	grows  bool // with the size, as it may
}

// allScaled are the figures of the benchmark of scale.
var allScaled = []scaled{
	{"one workload more", "one-workload-more", atMost(1), false},
	{"one workload less", "one-workload-less", atMost(1), false},
	{"of that more: worked out and loaded", "difference-and-load", aim{}, false},
	{"a container more", "container-more", atMost(1), false},
	{"a container with a new label set", "container-new", atMost(10), false},
	{"another node's workload with a new label set: worked out and loaded", "remote-new", atMost(10), false},
	{"one policy more", "policy-more", atMost(100), false},
	{"compile all", "compile", aim{}, true},
	{"compile and load all", "compile-and-load", atMost(400), true},
	{"start of a daemon that finds all loaded", "start", atMost(1000), true},
}

// sizes are those of the benchmark of scale, by the end of a metric's name.
var sizes = []struct{ what, suffix string }{
	{"1,000 workloads", "@1000"},
	{"10,000 workloads", "@10000"},
	{"1,000 workloads, a list", "@1000+list"},
	{"10,000 workloads, a list", "@10000+list"},
}

// scaleRows are the figures of scale of one kind, with what a daemon takes after its start if they have aims.
func scaleRows(prefix, unit string, aims bool) (rows []row) {
	for _, f := range allScaled {
		for _, size := range sizes {
			r := row{f.what + ", " + size.what, prefix + f.metric + size.suffix, unit, aim{}}
			if aims {
				r.aim = f.aim
			}
			rows = append(rows, r)
		}
	}
	if !aims {
		return rows
	}
	for _, size := range sizes {
		rows = append(rows, row{"memory of that daemon, resident, " + size.what, "MB/start" + size.suffix, "MB",
			atMost(100)})
	}
	return rows
}

// ratioRows are how many times as much ten times as many workloads cost.
func ratioRows() (rows []row) {
	for _, f := range allScaled {
		for _, list := range []struct{ what, suffix string }{{"", ""}, {", a list", "+list"}} {
			r := row{f.what + list.what, "ratio/" + f.metric + "@10000" + list.suffix, "", atMost(1.5)}
			if f.grows {
				r.aim = aim{}
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// render writes the table in Markdown.
func (t table) render(found metrics) (string, error) {
	var b strings.Builder
	spreads := "quartiles"
	if t.bounds {
		spreads = "95% bounds"
	}
	fmt.Fprintf(&b, "| what | median | %s | aim | met |\n|---|---|---|---|---|\n", spreads)
	for _, r := range t.rows {
		value, ok := found[r.metric]
		if !ok {
			return "", fmt.Errorf("the metric %s, of the table %q, was not measured", r.metric, t.name)
		}
		spread, judged := "", value
		if low, ok := found[r.metric+":low"]; ok {
			high := found[r.metric+":high"]
			spread = number(low) + " to " + number(high)
			if t.bounds {
				judged = r.aim.worse(low, high)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.what, strings.TrimSpace(number(value)+" "+r.unit), spread,
			r.aim, r.aim.met(judged))
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

// worse is the bound that the aim is held against.
func (a aim) worse(low, high float64) float64 {
	if a.most != 0 {
		return high
	}
	return low
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
