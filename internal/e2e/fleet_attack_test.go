package e2e

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"thole/datapath/pki"
	"thole/datapath/token"
	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// Attacks on nodes of a fleet, and the tests that they have to fail in:
//
//	each token: every bit, every length           TestFleetTouchedTokens (a sample; -all: all),
//	                                              token: TestTokensTouched, TestStatementTouched
//	garbage T2 and T3 while a handshake goes on   TestFleetTouchedTokens (what was meant goes on),
//	                                              handshake: TestGarbage
//	the option: bits, twice, elsewhere            TestFleetOptionElsewhere,
//	                                              packet: TestParseRefuses, TestOptionAnywhere
//	replayed T1, T2, T3                           TestFleetReplays
//	relayed tokens, another's address             TestFleetForgedStatements, token: TestStolenEphemeralKey
//	reflected, low order, one's own key twice     TestFleetForgedStatements,
//	                                              token: TestLowOrderIsRefused, TestReflectionIsRefused,
//	                                              pki: TestTwoCertificatesForOneKey
//	labels beyond the grant, clocks ±1 h          TestFleetForgedStatements, pki: TestMayAssert
//	certificates: expired, foreign, revoked       TestFleetForgedStatements, TestFleetRevocationEndsConnections,
//	                                              peers: TestExpiredWhileCached
//	downgrade                                     TestFleetDowngrade, TestFleetByAddress
//	data before the proof, deferred accept        TestFleetBeforeTheProof, TestFleetKilledInTheHandshake,
//	                                              TestFleetCaptures
//	forged RST while pending                      TestFleetBeforeTheProof
//	the option through a router                   TestFleetThroughANode
//	marks, packets that appear on lo              TestFleetMarks, attack: TestContainersRoot, TestInjectedOnLoopback
//	a label left out                              TestFleetLabelLeftOut
//	floods                                        TestFleetFlooded, TestFleetFloodIsBounded
//	10^5 label sets                               peers: TestStatementsOfOneNode, TestBounds; daemon: its allowance
//	epochs come round                             TestEpochComesRound, TestRevocationUnderTraffic
//	ICMP errors that quote the wire's numbers     TestFleetErrorsAreTranslated, packet: TestKernelTakesTheError
//
// The attacker sits between the two nodes: a forwarder. Each attack is refused under its own
// reason, and the server's process is given nothing of it, not even a connection.

var every = flag.Bool("all", false, "all bits and lengths of tokens are tried on the wire, and all marks")

// A siege is two nodes with an attacker between them. Who calls and who is called are of
// one app. Args are the daemons', beside those of every fleet.
type siege struct {
	t        *testing.T
	a, b     *machine
	f        *wire.Forwarder
	ca       fleetCA
	pauses   *pauses
	caller   *party
	answerer *party
	next     int // port
	random   *mathrand.Rand
}

func newSiege(t *testing.T, args ...string) *siege {
	t.Helper()
	s := &siege{t: t, a: bareMachine(t), b: bareMachine(t), ca: newFleetCA(t), next: 1000}
	n := *seed
	if n == 0 {
		n = mathrand.Uint64()
	}
	s.random = mathrand.New(mathrand.NewPCG(n, 0))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("-seed %d", n)
		}
	})
	s.a.args, s.b.args = args, args
	s.f = wire.Forward(s.a.Host, "10.0.0.1/24", "fd00:10::1/64", s.b.Host, "10.0.0.2/24", "fd00:10::2/64")
	startFleet(t, s.ca, s.a, s.b)
	tell(t, s.a, s.b)
	s.pauses = newPauses(s.f)
	s.caller = startParty(t, s.a.labelled("web", "app=web"), roleCaller)
	s.answerer = startParty(t, s.b.labelled("web", "app=web"), roleAnswerer)
	return s
}

// port has the answerer listen at another one.
func (s *siege) port() int {
	s.t.Helper()
	s.next++
	s.answerer.listens([]port{{Number: s.next}})
	return s.next
}

// A held call waits before one of its packets.
type heldCall struct {
	s      *siege
	port   int
	frame  *wire.Frame // that packet
	result chan result
}

