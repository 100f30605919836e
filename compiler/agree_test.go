package compiler_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"thole/compiler"
	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/ruleset"
	"thole/ruleset/simulator"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of random cases; 0: a fresh one, printed")
	cases = flag.Int("cases", 100_000, "random (policies, workloads, packet) cases")
)

// TestSimulatorAgrees holds the compiled table, run by the simulator, against the
// reference evaluator.
func TestSimulatorAgrees(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	for done := uint64(0); done < uint64(*cases); {
		r := rand.New(rand.NewPCG(*seed, done))
		c := reference.Random(r, 1+int(done%4))
		done += uint64(len(c.Connections) + len(c.Flows))
		if disagrees(c) == "" {
			continue
		}
		small := reference.Shrink(c, func(c reference.Case) bool { return disagrees(c) != "" })
		t.Fatalf("%s\n%s", disagrees(small), small)
	}
}

// disagrees returns how the simulator's verdict on some connection of c differs
// from the evaluator's, or "".
func disagrees(c reference.Case) string {
	workloads, unlabelled := withContainers(c)
	if is := c.Count(); len(workloads) != is {
		return fmt.Sprintf("the compiler says that %d are workloads, the evaluator %d", len(workloads), is)
	}
	result, err := compiler.Compile(compiler.Input{
		Policies: c.Policies, Workloads: workloads, Unlabelled: unlabelled,
		Bridges: bridges, Options: compiler.Options{Epoch: 7},
	})
	if err != nil {
		return err.Error()
	}
	sim := simulator.New(&result.Table)
	host := hostOf(c)
	for _, conn := range c.Connections {
		if elsewhere(c, conn) {
			continue
		}
		want := reference.Judge(c.Set, conn)
		if got := host.simulate(sim, conn); got != want {
			return conn.String() + ": the simulator says " + got.String() + ", the evaluator " + want.String()
		}
		if conn.Protocol != ruleset.ProtoUDP || conn.Group.IsValid() {
			continue
		}
		allowed := want.Allowed
		if back, here := reversed(conn); here {
			allowed = allowed || reference.Judge(c.Set, back).Allowed
		}
		if got := host.answered(sim, conn); got != allowed {
			return fmt.Sprintf("%s, allowed in an older epoch: the simulator lets answers pass: %v; the evaluator "+
				"says %v", conn, got, want)
		}
	}
	for _, f := range c.Flows {
		want := reference.JudgeFlow(c.Set, f)
		if got := host.simulateFlow(sim, f); !slices.Equal(got, want) {
			return fmt.Sprintf("%s\nthe simulator lets packets pass: %v; the evaluator says %v", f, got, want)
		}
	}
	return ""
}

// reversed returns the request that an answer may be instead, where both ends are on the host network of this node.
func reversed(c reference.Connection) (back reference.Connection, here bool) {
	own := func(e reference.Endpoint) bool {
		return !e.Address.IsValid() && !e.OwnAddress().IsValid()
	}
	here = own(c.From) && own(c.To)
	c.From, c.To, c.Port, c.Called = c.To, c.From, answeredPort, netip.AddrPort{}
	return c, here
}

// answeredPort is that of the client which waits for an answer.
const answeredPort = 40000

const docker0 = "docker0"

// The containers of a case with a network of their own are on docker0.
var (
	containers4 = netip.MustParsePrefix("172.17.0.0/16")
	containers6 = netip.MustParsePrefix("fd00:17::/64")
	bridges     = []policy.Bridge{{Name: docker0, Networks: []netip.Prefix{containers4, containers6}}}
)

// withContainers returns the workloads of a case, as Identify says. Those that have an address run in
// containers with a network of their own.
func withContainers(c reference.Case) ([]policy.Workload, []policy.Unlabelled) {
	workloads, unlabelled := c.Found(docker0, "veth0")
	docs := policy.Documents{Policies: c.Policies, Settings: c.Settings}
	return docs.Identify(workloads, unlabelled)
}

