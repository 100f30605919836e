package bench

import (
	"fmt"
	"slices"
	"testing"

	"thole/internal/paired"
)

// A game is what a server and a client do. Both are on one processor: the hand-over between two is the noise of a
// virtual machine, and five times as long as what is measured.
type game struct {
	server, client string // roles
	n              int    // how often the client does it in a slice: for some 30 ms
	work           work
	forgets        bool // conntrack forgets all after each slice
}

// A work says when the server works.
type work uint8

const (
	meanwhile work = iota // all the time
	behind                // after the client's slice; it wants all that the client sent
	inTurns               // after each few times, and what a time takes is the sum of both
)

var (
	connecting   = game{"accepter", "connecter", 1000, behind, true}
	greeting     = game{"greeter", "greeted", 400, meanwhile, true}
	asking       = game{"answerer", "asker", 1500, meanwhile, false}
	askingAnew   = game{"answerer", "asker-short", 1000, meanwhile, true}
	sending      = game{"receiver", "sender", 800, behind, false}
	sendingBulks = game{"sink", "source", 80, inTurns, false}
)

const benchCPU = 0

// fight has a game played in an arena.
func (g game) fight(a *arena) duel {
	server := start(a.b, a.server, g.server, benchCPU)
	defer server.end()
	if g.work == meanwhile {
		server.begin()
	}
	client := start(a.b, a.client, g.client, benchCPU)
	defer client.end()
	return a.fight(func() map[string]float64 {
		if g.forgets {
			defer a.forget()
		}
		if g.work == inTurns {
			return turns(a.b, g.n, client, server)
		}
		measured := client.do(a.b, g.n)
		if g.work == behind {
			server.do(a.b, g.n+g.n/10)
		}
		return measured
	})
}

// turns has a client and a server work in turns, and returns the median of what both took together, in µs.
func turns(b *testing.B, n int, client, server role) map[string]float64 {
	const few = 4
	sums := make([]float64, n/few)
	for i := range sums {
		sums[i] = client.do(b, few)["mean"] + server.do(b, few)["mean"]
	}
	slices.Sort(sums)
	return map[string]float64{"p50": sums[len(sums)/2]}
}

// BenchmarkConnect measures how long a connect takes between two workloads, and a connect with a byte each way.
func BenchmarkConnect(b *testing.B) {
	sizes := []int{1, 100, 10_000}
	byDefault := newDefaultArena(b)
	var byPort []*arena
	for _, n := range sizes {
		byPort = append(byPort, newPortArena(b, n))
	}
	for b.Loop() {
		d := connecting.fight(byDefault)
		d.report(b, "connect/default", "p50", false)
		d.report(b, "connect-p99/default", "p99", false)
		reportInterval(b, "us/connect", paired.Median(d.thole["p50"]))
		reportInterval(b, "us/connect-conntrack", paired.Median(d.tracking["p50"]))
		duels := map[int]duel{}
		for i, a := range byPort {
			duels[sizes[i]] = connecting.fight(a)
			duels[sizes[i]].report(b, fmt.Sprintf("connect/port@%d", sizes[i]), "p50", false)
		}
		duels[10_000].against(b, "connect/port@10000/port@1", "p50", duels[1])
		greeting.fight(byDefault).report(b, "greeting/default", "p50", false)
		greeting.fight(byPort[1]).report(b, "greeting/port", "p50", false)
	}
}

// BenchmarkConnectSteps says where the cost of a connect goes: tables by hand, each with a step more of what has
// to be done with a connection that is allowed. The last is the least that can decide as Thole does.
func BenchmarkConnectSteps(b *testing.B) {
	const (
		begin = "ct direction reply accept\n"
		known = "tcp flags & (fin | syn | rst | ack) != syn ct mark & 0xafff0000 == 0x00010000 accept\n"
		// The sender: its class into the mark, at the SYN; is it still the same, at the last ACK.
		sender = begin + "ct mark & 0x0000ffff != 0 socket cgroupv2 level 2 . ct mark & 0x0000ffff @same accept\n" +
			"ct mark set socket cgroupv2 level 2 map @class accept\n"
		listener = "meta mark set socket cgroupv2 level 2 map @class\n"
		decided  = "ct mark & 0x0000ffff . meta mark vmap @pair\n"
		alone    = begin + "ct state established accept\n"
		injected = "iif lo ct state invalid meta mark set 0x0fffffff\n"
	)
	steps := []struct{ name, prerouting, output, input string }{
		{"hooks", "", begin, alone},
		{"sender", "", sender, alone},
		{"listener", "", sender, alone + listener},
		{"decided", "", sender, begin + known + listener + decided},
		{"injected", injected, sender, begin + known + listener + decided},
	}
	var arenas []*arena
	for _, s := range steps {
		a := newArena(b, s.name)
		must(b, a.Nft(stepTable(s.prerouting, s.output, s.input)))
		a.wake(true)
		arenas = append(arenas, a)
	}
	for b.Loop() {
		for i, s := range steps {
			connecting.fight(arenas[i]).report(b, "step-"+s.name, "p50", false)
		}
	}
}

// stepTable has the maps that a decision needs, and these rules.
func stepTable(prerouting, output, input string) string {
	if prerouting != "" {
		prerouting = "chain prerouting {\ntype filter hook prerouting priority raw - 10; policy accept;\n" +
			prerouting + "}\n"
	}
	return `table inet thole {
		map class { type cgroupsv2 : mark; elements = { "thole.slice/server" : 1, "thole.slice/client" : 1 } }
		set same { type cgroupsv2 . mark; elements = { "thole.slice/server" . 1, "thole.slice/client" . 1 } }
		map pair { type mark . mark : verdict; elements = { 1 . 1 : goto settle } }
		counter allowed { }
		chain settle {
			ct mark set ct mark & 0x1000ffff | 0x00010000 counter name "allowed" accept
		}
		` + prerouting + `
		chain output {
			type filter hook output priority filter + 10; policy accept;
			` + output + `
		}
		chain input {
			type filter hook input priority filter + 10; policy accept;
			` + input + `
		}
	}`
}

// BenchmarkTraffic measures rates of datagrams, of requests with answers, and of bulk.
func BenchmarkTraffic(b *testing.B) {
	arenas := []*arena{newDefaultArena(b), newPortArena(b, 100)}
	names := []string{"default", "port"}
	for b.Loop() {
		for i, a := range arenas {
			for metric, g := range map[string]game{
				"requests-short": askingAnew, "requests-long": asking, "datagrams": sending, "bulk": sendingBulks,
			} {
				d := g.fight(a)
				d.report(b, metric+"/"+names[i], "p50", true)
				reportInterval(b, "us/"+metric+"-"+names[i], paired.Median(d.thole["p50"]))
			}
		}
	}
}
