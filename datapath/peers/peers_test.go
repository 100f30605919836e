package peers

import (
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/datapath/packet"
	"thole/datapath/pki"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestConnect: full tokens first, short ones for a while, the same Pair each time.
func TestConnect(t *testing.T) {
	w := newTwo(t)
	now := start
	mine := own(t, w.client, web, now)
	if p := w.client.Remembered(mine, dbPort, now); p != nil {
		t.Error("a statement is remembered before the first connection")
	}
	client, server := w.connect(now)
	if want := map[string]string{"app": "web", "team": "a", "thole/node": "web-1"}; !maps.Equal(server.Peer.Labels,
		want) {
		t.Errorf("%v", server.Peer.Labels)
	}
	if id := IdentityOf(server.Peer); id.Node != "web-1" {
		t.Errorf("%+v", id)
	}
	now = now.Add(15 * time.Second) // lifetime − 60 s
	if p := w.client.Remembered(mine, dbPort, now); p != client {
		t.Errorf("%v, want the same pair", p)
	}
	if p := w.client.Remembered(mine, netip.AddrPortFrom(dbAddr, 80), now); p != nil {
		t.Error("another port may be another workload")
	}
	named, err := w.server.Named(Server, db, server.Own.Statement.Fingerprint(), mine.Statement.Fingerprint(), webAddr,
		now)
	if err != nil || named != server {
		t.Errorf("%v, %v: want the same pair", named, err)
	}
	if p := w.client.Remembered(mine, dbPort, now.Add(time.Nanosecond)); p != nil {
		t.Error("it is remembered for too long")
	}
	w.client.Answered(client, dbPort, false, now) // a short T2 says nothing of its age
	if p := w.client.Remembered(mine, dbPort, now.Add(time.Second)); p != nil {
		t.Error("T2 short made it young again")
	}
}

func TestNamedRefuses(t *testing.T) {
	w := newTwo(t)
	_, pair := w.connect(start)
	mine, theirs := pair.Own.Statement.Fingerprint(), pair.Peer.Statement.Fingerprint()
	other := own(t, w.server, map[string]string{"app": "web"}, start).Statement.Fingerprint()
	for _, c := range []struct {
		name      string
		labels    map[string]string
		own, peer token.Fingerprint
		from      netip.Addr
		want      error
	}{
		{"another workload's statement of the same node", db, other, theirs, webAddr, refusal.Unknown},
		{"another workload listens", web, mine, theirs, webAddr, refusal.Unknown},
		{"a statement never seen", db, mine, token.Fingerprint{1}, webAddr, refusal.Unknown},
		{"from another address", db, mine, theirs, dbAddr, refusal.WrongAddress},
		{"own and peer exchanged", db, theirs, mine, webAddr, refusal.Unknown},
	} {
		_, err := w.server.Named(Server, c.labels, c.own, c.peer, c.from, start)
		wantErr(t, c.name, err, c.want)
	}
	_, err := w.server.Named(Server, db, mine, theirs, webAddr, start.Add(Lifetime+KeepFor+time.Second))
	wantErr(t, "own statement's end", err, refusal.Unknown)
}

func TestStatedRefuses(t *testing.T) {
	w := newTwo(t)
	mine := own(t, w.server, db, start)
	foreign := newFleet(t).node("web-1", "192.0.2.0/24", time.Hour)
	ended := w.node("old", "192.0.2.0/24", time.Second)
	tampered := func() []byte {
		b := append([]byte(nil), say(t, w.webNode, web, start).Bytes()...)
		b[len(b)-1] ^= 1
		return b
	}
	for _, c := range []struct {
		name string
		b    []byte
		from netip.Addr
		now  time.Time
		want error
	}{
		{"nothing", nil, webAddr, start, refusal.BadLength},
		{"another fleet", say(t, foreign, web, start).Bytes(), webAddr, start, pki.ErrForeign},
		{"signature", tampered(), webAddr, start, refusal.BadSignature},
		{"address", say(t, w.webNode, web, start).Bytes(), dbAddr, start, refusal.WrongAddress},
		{"labels", say(t, w.webNode, map[string]string{"app": "root"}, start).Bytes(), webAddr, start,
			refusal.NotGranted},
		{"own", say(t, w.dbNode, db, start).Bytes(), dbAddr, start, refusal.Reflected},
		{"certificate's end", say(t, ended, web, start.Add(400*time.Second)).Bytes(), webAddr,
			start.Add(400 * time.Second), pki.ErrExpired},
	} {
		_, err := w.server.Stated(Server, mine, c.b, c.from, c.now)
		wantErr(t, c.name, err, c.want)
	}
	if n := w.server.Status()["statements"]; n != 0 {
		t.Errorf("%d statements that were refused are kept", n)
	}
}

// TestOwnTurnsOver: after 45 to 60 s, each set for itself; the one before can be named
// until 15 s after its end.
func TestOwnTurnsOver(t *testing.T) {
	w := newTwo(t)
	turns := map[time.Duration]bool{}
	for i := range 40 {
		labels := map[string]string{"env": fmt.Sprint(i)}
		now := start
		first := own(t, w.client, labels, now)
		for own(t, w.client, labels, now) == first {
			now = now.Add(time.Second)
		}
		turn := now.Sub(first.Statement.NotBefore).Truncate(time.Second)
		if turn < TurnAfter || turn > TurnAfter+TurnIn {
			t.Errorf("turned over after %v", turn)
		}
		turns[turn] = true
		name := first.Statement.Fingerprint()
		end := first.Statement.NotBefore.Add(Lifetime + KeepFor)
		if w.client.named(labels, name, end) != first || w.client.named(labels, name, end.Add(time.Nanosecond)) != nil {
			t.Error("the one before is not kept until 15 s after its end")
		}
		if second := own(t, w.client, labels, now); second == first ||
			second.Statement.Ephemeral == first.Statement.Ephemeral {
			t.Error("the key is the same")
		}
	}
	if len(turns) < 3 {
		t.Errorf("all turn over after %v", turns)
	}
}

// TestOneBefore: of two before, the older is gone.
func TestOneBefore(t *testing.T) {
	w := newTwo(t)
	first := own(t, w.client, web, start)
	now := start.Add(61 * time.Second)
	second := own(t, w.client, web, now)
	third := own(t, w.client, web, start.Add(61*time.Second).Add(-2*time.Minute)) // the clock was set back
	if third == second {
		t.Error("a statement of the future is used")
	}
	if w.client.named(web, first.Statement.Fingerprint(), start) != nil ||
		w.client.named(web, second.Statement.Fingerprint(), start) != second {
		t.Error("not the last two are kept")
	}
}

func TestSweepDropsKeys(t *testing.T) {
	w := newTwo(t)
	w.connect(start)
	own(t, w.client, web, start.Add(61*time.Second))
	w.client.Sweep(start.Add(Lifetime + KeepFor + time.Second))
	set, _ := w.client.own.get(setKey(web), start)
	if set == nil || set.previous != nil || set.current == nil {
		t.Errorf("%+v", set)
	}
	for _, p := range []*Peers{w.client, w.server} {
		p.Sweep(start.Add(time.Hour + 301*time.Second))
		for name, n := range p.Status() {
			switch name {
			case "own-label-sets", "statements", "pairs", "remembered", "proven-addresses", "plain-places",
				"answering-places", "certificates":
				if n != 0 {
					t.Errorf("%d %s after an hour", n, name)
				}
			}
		}
	}
}

// TestOwnRefuses: nothing is said of a workload that the others would misunderstand.
func TestOwnRefuses(t *testing.T) {
	w := newTwo(t)
	for _, c := range []struct {
		name   string
		labels map[string]string
		now    time.Time
		want   error
	}{
		{"a key that is not granted", map[string]string{"app": "web", "tier": "x"}, start, refusal.NotGranted},
		{"a value that is not granted", map[string]string{"app": "root"}, start, refusal.NotGranted},
		{"what is required, otherwise", map[string]string{"app": "web", "team": "b"}, start, refusal.NotGranted},
		{"what is required, as it is", map[string]string{"app": "web", "team": "a"}, start, nil},
		{"no labels", nil, start, refusal.NoLabels},
		{"after the certificate's end", web, start.Add(200 * time.Hour), pki.ErrExpired},
	} {
		if _, err := w.client.Own(c.labels, c.now); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	_, err := w.client.Own(map[string]string{"app": "web", "env": strings.Repeat("x", 250), "team": "a"}, start)
	must(t, err)
}

// TestBounds: what the maps are bounded by, one more than that.
func TestBounds(t *testing.T) {
	w := newTwo(t)
	client, server := w.connect(start)
	p, q := w.client, w.server
	for i := range MaxRemembered {
		p.Answered(client, netip.AddrPortFrom(dbAddr, uint16(10000+i)), true, start)
	}
	for i := range PairsPerNode {
		q.pairs.put(pairKey{own: token.Fingerprint{byte(i), byte(i >> 8)}}, nodeOf(server.Peer), server,
			start.Add(time.Hour))
	}
	for i := range MaxCertificates {
		q.certs.put([32]byte{byte(i), byte(i >> 8)}, certificate{}, start.Add(time.Hour))
	}
	for i := range AddressesPerNode {
		q.Proven(Server, server, netip.AddrFrom16([16]byte{0xfd, 0, byte(i), byte(i >> 8), 1}), start)
	}
	for name, want := range map[string][2]uint64{ // entries, evicted
		"remembered": {MaxRemembered, 1}, "certificates": {MaxCertificates, 1},
	} {
		if got := max(p.Status()[name], q.Status()[name]); got != want[0] {
			t.Errorf("%s: %d, want %d", name, got, want[0])
		}
		if got := max(p.Status()[name+"/evicted"], q.Status()[name+"/evicted"]); got != want[1] {
			t.Errorf("%s: %d evicted, want %d", name, got, want[1])
		}
	}
	// One pair and one address were there before.
	for name, want := range map[string]uint64{"pairs": PairsPerNode, "proven-addresses": AddressesPerNode} {
		if s := q.Status(); s[name] != want || s[name+"/evicted/node"] != 1 {
			t.Errorf("%s: %d, %d evicted", name, s[name], s[name+"/evicted/node"])
		}
	}
	if pair, ok := q.pairs.get(pairKey{Server, server.Own.Statement.Fingerprint(), server.Peer.Statement.Fingerprint()},
		start); !ok || pair != server {
		t.Error("a proven pair made room for one that is not")
	}
}

// TestReplace: a list that revokes one node ends what is known of it, and of nobody else.
func TestReplace(t *testing.T) {
	w := newTwo(t)
	_, web1 := w.connect(start)
	node2 := w.node("web-2", "192.0.2.0/24", time.Hour)
	s2 := say(t, node2, web, start)
	web2, err := w.server.Stated(Server, web1.Own, s2.Bytes(), webAddr, start)
	must(t, err)
	mine := web1.Own

	w.revoke(node2)
	must(t, w.server.Replace(w.with(w.dbNode), start))
	name := mine.Statement.Fingerprint()
	if p, err := w.server.Named(Server, db, name, web1.Peer.Statement.Fingerprint(), webAddr, start); err != nil ||
		p != web1 {
		t.Errorf("the other node's pair: %v, %v", p, err)
	}
	_, err = w.server.Named(Server, db, name, web2.Peer.Statement.Fingerprint(), webAddr, start)
	wantErr(t, "the revoked node by name", err, pki.ErrRevoked)
	wantErr(t, "the revoked node by name", err, refusal.BadCertificate)
	_, err = w.server.Named(Server, db, name, web2.Peer.Statement.Fingerprint(), webAddr, start)
	wantErr(t, "once more", err, refusal.Unknown)
	_, err = w.server.Stated(Server, mine, s2.Bytes(), webAddr, start)
	wantErr(t, "the revoked node's statement", err, pki.ErrRevoked)
	if own(t, w.server, db, start) != mine {
		t.Error("a list about others changed our own statement")
	}
	_, err = verifier{w.server, w.server.node.Trust}.identity(node2.Identity.Certificate, start)
	wantErr(t, "the revoked node's certificate", err, pki.ErrRevoked)

	older := w.dbNode // its trust has an older list
	wantErr(t, "an older list", w.server.Replace(older, start), pki.ErrOlderList)
}

// TestReplaceOwn: with a new key, what was said with the old certificate can be named
// while that is still good; our own statements come back to nobody.
func TestReplaceOwn(t *testing.T) {
	w := newTwo(t)
	client, server := w.connect(start)
	old := w.dbNode
	fresh := w.node("db-1", "198.51.100.0/24", time.Hour)
	must(t, w.server.Replace(fresh, start))
	name, peer := server.Own.Statement.Fingerprint(), client.Own.Statement.Fingerprint()
	if _, err := w.server.Named(Server, db, name, peer, webAddr, start); err != nil {
		t.Errorf("the statement before: %v", err)
	}
	now := own(t, w.server, db, start)
	if now == server.Own || string(now.Statement.Certificate) != string(fresh.Identity.Certificate) {
		t.Error("the old certificate is still used")
	}
	_, err := w.server.Stated(Server, now, say(t, old, db, start).Bytes(), dbAddr, start)
	wantErr(t, "reflected, under the old key", err, refusal.Reflected)

	w.revoke(old)
	must(t, w.server.Replace(w.with(fresh), start))
	_, err = w.server.Named(Server, db, name, peer, webAddr, start)
	wantErr(t, "the certificate before is revoked", err, refusal.Unknown)
	if own(t, w.server, db, start) != now {
		t.Error("the new statement is gone too")
	}
}

// TestExpiredWhileCached: with the certificate ends what is cached of it.
func TestExpiredWhileCached(t *testing.T) {
	w := newTwo(t)
	short := w.node("short", "192.0.2.0/24", 10*time.Second)
	mine := own(t, w.server, db, start)
	s := say(t, short, web, start)
	_, err := w.server.Stated(Server, mine, s.Bytes(), webAddr, start)
	must(t, err)
	end := short.Identity.NotAfter.Add(token.MaxSkew)
	if _, err = w.server.Stated(Server, mine, s.Bytes(), webAddr, end); err != nil {
		t.Errorf("the last moment: %v", err)
	}
	_, err = w.server.Stated(Server, mine, s.Bytes(), webAddr, end.Add(time.Second))
	wantErr(t, "after the end", err, pki.ErrExpired)
}

// TestStatementsOfOneNode: 256, and then the node's own make room.
func TestStatementsOfOneNode(t *testing.T) {
	w := newTwo(t)
	_, proven := w.connect(start)
	greedy := w.node("greedy", "192.0.2.0/24", time.Hour)
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(t, err)
	for i := range StatementsPerNode + 1 {
		now := start.Add(time.Duration(i) * time.Second) // so that budgets are not what bounds here
		s := sayWith(t, key, greedy, map[string]string{"env": fmt.Sprint(i)}, now)
		_, err := w.server.check(Server, s.Bytes(), webAddr, now)
		must(t, err)
	}
	status := w.server.Status()
	if status["statements"] != StatementsPerNode+1 || status["statements/evicted/node"] != 1 ||
		status["statements/limit"] != MaxStatements {
		t.Errorf("%v", status)
	}
	if _, err := w.server.known(proven.Peer.Statement.Fingerprint(), start); err != nil {
		t.Errorf("the other node's: %v", err)
	}
}

// TestBudget: strangers share one allowance, a proven address has its own, and what
// answers us has another.
func TestBudget(t *testing.T) {
	w := newTwo(t)
	mine := own(t, w.server, db, start)
	junk := func(i int) []byte { // a genuine certificate, a bad signature: as dear as may be
		b := append([]byte(nil), say(t, w.webNode, map[string]string{"env": fmt.Sprint(i)}, start).Bytes()...)
		b[len(b)-1] ^= 1
		return b
	}
	stranger := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}) }
	spend := func(now time.Time) (n int) {
		for i := 0; ; i++ {
			_, err := w.server.Stated(Server, mine, junk(i%10), stranger(i), now)
			if errors.Is(err, refusal.OverBudget) {
				return n
			}
			wantErr(t, "junk", err, refusal.BadSignature)
			n++
		}
	}
	const each = 100 * time.Millisecond / statementCost
	if n := spend(start); n != int(each)-1 { // the first brought a certificate
		t.Errorf("strangers had %d verified, want %d", n, each-1)
	}
	honest := say(t, w.webNode, web, start)
	_, err := w.server.Stated(Server, mine, honest.Bytes(), webAddr, start)
	wantErr(t, "a stranger too", err, refusal.OverBudget)
	if _, err := w.server.Stated(Client, mine, honest.Bytes(), webAddr, start); err != nil {
		t.Errorf("the answer to our own SYN: %v", err)
	}
	pair, err := w.server.Stated(Client, mine, honest.Bytes(), webAddr, start)
	must(t, err)
	w.server.Proven(Client, pair, webAddr, start)
	if _, err := w.server.Stated(Server, mine, say(t, w.webNode, db, start).Bytes(), webAddr, start); err != nil {
		t.Errorf("an address that has proven itself: %v", err)
	}
	_, err = w.server.Stated(Server, mine, honest.Bytes(), webAddr.Next(), start)
	if !errors.Is(err, refusal.OverBudget) {
		t.Errorf("known, but its keys cost: %v", err)
	}
	if n := spend(start.Add(100 * time.Millisecond)); n < 150 || n > 170 { // 10 % of 100 ms
		t.Errorf("after 100 ms strangers had %d verified", n)
	}
	later := start.Add(ProvenFor + time.Second)
	if _, err = w.server.Stated(Server, mine, say(t, w.webNode, web, later).Bytes(), webAddr, later); err != nil {
		t.Errorf("the allowance is full again: %v", err)
	}
	if len(w.server.addresses.entries) != 0 {
		t.Error("the address is still a proven one")
	}
}