// elsewhere: of what containers with a network of their own send and receive, only
// that is decided of which the other end is a workload on the host network. What they
// send is decided by INPUT, and so only TCP and UDP.
func elsewhere(in reference.Case, c reference.Connection) bool {
	for _, e := range []*reference.Endpoint{&c.From, &c.To} {
		if e.Workload != nil && !in.IsWorkload(e.Workload) {
			*e = reference.Endpoint{}
		}
	}
	own := func(e reference.Endpoint) bool { return e.OwnAddress().IsValid() }
	switch {
	case own(c.From):
		return c.To.Workload == nil || own(c.To) || c.Protocol != ruleset.ProtoTCP && c.Protocol != ruleset.ProtoUDP
	case own(c.To):
		return c.From.Workload == nil
	default:
		return false
	}
}

// simulate runs the first packet of a connection through OUTPUT, INPUT or both.
func (h host) simulate(sim *simulator.Simulator, c reference.Connection) reference.Verdict {
	p := packet(c)
	var logged []string
	p.Kind = kind(c)
	p.Mark, p.Priority = 0xdead, 0xbeef // SO_MARK and SO_PRIORITY of the sender
	if c.Tunnel.IsValid() {
		p.Mark = 0 // a mark may lead to a tunnel, too: then the kind of the interface is not asked
	}
	fromHere := !c.From.Address.IsValid() && p.IifName == ""
	if fromHere {
		p.Socket = h.socket(c.From)
		out := sim.Run(ruleset.Output, &p)
		logged = out.Logged
		if out.Verdict == ruleset.Drop || c.Tunnel.IsValid() && !h.wrapped(sim, c, p) {
			return reference.Verdict{}
		}
	}
	if p.OifName != docker0 && !c.To.Address.IsValid() {
		p.Socket = nil
		if c.Protocol == ruleset.ProtoTCP || c.Protocol == ruleset.ProtoUDP {
			p.Socket = h.socket(c.To)
		}
		p.Iif, p.Oif = 2, 0
		if fromHere && !c.Group.IsValid() {
			p.Iif = ruleset.IfindexLo
			sim.Run(ruleset.Prerouting, &p)
		}
		out := sim.Run(ruleset.Input, &p)
		logged = append(logged, out.Logged...)
		if out.Verdict == ruleset.Drop {
			return reference.Verdict{}
		}
	}
	v := reference.Verdict{Allowed: true}
	if len(logged) > 0 {
		_, name, _ := strings.Cut(logged[0], "policy ")
		v.WouldDeny = strings.TrimSuffix(name, ": ")
	}
	return v
}

// kind is that of the interface by which a connection leaves.
func kind(c reference.Connection) string {
	if c.Tunnel.IsValid() {
		return "vxlan"
	}
	return ""
}

// wrapped says whether OUTPUT lets the packet pass that a tunnel puts around one that it has let pass: it has the same
// socket, mark and priority.
func (h host) wrapped(sim *simulator.Simulator, c reference.Connection, inner simulator.Packet) bool {
	outer := packet(reference.Connection{To: reference.Endpoint{Address: c.Tunnel}, Protocol: ruleset.ProtoUDP,
		Port: tunnelPort, IPv6: c.IPv6})
	outer.Socket, outer.Mark, outer.Priority = h.socket(c.From), inner.Mark, inner.Priority
	return sim.Run(ruleset.Output, &outer).Verdict == ruleset.Accept
}

// tunnelPort is VXLAN's.
const tunnelPort = 4789

