package e2e

import "testing"

// BenchmarkConnectSteps says where the cost of a connect goes: tables by hand, each with a
// step more of what has to be done with a connection that is allowed, against conntrack alone.
// The last is the least that can decide as Thole does, for its own way to be held against.
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
	)
	steps := []struct{ name, output, input string }{
		{"hooks", begin, alone},
		{"sender", sender, alone},
		{"listener", sender, alone + listener},
		{"decided", sender, begin + known + listener + decided},
	}
	conntrack := newContestant(b, connecting, onlyConntrack)
	all := []*contestant{conntrack}
	for _, s := range steps {
		all = append(all, newContestant(b, connecting, func(n *node) { must(n.t, n.Nft(stepTable(s.output, s.input))) }))
	}
	thole := newContestant(b, connecting, enforceDefault)
	byPort := newContestant(b, connecting, func(n *node) { n.enforce([]byte(bothWays)) })
	all = append(all, thole, byPort)
	for b.Loop() {
		compete(b, connecting, all...)
	}
	for i, s := range steps {
		reportRatio(b, "step-"+s.name+"/conntrack", 0, all[i+1], conntrack)
	}
	reportRatio(b, "step-thole/conntrack", 0, thole, conntrack)
	reportRatio(b, "step-by-port/conntrack", 0, byPort, conntrack)
}

// stepTable has the maps that a decision needs, and these rules.
func stepTable(output, input string) string {
	return `table inet steps {
		map class { type cgroupsv2 : mark; elements = { "thole.slice/server" : 1, "thole.slice/client" : 1 } }
		set same { type cgroupsv2 . mark; elements = { "thole.slice/server" . 1, "thole.slice/client" . 1 } }
		map pair { type mark . mark : verdict; elements = { 1 . 1 : goto settle } }
		counter allowed { }
		chain settle {
			ct mark set ct mark & 0x1000ffff | 0x00010000 counter name "allowed" accept
		}
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
