package handshake

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"thole/datapath/packet"
	"thole/datapath/token"
)

// c and s are the kernels' initial numbers; c wraps.
const c, s = 0xfffffff0, 7000

var first = seqAdd(c, 1)

func seqAdd(a uint32, d int) uint32 { return a + uint32(d) }

// A rig is two nodes and a connection between them.
type rig struct {
	t              *testing.T
	client, server *node
	conn           [2]Conn // the client's, the server's
	draws          int
	plain          bool // the client remembers the server as one without Thole
	listener       Workload
}

// A result is what became of a packet.
type result struct {
	Action
	packet []byte // as it goes on; nil: not
	before []byte
	reset  []byte
}

func newRig(t *testing.T, known bool) *rig {
	r := &rig{t: t, listener: 1}
	r.client, r.server = newNodes(t)
	if known {
		r.client.learn(t, r.server.owns[1], serverEnd, true)
		r.server.learn(t, r.client.owns[1], clientEnd, false)
	}
	return r
}

func (r *rig) step(side Side, kind Kind, b []byte) result {
	r.t.Helper()
	p, err := packet.Parse(b)
	if err != nil {
		r.t.Fatal(err)
	}
	r.draws++
	e := &Event{Kind: kind, Packet: &p, Workload: 1, Nonce: nonce(r.draws), Plain: r.plain}
	machine := r.client.machine()
	if side == Server {
		machine, e.Workload = r.server.machine(), r.listener
	}
	var res result
	before := r.conn[side]
	r.conn[side], res.Action = machine.Step(before, e)
	if isOfToken(res.Err) && r.conn[side] != before {
		r.t.Errorf("a token that failed (%v) changed the state", res.Err)
	}
	out, err := res.Write(nil, &p)
	if err != nil {
		r.t.Fatal(err)
	}
	if res.packet, res.before = out.Packet, out.Before; res.Do != Drop && res.packet == nil {
		res.packet = b
	}
	res.reset = res.WriteReset(nil, &p)
	return res
}

