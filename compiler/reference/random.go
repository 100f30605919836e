package reference

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/policy"
)

// Random makes a case of at most size policies and size+2 workloads (size is at
// least 1) that depends on nothing but r. Everything is drawn from vocabularies
// so small that labels, ports and addresses collide. The policies and workloads
// are what Parse and the daemon could have made of valid input, and the
// connections are possible ones: one end at least is on this node, and both are
// of one family.
//
// Who builds a network for a case can rely on this: the addresses of workloads
// are in 172.17.0.0/16 and fd00:17::/64, and not the first of these; no address
// outside the node is in them, in 10.0.0.0/8, or in fd00:10::/32, which are free
// for the node's own. A container may have no labels but doubtful ones: Divide tells
// the workloads from the others.
func Random(r *rand.Rand, size int) Case {
	g := generator{r}
	var c Case
	for i := range 1 + r.IntN(size) {
		c.Policies = append(c.Policies, g.policy(fmt.Sprintf("p%02d", i)))
	}
	if g.chance(60) {
		c.Settings = g.settings()
	}
	c.Workloads = g.workloads(2+r.IntN(size+1), c.Settings)
	if g.chance(30) {
		c.Namespaces = g.namespaces(len(c.Workloads))
	}
	c.Connections = g.connections(c)
	c.Flows = g.flows(c)
	return c
}

// A generator draws from r what cases are made of.
type generator struct{ r *rand.Rand }

// chance is true in percent of all cases.
func (g generator) chance(percent int) bool { return g.r.IntN(100) < percent }

func pick[T any](g generator, from []T) T { return from[g.r.IntN(len(from))] }

// some returns one to most different elements of from, in its order.
func some[T any](g generator, most int, from []T) []T {
	n := 1 + g.r.IntN(min(most, len(from)))
	var chosen []T
	for left, element := range from {
		if g.r.IntN(len(from)-left) < n-len(chosen) {
			chosen = append(chosen, element)
		}
	}
	return chosen
}

// A word is a label's key with the values that it may have, ascending.
type word struct {
	key    string
	values []string
}

// userWords are the user labels of workloads.
func userWords() []word {
	return []word{
		{"app", []string{"", "db", "web"}},
		{"env", []string{"dev", "prod"}},
		{"tier", []string{"", "1", "true"}}, // as YAML, the last two are no strings unless quoted
	}
}

// factWords are the labels that tools and the daemon set. The value of
// thole/kind is not drawn.
func factWords() []word {
	return []word{
		{"com.docker.compose.project", []string{"", "shop"}},
		{"com.docker.compose.service", []string{"db", "web"}},
		{"thole/image", []string{"other/db", "registry/web"}},
		{"thole/kind", []string{"address", "container", "run", "unit"}},
	}
}

// settings makes Settings of which at least one list says something. The key app counts always: what has it is a
// workload.
func (g generator) settings() policy.Settings {
	var s policy.Settings
	for len(s.Include)+len(s.Exclude)+len(s.TrustImages) == 0 {
		if g.chance(70) {
			s.Include = some(g, 2, []string{"*.compose.project", "com.docker.*", "ti?r"})
		}
		if g.chance(70) {
			s.Exclude = some(g, 2, []string{"?n*", "env", "ghost", "tier"})
		}
		if g.chance(60) {
			s.TrustImages = some(g, 2, []string{"other/db", "registry/*"})
		}
	}
	return s
}

// policyWords are what selectors and sameLabels speak of: all of these, and a
// key that no workload has.
func policyWords() []word {
	words := append(userWords(), factWords()...)
	return append(words, word{"ghost", []string{"", "x"}})
}

