package packet

import (
	"testing"
	"thole/datapath/refusal"
)

// TestRefusal: what a client's kernel gets in the place of a SYN-ACK.
func TestRefusal(t *testing.T) {
	const c, s = 5, 0xfffffff0
	eachVersion(t, func(t *testing.T, v6 bool) {
		sSeq, cSeq := uint32(s), uint32(c)
		p := mustParse(t, segment{v6: v6, reverse: true, seq: sSeq - 52, ack: cSeq + 1 - 20, flags: SYN | ACK,
			options: marked(3, linuxSYN), payload: fill(52, 'B')}.build())
		stamps := append([]byte{1, 1}, linuxSYN[6:16]...)
		out, err := p.AppendRefusal(nil, true)
		wantPacket(t, out, err, segment{v6: v6, reverse: true, seq: sSeq + 1, ack: cSeq + 1, flags: RST | ACK,
			options: stamps})
		out, err = p.AppendRefusal(nil, false)
		wantPacket(t, out, err, segment{v6: v6, reverse: true, seq: sSeq + 1, flags: RST, options: stamps})

		p = mustParse(t, segment{v6: v6, reverse: true, seq: sSeq, ack: cSeq + 1, flags: SYN | ACK}.build())
		out, err = p.AppendRefusal(nil, true)
		wantPacket(t, out, err, segment{v6: v6, reverse: true, seq: sSeq + 1, ack: cSeq + 1, flags: RST | ACK})
		out, err = p.AppendRefusal(nil, false)
		wantPacket(t, out, err, segment{v6: v6, reverse: true, seq: sSeq + 1, flags: RST})

		p = mustParse(t, segment{v6: v6, reverse: true, flags: ACK}.build())
		_, err = p.AppendRefusal(nil, true)
		wantReason(t, err, refusal.WrongPacket)
	})
}

// TestResetOf: it goes back to who sent the packet, and its checksums are right.
func TestResetOf(t *testing.T) {
	eachVersion(t, func(t *testing.T, v6 bool) {
		data := segment{v6: v6, seq: 1001, ack: 7, flags: ACK | PSH, options: linuxData, payload: fill(100, 'x')}
		p := mustParse(t, data.build())
		back := mustParse(t, p.AppendResetOf(nil, 7))
		if back.Source != p.Destination || back.Destination != p.Source || back.Seq != 7 || back.Ack != 0 ||
			back.Flags != RST || len(back.Payload()) != 0 {
			t.Errorf("the reset is %+v", back)
		}
	})
}