// want fails unless the last step of this side was so: "operation, mark, error, state".
func (r *rig) want(side Side, res result, want string) {
	r.t.Helper()
	if got := fmt.Sprintf("%v, %d, %v, %v", res.Do, res.Mark, res.Err, r.conn[side].State); got != want {
		r.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

func (r *rig) wantBytes(got []byte, want segment) {
	r.t.Helper()
	if !bytes.Equal(got, want.build()) {
		r.t.Fatalf("got\n%x, want\n%x", got, want.build())
	}
}

// wantReset fails unless got is one from there with this number.
func (r *rig) wantReset(got []byte, from netip.AddrPort, seq uint32) {
	r.t.Helper()
	p, err := packet.Parse(got)
	if err != nil || p.Source != from || p.Seq != seq || p.Flags != packet.RST {
		r.t.Fatalf("%+v, %v; want a reset with %d", p, err, seq)
	}
}

// Packets as the kernels make them.
var (
	kernelSYN    = segment{seq: c, flags: packet.SYN}
	kernelSYNACK = segment{fromServer: true, seq: s, ack: first, flags: packet.SYN | packet.ACK}
	kernelACK    = segment{seq: first, ack: s + 1, flags: packet.ACK}
	kernelData   = segment{seq: first, ack: s + 1, flags: packet.ACK | packet.PSH, payload: []byte("hello")}
)

// syn brings the client's SYN to the server, and the server's kernel sees its own.
func (r *rig) syn() {
	r.t.Helper()
	out := r.step(Client, Out, kernelSYN.build())
	r.want(Client, out, "put T1, 0, <nil>, offered")
	in := r.step(Server, In, out.packet)
	r.want(Server, in, "take T1, 1, <nil>, received")
	r.wantBytes(in.packet, kernelSYN)
}

// synack brings the server's SYN-ACK to the client.
func (r *rig) synack() {
	r.t.Helper()
	out := r.step(Server, Out, kernelSYNACK.build())
	r.want(Server, out, "put T2, 0, <nil>, answered")
	in := r.step(Client, In, out.packet)
	r.want(Client, in, "take T2, 1, <nil>, proving")
	r.wantBytes(in.packet, kernelSYNACK)
	if in.Class != testClass || in.Remember == nil {
		r.t.Errorf("class %x, remember %v", in.Class, in.Remember)
	}
}

// prove brings a packet with the proof to the server.
func (r *rig) prove(seg segment) {
	r.t.Helper()
	out := r.step(Client, Out, seg.build())
	r.want(Client, out, "put T3, 0, <nil>, proving")
	in := r.step(Server, In, out.packet)
	r.want(Server, in, "take T3, 2, <nil>, closed")
	r.wantBytes(in.packet, seg)
	if in.Class != testClass {
		r.t.Errorf("class %x", in.Class)
	}
}

// TestScenarios: what may happen to a handshake, each with its outcome.
func TestScenarios(t *testing.T) {
	for name, run := range map[string]func(r *rig){
		"all goes well": func(r *rig) { r.syn(); r.synack(); r.prove(kernelACK) },
		"T1 short is not understood: the SYN that comes again carries T1 full, with the same nonce": func(r *rig) {
			r.server.known = map[token.Fingerprint]*token.Claim{}
			out := r.step(Client, Out, kernelSYN.build())
			in := r.step(Server, In, out.packet)
			r.want(Server, in, "drop, 0, unknown statement, closed")
			nonce := r.conn[Client].nonces.client
			out = r.step(Client, Out, kernelSYN.build())
			r.want(Client, out, "put T1, 0, <nil>, offered")
			if r.conn[Client].nonces.client != nonce || out.put.typ != token.TypeFullT1 {
				r.t.Error("another nonce, or no T1 full")
			}
			r.want(Server, r.step(Server, In, out.packet), "take T1, 1, <nil>, received")
			r.synack()
			r.prove(kernelACK)
		},
		"the SYN-ACK comes again: T2 short, whose last byte has the same number": func(r *rig) {
			r.client.known = map[token.Fingerprint]*token.Claim{}
			r.client.asked = map[netip.AddrPort]*token.Claim{}
			r.syn()
			full := r.step(Server, Out, kernelSYNACK.build())
			short := r.step(Server, Out, kernelSYNACK.build())
			pf, _ := packet.Parse(full.packet)
			ps, _ := packet.Parse(short.packet)
			if pf.Token != token.TypeFullT2 || ps.Token != token.TypeShortT2 ||
				pf.Seq+uint32(len(pf.Payload())) != ps.Seq+uint32(len(ps.Payload())) {
				r.t.Errorf("first %+v, then %+v", pf, ps)
			}
			r.want(Client, r.step(Client, In, short.packet), "drop, 0, unknown statement, offered")
			r.want(Client, r.step(Client, In, full.packet), "take T2, 1, <nil>, proving")
			r.want(Client, r.step(Client, In, short.packet), "take T2, 1, <nil>, proving")
			again := r.step(Client, Out, kernelSYN.build()) // its kernel lost the SYN-ACK
			r.want(Server, r.step(Server, In, again.packet), "take T1, 1, <nil>, answered")
			if p := r.step(Server, Out, kernelSYNACK.build()); p.put.typ != token.TypeFullT2 {
				r.t.Error("no T2 full for another T1 full")
			}
			r.prove(kernelACK)
		},
		"the ACK is lost and the client speaks": func(r *rig) {
			r.syn()
			r.synack()
			r.step(Client, Out, kernelACK.build())
			out := r.step(Client, Out, kernelData.build())
			r.want(Client, out, "accept, 0, <nil>, proving")
			r.want(Server, r.step(Server, In, out.packet), "drop, 0, handshake: unproven, answered")
			r.prove(kernelData) // that is sent again
		},
		"the first ACK carries data, and is lost": func(r *rig) {
			r.syn()
			r.synack()
			r.step(Client, Out, kernelData.build())
			r.prove(kernelData)
		},
		"the ACK is lost and the server would speak: its SYN-ACK comes again, and the answer has T3": func(r *rig) {
			r.syn()
			r.synack()
			r.step(Client, Out, kernelACK.build())
			again := r.step(Server, Out, kernelSYNACK.build())
			r.want(Client, r.step(Client, In, again.packet), "take T2, 1, <nil>, proving")
			r.prove(kernelACK)
		},
		"data overtakes its proof": func(r *rig) {
			r.syn()
			r.synack()
			later := segment{seq: first + 5, ack: s + 1, flags: packet.ACK, payload: []byte("later")}
			out := r.step(Client, Out, later.build())
			r.want(Client, out, "accept, 0, <nil>, proving")
			in := r.step(Server, In, out.packet) // mangle: pending, no mark
			r.want(Server, in, "drop, 0, handshake: unproven, answered")
			if in.Reset {
				r.t.Error("and ended the connection")
			}
			r.prove(kernelData)
		},
		"T3 again, behind the proof: for conntrack to judge": func(r *rig) {
			r.syn()
			r.synack()
			r.prove(kernelACK)
			r.want(Client, r.step(Client, Out, kernelData.build()), "accept, 0, <nil>, proving")
			out := r.step(Client, Out, kernelData.build()) // once more: it may have been lost
			in := r.step(Server, In, out.packet)
			r.want(Server, in, "take T3, 3, handshake: forgotten, closed")
			r.wantBytes(in.packet, kernelData)
		},
		"a full segment: T3 goes alone, before it": func(r *rig) {
			r.syn()
			r.synack()
			big := kernelData
			big.payload = bytes.Repeat([]byte("x"), 1240)
			out := r.step(Client, Out, big.build())
			r.want(Client, out, "put T3, 0, <nil>, proving")
			r.wantBytes(out.packet, big)
			in := r.step(Server, In, out.before)
			r.want(Server, in, "take T3, 2, <nil>, closed")
			r.wantBytes(in.packet, kernelACK)
		},
		"a keepalive": func(r *rig) {
			r.syn()
			r.synack()
			alive := segment{seq: c, ack: s + 1, flags: packet.ACK}
			r.want(Client, r.step(Client, Out, alive.build()), "accept, 0, <nil>, proving")
		},
		"SYN cookies: another s each time": func(r *rig) {
			r.syn()
			r.synack()
			other := kernelSYNACK
			other.seq = s + 100
			out := r.step(Server, Out, other.build())
			r.wantBytes(r.step(Client, In, out.packet).packet, other)
			r.prove(kernelACK) // either is taken by the kernel
		},
		"deferred accept: the first ACK has data": func(r *rig) { r.syn(); r.synack(); r.prove(kernelData) },
		"deferred accept: the SYN-ACK comes again behind the proof": func(r *rig) {
			r.syn()
			r.synack()
			r.prove(kernelACK)
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "accept, 0, <nil>, proving")
			other := kernelSYNACK
			other.seq++
			r.want(Client, r.step(Client, In, other.build()), "drop, 0, handshake: unexpected, proving")
		},
		"Fast Open: option and data stay at home": func(r *rig) {
			open := kernelSYN
			open.options, open.payload = []byte{34, 10, 0, 1, 2, 3, 4, 5, 6, 7, 1, 1}, []byte("early")
			out := r.step(Client, Out, open.build())
			in := r.step(Server, In, out.packet)
			r.want(Server, in, "take T1, 1, <nil>, received")
			r.wantBytes(in.packet, kernelSYN)
		},
		"two connects that meet: neither is let in": func(r *rig) {
			r.step(Client, Out, kernelSYN.build())
			r.server.asked[clientEnd] = r.server.known[r.client.owns[1].Statement.Fingerprint()]
			r.conn[Server] = Conn{}
			other := r.step(Server, Out, segment{fromServer: true, seq: s, flags: packet.SYN}.build())
			r.want(Server, other, "put T1, 0, <nil>, offered")
			r.want(Client, r.step(Client, In, other.packet), "drop, 0, handshake: simultaneous, offered")
		},
		"the port is used again, and the server's old connection is pending": func(r *rig) {
			r.syn()
			t2 := r.step(Server, Out, kernelSYNACK.build())
			next := segment{seq: seqAdd(c, 5000), flags: packet.SYN}
			out := r.step(Client, Out, next.build())
			r.want(Client, out, "put T1, 0, <nil>, offered")
			r.want(Server, r.step(Server, In, out.packet), "drop, 0, handshake: busy, answered")
			in := r.step(Client, In, t2.packet)
			r.want(Client, in, "drop, 0, handshake: stale, offered")
			r.wantReset(in.reset, clientEnd, first)
			r.want(Server, r.step(Server, In, in.reset), "accept, 0, <nil>, closed")
			out = r.step(Client, Out, next.build())
			r.want(Server, r.step(Server, In, out.packet), "take T1, 1, <nil>, received")
		},
		"the port is used again, and the server's kernel never answered": func(r *rig) {
			r.syn()
			out := r.step(Client, Out, segment{seq: seqAdd(c, 5000), flags: packet.SYN}.build())
			r.want(Server, r.step(Server, In, out.packet), "take T1, 1, <nil>, received")
		},
		"the port is used again, the server's daemon was restarted, and its kernel still waits": func(r *rig) {
			r.syn()
			r.conn[Server] = Conn{}
			next := segment{seq: seqAdd(c, 1<<20), flags: packet.SYN}
			out := r.step(Client, Out, next.build())
			r.want(Server, r.step(Server, In, out.packet), "take T1, 1, <nil>, received")
			out = r.step(Server, Out, kernelSYNACK.build())
			r.want(Server, out, "put T2, 0, handshake: stale, received")
			in := r.step(Client, In, out.packet)
			r.want(Client, in, "drop, 0, handshake: stale, offered")
			r.wantReset(in.reset, clientEnd, first)
			r.want(Server, r.step(Server, In, in.reset), "accept, 0, <nil>, received")
		},
		"the port is used again, and the server's kernel has given up": func(r *rig) {
			r.syn()
			r.step(Server, Out, kernelSYNACK.build())
			other := kernelSYNACK
			other.ack = 5
			r.want(Server, r.step(Server, Out, other.build()), "drop, 0, handshake: stale, closed")
		},
		"the client's daemon was restarted before T2": func(r *rig) {
			r.syn()
			r.conn[Client] = Conn{}
			out := r.step(Client, Out, kernelSYN.build()) // with another nonce
			r.want(Server, r.step(Server, In, out.packet), "take T1, 1, <nil>, received")
			r.synack()
			r.prove(kernelACK)
		},
		"the client's daemon was restarted behind T2, and T3 was lost: both kernels get a reset": func(r *rig) {
			r.syn()
			r.synack()
			r.conn[Client] = Conn{}
			out := r.step(Client, Out, kernelData.build())
			r.want(Client, out, "accept, 0, <nil>, closed")
			r.want(Server, r.step(Server, In, out.packet), "drop, 0, handshake: unproven, answered")
			in := r.step(Client, In, r.step(Server, Out, kernelSYNACK.build()).packet)
			r.want(Client, in, "refuse open, 0, handshake: forgotten, closed")
			r.wantBytes(in.packet, segment{fromServer: true, seq: s + 1, flags: packet.RST})
			r.want(Server, r.step(Server, In, in.reset), "accept, 0, <nil>, closed")
		},
		"the server's daemon was restarted before T3: the client gets a reset": func(r *rig) {
			r.syn()
			r.synack()
			r.conn[Server] = Conn{}
			out := r.step(Client, Out, kernelData.build())
			in := r.step(Server, In, out.packet)
			r.want(Server, in, "take T3, 3, handshake: forgotten, closed")
			in = r.step(Server, In, in.packet) // mangle: nothing proven
			r.want(Server, in, "drop, 0, handshake: forgotten, closed")
			r.wantReset(in.reset, serverEnd, s+1)
			r.want(Client, r.step(Client, In, in.reset), "accept, 0, <nil>, proving")
		},
		"the server's daemon was restarted, and the client has nothing to say": func(r *rig) {
			r.syn()
			r.synack()
			r.conn[Server] = Conn{}
			out := r.step(Server, Out, kernelSYNACK.build())
			r.want(Server, out, "refuse open, 0, handshake: forgotten, closed")
			r.wantBytes(out.packet, segment{fromServer: true, seq: s + 1, flags: packet.RST})
		},
		"the server's port is closed: its kernel's reset refuses the connect": func(r *rig) {
			r.listener = 0
			out := r.step(Client, Out, kernelSYN.build())
			in := r.step(Server, In, out.packet)
			r.want(Server, in, "accept, 0, handshake: not-wanted, closed")
			rst := segment{fromServer: true, ack: first - p3, flags: packet.RST | packet.ACK} // of all of T1
			in = r.step(Client, In, rst.build())
			r.want(Client, in, "take reset, 0, <nil>, offered")
			r.wantBytes(in.packet, segment{fromServer: true, ack: first, flags: packet.RST | packet.ACK})
		},
		"the server's policy refuses": func(r *rig) {
			r.syn()
			out := r.step(Server, Out, segment{fromServer: true, ack: first, flags: packet.RST | packet.ACK}.build())
			r.want(Server, out, "put reset, 0, <nil>, closed")
			r.want(Client, r.step(Client, In, out.packet), "take reset, 0, <nil>, offered")
		},
		"the client's policy refuses: both kernels get a reset": func(r *rig) {
			r.client.denies = true
			r.syn()
			in := r.step(Client, In, r.step(Server, Out, kernelSYNACK.build()).packet)
			r.want(Client, in, "refuse SYN, 0, handshake: denied, closed")
			r.wantBytes(in.packet, segment{fromServer: true, seq: s + 1, ack: first, flags: packet.RST | packet.ACK})
			r.wantReset(in.reset, clientEnd, first)
			r.want(Server, r.step(Server, In, in.reset), "accept, 0, <nil>, closed")
		},
		"the client resets": func(r *rig) {
			r.syn()
			r.synack()
			r.want(Client, r.step(Client, Out, resetTo(first).build()), "accept, 0, <nil>, proving")
			r.want(Server, r.step(Server, In, resetTo(first-1).build()), "accept, 0, <nil>, answered")
			r.want(Server, r.step(Server, In, resetTo(first+window).build()), "accept, 0, <nil>, answered")
			r.want(Server, r.step(Server, In, resetTo(first+window-1).build()), "accept, 0, <nil>, closed")
		},
		"the client's policy refuses who has no Thole: both kernels get a reset": func(r *rig) {
			r.client.denies, r.plain = true, true
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			in := r.step(Client, In, kernelSYNACK.build())
			r.want(Client, in, "refuse SYN, 0, handshake: denied, closed")
			r.wantBytes(in.packet, segment{fromServer: true, seq: s + 1, ack: first, flags: packet.RST | packet.ACK})
			r.wantReset(in.reset, clientEnd, first)
		},
		"forged resets are the kernel's to judge": func(r *rig) {
			r.step(Client, Out, kernelSYN.build())
			for _, d := range []uint32{1, ^uint32(0), p3} {
				rst := segment{fromServer: true, ack: first - p3 + d, flags: packet.RST | packet.ACK}
				in := r.step(Client, In, rst.build())
				r.want(Client, in, "accept, 0, <nil>, offered")
				r.wantBytes(in.packet, rst)
			}
		},
		"a challenge would tell the client that the proof was taken": func(r *rig) {
			r.syn()
			challenge := segment{fromServer: true, seq: s + 1, ack: first, flags: packet.ACK}
			r.want(Server, r.step(Server, Out, challenge.build()), "drop, 0, handshake: unexpected, received")
		},
		"an application's own option": func(r *rig) {
			forged := kernelSYN
			forged.options = []byte{254, 6, 0x54, 0x48, 1, 1, 1, 1}
			r.want(Client, r.step(Client, Out, forged.build()), "drop, 0, handshake: misplaced, closed")
		},
		"a token on a packet of another kind": func(r *rig) {
			for typ := byte(1); typ <= 5; typ++ {
				for _, flags := range []packet.Flags{packet.SYN, packet.SYN | packet.ACK, packet.ACK, packet.RST,
					packet.RST | packet.ACK, packet.SYN | packet.RST, 0} {
					if typ <= 2 && flags == packet.SYN || (typ == 3 || typ == 4) && flags == packet.SYN|packet.ACK ||
						typ == 5 && flags == packet.ACK {
						continue
					}
					in := r.step(Server, In,
						segment{flags: flags, options: []byte{254, 6, 0x54, 0x48, typ, 1, 1, 1}}.build())
					r.want(Server, in, "drop, 0, handshake: misplaced, closed")
				}
			}
		},
		"a workload without labels": func(r *rig) {
			delete(r.client.owns, 1)
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "accept, 4, <nil>, plain")
			r.want(Client, r.step(Client, Out, kernelData.build()), "accept, 0, <nil>, plain")
		},
		"a server that is known to have no Thole": func(r *rig) {
			r.plain = true
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "accept, 4, <nil>, plain")
			r.want(Client, r.step(Client, Out, kernelData.build()), "accept, 0, <nil>, plain")
		},
		"a server that is known to have no Thole, and does not answer": func(r *rig) {
			r.plain = true
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			again := r.step(Client, Out, kernelSYN.build())
			r.want(Client, again, "put T1, 0, <nil>, offered")
			if !again.ForgetPlain {
				t.Error("it is still taken for one without Thole")
			}
			in := r.step(Client, In, kernelSYNACK.build()) // to the first SYN, late
			r.want(Client, in, "drop, 0, handshake: no-thole, plain")
			if !in.SendSYN || !in.RememberPlain {
				t.Error("no SYN, or nothing remembered")
			}
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain") // found out, not assumed
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "accept, 4, <nil>, plain")
		},
		"a server that is known to have no Thole, and refuses": func(r *rig) {
			r.plain = true
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			stray := segment{fromServer: true, ack: first + 1, flags: packet.RST | packet.ACK}
			if r.step(Client, In, stray.build()).ForgetPlain {
				t.Error("a reset of something else")
			}
			refusal := segment{fromServer: true, ack: first, flags: packet.RST | packet.ACK}
			in := r.step(Client, In, refusal.build())
			r.want(Client, in, "accept, 0, <nil>, plain")
			if !in.ForgetPlain {
				t.Error("it is still taken for one without Thole")
			}
		},
		"a SYN-ACK without a token never opens a connection that was offered": func(r *rig) {
			r.step(Client, Out, kernelSYN.build())
			stray := kernelSYNACK
			stray.ack = first + 1
			r.want(Client, r.step(Client, In, stray.build()), "drop, 0, handshake: stale, offered")
			r.conn[Client] = Conn{}
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "drop, 0, handshake: unexpected, closed")
		},
	} {
		t.Run(name, func(t *testing.T) { run(newRig(t, true)) })
	}
}

