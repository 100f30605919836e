package policy

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Labels are a workload's labels: key → value.
type Labels map[string]string

func (l Labels) String() string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(l)) {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(k + "=" + l[k])
	}
	return b.String()
}

// An Operator relates a label's value to a requirement's values.
type Operator string

// The operators of a Kubernetes label selector.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// A Requirement is one term of a selector.
type Requirement struct {
	Key      string
	Operator Operator
	Values   []string // In, NotIn: at least one, ascending; else nil
}

// A Selector matches the workloads that meet all its requirements. The zero
// Selector matches every workload. (Kubernetes, LabelSelector; matchLabels k: v
// is k In [v].)
type Selector struct {
	Requirements []Requirement // by key, operator, values
}

// Matches reports whether labels meet every requirement. As in Kubernetes, NotIn
// and DoesNotExist match an absent key.
func (s Selector) Matches(labels func(key string) (value string, ok bool)) bool {
	for _, r := range s.Requirements {
		if !r.met(labels(r.Key)) {
			return false
		}
	}
	return true
}

// met reports whether a label's value meets the requirement, or its absence (ok is false).
func (r Requirement) met(value string, ok bool) bool {
	switch r.Operator {
	case In:
		return ok && slices.Contains(r.Values, value)
	case NotIn:
		return !ok || !slices.Contains(r.Values, value)
	case Exists:
		return ok
	default: // DoesNotExist
		return !ok
	}
}

// A Source says who gave a label.
type Source string

// The sources of labels (docs/POLICY.md, "Inventories").
const (
	SourcePerson   Source = "person"
	SourceImage    Source = "image" // or a person: the image has the same label
	SourceTool     Source = "tool"
	SourceDocument Source = "document"
	SourceGrant    Source = "grant"
	SourceDaemon   Source = "daemon"
)

// A Kind says how a workload was bound to its cgroup. Of two bindings of one
// cgroup the smaller Kind wins.
type Kind uint8

// The kinds of a workload, in the order of their precedence.
const (
	KindContainer Kind = iota
	KindRun
	KindUnit
	KindUser
	KindCgroup
	KindAddress
)

var kindNames = []string{"container", "run", "unit", "user", "cgroup", "address"}

func (k Kind) String() string { return kindNames[k] }

// A Cgroup names a cgroup (v2) of this node.
type Cgroup struct {
	Path string // below the root of the cgroup namespace, without a leading slash: "system.slice/nginx.service"
	ID   uint64 // its inode number, which the kernel calls the cgroup id; 0: not known (inventories)
}

// A Workload is a cgroup with labels (or, in an inventory, an address with labels). No key is in two of Labels, Facts,
// Doubtful and DoubtfulFacts. Identify divides the labels that count from those that do not.
type Workload struct {
	Name, Namespace string
	Kind            Kind
	Labels          Labels     // those that count: at least one, unless a policy makes a container a workload
	Facts           Labels     // what can be selected and does not count: tools' labels, excluded ones, thole/*
	Doubtful        Labels     `json:",omitempty"` // what a container and its image both have, and would count
	DoubtfulFacts   Labels     `json:",omitempty"` // likewise, and would not count
	Named           bool       `json:",omitempty"` // no label counts, and a policy names a fact: a workload by that
	Cgroup          Cgroup     // Kind != KindAddress
	Address         netip.Addr // Kind == KindAddress
	Own             []Network  // of a container with networks of its own; none: the host's
	Sharing         Sharing    `json:",omitzero"` // of a container that shares its network namespace with others
	Position        Position   // of the Workload document, if there is one

	Given *GivenLabels `json:",omitempty"` // what of the labels is not a container's own; nil: nothing

	// Of a container as it was found, whose cgroup a Workload document names, too: the workload that it is if none of
	// its own labels counts. Identify removes it.
	Document *Workload `json:"-"`
}

// A Network is how a container with a network of its own is known on this node: by
// its addresses, on its port of a bridge.
type Network struct {
	Bridge    string       // the bridge's interface: "docker0"
	Port      string       // the bridge's port to which the container is connected: "veth1a2b3c"
	Addresses []netip.Addr // at least one
}

// A Sharing says that a container shares a network namespace, other than the host's, with other containers: any of them
// can use each address and port of the namespace. So a connection is allowed only if it is allowed for each of them.
type Sharing struct {
	Namespace string `json:",omitempty"` // the path of the owner's cgroup, the same for all of them; "": it shares none
	Infra     bool   `json:",omitempty"` // it only keeps the namespace open, and so does not count
}

// A Bridge is one to which containers alone are connected.
type Bridge struct {
	Name     string         // of its interface: "docker0"
	Networks []netip.Prefix // whose addresses are its containers', but for this node's own
}

// Unlabelled is a container that is known to have no label that counts.
type Unlabelled struct {
	Cgroup  Cgroup
	Own     []Network
	Sharing Sharing `json:",omitzero"`

	Name string `json:",omitempty"`

	// Of one with other labels, by which a policy may make it a workload (Identify); else empty.
	Facts    Labels       `json:",omitempty"`
	Doubtful Labels       `json:",omitempty"`
	Given    *GivenLabels `json:",omitempty"`
}

// Selectable reports whether the container has a label that a person, a tool or its image gave.
func (u *Unlabelled) Selectable() bool {
	for key := range u.Facts {
		if !strings.HasPrefix(key, daemonPrefix) {
			return true
		}
	}
	return len(u.Doubtful) > 0
}

// JoinedNetwork is how the fact thole/network of a container begins that has joined the network namespace of another
// one, which may be the host's.
const JoinedNetwork = "container:"

// HasOwnNetwork says that w is not on the host network.
func (w *Workload) HasOwnNetwork() bool {
	network := w.Facts["thole/network"]
	return len(w.Own) > 0 || w.Sharing.Namespace != "" ||
		network != "" && network != "host" && network != "none" && !strings.HasPrefix(network, JoinedNetwork)
}

// Label returns the value that selectors see, where doubtful labels are read as being there.
func (w *Workload) Label(key string) (string, bool) {
	for _, labels := range [...]Labels{w.Labels, w.Facts, w.Doubtful, w.DoubtfulFacts} {
		if v, ok := labels[key]; ok {
			return v, true
		}
	}
	return "", false
}

// Depth counts from the root, whose children have 1.
func (c Cgroup) Depth() uint8 { return uint8(strings.Count(c.Path, "/") + 1) }