// workloads makes n workloads. Their cgroups are nested, so that which is the
// deepest bound one matters.
func (g generator) workloads(n int, settings policy.Settings) []*policy.Workload {
	paths := []string{
		"system.slice/db.service", "thole.slice", "thole.slice/a", "thole.slice/a/sub",
		"thole.slice/a/sub/sub", "thole.slice/ab", "user.slice/user-1000.slice", "x.slice",
	}
	g.r.Shuffle(len(paths), func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	var all []*policy.Workload
	for i := range n {
		w := &policy.Workload{Name: fmt.Sprintf("w%02d", i)}
		if g.chance(35) {
			w.Kind, w.Address = policy.KindAddress, g.ownAddress(i)
		} else {
			if w.Kind = policy.KindContainer; g.chance(50) {
				w.Kind = policy.Kind(g.r.IntN(int(policy.KindAddress)))
			}
			w.Cgroup = policy.Cgroup{Path: paths[i%len(paths)], ID: uint64(4000 + i)}
			for range i / len(paths) {
				w.Cgroup.Path += "/more" // there are more workloads than paths
			}
		}
		w.Labels = g.userLabels()
		w.Facts = g.facts(w.Kind)
		if w.Kind == policy.KindContainer || w.Kind == policy.KindAddress {
			g.spoil(w.Facts)
			g.doubt(w, i)
		}
		g.place(w, i, settings)
		all = append(all, w)
	}
	return all
}

// namespaces makes one or two network namespaces that containers share. The first containers have so many names and
// addresses already.
func (g generator) namespaces(taken int) []*Namespace {
	var all []*Namespace
	for range 1 + g.r.IntN(2) {
		n := &Namespace{Infra: g.chance(25)}
		address := g.ownAddress(taken)
		for range 2 + g.r.IntN(2) {
			w := &policy.Workload{Name: fmt.Sprintf("w%02d", taken), Kind: policy.KindAddress, Address: address,
				Labels: policy.Labels{}, Facts: g.facts(policy.KindAddress)}
			if g.chance(75) {
				w.Labels = g.userLabels()
			}
			g.spoil(w.Facts)
			if g.chance(30) {
				w.Doubtful = policy.Labels{}
				g.doubtSome(w, w.Labels, 0)
				g.doubtSome(w, w.Facts, 0)
			}
			n.Containers = append(n.Containers, w)
			taken++
		}
		all = append(all, n)
	}
	return all
}

// ownAddress is the address of the i-th workload, if it is in a network of its own.
func (g generator) ownAddress(i int) netip.Addr {
	host := i + 2
	if g.chance(50) {
		return netip.AddrFrom4([4]byte{172, 17, byte(host >> 8), byte(host)})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 3: 0x17, 14: byte(host >> 8), 15: byte(host)})
}

func (g generator) userLabels() policy.Labels {
	labels := policy.Labels{}
	for _, word := range some(g, len(userWords()), userWords()) {
		labels[word.key] = pick(g, word.values)
	}
	return labels
}

func (g generator) facts(kind policy.Kind) policy.Labels {
	facts := policy.Labels{}
	for _, word := range factWords() {
		if g.chance(40) {
			facts[word.key] = pick(g, word.values)
		}
	}
	facts["thole/kind"] = kind.String()
	return facts
}

// spoil makes the value of a tool's label one that no policy can name.
func (g generator) spoil(facts policy.Labels) {
	for _, key := range slices.Sorted(maps.Keys(facts)) {
		if !strings.HasPrefix(key, "thole/") && g.chance(30) {
			facts[key] = policy.UnusableValue
		}
	}
}

// place gives a container on the host network that may be unlabelled a cgroup in which no other workload's is: it would
// belong to a workload around it. One that has a network of its own gets a label that counts.
func (g generator) place(w *policy.Workload, number int, settings policy.Settings) {
	certain := false
	for key := range w.Labels {
		certain = certain || counts(settings, key)
	}
	switch {
	case certain:
	case w.Kind == policy.KindContainer:
		w.Cgroup.Path = fmt.Sprintf("docker.slice/%d", number)
	case w.Kind == policy.KindAddress:
		delete(w.Doubtful, "app")
		w.Labels["app"] = "web"
	}
}

// doubt makes some labels of a container doubtful. One that has a network of its own keeps a label that is not.
func (g generator) doubt(w *policy.Workload, number int) {
	if g.chance(30) {
		return
	}
	w.Doubtful = policy.Labels{}
	if w.Kind == policy.KindAddress {
		g.doubtSome(w, w.Labels, 1)
	} else {
		g.doubtSome(w, w.Labels, 0)
		w.Cgroup.Path = fmt.Sprintf("docker.slice/%d", number)
	}
	g.doubtSome(w, w.Facts, 0)
}

// doubtSome makes some of a workload's labels doubtful, and leaves so many.
func (g generator) doubtSome(w *policy.Workload, labels policy.Labels, least int) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if len(labels) > least && g.chance(65) && !strings.HasPrefix(key, "thole/") {
			w.Doubtful[key] = labels[key]
			delete(labels, key)
		}
	}
}

func (g generator) policy(name string) policy.Policy {
	p := policy.Policy{Name: name, Selector: g.selector(), Audit: g.chance(25)}
	for silent(p) {
		p.Ingress, p.Egress = g.side(), g.side()
	}
	return p
}

// silent reports whether p says nothing, which Parse refuses.
func silent(p policy.Policy) bool {
	says := func(s policy.Side) bool { return s.Isolates || s.Deny != nil }
	return !says(p.Ingress) && !says(p.Egress)
}

// selector makes a selector of no, one or two terms.
func (g generator) selector() policy.Selector {
	var requirements []policy.Requirement
	for range g.r.IntN(3) {
		word := pick(g, policyWords())
		r := policy.Requirement{Key: word.key}
		r.Operator = pick(g, []policy.Operator{
			policy.In, policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist,
		})
		if r.Operator == policy.In || r.Operator == policy.NotIn {
			r.Values = some(g, 2, word.values)
		}
		requirements = append(requirements, r)
	}
	return policy.Selector{Requirements: sortedRequirements(requirements)}
}