// resetTo is a client's reset.
func resetTo(seq uint32) segment { return segment{seq: seq, flags: packet.RST} }

// TestFallback: a machine without Thole takes T1 or leaves it; a number that it could
// not have seen changes nothing.
func TestFallback(t *testing.T) {
	for _, known := range []bool{true, false} {
		size := uint32(token.ShortT1Size)
		r := newRig(t, known)
		if !known {
			size = uint32(token.FullT1Size + len(r.client.owns[1].Statement.Bytes()))
		}
		begun := first - p3 - size // the wire's number + 1
		for _, ack := range []uint32{begun, first - p3, first} {
			r := newRig(t, known)
			r.step(Client, Out, kernelSYN.build())
			for _, wrong := range []uint32{begun - 1, begun + 1, first - 1, first + 1} {
				seg := kernelSYNACK
				seg.ack = wrong
				r.want(Client, r.step(Client, In, seg.build()), "drop, 0, handshake: stale, offered")
			}
			answer := kernelSYNACK
			answer.ack = ack
			in := r.step(Client, In, answer.build())
			r.want(Client, in, "drop, 0, handshake: no-thole, plain")
			r.wantReset(in.reset, clientEnd, ack)
			if !in.SendSYN || !in.RememberPlain {
				t.Error("no SYN, or nothing remembered")
			}
			conn := r.conn[Client]
			r.wantBytes(conn.SYN(), kernelSYN)
			if ack != first { // the reset was lost
				in = r.step(Client, In, answer.build())
				r.want(Client, in, "drop, 0, handshake: stale, plain")
				r.wantReset(in.reset, clientEnd, ack)
			}
			r.want(Client, r.step(Client, Out, kernelSYN.build()), "accept, 0, <nil>, plain")
			r.want(Client, r.step(Client, In, kernelSYNACK.build()), "accept, 4, <nil>, plain")
		}
	}
}

