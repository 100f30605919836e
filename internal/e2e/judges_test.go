package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"thole/compiler"
	"thole/compiler/mutants"
	"thole/compiler/policy"
	"thole/compiler/reference"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

var (
	seed    = flag.Uint64("seed", 0, "seed of random cases; 0: a fresh one, printed")
	samples = flag.Int("samples", 500, "connections that the kernel judges")
)

// TestKernelAgrees holds what the kernel does to real connections against the
// reference evaluator. (compiler.TestSimulatorAgrees holds the simulator against
// the same evaluator.)
//
//	outside ── 10.0.0.2 ═══ veth ═══ 10.0.0.1 ── node
//	every address that is not the node's       workloads in their cgroups
//	                                             │
//	containers with networks of their own ═══ 172.17.0.1
func TestKernelAgrees(t *testing.T) {
	if *seed == 0 {
		*seed = rand.Uint64()
	}
	t.Logf("-seed %d", *seed)
	b := newBench(t)
	denied := 0
	for n := uint64(0); b.judged < *samples; n++ {
		c := reference.Random(rand.New(rand.NewPCG(*seed, n)), 4)
		diff := b.judge(c)
		if diff == "" {
			continue
		}
		small := reference.Shrink(c, func(c reference.Case) bool { return b.judge(c) != "" })
		t.Fatalf("%s\n%s", b.judge(small), small)
	}
	denied = b.denied
	t.Logf("the kernel judged %d connections and flows of %d cases, and denied %d", b.judged, b.cases, denied)
	if denied < *samples/10 {
		t.Errorf("only %d were denied: the sample says little", denied)
	}
	for _, s := range slices.Concat(reference.ConnectionSituations, reference.FlowSituations) {
		t.Logf("%5d had %s", b.seen[s], s)
		if *samples >= 2000 && b.seen[s] < *samples/100 {
			t.Errorf("only %d of %d had %s, want one of a hundred", b.seen[s], *samples, s)
		}
	}
}

// A bench is a node and its outside, on which cases are set up one after the other.
type bench struct {
	t                     *testing.T
	node, outside, inside *nstest.Host
	veth                  string // the node's device to the outside
	bridge, container     string // the node's device to the containers, and theirs
	judged, denied, cases int
	flows                 int // that were begun: each has a port of its own
	seen                  map[reference.Situation]int
	mutant                mutants.Mutant // that is loaded
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, node: nstest.New(t), seen: map[reference.Situation]int{}}
	b.outside = everywhereElse(t, b.node)
	b.inside = nstest.New(t)
	b.bridge, b.container = nstest.Link(b.node, "172.17.0.1/16", "fd00:17::1/64",
		b.inside, "172.17.255.2/16", "fd00:17::ff:2/64")
	b.veth = strings.TrimSpace(b.node.Shell("ip -o -4 addr show to 10.0.0.1 | cut -d' ' -f2"))
	b.node.Shell("ip link add tunnel type vxlan id 7 dstport 4789 local 10.0.0.1 remote 10.0.0.2")
	b.outside.Shell("ip link add tunnel address " + tunnelMAC +
		" type vxlan id 7 dstport 4789 local 10.0.0.2 remote 10.0.0.1")
	b.node.Shell("ip link set tunnel up")
	b.outside.Shell("ip link set tunnel up")
	return b
}

// tunnelMAC is that of the outside's end of the tunnel.
const tunnelMAC = "02:00:00:00:00:02"

// everywhereElse links a node (10.0.0.1, fd00:10::1) to a host that has every other
// address.
func everywhereElse(t testing.TB, node *nstest.Host) *nstest.Host {
	outside := nstest.New(t)
	_, veth := nstest.Link(node, "10.0.0.1/24", "fd00:10::1/64", outside, "10.0.0.2/24", "fd00:10::2/64")
	node.Shell(`
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
		ip route add default via 10.0.0.2
		ip -6 route add default via fd00:10::2`)
	outside.Shell(`
		sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
		sysctl -qw net.ipv4.ip_nonlocal_bind=1 net.ipv6.ip_nonlocal_bind=1
		ip route add 10.0.0.0/24 dev ` + veth + ` scope link table local
		ip route add local 0.0.0.0/0 dev lo table local
		ip -6 route add fd00:10::1 dev ` + veth + ` table local
		ip -6 route add local ::/0 dev lo table local`)
	return outside
}

