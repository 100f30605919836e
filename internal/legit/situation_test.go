package legit

import (
	"net/netip"
	"slices"
)

// A situation is something that programs do with sockets. The server's function says when it is ready; the client's is
// called then. A side fails when a step of it does.
type situation struct {
	name           string
	server, client func(*side)

	whos    []who              // everyone if nil
	addrs   []netip.Addr       // addresses if nil
	phase   phase              // when it is done
	prepare func(*side) string // rules of nft for the case
}

// The phases follow each other. Cases of one phase are done at the same time.
type phase int

const (
	usual      phase = iota
	early            // begun before the table is loaded, and before conntrack is used
	tracked          // begun before the table is loaded, but conntrack knows of it
	cookies          // with a SYN cookie for every connection
	smallMTU         // with lo's MTU at 1500
	translated       // with nftables' NAT
)

func situations() []situation {
	return slices.Concat(earlySituations(early, ""), earlySituations(tracked, ", tracked"),
		tcpSituations(), udpSituations(), groupSituations())
}

func find(list []situation, name string) *situation {
	for i := range list {
		if list[i].name == name {
			return &list[i]
		}
	}
	return nil
}

// A who is a pair of parties. The parties are web and web2, of equal labels; client, of others; free and free2, which
// are unlabelled; and outside, on another machine.
type who struct{ name, client, server string }

var (
	labelled = who{"labelled to labelled", "client", "web"}
	open     = who{"unlabelled to labelled", "free", "web"}
	out      = who{"labelled to unlabelled", "client", "free"}
	plain    = who{"unlabelled to unlabelled", "free2", "free"}
	itself   = who{"labelled to itself", "web", "web"}
	equal    = who{"equal labels", "web2", "web"}

	everyone = []who{labelled, open, out, plain, itself}
	// bothWays are those that the policies allow to call each other.
	bothWays = []who{plain, itself, equal}
	// noServer is for what is judged without a listener: it counts as unlabelled then.
	noServer = []who{out, plain}
	// mayMiss are those whose client may call what is unlabelled, as a port without a listener is.
	mayMiss = []who{labelled, open, out, plain}
	// alone is for what needs no server.
	alone = []who{itself, out, plain}
	// onLink has an end on the other machine.
	onLink = []who{
		{"labelled to outside", "client", "outside"}, {"unlabelled to outside", "free", "outside"},
		{"outside to labelled", "outside", "web"}, {"outside to unlabelled", "outside", "free"},
	}
)

const (
	ours4, ours6 = "10.0.0.1", "fd00::1"
	link         = "veth0"
)

var (
	addresses = []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr(ours4),
		netip.IPv6Loopback(), netip.MustParseAddr(ours6)}
	only4 = addresses[:2]
)

const policyYAML = `apiVersion: thole/v1
kind: Policy
metadata: {name: equal}
spec:
  selector: {}
  ingress: [{from: [{sameLabels: [app]}]}]
  egress: [{to: [{sameLabels: [app]}]}, {to: [{cidr: 239.0.0.0/8}, {cidr: "ff00::/8"}, {cidr: 10.0.0.0/24}]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: client}}}, {unlabelled: true}]
    ports: [1024-65535/tcp, 1024-65535/udp]
  - from: [{cidr: 10.0.0.0/24}, {cidr: "fd00::/64"}, {cidr: "fe80::/10"}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: client}
spec:
  selector: {matchLabels: {app: client}}
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
    ports: [1024-65535/tcp, 1024-65535/udp]
  - to: [{unlabelled: true}]
`