// TestQuotes: a number is put back if it is one that went out, else nothing changes.
func TestQuotes(t *testing.T) {
	r := newRig(t, false)
	full := uint32(token.FullT1Size + len(r.client.owns[1].Statement.Bytes()))
	fullT2 := uint32(token.FullT2Size + len(r.server.owns[1].Statement.Bytes()))
	check := func(side Side, wire uint32, shifted bool, kernel uint32) {
		t.Helper()
		quoted := segment{fromServer: side == Server, seq: wire}
		q, err := packet.ParseQuote(quote(quoted))
		if err != nil {
			t.Fatal(err)
		}
		conn, a := r.client.machine().Step(r.conn[side], &Event{Kind: Quoted, Quote: &q})
		out := a.WriteQuote(nil, &q)
		if conn != r.conn[side] || (out.Packet != nil) != shifted {
			t.Fatalf("a quote of %d: %v", wire, a.Do)
		}
		if shifted {
			if back, err := packet.ParseQuote(out.Packet); err != nil || back.Seq != kernel {
				t.Errorf("a quote of %d is now one of %d, %v", wire, back.Seq, err)
			}
		}
	}
	check(Client, c-full-p3, false, 0)
	r.syn()
	check(Client, c-full-p3, true, c)
	check(Client, c-token.ShortT1Size-p3, false, 0) // it was not sent
	check(Client, c-full-p3+1, false, 0)
	check(Client, c, false, 0)
	check(Client, first-p3, false, 0)
	r.synack()
	check(Client, first-p3, true, first)
	check(Client, c-full-p3, true, c)
	check(Client, first, false, 0)
	check(Server, s-fullT2, true, s)
	check(Server, s-token.ShortT2Size, false, 0)
	r.step(Server, Out, kernelSYNACK.build())
	check(Server, s-token.ShortT2Size, true, s)
	check(Server, s, false, 0)
}

