package datapath

import (
	"crypto/ed25519"
	"encoding/binary"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/datapath/handshake"
	"thole/datapath/packet"
	"thole/datapath/peers"
	"thole/datapath/pki"
	"thole/datapath/pki/pkitest"
	"thole/datapath/queue"
	"thole/datapath/refusal"
	"thole/datapath/sockets"
)

var (
	clientEnd = netip.MustParseAddrPort("10.0.0.1:40000")
	serverEnd = netip.MustParseAddrPort("10.0.0.2:80")
)

// A world is what an engine asks and does, beside packets.
type world struct {
	cgroup  uint64 // of every socket; 0: there is none
	unasked error  // of asking for a socket
	labels  map[string]string
	class   uint32
	failure error // of Class
	denies  bool
	remotes []policy.Remote
	sent    [][]byte
}

func (w *world) Connecting(_, _ netip.AddrPort, _ int) (uint64, error) {
	if w.unasked != nil {
		return 0, w.unasked
	}
	if w.cgroup == 0 {
		return 0, sockets.ErrNone
	}
	return w.cgroup, nil
}

func (w *world) Listener(local, remote netip.AddrPort, device int) (uint64, error) {
	return w.Connecting(local, remote, device)
}

func (w *world) Send(b []byte, packetMark uint32, _ int) error {
	if packetMark == mark.Sent || packetMark == mark.SentOut {
		w.sent = append(w.sent, slices.Clone(b))
	}
	return nil
}

func (w *world) Close() error { return nil }

func (w *world) Workload(cgroup uint64) (Workload, bool) {
	return Workload{Cgroup: cgroup, Labels: w.labels, Class: 7}, cgroup != 0 && cgroup == w.cgroup && w.labels != nil
}

func (w *world) Class(r policy.Remote) (uint32, error) {
	w.remotes = append(w.remotes, r)
	return w.class, w.failure
}

func (w *world) Allows(from, to uint32, port uint16) bool {
	return !w.denies && from == 7 && to == w.class && port == serverEnd.Port()
}

func (w *world) AllowsAddress(from uint32, to netip.AddrPort) bool {
	return !w.denies && from == 7 && to == serverEnd
}

// A side is one node's engine with its world.
type side struct {
	*Engine
	*world
}

func newSides(t *testing.T) (client, server side) {
	t.Helper()
	now := time.Now()
	ca := pkitest.New(t)
	trust, err := pki.NewTrust([][]byte{ca.Certificate()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string, at netip.AddrPort, w *world) side {
		public, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		scope := pki.Scope{Grants: pki.Grants{"app": {"*"}, "tier": {"*"}},
			Addresses: []netip.Prefix{netip.PrefixFrom(at.Addr(), 32)}}
		der, err := ca.CA.Issue(name, public, scope, pki.For(now, time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		id, err := trust.Verify(der, now)
		if err != nil {
			t.Fatal(err)
		}
		e := &Engine{
			daemon: w, finder: w, sender: w, log: slog.New(slog.DiscardHandler), table: handshake.NewTable(),
			counts: map[string]uint64{},
			peers:  peers.New(&pki.Node{Key: key, Identity: id, Trust: trust}),
		}
		e.node = handshake.Node{Statements: adapter{e}, Policy: adapter{e}}
		return side{e, w}
	}
	client = make("node-a", clientEnd, &world{cgroup: 3, labels: map[string]string{"app": "web"}, class: 0x4001})
	server = make("node-b", serverEnd, &world{cgroup: 4, labels: map[string]string{"app": "db"}, class: 0x4002})
	return client, server
}

// segment makes a packet as a kernel would, complete.
func segment(from, to netip.AddrPort, seq, ack uint32, flags packet.Flags, data string) []byte {
	b := make([]byte, 40, 40+len(data))
	b = append(b, data...)
	b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, 6
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], from.Addr().AsSlice())
	copy(b[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:20]))
	t := b[20:]
	binary.BigEndian.PutUint16(t, from.Port())
	binary.BigEndian.PutUint16(t[2:], to.Port())
	binary.BigEndian.PutUint32(t[4:], seq)
	binary.BigEndian.PutUint32(t[8:], ack)
	t[12], t[13] = 5<<4, byte(flags)
	binary.BigEndian.PutUint16(t[14:], 64240)
	binary.BigEndian.PutUint16(t[16:], checksum(checksumOf(b[12:20])+6+uint32(len(t)), t))
	return b
}