// TestProvenAddressHasABound: who spoofs a proven address spends that one's allowance.
func TestProvenAddressHasABound(t *testing.T) {
	w := newTwo(t)
	w.connect(start)
	n := 0
	for w.server.allow(Server, webAddr, statementCost, start) {
		n++
	}
	if want := int(100 * time.Millisecond / statementCost); n != want {
		t.Errorf("%d, want %d", n, want)
	}
	if !w.server.allow(Server, webAddr.Next(), statementCost, start) {
		t.Error("strangers have nothing left")
	}
}

func TestPlain(t *testing.T) {
	w := newTwo(t)
	p := w.client
	at := func(i int) netip.AddrPort { return netip.AddrPortFrom(webAddr, uint16(i)) }
	answers := netip.AddrPortFrom(dbAddr, 5432)
	for i := range MaxPlain {
		if !p.SetPlain(at(i), start) {
			t.Fatal(i)
		}
	}
	if !p.Plain(at(0), start.Add(PlainFor)) || p.Plain(at(1), start.Add(PlainFor+1)) ||
		p.Status()["plain-places/evicted"] != 0 {
		t.Error("not remembered for 10 minutes")
	}
	if n := p.Status()["plain-places"]; n != MaxPlain-1 {
		t.Errorf("%d places; one is over", n)
	}
	p.SetPlain(at(1), start)
	p.SetPlain(at(MaxPlain), start) // 0 was used later than 2
	if n := p.Status()["plain-places"]; n != MaxPlain || p.Plain(at(2), start) || !p.Plain(at(0), start) ||
		p.Status()["plain-places/evicted"] != 1 {
		t.Errorf("%d places beyond the limit", n)
	}
	p.ForgetPlain(at(0))
	if p.Plain(at(0), start) {
		t.Error("it was forgotten")
	}
	other := netip.AddrPortFrom(answers.Addr(), answers.Port()+1)
	p.SetPlain(answers, start)
	p.SetPlain(other, start)
	w.connect(start)
	if p.Plain(answers, start) {
		t.Error("it has proven itself")
	}
	if p.SetPlain(answers, start) || p.Plain(answers, start) {
		t.Error("a place that has just proven itself is taken for plain")
	}
	if !p.Plain(other, start) {
		t.Error("another port of the address has proven nothing")
	}
	if !p.SetPlain(answers, start.Add(ProvenFor+1)) {
		t.Error("ten minutes later it may be")
	}
}