// quote is an ICMP error, fragmentation needed, about a packet.
func quote(of segment) []byte {
	quoted := of.build()[:28]
	b := append([]byte{0x45, 0, 0, 56, 0, 0, 0, 0, 64, 1, 0, 0, 203, 0, 113, 1}, quoted[12:16]...)
	binary.BigEndian.PutUint16(b[10:], ^checksum(b))
	icmp := append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, quoted...)
	binary.BigEndian.PutUint16(icmp[2:], ^checksum(icmp))
	return append(b, icmp...)
}

// TestBadT1: each check in its place; the state stays.
func TestBadT1(t *testing.T) {
	short := func(r *rig) []byte { return r.step(Client, Out, kernelSYN.build()).packet }
	for name, tc := range map[string]struct {
		known  bool
		change func(r *rig)
		bend   func(payload []byte) []byte
		want   string
	}{
		"M1":           {true, nil, flip(60), "refused: bad-m1"},
		"nonce":        {true, nil, flip(40), "refused: bad-m1"},
		"client":       {true, nil, flip(4), "unknown statement"},
		"server":       {true, nil, flip(20), "unknown statement"},
		"short":        {true, nil, func(b []byte) []byte { return b[:67] }, "refused: bad-length"},
		"version":      {true, nil, flip(0), "refused: bad-version"},
		"type":         {true, nil, flip(1), "refused: bad-type"},
		"capabilities": {true, nil, flip(3), "refused: bad-capabilities"},
		"empty":        {true, nil, func([]byte) []byte { return nil }, "refused: bad-length"},
		"expired":      {true, func(r *rig) { r.server.now = begin.Add(time.Hour / 2) }, nil, "refused: expired"},
		"another workload's": {true, func(r *rig) {
			r.listener = 2
			r.server.owns[2] = r.server.sign(t, "2")
		}, nil, "unknown statement"},
		"full: signature": {false, nil, func(b []byte) []byte { b[len(b)-1] ^= 1; return b }, "refused: bad-signature"},
		"full: early": {false, func(r *rig) {
			r.server.now = begin.Add(-time.Hour)
		}, nil, "refused: not-yet-valid"},
		"full: late": {false, func(r *rig) { r.server.now = begin.Add(time.Hour / 2) }, nil, "refused: expired"},
		"full: reflected": {false, func(r *rig) {
			r.server.checker.Self = r.client.checker.Self
		}, nil, "refused: reflected"},
		"full: length": {false, nil, flip(20), "refused: bad-length"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, tc.known)
			b := short(r)
			if tc.change != nil {
				tc.change(r)
			}
			if tc.bend != nil {
				b = bend(t, b, tc.bend)
			}
			for range 2 { // Closed, and with another connection pending
				before := r.conn[Server]
				in := r.step(Server, In, b)
				if in.Do != Drop || in.Reset || in.Err == nil || in.Err.Error() != tc.want || r.conn[Server] != before {
					t.Fatalf("%v, %v, %v", in.Do, in.Err, r.conn[Server].State)
				}
				r.conn[Server] = Conn{State: Received, first: 5, pair: &token.Pair{}, own: r.server.owns[1]}
			}
		})
	}
}

