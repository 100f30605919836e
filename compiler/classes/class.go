package classes

import (
	"fmt"
	"slices"

	"thole/compiler/partition"
	"thole/compiler/policy"
)

// A Class is a group of workloads that no policy of the set can tell apart.
// So policies treat all its members like the first one.
type Class struct {
	ID     int              // as a peer (Set.Peers)
	Number uint32           // by which the table knows the class; the compiler gives it
	First  *policy.Workload // the first member, also when that has ended
	Size   int              // how many members there are; the compiler counts those that come and go after New
	Remote *policy.Remote   // on another node; Policies is nil
	Shared []int            // what shares a network namespace, as peers, ascending; First and Policies are empty

	// A class that may not reach itself is divided: each member has a number of its own,
	// by which the kernel knows it from the others, since each may reach itself.
	Divided bool

	Policies   []*policy.Policy // those that select it, at least to restrict it, by name
	RuleLists  [2]*RuleList     // by direction; nil of a class of another node
	SameLabels [2][]Exception   // by direction: the peers that sameLabels adds to the rule list's, ascending

	// Namespaces are, by direction, the classes of shared network namespaces, as peers, of which the class says
	// something else than its rule list says, ascending.
	Namespaces [2][]Exception

	permits            []bool // which of Policies also permit it something
	selected           string // Policies and permits as a key: equal for classes with equal rule lists
	labelKey, matchKey string // by which the set finds it
}

// Isolating returns the names of the enforced policies that isolate the class.
func (c *Class) Isolating(d Direction) []string {
	var names []string
	for _, p := range c.Policies {
		if policySide(p, d).Isolates && !p.Audit {
			names = append(names, p.Name)
		}
	}
	return names
}

// Selected reports whether an enforced policy selects the class.
func (c *Class) Selected() bool {
	return slices.ContainsFunc(c.Policies, func(p *policy.Policy) bool { return !p.Audit })
}

func (c *Class) String() string {
	if c.Shared != nil {
		return "a shared network namespace"
	}
	s := c.First.Labels.String()
	if c.Size > 1 {
		s += fmt.Sprintf(" (and %d more)", c.Size-1)
	}
	return s
}

// A Direction is a side of a policy: what comes in or what goes out.
type Direction uint8

// The directions.
const (
	Ingress Direction = iota
	Egress
)

func policySide(p *policy.Policy, d Direction) *policy.Side {
	if d == Ingress {
		return &p.Ingress
	}
	return &p.Egress
}

// A Peer is the other end of a connection: one class of workloads, one class of
// addresses outside this node, or (both nil) what is unlabelled on this node.
type Peer struct {
	Class     *Class
	Addresses *partition.AddressClass
}

// addressID is the id of a class of addresses, by its index.
func addressID(class int) int { return 1 + class }

// IsRemote reports whether the peer is a workload of another node.
func (p Peer) IsRemote() bool { return p.Class != nil && p.Class.Remote != nil }

// shared returns what shares the network namespace that the peer is; nil: it is none.
func (p Peer) shared() []int {
	if p.Class == nil {
		return nil
	}
	return p.Class.Shared
}

// Number returns the number by which the table knows the peer.
func (p Peer) Number() uint32 {
	switch {
	case p.Class != nil:
		return p.Class.Number
	case p.Addresses != nil:
		return p.Addresses.Number
	default:
		return 0
	}
}

func (p Peer) String() string {
	switch {
	case p.Class != nil:
		return p.Class.String()
	case p.Addresses == nil:
		return "unlabelled"
	case p.Addresses.Index == 0: // no CIDR matches it
		return "elsewhere"
	default:
		return p.Addresses.Ranges[0].String()
	}
}