// sortedRequirements brings requirements in the order that a Selector has,
// without repetitions.
func sortedRequirements(requirements []policy.Requirement) []policy.Requirement {
	compare := func(a, b policy.Requirement) int {
		return cmp.Or(
			cmp.Compare(a.Key, b.Key),
			cmp.Compare(a.Operator, b.Operator),
			slices.Compare(a.Values, b.Values),
		)
	}
	slices.SortFunc(requirements, compare)
	return slices.CompactFunc(requirements, func(a, b policy.Requirement) bool { return compare(a, b) == 0 })
}

func (g generator) side() policy.Side {
	var s policy.Side
	if g.chance(60) {
		s.Isolates = true
		s.Allow = g.rules(g.r.IntN(4))
	}
	if g.chance(25) {
		s.Deny = g.rules(1 + g.r.IntN(2))
	}
	return s
}

func (g generator) rules(n int) []policy.Rule {
	var rules []policy.Rule
	for range n {
		var rule policy.Rule
		if g.chance(85) {
			for range 1 + g.r.IntN(3) {
				rule.Peers = append(rule.Peers, g.peer())
			}
		}
		if g.chance(60) {
			for range 1 + g.r.IntN(3) {
				if p := g.port(); !slices.Contains(rule.Ports, p) { // Parse refuses repetitions
					rule.Ports = append(rule.Ports, p)
				}
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func (g generator) peer() policy.Peer {
	switch g.r.IntN(12) {
	case 0, 1, 2:
		s := g.selector()
		return policy.Peer{Workloads: &s}
	case 3, 4:
		return policy.Peer{SameLabels: &policy.SameLabels{Keys: g.sameKeys()}}
	case 5:
		return policy.Peer{SameLabels: &policy.SameLabels{All: true}}
	case 6, 7:
		return policy.Peer{Unlabelled: true}
	case 8:
		return policy.Peer{Any: true}
	default:
		return policy.Peer{CIDR: g.cidr()}
	}
}

func (g generator) sameKeys() []string {
	var keys []string
	for _, word := range some(g, 2, policyWords()) {
		keys = append(keys, word.key)
	}
	slices.Sort(keys)
	return keys
}

// prefixes are those that policies name, with much inside each other. Some hold
// the addresses of groups or of this node's workloads without matching them.
func prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, text := range []string{
		"0.0.0.0/0", "128.0.0.0/1", "172.16.0.0/12", "172.17.0.0/16", "192.0.0.0/16",
		"192.0.2.0/24", "192.0.2.128/25", "192.0.2.128/26", "192.0.2.129/32", "198.51.100.0/24",
		"224.0.0.0/3", "224.0.0.0/4", "224.0.0.0/24", "224.0.0.251/32", "239.0.0.0/8",
		"::/0", "8000::/1", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/64", "2001:db8:1::1/128",
		"fd00::/8", "fd00:17::/64", "fe00::/7", "ff00::/8", "ff02::/16", "ff02::fb/128", "ff05::/16",
	} {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

func (g generator) cidr() *policy.CIDR {
	c := &policy.CIDR{Prefix: pick(g, prefixes())}
	var inside []netip.Prefix
	for _, p := range prefixes() {
		if p.Bits() > c.Prefix.Bits() && c.Prefix.Contains(p.Addr()) {
			inside = append(inside, p)
		}
	}
	if len(inside) > 0 && g.chance(40) {
		c.Except = some(g, 3, inside)
	}
	return c
}

// port makes an entry of a rule's ports. The ranges overlap, touch, and end at
// the limits.
func (g generator) port() policy.Port {
	ranges := [][2]uint16{
		{1, 1},
		{1, 79},
		{1, 65535},
		{53, 53},
		{80, 80},
		{80, 81},
		{81, 443},
		{443, 443},
		{443, 1024},
		{1024, 65535},
		{65535, 65535},
	}
	switch g.r.IntN(10) {
	case 0, 1, 2, 3:
		chosen := pick(g, ranges)
		return policy.Port{Protocol: policy.TCP, From: chosen[0], To: chosen[1]}
	case 4, 5, 6:
		chosen := pick(g, ranges)
		return policy.Port{Protocol: policy.UDP, From: chosen[0], To: chosen[1]}
	case 7:
		return policy.Port{Protocol: policy.SCTP}
	case 8:
		return policy.Port{Protocol: policy.ICMP}
	default:
		return policy.Port{Protocol: policy.ICMP, ICMPType: pick(g, policy.ICMPTypes).Name}
	}
}