// hold has a call wait before its n-th packet, of both directions.
func (s *siege) hold(port int, version6 bool, n int) *heldCall {
	s.t.Helper()
	s.pauses.add(map[int]*paused{port: {at: n}})
	h := &heldCall{s: s, port: port, result: make(chan result, 1)}
	go func() {
		h.result <- s.caller.calls([]call{{To: at(version6, port), Bytes: 100, Wait: killedPatience}})[0]
	}()
	nstest.WaitFor(s.t, 5*time.Second, "the call to wait", func() bool {
		h.frame = s.pauses.first(port)
		return h.frame != nil
	})
	return h
}

// first is the first frame that waits of a connection, or nil.
func (p *pauses) first(port int) *wire.Frame {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.conns[port]; len(c.held) > 0 {
		return c.held[0]
	}
	return nil
}

// untouched fails the test if the server's process was given anything of the call so far.
func (h *heldCall) untouched(what string) {
	h.s.t.Helper()
	h.s.nothingAt(what, h.port)
}

// goesOn lets the call go on, and fails the test if it does not come about.
func (h *heldCall) goesOn(what string) {
	h.s.t.Helper()
	h.s.pauses.resume()
	if r := <-h.result; !r.Whole {
		h.s.t.Errorf("%s: the call itself: %+v", what, r)
	}
}

func (s *siege) nothingAt(what string, port int) {
	s.t.Helper()
	if d := s.answerer.delivered(); d.Bytes[port] != 0 || d.Connections[port] != 0 {
		s.t.Errorf("%s: %d connections, %d bytes", what, d.Connections[port], d.Bytes[port])
	}
}

// counts returns a machine's refusals, as `thole status -o json` has them.
func (m *machine) counts() map[string]uint64 {
	m.t.Helper()
	status, err := api.NewClient(fmt.Sprintf("/proc/%d/root/run/thole/thole.sock",
		m.daemon.Pid)).Status(context.Background())
	must(m.t, err)
	return status.Fleet.Refused
}

// counted waits until, since then, so many were refused for one of the reasons.
func (m *machine) counted(what string, before map[string]uint64, n int, reasons ...string) {
	m.t.Helper()
	var since map[string]uint64
	sum := func() (sum int) {
		since = m.counts()
		for reason := range since {
			if since[reason] -= before[reason]; since[reason] == 0 {
				delete(since, reason)
			}
		}
		for _, reason := range reasons {
			sum += int(since[reason])
		}
		return sum
	}
	for deadline := time.Now().Add(5 * time.Second); sum() < n; {
		if time.Now().After(deadline) {
			m.t.Errorf("%s: refused: %v; want %d times one of %q", what, since, n, reasons)
			return
		}
	}
	if sum() != n {
		m.t.Errorf("%s: refused: %v; want %d times one of %q", what, since, n, reasons)
	}
}

// A region of a token, and what becomes of a packet where a bit of it is another.
type region struct {
	name     string
	from, to int
	reasons  []string
}

// header is each token's.
var header = []region{
	{"version", 0, 1, []string{"token/bad-version"}},
	{"type", 1, 2, []string{"token/bad-type"}},
	{"capabilities", 2, 4, []string{"token/bad-capabilities"}},
}

// statement is that of a token from a place on.
func statement(t *testing.T, b []byte, at int) []region {
	t.Helper()
	n := int(b[at-2])<<8 | int(b[at-1])
	s, err := token.ParseStatement(b[at : at+n])
	must(t, err)
	body, labels := at+48, at+48+len(s.Certificate)
	certificate := []string{"certificate/malformed", "certificate/foreign", "certificate/usage",
		"certificate/not-yet-valid", "certificate/expired", "token/bad-signature"}
	return []region{
		{"the statement's length", at - 2, at, []string{"token/bad-length"}},
		{"the statement's version", at, at + 1, []string{"token/bad-version"}},
		{"suite", at + 1, at + 2, []string{"token/bad-suite"}},
		{"times", at + 2, at + 12, []string{"token/bad-lifetime", "token/bad-signature"}},
		{"ephemeral key", at + 12, at + 44, []string{"token/bad-signature"}},
		{"lengths", at + 44, body, []string{"token/bad-length", "token/no-labels", "token/bad-label",
			"token/label-order", "token/bad-certificate", "certificate/malformed"}},
		{"certificate", body, labels, certificate},
		{"labels", labels, at + n - 64, []string{"token/bad-length", "token/bad-label", "token/label-order",
			"token/reserved-label", "token/bad-signature"}},
		{"signature", at + n - 64, at + n, []string{"token/bad-signature"}},
	}
}

