package compiler

import (
	"net/netip"
	"slices"
	"strconv"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// priority puts our chains behind other programs' filter chains: those see the
// packet as it came, while ours use its mark and its priority (docs/ARCHITECTURE.md,
// "Marks").
const priority = 10

// A layout is what the chains depend on besides the contents of the maps.
type layout struct {
	levels []level // deepest first
	epoch  uint32  // shifted into its place in the mark
	deny   DenyMode
	audits []auditChain
	rows   []nft.Chain // what is said of ports

	bridges bool // there are bridges of containers
	groups  bool // there are classes whose members have numbers of their own
	fleet   *Fleet
}

// A level is a depth in the cgroup tree, and which sets there are of it.
type level struct {
	depth   uint8
	bound   bool // cgroups of workloads
	free    bool // cgroups that are known to be unlabelled
	unknown bool // parents of containers
}

// whose asks, from the deepest level up, whose socket it is. The first cgroup that
// says something counts: hit returns what to do where it is bound, nobody is the
// chain for what is unlabelled. Below a parent of containers, what is not known yet
// is discarded.
func (l *layout) whose(hit func(depth uint8) []nft.Rule, nobody string) []nft.Rule {
	var rules []nft.Rule
	for _, at := range l.levels {
		key := []nft.Expr{cgroup(at.depth)}
		if at.bound {
			rules = append(rules, hit(at.depth)...)
		}
		if at.free {
			rules = append(rules, rule(nft.InSet{Key: key, Set: freeSet(at.depth)}, goTo(nobody)))
		}
		if at.unknown {
			rules = append(rules, because("its labels are not known yet",
				nft.InSet{Key: key, Set: unknownSet(at.depth)}, goTo("discard")))
		}
	}
	return append(rules, rule(goTo(nobody)))
}

// An auditChain records what an audit policy would have denied, and lets it pass.
type auditChain struct {
	policy string
	stage  stage
	unsaid bool // for want of a rule that allows it
}

func (a auditChain) name() string {
	name := map[stage]string{atIngress: "audit_ingress_", atEgress: "audit_egress_", atLeave: "audit_leave_",
		atCalled: "audit_called_"}[a.stage] + a.policy
	if a.unsaid {
		name += "_unsaid"
	}
	return name
}

// A stage is where a judgement is asked for.
type stage uint8

const (
	atIngress stage = iota // the listener's side
	atEgress               // the sender's side, to a workload or a process of this node
	atLeave                // the sender's side, to addresses outside
	atCalled               // the sender's side, of an address outside from which NAT led to this node
)

// chains returns all chains. docs/ARCHITECTURE.md draws them.
func (l *layout) chains() []nft.Chain {
	list := slices.Concat(l.outputChains(), l.answerChains(), l.leaveChains(), l.inputChains(), l.inputUDPChains(),
		l.decideChains(), l.calledChains())
	if l.bridges {
		list = append(list, l.toContainer(), askContainerAgain())
	}
	if l.fleet != nil {
		list = append(list, l.fleetChains()...)
	}
	for _, a := range l.audits {
		list = append(list, a.chain(l.fleet != nil))
	}
	return append(list, l.rows...)
}

// itsNumber puts the number of the socket's workload into the packet's priority.
func (l *layout) itsNumber(then nft.Verdict) func(depth uint8) []nft.Rule {
	return func(depth uint8) []nft.Rule {
		return []nft.Rule{rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{cgroup(depth)},
			Map: listenerMap(depth)}, then)}
	}
}

// itsMark puts into the packet's mark, or conntrack's, by which workload's socket it was sent.
func (l *layout) itsMark(target nft.Field, then nft.Verdict) func(depth uint8) []nft.Rule {
	return func(depth uint8) []nft.Rule {
		return []nft.Rule{rule(nft.SetByMap{Target: target, Key: []nft.Expr{cgroup(depth)}, Map: senderMap(depth)},
			then)}
	}
}

// sameAs asks whether the socket belongs to the workload that conntrack's mark has, and goes to other where it does
// not. A workload whose cgroup lies in another workload's is not that one: the deepest bound cgroup alone is compared.
func (l *layout) sameAs(then nft.Verdict, other string) []nft.Rule {
	return l.whose(func(depth uint8) []nft.Rule {
		rules := []nft.Rule{l.sameAt(depth, then)}
		if l.boundAbove(depth) {
			rules = append(rules, because("another workload's",
				nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{cgroup(depth)}, Map: listenerMap(depth)},
				goTo(other)))
		}
		return rules
	}, other)
}