// A stage is a case set up on the bench.
type stage struct {
	*bench
	c      reference.Case
	probes map[*policy.Workload]*probe.Process
	free   *probe.Process // unlabelled, on the node
	world  *probe.Process // outside
	boxes  *probe.Process // in containers with networks of their own
	made   []string       // cgroups
}

// judge runs the connections of a case that sockets can make, and returns how the
// kernel differs from the evaluator, or "".
func (b *bench) judge(c reference.Case) string {
	b.cases++
	s := &stage{bench: b, c: c, probes: map[*policy.Workload]*probe.Process{}}
	if err := s.load(); err != nil {
		return err.Error()
	}
	defer s.clear()
	for _, conn := range c.Connections {
		if !s.possible(conn) {
			continue
		}
		b.judged++
		want := reference.Judge(c.Set, conn)
		if !want.Allowed {
			b.denied++
		}
		s.count(reference.ConnectionSituations, conn.Has)
		if diff := s.differs(conn, want); diff != "" {
			return fmt.Sprintf("%s: the kernel says %s, the evaluator %s", conn, diff, want)
		}
	}
	for _, f := range c.Flows {
		if !s.possibleFlow(f) {
			continue
		}
		b.judged++
		s.count(reference.FlowSituations, f.Has)
		if diff := s.flowDiffers(f, reference.JudgeFlow(c.Set, f)); diff != "" {
			return f.String() + ":\n" + diff
		}
	}
	return ""
}

func (b *bench) count(all []reference.Situation, has func(reference.Situation) bool) {
	for _, s := range all {
		if has(s) {
			b.seen[s]++
		}
	}
}

// load makes the case's cgroups and addresses, and loads its table.
func (s *stage) load() error {
	workloads, unlabelled := s.c.Found(s.bridge, "")
	for i := range workloads {
		s.make(&workloads[i].Cgroup)
	}
	for i := range unlabelled {
		s.make(&unlabelled[i].Cgroup)
	}
	s.address("add", "nodad")
	docs := policy.Documents{Policies: s.c.Policies, Settings: s.c.Settings}
	workloads, unlabelled = docs.Identify(workloads, unlabelled)
	networks := []netip.Prefix{netip.MustParsePrefix("172.17.0.0/16"), netip.MustParsePrefix("fd00:17::/64")}
	table, err := s.mutant.Compile(compiler.Input{
		Policies: s.c.Policies, Workloads: workloads, Unlabelled: unlabelled, Options: compiler.Options{Epoch: 7},
		Bridges: []policy.Bridge{{Name: s.bridge, Networks: networks}},
	})
	if err != nil {
		return err
	}
	return s.node.Nft(table.Text())
}

func (s *stage) make(cgroup *policy.Cgroup) {
	cgroup.ID = s.node.MkCgroup(cgroup.Path)
	s.made = append(s.made, cgroup.Path)
}

// address adds or deletes the addresses of containers with networks of their own.
func (s *stage) address(verb, options string) {
	all := map[netip.Addr]bool{}
	for _, w := range s.c.Workloads {
		all[w.Address] = true
	}
	for _, n := range s.c.Namespaces {
		all[n.Containers[0].Address] = true
	}
	delete(all, netip.Addr{})
	var script strings.Builder
	for a := range all {
		bits := map[bool]int{false: 16, true: 64}[a.Is6()]
		fmt.Fprintf(&script, "ip addr %s %s/%d dev %s %s\n", verb, a, bits, s.container, options)
	}
	if script.Len() > 0 {
		s.inside.Shell(script.String())
	}
}

func (s *stage) clear() {
	for _, p := range s.probes {
		p.Stop()
	}
	if s.free != nil {
		s.free.Stop()
	}
	if s.world != nil {
		s.world.Stop()
	}
	if s.boxes != nil {
		s.boxes.Stop()
	}
	s.node.Nft("flush ruleset")
	s.address("del", "")
	for _, path := range s.made {
		s.remove(path)
	}
}

