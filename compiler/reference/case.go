package reference

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/compiler/reference/policyyaml"
)

// A Set is what an administrator wrote: what verdicts depend on beside workloads.
type Set struct {
	Policies []policy.Policy // by name
	Settings policy.Settings
}

// A Case is a set of policies, the workloads of a node, and connections to judge. The labels of the workloads are as
// they were found: Set says which of them count.
type Case struct {
	Set
	Workloads   []*policy.Workload // their names, cgroups and addresses differ
	Namespaces  []*Namespace       // of containers that are not among Workloads
	Connections []Connection       // between these workloads, unlabelled and the outside
	Flows       []Flow             // likewise, where sockets share addresses and ports
}

// String prints the case for a reader: policies as YAML, then workloads, then
// connections with their verdicts.
func (c Case) String() string {
	var b strings.Builder
	b.Write(policyyaml.YAML(c.Policies))
	if s := c.Settings; len(s.Include)+len(s.Exclude)+len(s.TrustImages) > 0 {
		fmt.Fprintf(&b, "# settings: include %q, exclude %q, trust images %q\n", s.Include, s.Exclude, s.TrustImages)
	}
	for _, w := range c.Workloads {
		fmt.Fprintf(&b, "# workload %s\n", describe(w))
	}
	for _, n := range c.Namespaces {
		fmt.Fprintf(&b, "# network namespace of %s\n", n)
		for _, w := range n.Containers {
			fmt.Fprintf(&b, "#   container %s\n", describe(w))
		}
	}
	for _, connection := range c.Connections {
		fmt.Fprintf(&b, "# %s: %s\n", connection, Judge(c.Set, connection))
	}
	for _, f := range c.Flows {
		fmt.Fprintf(&b, "# a flow of %s:\n", f.transport())
		for i, line := range strings.Split(f.String(), "\n") {
			fmt.Fprintf(&b, "#   %s: %s\n", line, fate(JudgeFlow(c.Set, f), i))
		}
	}
	return b.String()
}

// fate says what a verdict of JudgeFlow says of a flow's i-th packet.
func fate(verdicts []bool, i int) string {
	switch {
	case i >= len(verdicts):
		return "is not sent"
	case verdicts[i]:
		return "passes"
	default:
		return "does not pass"
	}
}

// IsWorkload reports whether one of the case's workloads is one to its policies; else it is an unlabelled container.
func (c Case) IsWorkload(w *policy.Workload) bool {
	return identify(c.Set, w) != nil
}

// Count returns how many of the case's workloads are workloads to its policies.
func (c Case) Count() int {
	n := 0
	for _, w := range c.all() {
		if c.IsWorkload(w) {
			n++
		}
	}
	return n
}

// all returns the workloads, and the containers in namespaces.
func (c Case) all() []*policy.Workload {
	all := slices.Clone(c.Workloads)
	for _, n := range c.Namespaces {
		all = append(all, n.Containers...)
	}
	return all
}

// Found returns what a daemon would find: containers without a label of a person are not among the workloads. What has
// an address is in a container with a network of its own, which is connected to a port of a bridge.
func (c Case) Found(bridge, port string) (workloads []policy.Workload, unlabelled []policy.Unlabelled) {
	add := func(w policy.Workload) {
		if len(w.Labels) > 0 {
			workloads = append(workloads, w)
			return
		}
		u := policy.Unlabelled{Cgroup: w.Cgroup, Own: w.Own, Sharing: w.Sharing, Name: w.Name, Facts: w.Facts,
			Doubtful: w.Doubtful}
		unlabelled = append(unlabelled, u.Reduced())
	}
	inContainer := func(w *policy.Workload) policy.Workload {
		in := *w
		in.Kind, in.Cgroup.Path = policy.KindContainer, "docker/"+w.Name
		in.Cgroup.ID = 1<<42 + uint64(len(workloads)+len(unlabelled))
		in.Own = []policy.Network{{Bridge: bridge, Port: port, Addresses: []netip.Addr{w.Address}}}
		return in
	}
	for _, w := range c.Workloads {
		if w.Kind == policy.KindAddress {
			add(inContainer(w))
		} else {
			add(*w)
		}
	}
	for _, n := range c.Namespaces {
		for i, w := range n.Containers {
			in := inContainer(w)
			in.Sharing.Namespace = "docker/" + n.Containers[0].Name
			if in.Sharing.Infra = i == 0 && n.Infra; i > 0 {
				in.Own = nil
			}
			add(in)
		}
	}
	return workloads, unlabelled
}

func describe(w *policy.Workload) string {
	place := fmt.Sprintf("cgroup %s (%d)", w.Cgroup.Path, w.Cgroup.ID)
	if w.Kind == policy.KindAddress {
		place = "address " + w.Address.String()
	}
	return fmt.Sprintf("%s, %s %s, labels {%s}, doubtful {%s}, facts {%s}",
		w.Name, w.Kind, place, w.Labels, w.Doubtful, w.Facts)
}