// TestT1NamesAnOldStatement: keys turn over while T1 short is on its way.
func TestT1NamesAnOldStatement(t *testing.T) {
	r := newRig(t, true)
	r.server.old[1], r.server.owns[1] = r.server.owns[1], r.server.sign(t, "turned")
	r.syn()
	r.synack()
	r.prove(kernelACK)
}

// TestGarbage: T2 and T3 that fail leave a pending connection as it was.
func TestGarbage(t *testing.T) {
	r := newRig(t, true)
	r.syn()
	t2 := r.step(Server, Out, kernelSYNACK.build()).packet
	for at := range token.ShortT2Size {
		in := r.step(Client, In, bend(t, t2, flip(at)))
		if in.Do != Drop || in.Reset || in.Err == nil || r.conn[Client].State != Offered {
			t.Fatalf("T2, byte %d: %v, %v", at, in.Do, in.Err)
		}
	}
	r.want(Client, r.step(Client, In, t2), "take T2, 1, <nil>, proving")
	t3 := r.step(Client, Out, kernelData.build()).packet
	for at := range token.T3Size {
		in := r.step(Server, In, bend(t, t3, flip(at)))
		if in.Mark != NoMark && in.Mark != MarkUnproven || in.Reset || in.Err == nil ||
			r.conn[Server].State != Answered {
			t.Fatalf("T3, byte %d: %v, %v", at, in.Do, in.Err)
		}
		if in.packet != nil {
			r.want(Server, r.step(Server, In, in.packet), "drop, 0, handshake: unproven, answered")
		}
	}
	r.want(Server, r.step(Server, In, t3), "take T3, 2, <nil>, closed")
}