// remove removes a cgroup unless another workload's is below it; that one's turn
// removes both.
func (s *stage) remove(path string) {
	for ; path != "." && path != ""; path, _ = parent(path) {
		for _, other := range s.made {
			if strings.HasPrefix(other, path+"/") && s.node.CgroupID(other) != 0 {
				return
			}
		}
		if s.node.CgroupID(path) != 0 {
			s.node.Rmdir(path)
		}
	}
}

func parent(path string) (string, bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return "", false
	}
	return path[:i], true
}

// probe returns the probe that stands for an end of a connection.
func (s *stage) probe(e reference.Endpoint) *probe.Process {
	switch {
	case e.Address.IsValid():
		if s.world == nil {
			s.world = probe.Start(s.outside.In("world"), "world")
		}
		return s.world
	case e.OwnAddress().IsValid():
		if s.boxes == nil {
			s.boxes = probe.Start(s.inside.In("containers"), "inside")
		}
		return s.boxes
	case e.Workload == nil:
		if s.free == nil {
			s.free = probe.Start(s.node.In("elsewhere"), "free")
		}
		return s.free
	}
	p, ok := s.probes[e.Workload]
	if !ok {
		p = probe.Start(s.node.In(e.Workload.Cgroup.Path), e.Workload.Name)
		s.probes[e.Workload] = p
	}
	return p
}

// possible says whether a socket can make the connection and see its end.
func (s *stage) possible(c reference.Connection) bool {
	for e, other := range map[reference.Endpoint]reference.Endpoint{c.From: c.To, c.To: c.From} {
		// Only a workload on the host network is judged together with a container.
		if e.OwnAddress().IsValid() && (c.Called.IsValid() || other.OwnAddress().IsValid() || other.Workload == nil ||
			!s.c.IsWorkload(other.Workload)) {
			return false
		}
		if a := e.Address; a.IsValid() && !usable(a) {
			return false
		}
	}
	if c.Called.IsValid() && !s.translatable(c) {
		return false
	}
	switch c.Protocol {
	case 6, 17:
		return c.Port != 0 && !c.Group.IsValid()
	case 1:
		return c.ICMPType == 8 && s.here(c.From) && !c.Group.IsValid()
	case 58:
		return c.ICMPType == 128 && s.here(c.From) && !c.Group.IsValid()
	}
	return false
}

// here says whether sockets of this node's network namespace are an end's.
func (s *stage) here(e reference.Endpoint) bool {
	return !e.Address.IsValid() && !e.OwnAddress().IsValid()
}

// translatable says whether NAT can lead the connection from the address that was called. To containers there is none.
func (s *stage) translatable(c reference.Connection) bool {
	called := c.Called.Addr()
	known := called == nodeAddress[c.IPv6] || !c.CalledHere
	return known && usable(called) && (c.Called.Port() != 0) == (c.Port != 0) && called != c.To.Address
}

// usable says whether the kernel sends to and takes from an address at all.
func usable(a netip.Addr) bool {
	return !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast() &&
		!netip.MustParsePrefix("0.0.0.0/8").Contains(a) && !netip.MustParsePrefix("240.0.0.0/4").Contains(a)
}

// differs makes the connection. It returns what happened if that is not what was
// wanted.
func (s *stage) differs(c reference.Connection, want reference.Verdict) string {
	host := netip.MustParseAddr(map[bool]string{false: "10.0.0.1", true: "fd00:10::1"}[c.IPv6])
	if !c.From.Address.IsValid() && c.Port%2 == 0 {
		host = netip.MustParseAddr(map[bool]string{false: "127.0.0.1", true: "::1"}[c.IPv6])
	}
	if c.Called.IsValid() {
		host = nodeAddress[c.IPv6]
	}
	switch {
	case c.To.Address.IsValid():
		host = c.To.Address
	case c.To.OwnAddress().IsValid():
		host = c.To.OwnAddress()
	case c.From.OwnAddress().IsValid():
		host = bridgeAddress[c.IPv6]
	}
	before := s.recorded()
	end := s.lead(c, host)
	v := s.connect(c, host)
	end()
	if v.Allowed() != want.Allowed {
		return v.String()
	}
	if c.Called.IsValid() && !c.CalledHere {
		return "" // both ends of the way are recorded
	}
	for name, n := range s.recorded() {
		if n != before[name] && name != want.WouldDeny {
			return v.String() + ", would be denied by " + name
		}
	}
	if want.WouldDeny != "" && s.recorded()[want.WouldDeny] == before[want.WouldDeny] {
		return v.String() + ", and records nothing"
	}
	if !v.Allowed() && !c.From.Address.IsValid() && c.Protocol == 6 && v.Outcome != probe.Refused {
		return v.String() + " where a reset should come at once"
	}
	return ""
}

