package packet

import (
	"thole/datapath/refusal"
	"thole/datapath/token"
)

const p3 = token.T3Size // P

// AppendSYN appends the SYN with T1 of a connection that p, its own SYN, opens. Fast
// Open's option and data are left out. The error is a refusal.Reason or a *TooBigError.
func (p *Packet) AppendSYN(dst []byte, typ token.Type, t1 []byte, limit int) ([]byte, error) {
	if !p.is(SYN|ACK|RST|FIN, SYN) || p.Token != 0 {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		mark: typ, front: t1, limit: limit,
		seq: p.Seq - uint32(len(t1)) - p3, ack: p.Ack, flags: p.Flags,
	})
}

// AppendStrippedSYN appends the SYN that p was made from; its token was all of its
// payload. Fast Open's option is taken off here too: nobody speaks before the proof.
func (p *Packet) AppendStrippedSYN(dst []byte) ([]byte, error) {
	if !p.is(SYN|ACK|RST|FIN, SYN) || p.Token == 0 {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		seq: p.Seq + uint32(len(p.Payload())) + p3, ack: p.Ack, flags: p.Flags, limit: maxPacket,
	})
}

// AppendSYNACK appends the SYN-ACK with T2, from p, the kernel's own.
func (p *Packet) AppendSYNACK(dst []byte, typ token.Type, t2 []byte, limit int) ([]byte, error) {
	if !p.is(SYN|ACK|RST|FIN, SYN|ACK) || p.Token != 0 || len(p.Payload()) != 0 {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		mark: typ, front: t2, limit: limit,
		seq: p.Seq - uint32(len(t2)), ack: p.Ack - p3, flags: p.Flags,
	})
}

// AppendStrippedSYNACK appends the SYN-ACK that p was made from.
func (p *Packet) AppendStrippedSYNACK(dst []byte) ([]byte, error) {
	if !p.is(SYN|ACK|RST|FIN, SYN|ACK) || p.Token == 0 {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		seq: p.Seq + uint32(len(p.Payload())), ack: p.Ack + p3, flags: p.Flags, limit: maxPacket,
	})
}

// AppendProof appends p with T3 before its data. First is the number of the client's
// first byte, c + 1, which must be p's own. A *TooBigError or NoRoom means that T3 goes
// alone, by AppendProofAlone, and p after it as it is. The kernel made p as big as the
// path allows; who does not know the path takes 1280 for the limit.
func (p *Packet) AppendProof(dst []byte, first uint32, t3 []byte, limit int) ([]byte, error) {
	if !p.mayProve(t3) || p.Seq != first {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		mark: token.TypeT3, front: t3, payload: p.Payload(), limit: limit, urgent: p3,
		seq: first - p3, ack: p.Ack, flags: p.Flags,
	})
}

// AppendProofAlone appends a packet that carries T3 and nothing else, made after p, any
// packet of the client: first − P is its number whatever p's is (a keepalive has one of
// its own). Of p's options the timestamps stay.
func (p *Packet) AppendProofAlone(dst []byte, first uint32, t3 []byte, limit int) ([]byte, error) {
	if !p.mayProve(t3) {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		mark: token.TypeT3, bare: true, front: t3, limit: limit,
		seq: first - p3, ack: p.Ack, flags: p.Flags &^ (FIN | PSH | URG),
	})
}

func (p *Packet) mayProve(t3 []byte) bool {
	return p.is(SYN|ACK|RST, ACK) && p.Token == 0 && len(t3) == p3
}

// AppendStrippedProof appends the packet that p was made from, with the data behind T3.
func (p *Packet) AppendStrippedProof(dst []byte) ([]byte, error) {
	if !p.is(SYN|ACK|RST, ACK) || p.Token != token.TypeT3 || len(p.Payload()) < p3 {
		return dst, refusal.WrongPacket
	}
	return p.append(dst, edit{
		payload: p.Payload()[p3:], limit: maxPacket, urgent: -p3,
		seq: p.Seq + p3, ack: p.Ack, flags: p.Flags,
	})
}

// AppendReset appends p, a server's RST before the proof, as it goes over the wire. One
// without ACK stays as it is.
func (p *Packet) AppendReset(dst []byte) ([]byte, error) { return p.appendReset(dst, p.Ack-p3) }

// AppendStrippedReset appends p, a server's RST that came before the proof, for the
// client's kernel. It is for who calls to see that p acknowledges c + 1 − P.
func (p *Packet) AppendStrippedReset(dst []byte) ([]byte, error) {
	return p.appendReset(dst, p.Ack+p3)
}

func (p *Packet) appendReset(dst []byte, ack uint32) ([]byte, error) {
	if !p.is(SYN|RST, RST) || p.Token != 0 {
		return dst, refusal.WrongPacket
	}
	if p.Flags&ACK == 0 {
		return append(dst, p.bytes...), nil
	}
	return p.append(dst, edit{payload: p.Payload(), seq: p.Seq, ack: ack, flags: p.Flags, limit: maxPacket})
}
