package compiler

import (
	"maps"
	"slices"

	"thole/compiler/classes"
	"thole/compiler/policy"
)

// A namespace is a network namespace that containers share.
type namespace struct {
	sharers []sharer
	owner   sharer // the one that has the addresses; if it does not run, only the path of its cgroup is known
	class   *classes.Class
}

// A sharer is a container in a namespace.
type sharer struct {
	policy.Sharing
	cgroup policy.Cgroup
	peer   int // its class, as a peer
	own    []policy.Network
	name   string
	labels string // for a person
}

// namespacesOf finds the network namespaces that containers share, by the path of their owner, and gives each a class.
func namespacesOf(cs *classes.Set, members []member, unlabelled []policy.Unlabelled) []*namespace {
	byPath := make(map[string]*classes.Class, len(members))
	sharers := map[string][]sharer{}
	for _, m := range members {
		byPath[m.Cgroup.Path] = m.class
		if at := m.Sharing.Namespace; at != "" {
			s := sharer{m.Sharing, m.Cgroup, m.class.ID, m.Own, m.Name, labelsOf(m.Workload)}
			sharers[at] = append(sharers[at], s)
		}
	}
	for _, u := range unlabelled {
		if at := u.Sharing.Namespace; at != "" {
			peer := peerAbove(u.Cgroup.Path, byPath)
			sharers[at] = append(sharers[at], sharer{u.Sharing, u.Cgroup, peer, u.Own, u.Name, withoutLabels})
		}
	}
	var list []*namespace
	for _, path := range slices.Sorted(maps.Keys(sharers)) {
		list = append(list, newNamespace(cs, path, sharers[path]))
	}
	cs.JudgeNamespaces()
	return list
}

func newNamespace(cs *classes.Set, path string, sharers []sharer) *namespace {
	n := &namespace{sharers: sharers, owner: sharer{cgroup: policy.Cgroup{Path: path}}}
	for _, s := range sharers {
		if s.cgroup.Path == path {
			n.owner = s
		}
	}
	var peers []int
	for _, s := range n.counting() {
		peers = append(peers, s.peer)
	}
	n.class = cs.Namespace(peers)
	return n
}

// counting returns the containers that count: one that only keeps the namespace open does if there is no other.
func (n *namespace) counting() []sharer {
	list := slices.DeleteFunc(slices.Clone(n.sharers), func(s sharer) bool { return s.Infra })
	if len(list) == 0 {
		return n.sharers
	}
	return list
}

// isShared reports whether policies can tell some of those apart that count.
func (n *namespace) isShared() bool { return n.class != nil && n.class.Shared != nil }

// number is that of its class; 0: nothing in it has labels.
func (n *namespace) number() uint32 {
	if n.class == nil {
		return 0
	}
	return n.class.Number
}

// peerAbove returns the deepest workload around an unlabelled container, to which that one belongs, as a peer.
func peerAbove(cgroup string, byPath map[string]*classes.Class) int {
	for parent := range above(cgroup) {
		if c := byPath[parent]; c != nil {
			return c.ID
		}
	}
	return 0
}

const withoutLabels = "no labels that count"

// labelsOf prints the labels of a workload that count for a person.
func labelsOf(w *policy.Workload) string {
	if len(w.Labels) == 0 {
		return withoutLabels
	}
	return w.Labels.String()
}

// keys are what Numbers knows the class of a namespace by.
func (n *namespace) keys() []string {
	keys := []string{sharedPrefix + n.owner.cgroup.Path}
	if id := n.owner.cgroup.ID; id != 0 {
		keys = append(keys, sharedPrefix+cgroupKey(id))
	}
	return keys
}

const sharedPrefix = "shared "

// A SharedNetwork is a network namespace, other than the host's, that containers of several classes share.
type SharedNetwork struct {
	Owner      string   // the name of the container whose network it is
	Containers []string // "web (app=web)", ascending; without those that only keep it open
}

func sharedNetworks(namespaces []*namespace) (list []SharedNetwork) {
	for _, n := range namespaces {
		if !n.isShared() {
			continue
		}
		shared := SharedNetwork{Owner: n.owner.name}
		for _, s := range n.counting() {
			shared.Containers = append(shared.Containers, s.name+" ("+s.labels+")")
		}
		slices.Sort(shared.Containers)
		list = append(list, shared)
	}
	return list
}

// bindNamespaces enters the addresses of namespaces that containers share.
func (l *lowering) bindNamespaces(namespaces []*namespace) {
	for _, n := range namespaces {
		comment := ""
		if l.options.Comments {
			comment = n.owner.name + " and the containers that share its network"
		}
		for _, s := range n.sharers {
			l.bindNetwork(s.own, n.number(), comment)
		}
	}
}