// sameAt holds where the socket's cgroup at a depth is bound to the workload that conntrack's mark has.
func (l *layout) sameAt(depth uint8, then nft.Verdict) nft.Rule {
	return rule(nft.InSet{Key: []nft.Expr{cgroup(depth), ctClass}, Set: sameSet(depth)}, then)
}

// boundAbove reports whether workloads are bound nearer to the root.
func (l *layout) boundAbove(depth uint8) bool {
	return slices.ContainsFunc(l.levels, func(at level) bool { return at.bound && at.depth < depth })
}

// nobodys is a chain that discards what a workload's socket has, and accepts all else.
func (l *layout) nobodys(name, comment string) nft.Chain {
	return nft.Chain{Name: name, Comment: comment, Rules: l.whose(l.itsNumber(goTo("discard")), "accepted")}
}

// decided holds where the connection was allowed in this epoch, and it is known to whom.
func (l *layout) decided() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.DeadBit|mark.OpenBit, l.epoch)
}

// heard holds where a socket was found for what came behind the handshake, and may have it.
func (l *layout) heard() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.OpenBit|mark.DeadBit|mark.OutBit, l.epoch|mark.OpenBit|mark.OutBit)
}

// answered holds where a socket answered that may.
func (l *layout) answered() nft.Match {
	return masked(nft.CtMark, mark.EpochMask|mark.OpenBit|mark.DeadBit, l.epoch|mark.OpenBit|mark.DeadBit)
}

// AuditCounter names the counter of connections that an audit policy would have denied.
func AuditCounter(policy string) string { return "would_deny_" + policy }

// counters are those that every table has.
var counters = []string{"allowed", "denied", "discarded", "injected", "unlabelled", JudgedCounter, WireGuardCounter}

// tcpOpening are the flags that tell a SYN from all else.
const tcpOpening = nft.TCPFin | nft.TCPSyn | nft.TCPRst | nft.TCPAck

// The expressions, matches and verdicts of the chains above.
var (
	ctClass  = nft.Expr{Field: nft.CtMark, Mask: mark.ClassMask}
	sender   = nft.Expr{Field: nft.MetaMark, Mask: mark.ClassMask}
	listener = nft.Expr{Field: nft.MetaPriority}
	l4proto  = nft.Expr{Field: nft.MetaL4Proto}
	sport    = nft.Expr{Field: nft.THSport}
	dport    = nft.Expr{Field: nft.THDport}
	ipSaddr  = nft.Expr{Field: nft.IPSaddr}
	ipDaddr  = nft.Expr{Field: nft.IPDaddr}
	ip6Saddr = nft.Expr{Field: nft.IP6Saddr}
	iifName  = nft.Expr{Field: nft.MetaIifName}
	oifName  = nft.Expr{Field: nft.MetaOifName}
	ip6Daddr = nft.Expr{Field: nft.IP6Daddr}
	icmp     = nft.Expr{Field: nft.ICMPTypeOf}
	icmp6    = nft.Expr{Field: nft.ICMPv6TypeOf}

	v4 = is(nft.MetaNFProto, nft.NFProtoIPv4)
	v6 = is(nft.MetaNFProto, nft.NFProtoIPv6)

	// ownSource holds where the source is an address of this node. IPv4 has its check for martians; IPv6 has none.
	ownSource = []nft.Statement{v6, is(nft.FibSaddrType, nft.RTNLocal)}

	loopback4 = netip.MustParsePrefix("127.0.0.0/8")
	linkLocal = netip.MustParsePrefix("fe80::/10")

	// RFC 4861, 4: solicitations, advertisements, redirects.
	neighbourDiscovery = because("neighbour discovery", is(nft.MetaL4Proto, nft.ProtoICMPv6),
		between(nft.ICMPv6TypeOf, 133, 137), accept)

	accept        = nft.Verdict{Kind: nft.Accept}
	drop          = nft.Verdict{Kind: nft.Drop}
	verdictReturn = nft.Verdict{Kind: nft.Return}

	isTCP      = is(nft.MetaL4Proto, nft.ProtoTCP)
	isUDP      = is(nft.MetaL4Proto, nft.ProtoUDP)
	onLo       = is(nft.MetaIif, nft.IfindexLo)
	fromAway   = isNot(nft.MetaIif, nft.IfindexLo)
	toLo       = is(nft.MetaOif, nft.IfindexLo)
	leavesNode = isNot(nft.MetaOif, nft.IfindexLo)
	isAnswer   = is(nft.CtDirection, nft.DirReply)
	isRequest  = is(nft.CtDirection, nft.DirOriginal)
	isSYN      = masked(nft.TCPFlags, tcpOpening, nft.TCPSyn)
	notSYN     = maskedNot(nft.TCPFlags, tcpOpening, nft.TCPSyn)
	unknownCt  = anyOf(nft.CtState, nft.StateInvalid|nft.StateUntracked)

	// sentBy holds at INPUT, for what came over lo, where OUTPUT wrote the number of its sender: it must be
	// judged. isInjected holds where no socket sent it.
	sentBy     = masked(nft.MetaMark, mark.SenderMask, mark.Sender&mark.SenderMask)
	askerSent  = masked(nft.MetaMark, mark.AllBits&^mark.ClassMask, mark.Asker)
	notAsker   = maskedNot(nft.MetaMark, mark.AllBits&^mark.ClassMask, mark.Asker)
	isInjected = is(nft.MetaMark, mark.Injected)
	looped     = because("around another packet, and not for this node", is(nft.MetaPriority, mark.AroundPriority),
		goTo("discard"))
	injected = because("no socket sent it", onLo, isInjected, nft.Count{Counter: "injected"}, drop)

	// aSocket holds where a socket is found, if only that of a request or of an end of a connection.
	aSocket = between(nft.SocketTransparent, 0, 1)

	// carries holds where there is something behind TCP's header.
	carries = between(nft.InnerByte, 0, 255)

	// laterFragment accepts all fragments of an IPv6 datagram but the first: they have no ports to be judged by. The
	// first one is judged, and without the first one the kernel puts nothing together.
	laterFragment = because("not the first fragment: without that, nothing is delivered", v6, onLo,
		maskedNot(nft.FragmentOffset, nft.FragmentMask, 0), accept)
)

