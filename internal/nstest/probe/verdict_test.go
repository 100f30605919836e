package probe_test

import (
	"fmt"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// localTable lets cli reach web on 8000-8100, and nobody else.
const localTable = `
table inet thole {
  set who { typeof socket cgroupv2 level 2; elements = { "thole/cli" } }
  set protected { typeof socket cgroupv2 level 2; elements = { "thole/web" } }
  chain output { type filter hook output priority 0; policy accept;
    ct direction original ct mark set 0
    ct direction original socket cgroupv2 level 2 @who ct mark set 1
  }
  chain input { type filter hook input priority 0; policy accept;
    ct direction reply accept
    ct mark 1 meta l4proto { tcp, udp } th dport 8000-8100 accept
    socket cgroupv2 level 2 @protected meta l4proto tcp counter reject with tcp reset
    socket cgroupv2 level 2 @protected counter reject with icmpx admin-prohibited
  }
}`

func TestVerdictsFollowTheTable(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	web, cli, oth := probe.Start(host.In("thole/web"), "web"), probe.Start(host.In("thole/cli"), "cli"),
		probe.Start(host.In("thole/oth"), "oth")
	free := probe.Start(host.In(""), "free")
	var receivers []*probe.UDPSocket
	for _, addr := range []string{"[::]:8000", "[::]:9000"} {
		web.Listen("tcp", addr)
		receivers = append(receivers, web.OpenUDP("udp", addr))
	}
	if err := host.Nft(localTable); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		from     *probe.Process
		port     int
		tcp, udp probe.Outcome
	}{
		{cli, 8000, probe.Connected, probe.Arrived},
		{cli, 9000, probe.Refused, probe.Prohibited},
		{oth, 8000, probe.Refused, probe.Prohibited},
		{oth, 9000, probe.Refused, probe.Prohibited},
		{free, 8000, probe.Refused, probe.Prohibited},
	} {
		for _, ip := range []string{"127.0.0.1", "[::1]"} {
			to := fmt.Sprintf("%s:%d", ip, tt.port)
			if got := tt.from.TCP(to); got.Outcome != tt.tcp {
				t.Errorf("tcp %s → %s: %v, want %s", tt.from.Name, to, got, tt.tcp)
			}
			if got := tt.from.UDP(to, receivers...); got.Outcome != tt.udp {
				t.Errorf("udp %s → %s: %v, want %s", tt.from.Name, to, got, tt.udp)
			}
		}
	}
}