func checksumOf(b []byte) (s uint32) {
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i%2))
	}
	return s
}

func checksum(s uint32, b []byte) uint16 {
	s += checksumOf(b)
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// unreachable is an ICMP error from a router that quotes a packet's first 28 bytes.
func unreachable(about []byte) []byte {
	b := make([]byte, 28, 56)
	b = append(b, about[:28]...)
	b[0], b[8], b[9], b[20], b[21] = 0x45, 64, 1, 3, 1
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], []byte{10, 0, 0, 254})
	copy(b[16:], about[12:16])
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:20]))
	binary.BigEndian.PutUint16(b[22:], checksum(0, b[20:]))
	return b
}

// pass hands a packet to the engine, and returns it as it goes on, and its mark; nil: it
// is dropped.
func (s side) pass(hook queue.Hook, packetMark uint32, b []byte) ([]byte, uint32) {
	payload, set, _, ok := s.handle(queue.Packet{Hook: hook, Mark: packetMark, Payload: slices.Clone(b)})
	if !ok {
		return nil, 0
	}
	if payload == nil {
		payload = b
	}
	return payload, set
}

func (s side) handle(p queue.Packet) ([]byte, uint32, bool, bool) {
	return s.Engine.handle(p).Accepted()
}

const c, s = 1000, 5000 // initial numbers

var (
	kernelSYN    = segment(clientEnd, serverEnd, c, 0, packet.SYN, "")
	kernelSYNACK = segment(serverEnd, clientEnd, s, c+1, packet.SYN|packet.ACK, "")
	kernelData   = segment(clientEnd, serverEnd, c+1, s+1, packet.ACK|packet.PSH, "hello")
)

// A handshake goes through two engines: the kernels' packets come out as they went in,
// with the marks that the table holds against conntrack's.
func TestHandshake(t *testing.T) {
	client, server := newSides(t)
	for round := range 2 { // T1 full, then short
		for _, step := range []struct {
			name     string
			from, to side
			packet   []byte
			mark     uint32
		}{
			{"SYN", client, server, kernelSYN, mark.Pending(0x4002)},
			{"SYN-ACK", server, client, kernelSYNACK, mark.Introduced(0x4001)},
			{"data", client, server, kernelData, mark.Proven(0x4002)},
		} {
			wire, _ := step.from.pass(queue.Output, 0, step.packet)
			if wire == nil || string(wire) == string(step.packet) {
				t.Fatalf("round %d, %s: no token on it", round, step.name)
			}
			got, setMark := step.to.pass(queue.Prerouting, 0, wire)
			if string(got) != string(step.packet) || setMark != step.mark {
				t.Fatalf("round %d, %s: came as %x with mark %#x, want %x with %#x; refused: %v", round, step.name, got,
					setMark, step.packet, step.mark, step.to.Status().Refused)
			}
		}
	}
	st := server.Status()
	if st.Events["proven"] != 2 || st.Events["packets"] != 6 || len(st.Refused) != 0 ||
		st.Pending["strangers"]+st.Pending["proven-key"] != 0 || st.Known["statements"] != 1 || st.Running {
		t.Errorf("server: %+v", st)
	}
	r := server.remotes[0]
	want := policy.Remote{Labels: policy.Labels{"app": "web"}, Node: "node-a", Address: clientEnd.Addr(),
		Unsaid: []string{"tier"}}
	if !maps.Equal(r.Labels, want.Labels) || r.Node != want.Node || r.Address != want.Address ||
		!slices.Equal(r.Unsaid, want.Unsaid) || r.Certificate == "" {
		t.Errorf("what was proven: %+v", r)
	}
}

