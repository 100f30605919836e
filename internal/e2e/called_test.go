package e2e

import (
	"testing"

	"thole/internal/nstest/probe"
)

// The answers on a flow whose destination NAT changes come after a revocation that does not concern it.
func TestAnswersOfACalledAddressAfterARevocation(t *testing.T) {
	n := newNode(t)
	world := probe.Start(everywhereElse(t, n.Host).In("world"), "world")
	web := probe.Start(n.label("thole.slice/web", app("web")), "web")
	must(t, n.Nft(`table inet nat {
		chain o {
			type nat hook output priority -100
			ip daddr 198.51.100.1 dnat ip to 192.0.2.1
			ip6 daddr 2001:db8:1::1 dnat ip6 to 2001:db8:2::1
		}
	}`))
	for _, f := range []struct{ called, bits, reached, source string }{
		{"198.51.100.1", "/32", "192.0.2.1", "10.0.0.1"}, {"2001:db8:1::1", "/128", "2001:db8:2::1", "fd00:10::1"},
	} {
		policy := []byte(`apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {app: web}}, egress: [{to: [{cidr: "` + f.called + f.bits + `"}]}]}
`)
		n.enforce(policy)
		server, client := world.OpenUDP("udp", join(f.reached, 5353)), web.OpenUDP("udp", join(f.source, 6000))
		allowed(t, "a request to "+f.called, client.Try(join(f.called, 5353), server))
		allowed(t, "its answer", server.Try(client.Addr, client))
		n.enforce(policy)
		allowed(t, "an answer in the next epoch", server.Try(client.Addr, client))
	}
}
