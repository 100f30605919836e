package handshake

import (
	"net/netip"

	"thole/datapath/packet"
	"thole/datapath/token"
)

// A State is where a connection is. The package comment has the drawing.
type State uint8

// The states. Offered, Proving and Plain are the client's, Received and Answered the
// server's.
const (
	Closed   State = iota // nothing is known
	Offered               // T1 is out
	Proving               // T2 was good; each packet with seq c+1 carries T3
	Plain                 // without tokens, judged by address
	Received              // T1 was good; the kernel has not answered
	Answered              // T2 is out
)

func (s State) String() string {
	return [...]string{"closed", "offered", "proving", "plain", "received", "answered"}[s]
}

// A Workload names one that runs on this node, as the caller counts them; 0 is none.
type Workload uint64

// A Side says what this node is to a connection.
type Side uint8

// The sides.
const (
	Client Side = iota
	Server
)

// Statements are what a node knows. Each method that returns a Pair has held the
// other's claim against the address and the time of the packet at hand (Claim.Admit),
// and fails with a refusal.Reason. It is the same Pair each time, as long as it is kept.
type Statements interface {
	// Own returns the workload's own statement, or nil: it has no labels to prove.
	Own(Workload) *token.OwnStatement
	// Remembered returns the pair with the statement that answered at this address and
	// port and is still good for T1 short, or nil.
	Remembered(*token.OwnStatement, netip.AddrPort) *token.Pair
	// Named returns the pair that a short token names. Own is one of the workload's
	// statements: the present one or the one before, otherwise it is unknown.
	Named(side Side, w Workload, own, peer token.Fingerprint, from netip.Addr) (*token.Pair, error)
	// Stated returns the pair with a statement that came, and that was checked.
	Stated(side Side, own *token.OwnStatement, statement []byte, from netip.Addr) (*token.Pair, error)
}

// A Class is the number by which the kernel's maps know what was proven.
type Class uint16

// Policy is what the client's node decides in userspace; the server's kernel decides
// by the class alone. Behind AllowsPlain the client's decides once more.
type Policy interface {
	// Class returns the class of who proved what the claim says, at this address.
	Class(*token.Claim, netip.Addr) (Class, error)
	// Allows reports whether the workload may send to that class and port.
	Allows(Workload, Class, uint16) bool
	// AllowsPlain reports whether the workload may send to that address and port, where
	// nothing was proven.
	AllowsPlain(Workload, netip.AddrPort) bool
}

// A Node is what the machine asks. Step does not change it.
type Node struct {
	Statements
	Policy
}

// maxSYN is the largest SYN that is kept for a fallback: IPv6 and 60 bytes of TCP. A
// larger one (extension headers, Fast Open's data) is left to the kernel's timer.
const maxSYN = 100

// A Conn is the state of one connection on one node. The zero Conn is Closed.
type Conn struct {
	State State
	// GoodM1 says, on the server, that T1 was short and its MAC right: somebody with the
	// node's key sent it, if not just now.
	GoodM1 bool
	Class  Class // of the other node's workload, once it is known

	workload Workload
	own      *token.OwnStatement
	pair     *token.Pair // client: from T1 short or T2 on; server: always
	nonces   struct{ client, server token.Nonce }
	m2       token.MAC // client, Proving: what T3 covers
	first    uint32    // the client's first byte, c + 1
	serverAt uint32    // s, on the server that of the last SYN-ACK

	// Which tokens went out, for ICMP errors that quote them: T1 on the client, T2 on the
	// server. Their sizes are those of a short one, and of one with own's statement.
	sentShort, sentFull bool
	assumed             bool  // client, Plain: as is remembered, and not yet found
	owesFull            bool  // server: T1 full came, and T2 full did not go out for it
	proof               proof // client, Proving
	synSize             uint8 // client: of syn; 0: not kept
	syn                 [maxSYN]byte
}

// proof says with what T3 went out.
type proof uint8

const (
	unsent   proof = iota
	acked          // with an ACK alone: what comes behind it does without
	withData       // with or before the first data: that may come again because it was lost
)

// Pair returns the statements of both ends, or nil as long as the other's is not known.
func (c *Conn) Pair() *token.Pair { return c.pair }

// SYN returns the kernel's own SYN, for a fallback (Action.SendSYN). Nil: it was not
// kept, and the kernel's timer will send it.
func (c *Conn) SYN() []byte {
	if c.synSize == 0 {
		return nil
	}
	return c.syn[:c.synSize]
}

func (c *Conn) exchange() *token.Exchange {
	return &token.Exchange{Protocol: protocolTCP, ClientNonce: c.nonces.client, ServerNonce: c.nonces.server}
}

const (
	protocolTCP = 6
	p3          = token.T3Size // P
)

// A Kind says where an event comes from.
type Kind uint8

// The kinds.
const (
	Out    Kind = iota + 1 // OUTPUT: Packet is this node's kernel's
	In                     // PREROUTING: Packet came from another node
	Quoted                 // PREROUTING: Quote is an ICMP error about this node's packet
)

// An Event is what happens to a connection.
type Event struct {
	Kind   Kind
	Packet *packet.Packet
	Quote  *packet.Quote

	// Of a SYN: whose socket sends it, or listens for it; 0: nobody's with labels.
	Workload Workload
	// Of a SYN: where it goes is remembered to have no Thole.
	Plain bool
	// Of a SYN, either way: 16 fresh random bytes.
	Nonce token.Nonce
}