// TestT2IsBounded: a large statement is not sent to who sent a small one.
func TestT2IsBounded(t *testing.T) {
	r := newRig(t, false)
	r.syn()
	conn := r.conn[Server]
	for size, want := range map[int]token.Type{
		3*(token.FullT1Size+len(r.client.owns[1].Statement.Bytes())) - token.FullT2Size:     token.TypeFullT2,
		3*(token.FullT1Size+len(r.client.owns[1].Statement.Bytes())) - token.FullT2Size + 1: token.TypeShortT2,
	} {
		content := r.server.owns[1].Statement.Content
		fill := size - len(r.server.owns[1].Statement.Bytes()) + len(content.Certificate)
		content.Certificate = bytes.Repeat([]byte("c"), fill)
		own, err := token.Sign(content, r.server.key, ephemeral(t))
		if err != nil {
			t.Fatal(err)
		}
		pair := *conn.pair
		pair.Own = own
		r.conn[Server] = conn
		r.conn[Server].pair = &pair
		if out := r.step(Server, Out, kernelSYNACK.build()); out.put.typ != want {
			t.Errorf("a statement of %d bytes: type %d", size, out.put.typ)
		}
	}
}

func flip(at int) func([]byte) []byte {
	return func(b []byte) []byte { b[at] ^= 0x40; return b }
}

