package ruleset

import "time"

// A Table is one nftables table of family inet and, beside it, one of family bridge.
// Chains, Sets and Counters are in ascending order of their names, elements in
// ascending order of their keys (Normalise brings them there); rules are in the order
// of their evaluation.
type Table struct {
	Name     string   // "": there is none of family inet, only a Bridge
	Counters []string // named counter objects
	Sets     []Set    // sets and maps
	Chains   []Chain
	Foreign  []string // see Foreign: flags of the table, objects and flowtables in it

	// Bridge is the table of the same name in family bridge, which sees frames as they
	// enter a bridge by one of its ports. It has none itself.
	Bridge *Table
}

// A Set is a set, a map to marks, or a verdict map.
type Set struct {
	Name     string
	Key      []Type // 1 to 5 concatenated fields
	Data     Type   // None: a set; Mark or ClassID: a map; VerdictType: a verdict map
	Interval bool   // elements may be ranges ("flags interval")
	Elements []Element
	Comment  string // text only
	Foreign  string // see Foreign; such a set is read without its elements

	// Timeout, where it is not 0, is how long an element lasts that a rule added (Update).
	// Such a set has at most Size elements; those that it has are not read.
	Timeout time.Duration
	Size    uint32
}

// An Element is a member of a set, or an entry of a map.
type Element struct {
	Key     []Value // as many as Set.Key
	Number  uint32  // Data is Mark or ClassID
	Verdict Verdict // Data is VerdictType
	Comment string  // text only: which policy, file and line it comes from
}

// A Chain is a base chain (Hook is set) or one that is jumped to. The policy of a
// base chain is accept.
type Chain struct {
	Name     string
	Hook     Hook
	Priority int32 // as the kernel has it; filter is 0 in family inet, -200 in family bridge
	Rules    []Rule
	Comment  string // text only
	Foreign  string // see Foreign
}

// A Rule is a list of statements: each must hold for the next to be reached.
type Rule struct {
	Statements []Statement
	Comment    string // text only
}

// A Hook is where the kernel calls a base chain.
type Hook uint8

// The hooks of families inet and bridge (linux/netfilter.h, enum nf_inet_hooks, and
// linux/netfilter_bridge.h, plus 1).
const (
	NoHook Hook = iota
	Prerouting
	Input
	Forward
	Output
	Postrouting
)

// A Type is the type of a set's key field or of a map's data, by its nft name.
type Type uint8

// The types in use. Host-endian types are stored by the kernel in the machine's
// byte order, except in keys of interval sets, which are big-endian throughout.
const (
	None        Type = iota
	Mark             // mark: 4 bytes, host-endian
	ClassID          // classid: 4 bytes, host-endian; printed as 0:f
	CgroupV2         // cgroupsv2: 8 bytes, host-endian
	InetProto        // inet_proto: 1 byte
	InetService      // inet_service: 2 bytes
	IPv4Addr         // ipv4_addr: 4 bytes
	IPv6Addr         // ipv6_addr: 16 bytes
	ICMPType         // icmp_type: 1 byte
	ICMPv6Type       // icmpv6_type: 1 byte
	IfName           // ifname: 16 bytes, a name padded with zeros
	VerdictType      // verdict
)

// A Word is an unsigned number of up to 16 bytes, big-endian, right-aligned: a
// value of Type with n bytes is w[16-n:].
type Word [16]byte

// A Value is one field of a key: a single value (From == To) or, in interval sets,
// a range that includes both ends.
type Value struct {
	From, To Word
	// Path names the cgroup of a CgroupV2 field. It is what text prints; the number
	// is the cgroup's id. Where the number is not 0, it alone is the identity.
	Path string
}

// A VerdictKind is what a rule or a verdict map decides.
type VerdictKind uint8

// The verdicts (linux/netfilter/nf_tables.h, enum nft_verdicts; linux/netfilter.h).
const (
	NoVerdict VerdictKind = iota
	Accept
	Drop
	Return
	Jump
	Goto
)

// A Verdict ends a rule, or is an entry of a verdict map. Chain is set for Jump and Goto.
type Verdict struct {
	Kind  VerdictKind
	Chain string
}

// A Field is something that an expression reads from the packet, its conntrack
// entry or its socket.
type Field uint8