// bridgeAddress is the node's for containers.
var bridgeAddress = map[bool]netip.Addr{
	false: netip.MustParseAddr("172.17.0.1"), true: netip.MustParseAddr("fd00:17::1"),
}

// recorded returns how often each audit policy was recorded.
func (s *stage) recorded() map[string]string {
	if !slices.ContainsFunc(s.c.Policies, func(p policy.Policy) bool { return p.Audit }) {
		return nil
	}
	counts := map[string]string{}
	out := s.node.Shell("nft list counters table inet thole")
	for _, m := range regexp.MustCompile(`counter would_deny_(\S+) {\s+packets (\d+)`).FindAllStringSubmatch(out, -1) {
		counts[m[1]] = m[2]
	}
	return counts
}

func (s *stage) connect(c reference.Connection, host netip.Addr) probe.Verdict {
	from := s.probe(c.From)
	at := netip.AddrPortFrom(host, c.Port).String()
	to := at
	if c.Called.IsValid() {
		to = c.Called.String()
	}
	source := ""
	if c.From.Address.IsValid() {
		source = netip.AddrPortFrom(c.From.Address, 0).String()
	} else if own := c.From.OwnAddress(); own.IsValid() {
		source = netip.AddrPortFrom(own, 0).String()
	}
	switch c.Protocol {
	case 6:
		l := s.probe(c.To).Listen("tcp", at)
		defer l.Close()
		return from.TCPTo(probe.Target{To: to, From: source})
	case 17:
		l := s.probe(c.To).OpenUDP("udp", at)
		defer l.Close()
		if source == "" {
			return from.UDP(to, l)
		}
		u := from.OpenUDP("udp", source)
		defer u.Close()
		return u.Try(to, l)
	}
	if c.Called.IsValid() {
		host = c.Called.Addr()
	}
	return from.ICMP(host.String(), int(c.ICMPType))
}

// lead sets up NAT to where a connection goes, or a tunnel, and returns what ends that.
func (s *stage) lead(c reference.Connection, host netip.Addr) (end func()) {
	family := map[bool]string{false: "ip", true: "ip6"}[c.IPv6]
	switch {
	case c.Called.IsValid():
		match, to := "meta l4proto {icmp, icmpv6}", host.String()
		if c.Port != 0 {
			match = fmt.Sprintf("th dport %d", c.Called.Port())
			to = netip.AddrPortFrom(host, c.Port).String()
		}
		must(s.t, s.node.Nft(fmt.Sprintf(`table inet nat {
			chain o { type nat hook output priority -100; meta l4proto %d %s daddr %s %s dnat %s to %s; }
		}`,
			c.Protocol, family, c.Called.Addr(), match, family, to)))
		return func() { must(s.t, s.node.Nft("delete table inet nat")) }
	case c.Tunnel.IsValid():
		ip := map[bool]string{false: "ip -4 ", true: "ip -6 "}[c.IPv6]
		s.node.Shell(ip + fmt.Sprintf("route add %s dev tunnel src %s", host, nodeAddress[c.IPv6]))
		s.node.Shell(ip + fmt.Sprintf("neigh replace %s lladdr %s dev tunnel nud permanent", host, tunnelMAC))
		return func() { s.node.Shell(ip + fmt.Sprintf("route del %s dev tunnel", host)) }
	default:
		return func() {}
	}
}