// What is refused does not prolong what its handshake has left: else who knows nothing but
// ports would keep the places of who is gone.
func TestRefusedProlongsNothing(t *testing.T) {
	client, server := newSides(t)
	wire, _ := client.pass(queue.Output, 0, kernelSYN)
	server.pass(queue.Prerouting, 0, wire)
	until := time.Now().Add(handshake.Strangers.Bounds().Lifetime)
	for !time.Now().Add(handshake.Strangers.Bounds().Lifetime).After(until) { // the clock's step
	}
	forged, _ := client.pass(queue.Output, 0, segment(clientEnd, serverEnd, c+100, 0, packet.SYN, ""))
	forged[len(forged)-1] ^= 1 // its signature
	binary.BigEndian.PutUint16(forged[36:], ^(^binary.BigEndian.Uint16(forged[36:]) + 1))
	before := server.Status()
	server.pass(queue.Prerouting, 0, forged)
	after := server.Status()
	if len(before.Refused) != 0 || len(after.Refused) != 1 || after.Pending["strangers"] != 1 {
		t.Fatalf("refused %v, pending %v", after.Refused, after.Pending)
	}
	server.table.Expire(until)
	if st := server.Status(); st.Pending["strangers"] != 0 {
		t.Error("a token that was refused prolonged a handshake")
	}
}

// Whose a SYN is cannot be found out: it is dropped, and goes as it should when the kernel
// sends it again.
func TestSocketsCanNotBeAsked(t *testing.T) {
	client, server := newSides(t)
	for _, s := range []side{client, server} {
		s.world.unasked = unix.ENOBUFS
	}
	if wire, _ := client.pass(queue.Output, 0, kernelSYN); wire != nil {
		t.Errorf("a SYN that may be of a workload went as %x", wire)
	}
	client.world.unasked = nil
	wire, _ := client.pass(queue.Output, 0, kernelSYN)
	if got, _ := server.pass(queue.Prerouting, 0, wire); got != nil {
		t.Errorf("a SYN that may be for a workload came as %x", got)
	}
	server.world.unasked = nil
	if got, setMark := server.pass(queue.Prerouting, 0, wire); string(got) != string(kernelSYN) ||
		setMark != mark.Pending(0x4002) {
		t.Errorf("it came as %x, mark %#x", got, setMark)
	}
}

// What nobody with labels sends or listens for goes on as it is.
func TestWithoutLabels(t *testing.T) {
	client, server := newSides(t)
	wire, _ := client.pass(queue.Output, 0, kernelSYN)
	server.world.cgroup = 0
	if got, setMark := server.pass(queue.Prerouting, 0, wire); string(got) != string(wire) || setMark != 0 {
		t.Errorf("for nobody: %x, mark %#x", got, setMark)
	}
	server.world.cgroup, server.world.labels = 4, nil
	if got, _ := server.pass(queue.Prerouting, 0, wire); string(got) != string(wire) ||
		server.Status().Refused["handshake/not-wanted"] != 2 {
		t.Errorf("for one without labels: %x, %v", got, server.Status().Refused)
	}
	client, _ = newSides(t)
	client.world.labels = map[string]string{"other": "label"} // that is not granted
	if got, _ := client.pass(queue.Output, 0, kernelSYN); string(got) != string(kernelSYN) ||
		client.Status().Refused["certificate/not-granted"] != 1 {
		t.Errorf("of one that can prove nothing: %v", client.Status().Refused)
	}
}

// A place without Thole is found out once, and remembered.
func TestPlainPlace(t *testing.T) {
	client, _ := newSides(t)
	client.pass(queue.Output, 0, kernelSYN)
	if got, _ := client.pass(queue.Prerouting, 0, kernelSYNACK); got != nil {
		t.Error("a SYN-ACK without a token passed")
	}
	if len(client.sent) != 2 || string(client.sent[1]) != string(kernelSYN) {
		t.Fatalf("%d packets were sent: a reset and the SYN should be", len(client.sent))
	}
	if got, setMark := client.pass(queue.Prerouting, 0, kernelSYNACK); string(got) != string(kernelSYNACK) ||
		setMark != mark.Plain {
		t.Errorf("the answer to that: %x, mark %#x", got, setMark)
	}
	next := segment(netip.AddrPortFrom(clientEnd.Addr(), 40001), serverEnd, c, 0, packet.SYN, "")
	if got, _ := client.pass(queue.Output, 0, next); string(got) != string(next) {
		t.Error("the next connection offers T1")
	}
	if got, _ := client.pass(queue.Output, 0, next); string(got) == string(next) {
		t.Error("its second SYN, which nobody answered, does not")
	}
	if st := client.Status(); st.Events["plain"] != 1 || st.Known["plain-places"] != 0 {
		t.Errorf("%+v", st)
	}
}

