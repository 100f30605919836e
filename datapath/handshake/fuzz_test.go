package handshake

import (
	"testing"

	"thole/datapath/packet"
	"thole/datapath/token"
)

// FuzzStep: whatever packets come, in whatever order, nothing panics, a token that fails
// changes no state, what is accepted as rewritten is a packet, and nothing is called
// proven (the fuzzer has no keys, and no packet here has T3).
func FuzzStep(f *testing.F) {
	for _, s := range []segment{kernelSYN, kernelSYNACK, kernelACK, kernelData, resetTo(first)} {
		f.Add(s.seq, s.ack, byte(s.flags), byte(0), []byte(nil), []byte{0, 1, 0})
		for typ := byte(1); typ <= 5; typ++ {
			f.Add(s.seq, s.ack, byte(s.flags), typ, make([]byte, token.ShortT1Size), []byte{2, 3, 1})
		}
	}
	client, server := newNodes(f)
	client.learn(f, server.owns[1], serverEnd, true)
	server.learn(f, client.owns[1], clientEnd, false)
	machines := []*Node{client.machine(), server.machine()}
	f.Fuzz(func(t *testing.T, seq, ack uint32, flags, typ byte, payload, order []byte) {
		odd := segment{seq: seq, ack: ack, flags: packet.Flags(flags), payload: payload[:min(len(payload), 1300)]}
		if typ != 0 {
			odd.options = []byte{254, 6, 0x54, 0x48, typ%5 + 1, 1, 1, 1}
		}
		var conns [2]Conn
		segments := []segment{kernelSYN, kernelSYNACK, odd, kernelData}
		for i, o := range order[:min(len(order), 64)] {
			side := Side(o >> 2 & 1)
			seg := segments[o&3]
			seg.fromServer = o>>4&1 == 1
			p, err := packet.Parse(seg.build())
			if err != nil {
				t.Fatal(err)
			}
			e := &Event{Kind: Kind(o>>3&1) + Out, Packet: &p, Workload: Workload(o >> 5 & 1), Plain: o>>6&1 == 1,
				Nonce: nonce(i + 1)}
			before := conns[side]
			after, a := machines[side].Step(before, e)
			if isOfToken(a.Err) && after != before {
				t.Errorf("%v, and the state changed", a.Err)
			}
			if a.Mark == MarkProven {
				t.Error("proven")
			}
			out, err := a.Write(nil, &p)
			if err == nil && out.Packet != nil {
				if _, err := packet.Parse(out.Packet); err != nil {
					t.Errorf("%v made a packet that is refused: %v", a.Do, err)
				}
			}
			conns[side] = after
		}
	})
}