// clone copies everything that Shrink may change, and lets the connections speak
// of the copies.
func (c Case) clone() Case {
	copies := make(map[*policy.Workload]*policy.Workload)
	d := Case{Set: Set{Settings: c.Settings}}
	d.Settings.Include, d.Settings.Exclude = slices.Clone(c.Settings.Include), slices.Clone(c.Settings.Exclude)
	d.Settings.TrustImages = slices.Clone(c.Settings.TrustImages)
	for _, w := range c.all() {
		workload := *w
		workload.Labels, workload.Facts, workload.Doubtful = maps.Clone(w.Labels), maps.Clone(w.Facts),
			maps.Clone(w.Doubtful)
		copies[w] = &workload
	}
	for _, w := range c.Workloads {
		d.Workloads = append(d.Workloads, copies[w])
	}
	namespaces := make(map[*Namespace]*Namespace)
	for _, n := range c.Namespaces {
		namespace := Namespace{Infra: n.Infra}
		for _, w := range n.Containers {
			namespace.Containers = append(namespace.Containers, copies[w])
		}
		namespaces[n] = &namespace
		d.Namespaces = append(d.Namespaces, &namespace)
	}
	for _, connection := range c.Connections {
		for _, e := range []*Endpoint{&connection.From, &connection.To} {
			e.Workload, e.Namespace = copies[e.Workload], namespaces[e.Namespace]
		}
		d.Connections = append(d.Connections, connection)
	}
	for _, f := range c.Flows {
		f.Packets = slices.Clone(f.Packets)
		for _, e := range f.endpoints() {
			e.Workload = copies[e.Workload]
		}
		d.Flows = append(d.Flows, f)
	}
	for _, p := range c.Policies {
		p.Selector = cloneSelector(p.Selector)
		p.Ingress, p.Egress = cloneSide(p.Ingress), cloneSide(p.Egress)
		d.Policies = append(d.Policies, p)
	}
	return d
}

func cloneSide(s policy.Side) policy.Side {
	s.Allow, s.Deny = cloneRules(s.Allow), cloneRules(s.Deny)
	return s
}

func cloneRules(rules []policy.Rule) []policy.Rule {
	rules = slices.Clone(rules)
	for i := range rules {
		rules[i].Ports = slices.Clone(rules[i].Ports)
		rules[i].Peers = slices.Clone(rules[i].Peers)
		for j := range rules[i].Peers {
			clonePeer(&rules[i].Peers[j])
		}
	}
	return rules
}

// clonePeer replaces what p points at by copies.
func clonePeer(p *policy.Peer) {
	switch {
	case p.Workloads != nil:
		s := cloneSelector(*p.Workloads)
		p.Workloads = &s
	case p.SameLabels != nil:
		s := *p.SameLabels
		s.Keys = slices.Clone(s.Keys)
		p.SameLabels = &s
	case p.CIDR != nil:
		c := *p.CIDR
		c.Except = slices.Clone(c.Except)
		p.CIDR = &c
	}
}

func cloneSelector(s policy.Selector) policy.Selector {
	s.Requirements = slices.Clone(s.Requirements)
	for i := range s.Requirements {
		s.Requirements[i].Values = slices.Clone(s.Requirements[i].Values)
	}
	return s
}

func (e Endpoint) String() string {
	switch {
	case e.Workload != nil:
		return e.Workload.Name
	case e.Namespace != nil:
		return e.Namespace.String()
	case e.outside():
		return e.Address.String()
	default:
		return "unlabelled"
	}
}

// String lists the containers of the namespace.
func (n *Namespace) String() string {
	text := n.Containers[0].Name
	if n.Infra {
		text += " (infra)"
	}
	for _, w := range n.Containers[1:] {
		text += "+" + w.Name
	}
	return text
}

func (c Connection) String() string {
	to := c.To.String()
	if c.Group.IsValid() {
		to = "group " + c.Group.String()
	}
	family := "IPv4"
	if c.IPv6 {
		family = "IPv6"
	}
	text := fmt.Sprintf("%s -> %s, %s over %s", c.From, to, c.transport(), family)
	if c.Called.IsValid() {
		text += ", called at " + c.Called.String()
	}
	if c.CalledHere {
		text += " of this node"
	}
	if c.Tunnel.IsValid() {
		text += ", inside packets to " + c.Tunnel.String()
	}
	return text
}

// transport prints the protocol with its port or type.
func (c Connection) transport() string {
	switch c.Protocol {
	case protocolTCP:
		return fmt.Sprintf("%d/tcp", c.Port)
	case protocolUDP:
		return fmt.Sprintf("%d/udp", c.Port)
	case protocolSCTP:
		return fmt.Sprintf("%d/sctp", c.Port)
	case protocolICMP:
		return fmt.Sprintf("icmp type %d", c.ICMPType)
	case protocolICMPv6:
		return fmt.Sprintf("icmpv6 type %d", c.ICMPType)
	default:
		return fmt.Sprintf("protocol %d", c.Protocol)
	}
}

func (v Verdict) String() string {
	switch {
	case !v.Allowed:
		return "denied"
	case v.WouldDeny != "":
		return "allowed, would be denied by " + v.WouldDeny
	default:
		return "allowed"
	}
}