func TestCounters(t *testing.T) {
	var c Counters
	for _, err := range []error{
		nil, refusal.BadChecksum, refusal.BadM1, refusal.BadM1, refusal.Unknown, errors.New("else"),
		&packet.TooBigError{},
		fmt.Errorf("%w: %w", refusal.BadCertificate, fmt.Errorf("%w: x", pki.ErrRevoked)),
		fmt.Errorf("label: %w", refusal.BadLabel), &token.TooBigError{},
	} {
		c.Count(err)
	}
	want := map[string]uint64{
		"packet/bad-checksum": 1, "token/bad-m1": 2, "peers/unknown": 1, "other": 1, "packet/too-big": 1,
		"certificate/revoked": 1, "token/bad-label": 1, "token/too-big": 1,
	}
	if got := c.Map(); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestAtOnce is for the race detector: several queues, and a list that comes meanwhile.
func TestAtOnce(t *testing.T) {
	w := newTwo(t)
	s := own(t, w.client, web, start).Statement
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 30 {
				now := start.Add(time.Duration(i) * time.Second)
				mine, err := w.server.Own(db, now)
				if err != nil {
					t.Error(err)
					return
				}
				pair, err := w.server.Stated(Server, mine, s.Bytes(), webAddr, now)
				if errors.Is(err, refusal.TrustChanged) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				w.server.Proven(Server, pair, webAddr, now)
				w.server.Plain(netip.AddrPortFrom(webAddr, 80), now)
				w.server.Sweep(now)
				w.server.Status()
			}
		})
	}
	for range 10 {
		must(t, w.server.Replace(w.with(w.dbNode), start))
	}
	all.Wait()
}

func BenchmarkPeers(b *testing.B) {
	w := newTwo(b)
	client, server := w.connect(start)
	ours, theirs := server.Own.Statement.Fingerprint(), client.Own.Statement.Fingerprint()
	for name, f := range map[string]func() error{
		"own":        func() error { _, err := w.client.Own(web, start); return err },
		"remembered": func() error { w.client.Remembered(client.Own, dbPort, start); return nil },
		"named":      func() error { _, err := w.server.Named(Server, db, ours, theirs, webAddr, start); return err },
		"stated, known": func() error {
			_, err := w.server.Stated(Server, server.Own, client.Own.Statement.Bytes(), webAddr, start)
			return err
		},
		"stated, new": func() error {
			fresh := New(w.dbNode)
			_, err := fresh.Stated(Server, server.Own, client.Own.Statement.Bytes(), webAddr, start)
			return err
		},
		"new own": func() error { _, err := newOwn(w.webNode, web, start); return err },
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if err := f(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
