package reference

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"thole/compiler/policy"
)

// A Flow is the packets of one 5-tuple: protocol, client address and port, server address and port. Several sockets may
// share the tuple, so each packet names the sockets that really send and receive it. All clients are on this node, or
// all are the one address outside that the tuple has; likewise all servers.
type Flow struct {
	Protocol uint8 // TCP or UDP
	IPv6     bool
	Port     uint16 // the server's port; the client's port is ClientPort
	Packets  []Packet

	// OtherMark is the conntrack mark that another program writes behind Thole's OUTPUT; 0: none does. No end of such a
	// flow is a workload.
	OtherMark uint32
}

// ClientPort is the client's port of every Flow. The policies of Random make no difference between this port and its
// neighbours.
const ClientPort = 40000

// A Packet is one packet of a Flow.
type Packet struct {
	Kind  PacketKind
	Back  bool     // it has the server's address and port as its source
	From  Endpoint // the owner of the socket that sends it
	To    Endpoint // the owner of the socket to which the kernel delivers it
	Finds Lookup   // what nftables finds at INPUT, if To is on this node
	Other Endpoint // the owner of the socket that is found, where Finds is FindsOther

	// Mark and Priority are those that the packet has before Thole sees it: SO_MARK, SO_PRIORITY, another program's
	// rules.
	Mark, Priority uint32
}

// A PacketKind is what a packet does.
type PacketKind string

// The kinds. A flow of UDP has only Datagrams. A flow of TCP begins with its Open.
const (
	Datagram PacketKind = "datagram"
	Open     PacketKind = "SYN"
	Data     PacketKind = "data"   // from the client
	Answer   PacketKind = "answer" // the server's data, or its first acknowledgement
)

// A Lookup is which socket nftables finds at INPUT for a packet that the kernel delivers to the socket of Packet.To.
type Lookup string

// The lookups.
const (
	FindsReceiver Lookup = "finds the receiver"
	FindsOther    Lookup = "finds another socket"            // bound to lo, or not selected by a BPF program
	FindsNothing  Lookup = "finds nothing"                   // the receiver is bound to a device
	FindsTimeWait Lookup = "finds a socket in TIME_WAIT"     // Open only: it hides the listener
	FindsRequest  Lookup = "finds a request that waits only" // Data only: the connection has no full socket yet
)

// A Situation is something that makes packets of a flow look other than what they are.
type Situation string

// The situations.
const (
	SharedListener Situation = "a shared listener"       // nftables finds another socket than the one that receives
	BoundListener  Situation = "a device-bound listener" // nftables finds no socket
	HiddenListener Situation = "a hidden listener"       // nftables finds a socket in TIME_WAIT, or a request
	SecondSender   Situation = "a second sender"         // another socket sends with the client's address and port
	SecondAnswerer Situation = "a second answerer"       // another socket sends with the server's address and port
	PortChanged    Situation = "a port that changed"     // the answer is delivered to another one than asked
	PacketMark     Situation = "a packet mark"           // another program's
	PacketPriority Situation = "a packet priority"       // likewise
	ConntrackMark  Situation = "a conntrack mark"        // likewise
)

// The situations of a Connection.
const (
	CalledElsewhere Situation = "a called address" // NAT on this node led the connection to another one
	Tunnelled       Situation = "a tunnel"         // the packet around it has the sender's socket
	SharedNetwork   Situation = "a shared network" // several containers may be an end
)

// ConnectionSituations are all situations of a Connection.
var ConnectionSituations = []Situation{CalledElsewhere, Tunnelled, SharedNetwork}

// Has reports whether the situation is c's.
func (c Connection) Has(s Situation) bool {
	switch s {
	case CalledElsewhere:
		return c.Called.IsValid()
	case Tunnelled:
		return c.Tunnel.IsValid()
	case SharedNetwork:
		return c.From.Namespace != nil || c.To.Namespace != nil
	default:
		return false
	}
}

// Without returns c as a judge sees it that does not know the situation; "" is none.
func (c Connection) Without(s Situation) Connection {
	switch s {
	case CalledElsewhere:
		c.Called, c.CalledHere = netip.AddrPort{}, false
	case Tunnelled:
		c.Tunnel = netip.Addr{}
	case SharedNetwork: // whoever has the address is the container that owns the network
		for _, e := range []*Endpoint{&c.From, &c.To} {
			if e.Namespace != nil {
				e.Workload, e.Namespace = e.Namespace.Containers[0], nil
			}
		}
	}
	return c
}

