package policy

import (
	"fmt"
	"iter"
	"net/netip"
)

// Documents are the valid documents of one set of files.
type Documents struct {
	Policies []Policy     // by name
	Bindings []Binding    // the Workload documents, by name
	Grants   []LabelGrant // by name
	Settings Settings     // zero: what holds without a Settings document
}

// A Policy says what the workloads that it selects may receive and send.
type Policy struct {
	Name     string
	Selector Selector
	Ingress  Side
	Egress   Side
	Audit    bool // enforcement: audit
	Position Position
}

// Rules visits every rule of every policy.
func Rules(policies []Policy) iter.Seq[*Rule] {
	return func(yield func(*Rule) bool) {
		for i := range policies {
			p := &policies[i]
			for _, rules := range [][]Rule{p.Ingress.Allow, p.Ingress.Deny, p.Egress.Allow, p.Egress.Deny} {
				for j := range rules {
					if !yield(&rules[j]) {
						return
					}
				}
			}
		}
	}
}

// NamedKeys returns all label keys that policies name.
func NamedKeys(policies []Policy) map[string]bool {
	named := map[string]bool{}
	add := func(s *Selector) {
		for _, r := range s.Requirements {
			named[r.Key] = true
		}
	}
	for i := range policies {
		add(&policies[i].Selector)
	}
	for r := range Rules(policies) {
		for _, p := range r.Peers {
			switch {
			case p.Workloads != nil:
				add(p.Workloads)
			case p.SameLabels != nil:
				for _, k := range p.SameLabels.Keys {
					named[k] = true
				}
			}
		}
	}
	return named
}

// A Side is one direction of a policy.
type Side struct {
	Isolates bool   // the direction's key is present: only what an allow rule admits may pass
	Allow    []Rule // ingress: or egress:
	Deny     []Rule // deny.ingress: or deny.egress:
}

// A Rule matches when any of its peers matches and any of its ports matches.
type Rule struct {
	Peers    []Peer // nil: every peer
	Ports    []Port // nil: every protocol and port
	Position Position
}

// A Peer is the other end of a connection. Exactly one of its fields is set.
type Peer struct {
	Workloads  *Selector
	SameLabels *SameLabels
	Unlabelled bool
	CIDR       *CIDR
	Any        bool
	Position   Position
}

// SameLabels matches workloads whose values equal those of the selected one.
type SameLabels struct {
	All  bool     // all user labels are exactly equal
	Keys []string // these keys exist on both and have equal values; ascending
}

// A CIDR matches addresses outside this node in Prefix but in none of Except.
// Prefix and Except are masked and of one family; Except lies inside Prefix.
type CIDR struct {
	Prefix netip.Prefix
	Except []netip.Prefix
}

// A Protocol is a transport as policies name it.
type Protocol uint8

// The protocols that a policy can name. ICMP stands for both versions. The
// values of TCP, UDP and SCTP are their numbers in the IP header.
const (
	ICMP Protocol = 1
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// A Port is one entry of a rule's ports.
type Port struct {
	Protocol Protocol
	From, To uint16 // TCP, UDP: inclusive, 1 to 65535. SCTP, ICMP: 0, 0
	ICMPType string // ICMP only: a name of ICMPTypes, or "" for every type
}

func (p Port) String() string {
	name := map[Protocol]string{ICMP: "icmp", TCP: "tcp", UDP: "udp", SCTP: "sctp"}[p.Protocol]
	switch {
	case p.Protocol == ICMP && p.ICMPType != "":
		return name + "/" + p.ICMPType
	case p.From == 0 && p.To == 0:
		return name
	case p.From == p.To:
		return fmt.Sprintf("%d/%s", p.From, name)
	default:
		return fmt.Sprintf("%d-%d/%s", p.From, p.To, name)
	}
}

// An ICMPType is one kind of ICMP message with its number in each version;
// -1 where a version has none.
type ICMPType struct {
	Name   string
	V4, V6 int16
}

// ICMPTypes are the names that may follow "icmp/" in a rule's ports
// (IANA, ICMP Type Numbers and ICMPv6 "type" Numbers).
var ICMPTypes = []ICMPType{
	{"destination-unreachable", 3, 1},
	{"echo-reply", 0, 129},
	{"echo-request", 8, 128},
	{"packet-too-big", -1, 2},
	{"parameter-problem", 12, 4},
	{"time-exceeded", 11, 3},
	{"timestamp-reply", 14, -1},
	{"timestamp-request", 13, -1},
}

// A Binding is a Workload document: it gives labels to what runs in a cgroup.
// Exactly one of Unit, User, Cgroup, Container, Compose and Address is set.
type Binding struct {
	Name, Namespace string
	Labels          Labels
	Sources         map[string]Source // inventories only: who gave which label; nil: nothing says so
	Unit            string            // a systemd unit
	User            string            // a user name or uid
	Cgroup          string            // a path below the cgroup root; * and ? match within one component
	Container       string            // a container's name
	Compose         Compose           // the containers of a Compose service
	Address         netip.Addr        // inventories only
	Position        Position
}

// A Compose names a service of a Compose project.
type Compose struct{ Project, Service string }

// The keys of Facts.
const (
	composeProject = "com.docker.compose.project"
	composeService = "com.docker.compose.service"
)

// Facts are the labels by which Compose names the service of a container.
func (c Compose) Facts() Labels { return Labels{composeProject: c.Project, composeService: c.Service} }

// BindsContainer reports whether b gives its labels to a container, of which the name and the labels are given.
func (b *Binding) BindsContainer(name string, labels func(key string) (string, bool)) bool {
	if b.Container != "" {
		return b.Container == name
	}
	if b.Compose == (Compose{}) {
		return false
	}
	project, _ := labels(composeProject)
	service, _ := labels(composeService)
	return b.Compose == Compose{project, service}
}

// A LabelGrant says which labels users who are not root may give to what they
// start with thole run.
type LabelGrant struct {
	Name     string
	Users    []string
	Groups   []string
	Labels   map[string][]string // key → the values that may be given; ["*"]: any
	Require  Labels              // added to every workload of these users
	Position Position
}