func cgroup(depth uint8) nft.Expr    { return nft.Expr{Field: nft.SocketCgroup, Level: depth} }
func senderMap(depth uint8) string   { return "sender" + strconv.Itoa(int(depth)) }
func listenerMap(depth uint8) string { return "listener" + strconv.Itoa(int(depth)) }
func sameSet(depth uint8) string     { return "same" + strconv.Itoa(int(depth)) }
func freeSet(depth uint8) string     { return "free" + strconv.Itoa(int(depth)) }
func unknownSet(depth uint8) string  { return "unknown" + strconv.Itoa(int(depth)) }

// Policies know no more of a workload than its class, where it has a number of its own to
// tell it from others of its class.
var (
	sendersClass   = rule(nft.SetByMap{Target: nft.MetaMark, Key: []nft.Expr{sender}, Map: "group"})
	listenersClass = rule(nft.SetByMap{Target: nft.MetaPriority, Key: []nft.Expr{listener}, Map: "group_listener"})
	ctsClass       = rule(nft.SetByMap{Target: nft.CtMark, Key: []nft.Expr{ctClass}, Map: "group"})
)

func rule(s ...nft.Statement) nft.Rule { return nft.Rule{Statements: s} }

func because(comment string, s ...nft.Statement) nft.Rule {
	return nft.Rule{Statements: s, Comment: comment}
}

func is(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Equal, Value: value}
}

func isNot(f nft.Field, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.NotEqual, Value: value}
}

func anyOf(f nft.Field, bits uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Any, Value: bits}
}

func masked(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.Masked, Mask: mask, Value: value}
}

func maskedNot(f nft.Field, mask, value uint32) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.MaskedNot, Mask: mask, Value: value}
}

// fullSocket holds where there is a socket, and not just a request for one.
func fullSocket(f nft.Field) nft.Match {
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.AtLeast}
}

func within(f nft.Field, p netip.Prefix) nft.Match {
	r := nft.AddressRange(p.Addr(), lastAddr(p))
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

func between(f nft.Field, from, to uint64) nft.Match {
	r := nft.Span(from, to)
	return nft.Match{Left: nft.Expr{Field: f}, Op: nft.InRange, From: r.From, To: r.To}
}

func setMark(and, or uint32) nft.SetBits { return nft.SetBits{Target: nft.CtMark, And: and, Or: or} }

func scratch(f nft.Field, value uint32) nft.SetBits { return nft.SetBits{Target: f, Or: value} }

func jump(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Jump, Chain: chain} }
func goTo(chain string) nft.Verdict { return nft.Verdict{Kind: nft.Goto, Chain: chain} }