// The fields, named as in nft(8). Those that read a header of one family or
// protocol hold for no other packet; rules match the family or protocol first.
const (
	CtDirection  Field = iota + 1 // ct direction: 0 original, 1 reply
	CtState                       // ct state: bits
	CtMark                        // ct mark
	CtStatus                      // ct status: bits
	MetaMark                      // meta mark
	MetaPriority                  // meta priority
	MetaL4Proto                   // meta l4proto
	MetaNFProto                   // meta nfproto: 2 ipv4, 10 ipv6; in family bridge 7
	MetaProtocol                  // meta protocol: the frame's EtherType, behind VLAN tags
	MetaIif                       // iif: an interface's index; lo is 1
	MetaOif                       // oif
	MetaIifName                   // iifname: an interface's name
	MetaOifName                   // oifname
	SocketCgroup                  // socket cgroupv2 level N: the id of the socket's ancestor at depth N
	SocketMark                    // socket mark: no more than "there is a full socket" is asked of it
	SkUID                         // meta skuid: "a full socket sent this"
	THSport                       // th sport: of TCP, UDP, SCTP
	THDport                       // th dport
	TCPOption                     // tcp option Level: whether a TCP packet has it: 0, 1
	// @th,192,8: behind TCP's fixed header the fifth byte, where our option says which token it is
	TCPToken
	TCPFlags          // tcp flags
	IPSaddr           // ip saddr
	IPDaddr           // ip daddr
	IP6Saddr          // ip6 saddr
	IP6Daddr          // ip6 daddr
	ICMPTypeOf        // icmp type
	ICMPv6TypeOf      // icmpv6 type
	ARPSaddrIP        // arp saddr ip: of an ARP packet, who says where it is
	FibDaddrType      // fib daddr type: linux/rtnetlink.h, RTN_*
	FibSaddrType      // fib saddr type: likewise
	TCPSequence       // tcp sequence: of Flip only
	SocketTransparent // socket transparent: no more than "there is a socket, perhaps a request's" is asked of it
	// @ih,0,8: the first byte behind the header of TCP or UDP, for "it carries something" (linux 5.16)
	InnerByte
	InnerWord   // @ih,0,32: the first four of these bytes
	MetaOifKind // meta oifkind: what software made the interface; a real device has none
	RtIPsec     // rt ipsec: 1 where the route leads through a transformation of IPsec

	// What conntrack keeps of the connection's two tuples. Where NAT changes the destination,
	// the original one has the address that was called, and the reply the one that is reached.
	CtOriginalIPSaddr  // ct original ip saddr
	CtOriginalIPDaddr  // ct original ip daddr
	CtReplyIPSaddr     // ct reply ip saddr
	CtOriginalIP6Saddr // ct original ip6 saddr
	CtOriginalIP6Daddr // ct original ip6 daddr
	CtReplyIP6Saddr    // ct reply ip6 saddr
	CtOriginalProtoDst // ct original proto-dst: of TCP, UDP, SCTP
	CtReplyProtoSrc    // ct reply proto-src
	FragmentOffset     // frag frag-off: where a fragment of IPv6 belongs in its packet, with Mask FragmentMask
)

// Values of fields.
const (
	DirOriginal = 0
	DirReply    = 1

	// ct state (linux/netfilter/nf_conntrack_common.h, NF_CT_STATE_BIT).
	StateInvalid     = 1
	StateEstablished = 1 << 1
	StateRelated     = 1 << 2
	StateNew         = 1 << 3
	StateUntracked   = 1 << 6

	// ct status (linux/netfilter/nf_conntrack_common.h, enum ip_conntrack_status).
	StatusDNAT = 1 << 5

	NFProtoIPv4 = 2
	NFProtoIPv6 = 10

	// meta protocol (linux/if_ether.h, ETH_P_*).
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherVLAN = 0x8100 // 802.1Q
	EtherQinQ = 0x88a8 // 802.1ad
	EtherIPv6 = 0x86dd

	IfindexLo = 1

	ProtoICMP   = 1
	ProtoTCP    = 6
	ProtoUDP    = 17
	ProtoICMPv6 = 58
	ProtoSCTP   = 132

	// tcp flags (RFC 9293, 3.1).
	TCPFin = 0x01
	TCPSyn = 0x02
	TCPRst = 0x04
	TCPAck = 0x10

	// fib daddr type, fib saddr type (linux/rtnetlink.h).
	RTNLocal     = 2
	RTNBroadcast = 3
	RTNMulticast = 5

	// FragmentMask is the offset in 16 bits of the fragment header (RFC 8200, 4.5): units of 8 bytes.
	FragmentMask = 0xfff8
)

// An Expr reads a field. A Mask other than 0 is applied to it (CtMark and MetaMark only).
type Expr struct {
	Field Field
	Level uint8  // SocketCgroup: 1 is directly below the root; TCPOption: its kind
	Mask  uint32 // CtMark, MetaMark: 0 is no mask
}

// A Statement is one of the types below.
type Statement interface{ statement() }

// An Op compares a field with a constant.
type Op uint8