// FlowSituations are all situations of a Flow.
var FlowSituations = []Situation{
	SharedListener, BoundListener, HiddenListener, SecondSender, SecondAnswerer, PortChanged,
	PacketMark, PacketPriority, ConntrackMark,
}

// Has reports whether the situation is one of f's.
func (f Flow) Has(s Situation) bool {
	switch s {
	case ConntrackMark:
		return f.OtherMark != 0
	case SecondSender, SecondAnswerer:
		var all []Endpoint
		for _, p := range f.Packets {
			if p.Back == (s == SecondAnswerer) {
				all = append(all, p.From)
			}
		}
		return differ(all)
	case PortChanged:
		var all []Endpoint
		for _, p := range f.Packets {
			if p.Back {
				all = append(all, p.To)
			} else {
				all = append(all, p.From)
			}
		}
		return differ(all)
	default:
		return slices.ContainsFunc(f.Packets, func(p Packet) bool { return p.has(s) })
	}
}

func differ(all []Endpoint) bool {
	return slices.ContainsFunc(all, func(e Endpoint) bool { return e != all[0] })
}

func (p Packet) has(s Situation) bool {
	switch s {
	case SharedListener:
		return p.Finds == FindsOther && p.Other != p.To
	case BoundListener:
		return p.Finds == FindsNothing
	case HiddenListener:
		return p.Finds == FindsTimeWait || p.Finds == FindsRequest
	case PacketMark:
		return p.Mark != 0
	case PacketPriority:
		return p.Priority != 0
	default:
		return false
	}
}

// Without returns f as a judge sees it that does not know the situation; "" is none.
func (f Flow) Without(s Situation) Flow {
	f.Packets = slices.Clone(f.Packets)
	if s == ConntrackMark {
		f.OtherMark = 0
	}
	first := map[bool]Packet{}
	for i := range f.Packets {
		p := &f.Packets[i]
		if _, known := first[p.Back]; !known {
			first[p.Back] = *p
		}
		switch {
		case s == SecondSender && !p.Back, s == SecondAnswerer && p.Back:
			p.From = first[p.Back].From
		case s == PortChanged && p.Back:
			if request, known := first[false]; known {
				p.To = request.From
			}
		case s == PacketMark:
			p.Mark = 0
		case s == PacketPriority:
			p.Priority = 0
		case p.has(s):
			p.Finds, p.Other = FindsReceiver, Endpoint{}
		}
	}
	return f
}

func (f Flow) transport() string {
	if f.Protocol == protocolTCP {
		return "TCP"
	}
	return "UDP"
}

// connection is the first packet of a connection from one end to the other of f.
func (f Flow) connection(from, to Endpoint, back bool) Connection {
	c := Connection{From: from, To: to, Protocol: f.Protocol, IPv6: f.IPv6, Port: f.Port}
	if back {
		c.Port = ClientPort
	}
	return c
}

func (f Flow) onNode() bool {
	return !slices.ContainsFunc(f.Packets, func(p Packet) bool { return p.From.outside() || p.To.outside() })
}

// endpoints are all ends that f speaks of.
func (f Flow) endpoints() []*Endpoint {
	var all []*Endpoint
	for i := range f.Packets {
		p := &f.Packets[i]
		all = append(all, &p.From, &p.To, &p.Other)
	}
	return all
}

func (f Flow) mentions(w *policy.Workload) bool {
	return slices.ContainsFunc(f.endpoints(), func(e *Endpoint) bool { return e.Workload == w })
}

// String prints one line for each packet.
func (f Flow) String() string {
	var lines []string
	for _, p := range f.Packets {
		lines = append(lines, fmt.Sprintf("%s: %s", f.connection(p.From, p.To, p.Back), p.notes(f)))
	}
	return strings.Join(lines, "\n")
}

// notes prints all of p but its ends.
func (p Packet) notes(f Flow) string {
	notes := []string{string(p.Kind)}
	if p.Back {
		notes = append(notes, "back")
	}
	switch p.Finds {
	case FindsOther:
		notes = append(notes, "nftables finds "+p.Other.String()+"'s socket")
	case FindsNothing, FindsTimeWait, FindsRequest:
		notes = append(notes, "nftables "+string(p.Finds))
	}
	for _, mark := range []struct {
		name  string
		value uint32
	}{{"mark", p.Mark}, {"priority", p.Priority}, {"conntrack mark", f.OtherMark}} {
		if mark.value != 0 {
			notes = append(notes, fmt.Sprintf("%s %#x", mark.name, mark.value))
		}
	}
	return strings.Join(notes, ", ")
}
