package e2e

import (
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/wire"
)

// capturePolicy lets web be reached by its like, and db reach what it likes by address.
const capturePolicy = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {}}]
  egress:
  - to: [{workloads: {}}, {cidr: 10.0.0.0/23}, {cidr: fd00:10::/48}]
`

// A form is one way in which a handshake goes.
type form struct {
	name    string
	from    string // whose call it is
	port    int
	third   bool // to the machine without Thole
	bytes   int  // one segment, unless many are
	delayed bool // the first ACK carries them
	greets  bool
	loses   string // the type of the token on the packet that is lost once; "": none is
	whole   bool   // what was sent comes back
	silent  bool   // nothing comes of it, and nobody says so
	resets  bool   // one is sent
	many    bool   // segments: those that userspace has are overtaken by the first that it does not get

	// The types of the tokens that are seen, in order, without repetitions in a row; after
	// a loss that depends on whose timer is the first.
	tokens []string
}

var forms = []form{
	{name: "first contact", from: "web", port: 1000, bytes: 100, whole: true, tokens: []string{"2", "4", "5"}},
	{name: "known peer", from: "web", port: 1000, bytes: 100, whole: true, tokens: []string{"1", "3", "5"}},
	{name: "the server speaks first", from: "web", port: 1001, bytes: 100, greets: true, whole: true,
		tokens: []string{"2", "4", "5"}},
	{name: "the first ACK carries data", from: "web", port: 1002, bytes: 100, delayed: true, whole: true,
		tokens: []string{"2", "4", "5"}},
	{name: "the first ACK has no room", from: "web", port: 1005, bytes: 1400, delayed: true, whole: true,
		tokens: []string{"2", "4", "5"}},
	{name: "bulk", from: "web", port: 1006, bytes: 300_000, many: true, whole: true, tokens: []string{"2", "4", "5"}},
	{name: "short T1 is lost", from: "web", port: 1000, bytes: 100, loses: "1", whole: true},
	{name: "full T2 is lost", from: "web", port: 1003, bytes: 100, loses: "4", whole: true},
	{name: "the proof is lost", from: "web", port: 1004, bytes: 100, loses: "5", whole: true},
	{name: "nobody listens", from: "web", port: 999, resets: true, tokens: []string{"2"}},
	{name: "the server's policy denies", from: "db", port: 1000, silent: true, tokens: []string{"2"}},
	{name: "the client's policy denies", from: "web", port: 1100, resets: true, tokens: []string{"2", "4"}},
	{name: "fallback", from: "db", port: 1000, third: true, bytes: 100, whole: true, resets: true,
		tokens: []string{"2"}},
	{name: "known not to have Thole", from: "db", port: 1000, third: true, bytes: 100, whole: true},
	{name: "fallback, to nobody", from: "db", port: 999, third: true, resets: true, tokens: []string{"2"}},
	{name: "fallback, not allowed", from: "web", port: 1001, third: true, resets: true, tokens: []string{"2"}},
	{name: "without labels", from: "free", port: 1200, bytes: 100, whole: true},
}

// Each form of the handshake on the wire is TCP to who only looks on: no sequence number
// stands for two bytes, all is acknowledged, neither side's conntrack calls a packet
// invalid, and tshark has nothing to say but that there is data on SYNs.
func TestFleetCaptures(t *testing.T) {
	nstest.Need(t, "tshark", "conntrack")
	a, b, f := forwardedFleet(t)
	third := nstest.New(t)
	g := wire.Forward(a.Host, "10.0.1.1/24", "fd00:10:0:1::1/64", third, "10.0.1.2/24", "fd00:10:0:1::2/64")
	for _, m := range []*machine{a, b} {
		must(t, m.apply(capturePolicy))
	}
	callers := map[string]*party{
		"web":  startParty(t, a.labelled("web", "app=web"), roleCaller),
		"db":   startParty(t, a.labelled("db", "app=db"), roleCaller),
		"free": startParty(t, a.In("free"), roleCaller),
	}
	startParty(t, b.labelled("web", "app=web"), roleAnswerer).listens(
		[]port{{Number: 1000}, {Number: 1001, Greeted: true}, {Number: 1002}, {Number: 1003}, {Number: 1004},
			{Number: 1005}, {Number: 1006}})
	startParty(t, b.labelled("db", "app=db"), roleAnswerer).listens([]port{{Number: 1100}})
	startParty(t, b.In("free"), roleAnswerer).listens([]port{{Number: 1200}})
	startParty(t, third.In("free"), roleAnswerer).listens([]port{{Number: 1000}, {Number: 1001}})
	var all []captured
	disturbed, wasDisturbed := 0, false
	for _, version6 := range []bool{false, true} {
		for _, form := range forms {
			t.Run(fmt.Sprintf("%s IPv6=%t", form.name, version6), func(t *testing.T) {
				link, to := f, at(version6, form.port)
				if form.third {
					link, to = g, map[bool]string{false: fmt.Sprintf("10.0.1.2:%d", form.port),
						true: fmt.Sprintf("[fd00:10:0:1::2]:%d", form.port)}[version6]
				}
				invalid := a.conntrackStats("invalid") + b.conntrackStats("invalid")
				a.watchInvalid()
				b.watchInvalid()
				link.Passed()
				link.SetRule(lose(form.loses))
				wait := 10 * time.Second
				if form.silent {
					wait = 300 * time.Millisecond
				}
				r := callers[form.from].calls([]call{{To: to, Bytes: form.bytes, Greeted: form.greets,
					Delayed: form.delayed, Asks: !form.many, Wait: wait}})[0]
				if r.Whole != form.whole || r.GivenUp != form.silent {
					t.Errorf("%+v", r)
				}
				var passed []wire.Passage
				defer func() {
					if t.Failed() {
						logWire(t, passed)
					}
					all = append(all, captured{form, passed})
				}()
				nstest.WaitFor(t, 2*time.Second, "the connection to end", func() bool {
					passed = append(passed, link.Passed()...)
					return !form.whole || finished(passed)
				})
				before := wasDisturbed
				if wasDisturbed = nstest.Slow() && repeated(passed); wasDisturbed && form.loses == "" {
					disturbed++
					form.loses = "nothing: it was late"
				}
				form.check(t, passed)
				if now := a.conntrackStats("invalid") + b.conntrackStats("invalid"); now != invalid &&
					form.loses == "" && !before {
					t.Errorf("conntrack called %d packets invalid: of the client's node %s, of the server's %s",
						now-invalid, a.invalid(), b.invalid())
				}
			})
		}
	}
	if len(all) < 2*disturbed {
		t.Errorf("in %d of %d something was repeated: this machine is too slow to tell", disturbed, len(all))
	}
	checkTshark(t, all)
}

// check holds what passed against the form.
func (f *form) check(t *testing.T, passed []wire.Passage) {
	t.Helper()
	if f.loses == "" {
		checkWire(t, passed, f.whole)
		if got := tokensOf(passed); !slices.Equal(got, f.tokens) {
			t.Errorf("tokens of the types %v, want %v", got, f.tokens)
		}
	}
}

// lose loses the first packet with a token of a type.
func lose(typ string) wire.Rule {
	var once sync.Once
	return func(p *wire.Frame) (out []*wire.Frame) {
		out = []*wire.Frame{p}
		if p.TCP != nil && typ != "" && tokenType(p.TCP) == typ {
			once.Do(func() { out = nil })
		}
		return out
	}
}

// tokenType is the type of the token on a segment, "" if there is none.
func tokenType(s *wire.Segment) string {
	if o, ok := s.Option(254); ok && len(o) == 4 {
		return fmt.Sprint(o[2])
	}
	return ""
}

// repeated reports whether something was sent twice: on a slow machine TCP's timers, of 1 s
// and 0.2 s, are at times faster than the answer, which is as if that had been lost.
func repeated(passed []wire.Passage) bool {
	type start struct {
		fromA bool
		seq   uint32
	}
	seen := map[start]bool{}
	for _, p := range passed {
		if p.TCP == nil || p.TCP.Size() == 0 {
			continue
		}
		at := start{p.FromA, p.TCP.Seq}
		if seen[at] {
			return true
		}
		seen[at] = true
	}
	return false
}

func tokensOf(passed []wire.Passage) (types []string) {
	for _, p := range passed {
		if p.TCP != nil {
			if typ := tokenType(p.TCP); typ != "" && (len(types) == 0 || types[len(types)-1] != typ) {
				types = append(types, typ)
			}
		}
	}
	return types
}

// finished reports whether both ends have sent a FIN and had it acknowledged.
func finished(passed []wire.Passage) bool {
	var fin, acked [2]bool
	var end [2]uint32
	for _, p := range passed {
		if p.TCP == nil {
			continue
		}
		i := 0
		if p.FromA {
			i = 1
		}
		if p.TCP.Has(wire.FIN) {
			fin[i], end[i] = true, p.TCP.Seq+p.TCP.Size()
		}
		if fin[1-i] && p.TCP.Ack == end[1-i] {
			acked[1-i] = true
		}
	}
	return acked[0] && acked[1]
}

// checkWire holds a connection against what TCP is.
func checkWire(t *testing.T, passed []wire.Passage, whole bool) {
	t.Helper()
	type side struct {
		bytes      map[uint32]int // by sequence number; 256 SYN, 257 FIN
		first, end uint32         // of the last connection attempt
		acked      uint32         // by the other
	}
	sides := map[bool]*side{true: {bytes: map[uint32]int{}}, false: {bytes: map[uint32]int{}}}
	for _, p := range passed {
		s := p.TCP
		if s == nil {
			continue
		}
		me, other := sides[p.FromA], sides[!p.FromA]
		seq := s.Seq
		if s.Has(wire.SYN) && seq != me.first {
			// Another attempt; or the same, and the token has another size.
			*me = side{bytes: map[uint32]int{}, first: seq, end: seq}
		}
		overlaps := 0
		put := func(b int) {
			if had, ok := me.bytes[seq]; ok && had != b {
				overlaps++
			}
			me.bytes[seq] = b
			seq++
		}
		if s.Has(wire.SYN) {
			put(256)
		}
		for _, b := range s.Data {
			put(int(b))
		}
		if s.Has(wire.FIN) {
			put(257)
		}
		if overlaps != 0 {
			t.Errorf("%d sequence numbers stand for two bytes: %v", overlaps, s)
		}
		if int32(seq-me.end) > 0 {
			me.end = seq
		}
		if s.Has(wire.ACK) && !s.Has(wire.RST) {
			if int32(s.Ack-other.end) > 0 {
				t.Errorf("what was never sent is acknowledged: %v, sent was up to %d", s, other.end)
			}
			if int32(s.Ack-other.acked) > 0 || other.acked == 0 {
				other.acked = s.Ack
			}
		}
	}
	for fromA, s := range sides {
		if missing := int(s.end-s.first) - len(s.bytes); missing != 0 && whole {
			t.Errorf("from the client %t: %d sequence numbers were left out", fromA, missing)
		}
		if whole && s.acked != s.end {
			t.Errorf("from the client %t: acknowledged up to %d of %d", fromA, s.acked, s.end)
		}
	}
}

// A captured form is what passed of it.
type captured struct {
	form
	passed []wire.Passage
}

// checkTshark has tshark say what it thinks, in 4.0 of data on a SYN no more than a note.
// Of each reset it warns, and of what was lost or overtaken, where that was meant to be.
func checkTshark(t *testing.T, all []captured) {
	t.Helper()
	var passed []wire.Passage
	var whose []form // of each frame
	for _, c := range all {
		if c.loses == "" && !c.many {
			passed = append(passed, c.passed...)
			whose = append(whose, slices.Repeat([]form{c.form}, len(c.passed))...)
		}
	}
	path := filepath.Join(t.TempDir(), "wire.pcap")
	must(t, wire.WritePCAP(path, passed))
	cmd := exec.Command("tshark", "-r", path, "-n", "-Y", "_ws.expert.severity >= 0x600000", // warn
		"-T", "fields", "-e", "frame.number", "-e", "_ws.expert.message")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, errs.String())
	}
	for line := range strings.Lines(string(out)) {
		var n int
		_, err := fmt.Sscan(line, &n)
		must(t, err)
		if f := whose[n-1]; !f.resets || !strings.Contains(line, "Connection reset (RST)") {
			t.Errorf("%s: tshark: %s %v", f.name, line, passed[n-1].TCP)
		}
	}
}

// watchInvalid notes, from now on, what conntrack calls invalid.
func (m *machine) watchInvalid() {
	m.t.Helper()
	must(m.t, m.Nft(`
		table inet watch
		delete table inet watch
		table inet watch {
			set seqs { typeof tcp sequence; flags dynamic; }
			set bits { typeof tcp flags; flags dynamic; }
			chain in {
				type filter hook prerouting priority -190
				ct state invalid add @seqs { tcp sequence } add @bits { tcp flags } counter
			}
			chain out {
				type filter hook output priority -190
				ct state invalid add @seqs { tcp sequence } add @bits { tcp flags } counter
			}
		}`))
}

func (m *machine) invalid() string {
	m.t.Helper()
	return m.Shell("nft list table inet watch")
}

func logWire(t *testing.T, passed []wire.Passage) {
	t.Helper()
	for _, p := range passed {
		if p.TCP != nil {
			t.Log(p.At.Format("05.000000"), p.TCP)
		}
	}
}
