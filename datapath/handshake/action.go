package handshake

import (
	"errors"

	"thole/datapath/packet"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// An Operation is what becomes of a packet. Most are package packet's.
type Operation uint8

// The operations.
const (
	Drop       Operation = iota
	Accept               // as it is
	PutT1                // AppendSYN
	TakeT1               // AppendStrippedSYN
	PutT2                // AppendSYNACK
	TakeT2               // AppendStrippedSYNACK
	PutT3                // AppendProof, or AppendProofAlone before the packet as it is
	TakeT3               // AppendStrippedProof
	PutReset             // AppendReset
	TakeReset            // AppendStrippedReset
	RefuseSYN            // AppendRefusal, for a connect that waits
	RefuseOpen           // AppendRefusal, for a connection that is open
	ShiftQuote           // Quote.AppendShifted
	endOperation
)

var operations = [endOperation]string{
	"drop", "accept", "put T1", "take T1", "put T2", "take T2", "put T3", "take T3", "put reset", "take reset",
	"refuse SYN", "refuse open", "shift quote",
}

func (o Operation) String() string { return operations[o] }

// A Mark is what the kernel may write into conntrack's mark for an accepted packet. The
// kernel holds it against the mark that there is: MarkPending only onto a new connection
// (or one that is pending as this one was), MarkProven only onto a pending one. A packet
// marked MarkUnproven comes to the queue again, without its token, unless its
// connection is proven.
type Mark uint8

// The marks. Class goes with the first two.
const (
	NoMark       Mark = iota
	MarkPending       // T1, or T2, was good
	MarkProven        // T3 was good
	MarkUnproven      // T3 proved nothing
	MarkPlain         // no longer pending, nothing proven
)

// An Action is what is to be done for an event.
type Action struct {
	Do    Operation
	Mark  Mark
	Class Class
	Err   error // why the packet is refused, or proves nothing; for counting

	// Reset says that the sender of the packet gets a reset with the number ResetSeq.
	Reset    bool
	ResetSeq uint32
	// SendSYN says that the Conn's SYN goes out again, as the kernel made it, behind the
	// reset; RememberPlain that its destination is one without Thole.
	SendSYN, RememberPlain bool
	// ForgetPlain says that the connection's destination is no longer to be taken for one
	// without Thole: nobody listens there, or it did not answer a SYN without a token.
	ForgetPlain bool
	// Remember is the pair with the statement that has just answered, to be named next
	// time at this address and port. Nil: none.
	Remember *token.Pair

	put   tokenParts
	first uint32 // PutT3: c + 1
	shift uint32 // ShiftQuote
}

// tokenParts are those of the token that is put on.
type tokenParts struct {
	typ       token.Type
	nonce     token.Nonce
	mac       token.MAC
	own, peer token.Fingerprint
	statement []byte // full forms
}

// limit is the largest packet that is made: every path of IPv6 carries it, and IPv4's
// may be asked to. The largest statement fits.
const limit = 1280

const maxToken = token.FullT2Size + token.MaxStatement

// Output is what an Action makes of a packet.
type Output struct {
	Before []byte // goes out first, by a raw socket: T3, where it does not fit into Packet; nil: nothing
	Packet []byte // goes with the verdict; nil: the packet as it was
}

// Write appends to dst what becomes of p, which the action is for. On an error the
// packet is dropped. It allocates what dst lacks (a packet is at most 64 KiB, one that
// gets a token 1280 bytes) and, once for a connection whose first segment is full, the
// error by which package packet says that T3 does not fit.
func (a *Action) Write(dst []byte, p *packet.Packet) (Output, error) {
	var scratch [maxToken]byte
	front := a.put.append(scratch[:0])
	var err error
	switch a.Do {
	case PutT1:
		dst, err = p.AppendSYN(dst, a.put.typ, front, limit)
	case TakeT1:
		dst, err = p.AppendStrippedSYN(dst)
	case PutT2:
		dst, err = p.AppendSYNACK(dst, a.put.typ, front, limit)
	case TakeT2:
		dst, err = p.AppendStrippedSYNACK(dst)
	case PutT3:
		return a.prove(dst, p, front)
	case TakeT3:
		dst, err = p.AppendStrippedProof(dst)
	case PutReset:
		dst, err = p.AppendReset(dst)
	case TakeReset:
		dst, err = p.AppendStrippedReset(dst)
	case RefuseSYN, RefuseOpen:
		dst, err = p.AppendRefusal(dst, a.Do == RefuseSYN)
	default:
		return Output{}, nil
	}
	return Output{Packet: dst}, err
}

// prove puts T3 before p's data where there is room, else before p.
func (a *Action) prove(dst []byte, p *packet.Packet, t3 []byte) (Output, error) {
	out, err := p.AppendProof(dst, a.first, t3, limit)
	if err != nil && doesNotFit(err) {
		out, err = p.AppendProofAlone(dst, a.first, t3, limit)
		return Output{Before: out}, err
	}
	return Output{Packet: out}, err
}

func doesNotFit(err error) bool {
	var tooBig *packet.TooBigError
	return errors.As(err, &tooBig) || errors.Is(err, refusal.NoRoom)
}

// WriteQuote is Write for an ICMP error.
func (a *Action) WriteQuote(dst []byte, q *packet.Quote) Output {
	if a.Do != ShiftQuote {
		return Output{}
	}
	return Output{Packet: q.AppendShifted(dst, a.shift)}
}

// WriteReset appends the reset for who sent p, if there is one.
func (a *Action) WriteReset(dst []byte, p *packet.Packet) []byte {
	if !a.Reset {
		return dst
	}
	return p.AppendResetOf(dst, a.ResetSeq)
}

func (t *tokenParts) append(b []byte) []byte {
	switch t.typ {
	case token.TypeShortT1:
		v := token.ShortT1{Client: t.own, Server: t.peer, Nonce: t.nonce, M1: t.mac}
		return v.Append(b)
	case token.TypeFullT1:
		v := token.FullT1{Nonce: t.nonce, Statement: t.statement}
		return v.Append(b)
	case token.TypeShortT2:
		v := token.ShortT2{Nonce: t.nonce, Server: t.own, M2: t.mac}
		return v.Append(b)
	case token.TypeFullT2:
		v := token.FullT2{Nonce: t.nonce, Statement: t.statement, M2: t.mac}
		return v.Append(b)
	case token.TypeT3:
		v := token.T3{M3: t.mac}
		return v.Append(b)
	}
	return b
}
