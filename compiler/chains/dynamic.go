package chains

import (
	"time"

	nft "thole/ruleset"
)

// How long, and of how many connections, it is remembered that both sides allow them.
const (
	judgedTimeout = 5 * time.Minute
	judgedSize    = 65536
)

// How long, and of how many peers, WireGuard's handshakes are remembered: it does not use a
// key for more than 180 s, and tries for 90 s to get a new one (REJECT_AFTER_TIME, REKEY_ATTEMPT_TIME).
const (
	wireguardTimeout = 5 * time.Minute
	wireguardSize    = 65536
)

// How long a handshake between nodes may take: a little longer than Linux retransmits SYNs by default
// (tcp_syn_retries 6: 127 s), and how many there may be.
const (
	pendingTimeout = 130 * time.Second
	pendingSize    = 65536
)

// How long, and of how many addresses, it is remembered that they proved themselves, and how often they begin. If a set
// is full, its rule ends: what it would have let pass is dropped.
const (
	knownTimeout = 10 * time.Minute
	meterTimeout = 10 * time.Second
	knownSize    = 16384
)

// DynamicSets returns the sets that packets fill, empty: by the rules of Build, in an epoch, and if there are other
// nodes.
func DynamicSets(epoch uint16, fleet bool) []nft.Set {
	sets := []nft.Set{{Name: judgedSet(epoch),
		Key:     []nft.Type{nft.Mark, nft.ClassID, nft.InetProto, nft.InetService},
		Timeout: judgedTimeout, Size: judgedSize,
		Comment: "sender . listener . protocol . port: allowed in this epoch"}}
	for _, f := range families {
		sets = append(sets, nft.Set{Name: "wireguard" + f.suffix,
			Key:     []nft.Type{f.address, nft.InetService, nft.InetService},
			Timeout: wireguardTimeout, Size: wireguardSize,
			Comment: "to whom WireGuard speaks: address . port . port here"})
		if fleet {
			sets = append(sets, handshakeSets(f.suffix, f.address)...)
		}
	}
	return sets
}

// handshakeSets returns those of connections between nodes, for one version of IP.
func handshakeSets(suffix string, address nft.Type) []nft.Set {
	sets := []nft.Set{{Name: "pending" + suffix,
		Key:     []nft.Type{address, nft.InetService, address, nft.InetService},
		Timeout: pendingTimeout, Size: pendingSize,
		Comment: "connections whose handshake goes on, as their answers come in"}}
	for _, of := range []struct {
		name    string
		timeout time.Duration
		comment string
	}{
		{"known", knownTimeout, "who has proven himself lately"},
		{"short", meterTimeout, "how often known addresses begin as who they are known for"},
		{"full", meterTimeout, "how often they say anew who they are"},
		{"stranger", meterTimeout, "how often others do"},
	} {
		sets = append(sets, nft.Set{Name: of.name + suffix, Key: []nft.Type{address}, Timeout: of.timeout,
			Size: knownSize, Comment: of.comment})
	}
	return sets
}