// bend changes a packet's token, the payload behind 40 + 8 bytes of header.
func bend(t *testing.T, b []byte, f func([]byte) []byte) []byte {
	t.Helper()
	p, err := packet.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	seg := segment{fromServer: p.Source == serverEnd, seq: p.Seq, ack: p.Ack, flags: p.Flags,
		options: b[40:48], payload: f(bytes.Clone(p.Payload()))}
	if kindOf(&p) == packet.SYN { // the number of c stays
		seg.seq += uint32(len(p.Payload()) - len(seg.payload))
	}
	return seg.build()
}

// TestAllocations: none, for short tokens and for the proof.
func TestAllocations(t *testing.T) {
	r := newRig(t, true)
	buf := make([]byte, 0, 4096)
	measure := func(side Side, kind Kind, b []byte) {
		t.Helper()
		p, err := packet.Parse(bytes.Clone(b))
		if err != nil {
			t.Fatal(err)
		}
		machine := r.client.machine()
		if side == Server {
			machine = r.server.machine()
		}
		before := r.conn[side]
		e := &Event{Kind: kind, Packet: &p, Workload: 1, Nonce: nonce(1)}
		if n := testing.AllocsPerRun(100, func() {
			_, a := machine.Step(before, e)
			if _, err := a.Write(buf, &p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("state %v, flags %x: %v allocations", before.State, p.Flags, n)
		}
	}
	measure(Client, Out, kernelSYN.build())
	out := r.step(Client, Out, kernelSYN.build())
	measure(Client, Out, kernelSYN.build()) // T1 full
	measure(Server, In, out.packet)
	r.step(Server, In, out.packet)
	measure(Server, Out, kernelSYNACK.build())
	out = r.step(Server, Out, kernelSYNACK.build())
	measure(Client, In, out.packet)
	r.step(Client, In, out.packet)
	measure(Client, Out, kernelData.build())
	out = r.step(Client, Out, kernelData.build())
	measure(Server, In, out.packet)
}