// An ICMP error's quote gets the kernel's number back; any other error stays as it is.
func TestQuotedErrors(t *testing.T) {
	client, _ := newSides(t)
	wire, _ := client.pass(queue.Output, 0, kernelSYN)
	if got, _ := client.pass(queue.Prerouting, 0, unreachable(wire)); got == nil ||
		binary.BigEndian.Uint32(got[52:]) != c {
		t.Errorf("quote of the wire's: %x", got)
	}
	for name, b := range map[string][]byte{"the kernel's own number": unreachable(kernelSYN),
		"another connection": unreachable(kernelSYNACK)} {
		if got, _ := client.pass(queue.Prerouting, 0, b); string(got) != string(b) {
			t.Errorf("%s: %x", name, got)
		}
	}
	broken := unreachable(wire)
	broken[30]++
	if got, _ := client.pass(queue.Prerouting, 0, broken); string(got) != string(broken) ||
		client.Status().Refused["packet/bad-checksum"] != 1 {
		t.Errorf("what cannot be read is for the kernel: %v", client.Status().Refused)
	}
	if st := client.Status(); st.Events["quotes"] != 1 {
		t.Errorf("%+v", st)
	}
}

// Where nothing is proven, nothing passes, and it is counted why.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		reason string
		run    func(client, server side) []byte
	}{
		"no packet": {"packet/truncated", func(client, _ side) []byte {
			got, _ := client.pass(queue.Output, 0, []byte{0x45})
			return got
		}},
		"no class is left": {"datapath/too-many", func(client, server side) []byte {
			server.failure = refusal.TooMany
			wire, _ := client.pass(queue.Output, 0, kernelSYN)
			got, _ := server.pass(queue.Prerouting, 0, wire)
			return got
		}},
		"data before its proof": {"handshake/unproven", func(client, server side) []byte {
			wire, _ := client.pass(queue.Output, 0, kernelSYN)
			server.pass(queue.Prerouting, 0, wire)
			got, _ := server.pass(queue.Prerouting, mark.Ungated, kernelData)
			return got
		}},
		"the policy denies who answers": {"handshake/denied", func(client, server side) []byte {
			client.denies = true
			wire, _ := client.pass(queue.Output, 0, kernelSYN)
			server.pass(queue.Prerouting, 0, wire)
			wire, _ = server.pass(queue.Output, 0, kernelSYNACK)
			got, setMark := client.pass(queue.Prerouting, 0, wire)
			return unlessRefused(client, got, setMark)
		}},
		"the policy denies who answers without a token": {"handshake/denied", func(client, _ side) []byte {
			client.denies = true
			client.pass(queue.Output, 0, kernelSYN)
			client.pass(queue.Prerouting, 0, kernelSYNACK) // falls back
			client.pass(queue.Output, 0, kernelSYN)
			client.sent = nil
			got, setMark := client.pass(queue.Prerouting, 0, kernelSYNACK)
			return unlessRefused(client, got, setMark)
		}},
	} {
		client, server := newSides(t)
		if got := tt.run(client, server); got != nil {
			t.Errorf("%s: it passed: %x", name, got)
		}
		refused := client.Status().Refused
		maps.Copy(refused, server.Status().Refused)
		if refused[tt.reason] != 1 {
			t.Errorf("%s: refused: %v, want %s", name, refused, tt.reason)
		}
	}
}

// unlessRefused returns nil if both ends get a reset: the client's kernel by the packet.
func unlessRefused(client side, got []byte, setMark uint32) []byte {
	p, err := packet.Parse(got)
	if err != nil || p.Flags != packet.RST|packet.ACK || setMark != 0 || len(client.sent) != 1 {
		return append([]byte("not refused: "), got...)
	}
	return nil
}