// regions are those of a token. The nonce of T1 full is not among them: it is covered by T2
// (TestFleetForgedStatements).
func regions(t *testing.T, b []byte) []region {
	t.Helper()
	switch unknown := []string{"peers/unknown"}; token.Type(b[1]) {
	case token.TypeShortT1:
		return append(header[:3:3], region{"fingerprints", 4, 36, unknown},
			region{"nonce, M1", 36, 68, []string{"token/bad-m1"}})
	case token.TypeFullT1:
		return append(header[:3:3], statement(t, b, 22)...)
	case token.TypeShortT2:
		return append(header[:3:3], region{"nonce", 4, 20, []string{"token/bad-m2"}},
			region{"fingerprint", 20, 36, unknown}, region{"M2", 36, 52, []string{"token/bad-m2"}})
	case token.TypeFullT2:
		all := append(header[:3:3], region{"nonce", 4, 20, []string{"token/bad-m2"}},
			region{"M2", len(b) - 16, len(b), []string{"token/bad-m2"}})
		return append(all, statement(t, b, 22)...)
	}
	return append(header[:3:3], region{"M3", 4, 20, []string{"token/bad-m3"}})
}

// sample is how many bits of a region, or lengths of a token, are tried, and most how many
// of one call, which does not wait for ever; a beat is between two of them, for what
// verifies certificates has its allowance.
const (
	sample = 4
	most   = 400
	beat   = 10 * time.Millisecond
)

// Each bit of each token is changed on the way, and each token cut at each length: it is
// refused for what it is, nothing of it arrives, and the connection that was meant comes
// about all the same.
func TestFleetTouchedTokens(t *testing.T) {
	s := newSiege(t)
	version6 := false
	for _, known := range []bool{false, true} {
		for i, name := range []string{"T1", "T2", "T3"} {
			if known && name == "T3" {
				continue // it is the same
			}
			name = fmt.Sprintf("%s, known %t", name, known)
			version6 = !version6
			s.touch(name, version6, known, i+1)
		}
	}
}

// A touch is another token in the place of one.
type touch struct {
	region string
	token  []byte
	reason []string
}