// The operators of a Match. Any holds where a bit of the value is set ("ct state
// a,b"), Range where From <= field <= To.
const (
	Equal     Op = iota // ==
	NotEqual            // !=
	AtLeast             // >=, for "there is one" with value 0
	Any                 // field & value != 0: CtState, CtStatus, TCPFlags
	Masked              // field & Mask == Value: CtMark, TCPFlags, FragmentOffset
	MaskedNot           // field & Mask != Value: CtMark, TCPFlags, FragmentOffset
	InRange             // From <= field <= To: addresses, ports, ICMP types, InnerByte, MetaIif
)

// Match continues with the rule if the comparison holds. A field that cannot be
// read (no conntrack entry, no socket) fails every comparison, also NotEqual.
type Match struct {
	Left     Expr // its Mask is 0: see Masked
	Op       Op
	Mask     uint32 // Masked, MaskedNot
	Value    uint32 // all but InRange
	From, To Word   // InRange
}

// InSet continues with the rule if the key is a member of the set.
type InSet struct {
	Key []Expr
	Set string
}

// ByMap looks the key up in a verdict map: the verdict found is carried out; if
// there is none, the rule ends ("KEY vmap @Map").
type ByMap struct {
	Key []Expr
	Map string
}

// SetByMap sets Target to what the map holds for the key; if it holds nothing, the
// rule ends ("ct mark set KEY map @Map").
type SetByMap struct {
	Target Field // CtMark, MetaMark, MetaPriority
	Key    []Expr
	Map    string
}

// SetBits sets Target to Target & And | Or. And 0 sets the constant Or; an And of
// all ones keeps what is there.
type SetBits struct {
	Target  Field // CtMark, MetaMark, MetaPriority; the last with And 0 only
	And, Or uint32
}

// Copy sets Target to Source & And | Or. An And of 0 keeps all bits.
type Copy struct {
	Target, Source Field // CtMark, MetaMark
	And, Or        uint32
}

// Rewrite puts an address of conntrack's into a packet of its family, and mends its
// checksums ("ip daddr set ct original ip daddr").
type Rewrite struct {
	Target Field // IPDaddr, IP6Daddr
	Source Field // an address of CtOriginal… or CtReply…, of the same family
}

// Flip changes the highest bit of a field in a packet of TCP, and its checksum; to do it
// again is to change it back ("tcp sport set tcp sport ^ 0x8000").
type Flip struct{ Field Field } // THSport, TCPSequence

// Update adds the key to a set with a Timeout, or lets it last anew. If the set is full,
// the rule ends. With a Limit it ends, too, where the key has come more often than that.
type Update struct {
	Key   []Expr
	Set   string
	Limit Limit // the zero Limit: none
}

// Limit ends the rule where packets come to it more often than PerSecond, after Burst at
// once. A Burst of 5 is a Log's.
type Limit struct{ PerSecond, Burst uint32 }

// Queue hands the packet to userspace (NFQUEUE), which gives the verdict: to accept is to
// go on with the next base chain. If nobody listens, it is dropped.
type Queue struct{ Number uint16 }

// Notrack has conntrack not look at the packet: in a chain of PREROUTING or OUTPUT, before
// priority -200.
type Notrack struct{}

// Count adds the packet to a named counter.
type Count struct{ Counter string }

// Log writes a line to the kernel's log, at most PerSecond a second (0: no limit).
// Over the limit the rule ends ("limit rate N/second log"): a Log stands last, in a
// rule of its own.
type Log struct {
	Prefix    string // at most 127 bytes
	PerSecond uint32
}

// Reject ends the rule: it answers the sender and drops the packet.
type Reject struct{ With RejectWith }

// RejectWith says how a Reject answers.
type RejectWith uint8

// The answers: a TCP reset, or an ICMP error of the packet's own family.
const (
	TCPReset        RejectWith = iota
	AdminProhibited            // icmpx admin-prohibited
)

// Foreign is what was read from the kernel and is not of this language, in a rule or
// (as a string of this name) in a table, set or chain: somebody else put it there. It
// equals only itself, so that Diff removes it; it cannot be loaded.
type Foreign struct{ Description string }

func (Match) statement()    {}
func (InSet) statement()    {}
func (ByMap) statement()    {}
func (SetByMap) statement() {}
func (SetBits) statement()  {}
func (Copy) statement()     {}
func (Rewrite) statement()  {}
func (Flip) statement()     {}
func (Update) statement()   {}
func (Limit) statement()    {}
func (Queue) statement()    {}
func (Notrack) statement()  {}
func (Count) statement()    {}
func (Log) statement()      {}
func (Reject) statement()   {}
func (Verdict) statement()  {}
func (Foreign) statement()  {}