// answered says whether answers pass on a connection that was allowed in an older epoch
// and on which only they are sent.
func (h host) answered(sim *simulator.Simulator, c reference.Connection) bool {
	p := packet(c)
	// not on this node
	asker, answerer := c.From.Address.IsValid() || p.IifName != "", c.To.Address.IsValid() || p.OifName != ""
	stale := mark.OfEpoch(6) | 0x8fff // the number of a class that is not any more
	if !asker {                       // what OUTPUT says of its socket
		here := packet(reference.Connection{Protocol: ruleset.ProtoUDP, IPv6: c.IPv6})
		here.Socket = h.socket(c.From)
		sim.Run(ruleset.Output, &here)
		stale = mark.OfEpoch(6) | here.Mark&mark.ClassMask
	}
	p.Conntrack.Mark, p.Direction, p.State = stale, ruleset.DirReply, ruleset.StateEstablished
	p.From, p.To, p.FromPort, p.Port = p.To, p.From, p.Port, answeredPort
	p.IifName, p.OifName = p.OifName, p.IifName
	p.Oif, p.Iif = ruleset.IfindexLo, ruleset.IfindexLo
	if asker {
		p.Oif = 2
	}
	if answerer {
		p.Iif = 2
	}
	p.Mark, p.Priority = 0xdead, 0xbeef
	run := func(hook ruleset.Hook, e reference.Endpoint) bool {
		iif, oif, iifName, oifName := p.Iif, p.Oif, p.IifName, p.OifName // those of the other hook
		defer func() { p.Iif, p.Oif, p.IifName, p.OifName = iif, oif, iifName, oifName }()
		p.Socket = h.socket(e)
		if hook == ruleset.Output {
			p.Iif, p.IifName = 0, ""
		} else {
			p.Oif, p.OifName = 0, ""
		}
		return sim.Run(hook, &p).Verdict == ruleset.Accept
	}
	return (answerer || run(ruleset.Output, c.To)) && (asker || run(ruleset.Input, c.From))
}

var (
	own4 = netip.MustParseAddr("192.0.2.1")
	own6 = netip.MustParseAddr("2001:db8::1")
)

// packet is the first packet of c, as it leaves OUTPUT's routing decision.
func packet(c reference.Connection) simulator.Packet {
	p := simulator.Packet{
		State: ruleset.StateNew, Conntrack: &simulator.Conntrack{}, L4Proto: c.Protocol, Port: c.Port,
		ICMPType: c.ICMPType, Oif: ruleset.IfindexLo, RouteType: ruleset.RTNLocal, From: own4, To: own4,
	}
	if c.IPv6 {
		p.From, p.To = own6, own6
	}
	if c.Protocol == ruleset.ProtoTCP {
		p.TCPFlags = ruleset.TCPSyn
	}
	if c.From.Address.IsValid() {
		p.From = c.From.Address
	}
	switch {
	case c.Group.IsValid():
		p.To, p.Oif, p.RouteType = c.Group, 2, ruleset.RTNMulticast
	case c.To.Address.IsValid():
		p.To, p.Oif, p.RouteType = c.To.Address, 2, 1
	case c.To.OwnAddress().IsValid():
		p.To, p.Oif, p.OifName, p.RouteType = c.To.OwnAddress(), toBridge, docker0, 1
	}
	if c.Called.IsValid() {
		translate(&p, c)
	}
	if c.From.OwnAddress().IsValid() {
		p.From, p.IifName = c.From.OwnAddress(), docker0
	}
	return p
}

// translate has NAT on OUTPUT lead p to where it goes. Oif is still the interface to the address that was called.
func translate(p *simulator.Packet, c reference.Connection) {
	p.Conntrack.Status |= ruleset.StatusDNAT
	p.Conntrack.Caller, p.Conntrack.Called, p.Conntrack.Reached = p.From, c.Called, netip.AddrPortFrom(p.To, c.Port)
	p.Oif = 2
	routes := uint32(1)
	if c.CalledHere && !containers4.Contains(c.Called.Addr()) && !containers6.Contains(c.Called.Addr()) {
		p.Oif, routes = ruleset.IfindexLo, ruleset.RTNLocal
	}
	p.Routes = map[netip.Addr]uint32{c.Called.Addr(): routes}
}

// toBridge is the index of docker0.
const toBridge = 3

// A host knows the id of every cgroup of a case.
type host map[string]uint64

func hostOf(c reference.Case) host {
	h := host{}
	for _, w := range c.Workloads {
		h[w.Cgroup.Path] = w.Cgroup.ID
	}
	return h
}

// socket returns one that was born below e's cgroup, in a cgroup that nothing
// binds; that of something unlabelled has nothing bound above it either.
func (h host) socket(e reference.Endpoint) *simulator.Socket {
	path := "elsewhere/below"
	if e.Workload != nil {
		path = e.Workload.Cgroup.Path + "/below"
	}
	var s simulator.Socket
	for i, r := range path + "/" {
		if r == '/' {
			id, ok := h[path[:i]]
			if !ok {
				id = 1<<41 + uint64(i)
			}
			s.Cgroups = append(s.Cgroups, id)
		}
	}
	return &s
}