// touch tries all changes of the token on the n-th packet.
func (s *siege) touch(name string, version6, known bool, n int) {
	s.t.Helper()
	receiver := s.b
	if n == 2 {
		receiver = s.a
	}
	var left []touch
	for first := true; first || len(left) > 0; first = false {
		port := s.port()
		if known {
			if r := s.caller.calls([]call{{To: at(version6, port), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
				s.t.Fatalf("%s: at first: %+v", name, r)
			}
		}
		before := s.answerer.delivered().Bytes[port]
		h := s.hold(port, version6, n)
		if first {
			left = s.touches(h.frame.TCP.Data)
			s.t.Logf("%s: %d bytes, %d changes", name, len(h.frame.TCP.Data), len(left))
		}
		now := left[:min(most, len(left))]
		left = left[len(now):]
		tick := time.NewTicker(beat)
		for len(now) > 0 { // those of one region at once
			at := slices.IndexFunc(now, func(c touch) bool { return c.region != now[0].region })
			if at < 0 {
				at = len(now)
			}
			counts := receiver.counts()
			for _, c := range now[:at] {
				segment := *h.frame.TCP
				segment.Data = c.token
				s.f.Send(h.frame.With(segment))
				<-tick.C
			}
			receiver.counted(name+", "+now[0].region, counts, at, now[0].reason...)
			now = now[at:]
		}
		tick.Stop()
		if d := s.answerer.delivered(); d.Bytes[port] != before {
			s.t.Errorf("%s: %d bytes were delivered", name, d.Bytes[port]-before)
		}
		h.goesOn(name)
		if s.t.Failed() {
			return
		}
	}
}

// touches are the changes of a token that are tried.
func (s *siege) touches(b []byte) (all []touch) {
	some := func(n int) []int {
		order := s.random.Perm(n)
		if !*every {
			order = order[:min(sample, n)]
		}
		return order
	}
	for _, r := range regions(s.t, b) {
		for _, bit := range some(8 * (r.to - r.from)) {
			c := slices.Clone(b)
			c[r.from+bit/8] ^= 1 << (bit % 8)
			all = append(all, touch{r.name, c, r.reasons})
		}
	}
	for _, length := range some(len(b)) {
		all = append(all, touch{"length", b[:length], []string{"token/bad-length"}})
	}
	return all
}

// A forger has a key, and what some CA made of it.
type forger struct {
	s           *siege
	key         ed25519.PrivateKey
	certificate []byte // DER
}

func (s *siege) forger(ca fleetCA, name string, scope pki.Scope, validity pki.Validity) forger {
	s.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(s.t, err)
	request, err := pki.NewRequest(name, key)
	must(s.t, err)
	certificate, _, err := ca.IssueTo(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
		scope, validity)
	must(s.t, err)
	block, _ := pem.Decode(certificate)
	return forger{s, key, block.Bytes}
}

// t1 is a full T1 that says what a statement of the forger's does.
func (f forger) t1(labels map[string]string, begins time.Time) []byte {
	f.s.t.Helper()
	ephemeral, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(f.s.t, err)
	own, err := token.Sign(token.Content{NotBefore: begins, Lifetime: 75 * time.Second, Certificate: f.certificate,
		Labels: labels}, f.key, ephemeral)
	must(f.s.t, err)
	return (&token.FullT1{Statement: own.Statement.Bytes()}).Append(nil)
}

// Statements that a node may not make, and those of others, passed on.
func TestFleetForgedStatements(t *testing.T) {
	s := newSiege(t)
	addresses := pki.Scope{Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}
	scope := func(grants pki.Grants) pki.Scope { sc := addresses; sc.Grants = grants; return sc }
	apps, now := pki.Grants{"app": {"*"}}, time.Now()
	hour, web := pki.For(now, time.Hour), map[string]string{"app": "web"}
	node := s.forger(s.ca, "forger", scope(apps), hour)
	narrow := s.forger(s.ca, "narrow", scope(pki.Grants{"app": {"db"}}), hour)
	needs := scope(apps)
	needs.Require = map[string]string{"team": "a"}
	revoked := s.forger(s.ca, "revoked", scope(apps), hour)
	s.ca.revoke("revoked")
	s.b.install(pki.Delivery{Lists: s.ca.file("ca.crl")})
	elsewhere := addresses
	elsewhere.Grants, elsewhere.Addresses = apps, []netip.Prefix{netip.MustParsePrefix("10.0.0.3/32")}

	// What goes over the wire of a node's own: T1 of a, and T2 with b's statement.
	calls, full := s.port(), map[string][]byte{}
	if r := s.caller.calls([]call{{To: at(false, calls), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
		t.Fatalf("at first: %+v", r)
	}
	for _, p := range s.f.Passed() {
		if p.TCP != nil {
			if o, ok := p.TCP.Option(254); ok {
				full[fmt.Sprint(o[2])] = p.TCP.Data
			}
		}
	}
	relayed, answer := full["2"], full["4"]
	reflected := append(relayed[:4+16:4+16], answer[20:len(answer)-16]...)
	copy(reflected[:2], []byte{token.Version, byte(token.TypeFullT1)})

	own, other := "10.0.0.1", "10.0.0.3"
	for _, tt := range []struct {
		name, from string
		t1         []byte
		reason     string
	}{
		{"a value that is not granted", own, narrow.t1(web, now), "certificate/not-granted"},
		{"a key that is not granted", own, node.t1(map[string]string{"app": "web", "env": "prod"}, now),
			"certificate/not-granted"},
		{"another value than is required", own,
			s.forger(s.ca, "needs", needs, hour).t1(map[string]string{"app": "web", "team": "b"}, now),
			"certificate/not-granted"},
		{"an expired certificate", own,
			s.forger(s.ca, "expired", scope(apps), pki.For(now.Add(-50*time.Minute), 40*time.Minute)).t1(web, now),
			"certificate/expired"},
		{"a certificate of the future", own,
			s.forger(s.ca, "future", scope(apps), pki.For(now.Add(30*time.Minute), time.Hour)).t1(web, now),
			"certificate/not-yet-valid"},
		{"a foreign CA's certificate", own, s.forger(newFleetCA(t), "foreign", scope(apps), hour).t1(web, now),
			"certificate/foreign"},
		{"a revoked certificate", own, revoked.t1(web, now), "certificate/revoked"},
		{"a clock an hour slow", own, node.t1(web, now.Add(-time.Hour)), "token/expired"},
		{"a clock an hour fast", own, node.t1(web, now.Add(time.Hour)), "token/not-yet-valid"},
		{"another node's address", own, s.forger(s.ca, "elsewhere", elsewhere, hour).t1(web, now),
			"token/wrong-address"},
		{"T1 of another node, passed on", other, relayed, "token/wrong-address"},
		{"T1 from nobody's address", "10.0.0.77", relayed, "token/wrong-address"},
		{"the server's own statement", own, reflected, "token/reflected"},
	} {
		port := s.port()
		h := s.hold(port, false, 1)
		segment := *h.frame.TCP
		segment.From = netip.AddrPortFrom(netip.MustParseAddr(tt.from), 4444)
		segment.Data = tt.t1
		segment.Options = append([]byte{254, 6, 0x54, 0x48, byte(token.TypeFullT1), token.Version, 1, 1},
			segment.Options[8:]...)
		before := s.b.counts()
		s.f.Send(h.frame.With(segment))
		s.b.counted(tt.name, before, 1, tt.reason)
		h.untouched(tt.name)
		h.goesOn(tt.name)
	}

	// A nonce that is changed on the way: both ends notice.
	port := s.port()
	h := s.hold(port, false, 1)
	segment := *h.frame.TCP
	segment.Data = slices.Clone(segment.Data)
	segment.Data[4] ^= 1
	before := s.a.counts()
	s.pauses.answered(port) // what the client sends again waits
	s.f.Send(h.frame.With(segment))
	s.a.counted("T1's nonce", before, 1, "token/bad-m2")
	h.untouched("T1's nonce")
	h.goesOn("T1's nonce")

	// A certified node that is who it says, and has not the key of what it passes on: T3 of
	// nobody is worth nothing.
	port = s.port()
	h = s.hold(port, false, 3)
	segment = *h.frame.TCP
	segment.Data = append((&token.T3{M3: token.MAC{1}}).Append(nil), "unproven"...)
	before = s.b.counts()
	s.f.Send(h.frame.With(segment))
	s.b.counted("a guessed T3, and data", before, 1, "token/bad-m3")
	h.untouched("a guessed T3, and data")
	h.goesOn("a guessed T3, and data")
}

// answered lets what the server sends pass, on a connection that waits.
func (p *pauses) answered(port int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[port].answers = true
}

// tokens returns the packets with a token of a type that passed on a connection.
func tokens(passed []wire.Passage, port int, typ token.Type) (found []*wire.Frame) {
	for _, p := range passed {
		if p.TCP == nil || portOf(p.TCP) != port {
			continue
		}
		if o, ok := p.TCP.Option(254); ok && len(o) == 4 && o[2] == byte(typ) {
			found = append(found, p.Frame)
		}
	}
	return found
}

// optionOf is our option for a token.
func optionOf(typ token.Type) []byte {
	return []byte{254, 6, 0x54, 0x48, byte(typ), token.Version, 1, 1}
}

// from returns a segment as one from another port of its sender.
func from(s wire.Segment, port uint16) wire.Segment {
	s.From = netip.AddrPortFrom(s.From.Addr(), port)
	return s
}

// Tokens that were good once are sent again: on the same connection while it lives, on
// others, and to a connection that is being opened.
func TestFleetReplays(t *testing.T) {
	s := newSiege(t)
	for _, known := range []bool{false, true} {
		first, answer := token.TypeFullT1, token.TypeFullT2
		if known {
			first, answer = token.TypeShortT1, token.TypeShortT2
		}
		port := s.port()
		if known {
			if r := s.caller.calls([]call{{To: at(false, port), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
				t.Fatalf("at first: %+v", r)
			}
		}
		s.f.Passed()
		came := s.answerer.delivered().Bytes[port]
		h := s.hold(port, false, 5) // the proof and the first data have gone
		nstest.WaitFor(t, 5*time.Second, "the data to arrive", func() bool {
			return s.answerer.delivered().Bytes[port] == came+100
		})
		before := s.answerer.delivered()
		passed := s.f.Passed()
		t1, t2, t3 := tokens(passed, port, first), tokens(passed, port, answer), tokens(passed, port, token.TypeT3)
		if len(t1) == 0 || len(t2) == 0 || len(t3) == 0 {
			t.Fatalf("known %t: there were %d, %d, %d tokens", known, len(t1), len(t2), len(t3))
		}
		name := fmt.Sprintf("known %t", known)

		counts := [2]map[string]uint64{s.a.counts(), s.b.counts()}
		s.f.Send(t1[0], t2[0], t3[0]) // as they were
		// T2 is taken for a copy that the network made: the kernel knows what to do with it.
		s.b.counted(name+", T3 on its connection", counts[1], 1, "token/bad-m3", "handshake/forgotten")

		if d := s.answerer.delivered(); d.Bytes[port] != before.Bytes[port] ||
			d.Connections[port] != before.Connections[port] {
			t.Errorf("%s: %+v was delivered, and before %+v", name, d, before)
		}
		h.goesOn(name)
		before = s.answerer.delivered()

		counts[0] = s.a.counts()
		again := from(*t1[0].TCP, 4000)
		s.f.Send(t1[0].With(again)) // the client's node will not know of it
		s.a.counted(name+", T1 from another port", counts[0], 1, "handshake/forgotten")

		counts[1] = s.b.counts()
		proof := from(*t3[0].TCP, 4001)
		proof.Data = append(proof.Data[:20:20], "unproven"...)
		s.f.Send(t3[0].With(proof)) // nobody has begun
		// and once more, behind conntrack
		s.b.counted(name+", T3 from another port", counts[1], 2, "handshake/forgotten")

		if d := s.answerer.delivered(); d.Bytes[port] != before.Bytes[port] ||
			d.Connections[port] != before.Connections[port] {
			t.Errorf("%s: %+v was delivered, and before %+v", name, d, before)
		}

		// To a connection that is being opened.
		port = s.port()
		if known {
			if r := s.caller.calls([]call{{To: at(false, port), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
				t.Fatalf("at first: %+v", r)
			}
		}
		delivered := s.answerer.delivered().Bytes[port]
		h = s.hold(port, false, 2)
		old := *h.frame.TCP
		old.Data = t2[0].TCP.Data
		counts[0] = s.a.counts()
		s.f.Send(h.frame.With(old))
		s.a.counted(name+", T2 of another connection", counts[0], 1, "token/bad-m2")
		h.goesOn(name)
		delivered += 100

		h = s.hold(port, false, 3)
		old = *h.frame.TCP
		old.Data = append(t3[0].TCP.Data[:20:20], "unproven"...)
		counts[1] = s.b.counts()
		s.f.Send(h.frame.With(old))
		s.b.counted(name+", T3 of another connection", counts[1], 1, "token/bad-m3")
		if d := s.answerer.delivered(); d.Bytes[port] != delivered {
			t.Errorf("%s: %d bytes were delivered, want %d", name, d.Bytes[port], delivered)
		}
		h.goesOn(name)
	}
}

// Tokens and options are taken off on the way, of every packet: the labels then prove
// nothing, and nobody is let in without them.
func TestFleetDowngrade(t *testing.T) {
	s := newSiege(t)
	type stripping struct {
		name   string
		fromA  bool // whose packets
		token  bool // is taken off too
		reason string
		at     *machine
	}
	all := []stripping{
		{"the option of T1", true, false, "", nil},
		{"T1", true, true, "", nil},
		{"the option of T2", false, false, "handshake/no-thole", s.a},
		{"T2", false, true, "handshake/no-thole", s.a},
		{"the option of T2, again", false, false, "handshake/no-thole", s.a},
	}
	for _, st := range all {
		port := s.port()
		counts := s.a.counts()
		s.f.SetRule(func(p *wire.Frame) []*wire.Frame {
			if p.TCP == nil || portOf(p.TCP) != port || p.FromA != st.fromA || !p.TCP.Has(wire.SYN) {
				return []*wire.Frame{p}
			}
			if _, ok := p.TCP.Option(254); !ok {
				return []*wire.Frame{p}
			}
			segment := *p.TCP
			segment.Options = segment.Options[8:]
			if st.token {
				segment.Seq += uint32(len(segment.Data))
				segment.Data = nil
				if !st.fromA {
					segment.Ack += token.T3Size
				}
			}
			return []*wire.Frame{p.With(segment)}
		})
		if r := s.caller.calls([]call{{To: at(false, port), Bytes: 100,
			Wait: 1500 * time.Millisecond}})[0]; r.Connected {
			t.Errorf("%s was taken off: connected", st.name)
			logWire(t, s.f.Passed())
		}
		s.nothingAt(st.name, port)
		if st.at != nil {
			if since := st.at.counts()[st.reason] - counts[st.reason]; since == 0 {
				t.Errorf("%s was taken off: nothing was counted as %s", st.name, st.reason)
			}
		}
	}
	s.f.SetRule(nil)
	port := s.port()
	if r := s.caller.calls([]call{{To: at(false, port), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
		t.Errorf("afterwards: %+v", r)
	}
}

// While the proof is on its way: data, resets, and what else TCP knows.
func TestFleetBeforeTheProof(t *testing.T) {
	s := newSiege(t)
	data := func(h *heldCall) wire.Segment { // seq c + 1 as the server's kernel counts
		segment := *h.frame.TCP
		segment.Seq += token.T3Size
		segment.Options, segment.Data, segment.Flags = nil, []byte("unproven"), wire.ACK|wire.PSH
		return segment
	}
	for _, version6 := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			forge  func(*wire.Segment)
			reason string // "": the kernel's to judge
			ends   bool   // TCP allows it
		}{
			{"data", func(*wire.Segment) {}, "handshake/unproven", false},
			{"data behind a gap", func(p *wire.Segment) { p.Seq += 1000 }, "handshake/unproven", false},
			{"an ACK alone", func(p *wire.Segment) { p.Data = nil }, "handshake/unproven", false},
			{"FIN", func(p *wire.Segment) { p.Flags |= wire.FIN }, "handshake/unproven", false},
			{"data with a proof of zeros", func(p *wire.Segment) {
				p.Seq -= token.T3Size
				p.Options, p.Data = optionOf(token.TypeT3), append((&token.T3{}).Append(nil), p.Data...)
			}, "token/bad-m3", false},
			{"a proof with another number", func(p *wire.Segment) {
				p.Options, p.Data = optionOf(token.TypeT3), append((&token.T3{}).Append(nil), p.Data...)
			}, "handshake/stale", false},
			{"data with SYN", func(p *wire.Segment) { p.Flags |= wire.SYN; p.Flags &^= wire.ACK }, "", false},
			{"a blind RST", func(p *wire.Segment) { p.Flags, p.Data = wire.RST, nil; p.Seq += 1 << 20 }, "", false},
			{"a blind RST behind", func(p *wire.Segment) {
				p.Flags, p.Data = wire.RST|wire.ACK, nil
				p.Seq -= 100
			}, "", false},
			{"a RST in the window", func(p *wire.Segment) { p.Flags, p.Data = wire.RST, nil }, "", true},
		} {
			port := s.port()
			h := s.hold(port, version6, 3)
			before := s.b.counts()
			segment := data(h)
			tt.forge(&segment)
			s.f.Send(h.frame.With(segment))
			if tt.reason != "" {
				s.b.counted(tt.name, before, 1, tt.reason)
			} else {
				s.b.Barrier()
			}
			h.untouched(tt.name)
			if !tt.ends {
				h.goesOn(tt.name)
				continue
			}
			s.pauses.resume()
			if r := <-h.result; r.GivenUp || r.Whole {
				t.Errorf("%s: %+v", tt.name, r)
			}
			s.nothingAt(tt.name, port)
		}
		// The same at the client, which waits for the SYN-ACK.
		for _, tt := range []struct {
			name  string
			forge func(*wire.Segment)
		}{
			{"a blind RST for the client", func(p *wire.Segment) { p.Ack += 5000 }},
			{"a RST for the client without an ack", func(p *wire.Segment) { p.Flags &^= wire.ACK }},
		} {
			port := s.port()
			h := s.hold(port, version6, 2)
			segment := *h.frame.TCP
			segment.Flags, segment.Options, segment.Data = wire.RST|wire.ACK, nil, nil
			tt.forge(&segment)
			s.f.Send(h.frame.With(segment))
			s.a.Barrier()
			h.goesOn(tt.name)
		}
	}
}
