package e2e

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// A paused connection waits before one of its packets, until it is let go on.
type paused struct {
	at       int // the packet, from 1, of both directions
	known    bool
	client   uint16 // its port, from the first SYN on; packets of others are not counted
	seen     int
	held     []*wire.Frame
	open     bool
	answers  bool // what the server sends does not wait
	verified bool // the server sent what it sends only behind the proof
}

func (c *paused) pass(p *wire.Frame) []*wire.Frame {
	if c.client == 0 && p.FromA && p.TCP.Has(wire.SYN) {
		c.client = p.TCP.From.Port()
	}
	if c.client != max(p.TCP.From.Port(), p.TCP.To.Port()) {
		return []*wire.Frame{p}
	}
	if !p.FromA && !p.TCP.Has(wire.SYN) && !p.TCP.Has(wire.RST) && !c.open {
		c.verified = true
	}
	if c.seen++; c.seen < c.at || c.open || c.answers && !p.FromA {
		return []*wire.Frame{p}
	}
	c.held = append(c.held, p)
	return nil
}

// pauses are connections that wait, by the server's port.
type pauses struct {
	f     *wire.Forwarder
	mu    sync.Mutex // guards the connections while frames pass
	conns map[int]*paused
}

func newPauses(f *wire.Forwarder) *pauses {
	p := &pauses{f: f, conns: map[int]*paused{}}
	f.SetRule(func(frame *wire.Frame) []*wire.Frame {
		p.mu.Lock()
		defer p.mu.Unlock()
		if frame.TCP != nil {
			if c := p.conns[portOf(frame.TCP)]; c != nil {
				return c.pass(frame)
			}
		}
		return []*wire.Frame{frame}
	})
	return p
}

func (p *pauses) add(conns map[int]*paused) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for port, c := range conns {
		p.conns[port] = c
	}
}

// waiting is how many wait.
func (p *pauses) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.conns {
		if !c.open && len(c.held) > 0 {
			n++
		}
	}
	return n
}

// resume lets all go on.
func (p *pauses) resume() {
	p.mu.Lock()
	var held []*wire.Frame
	for _, c := range p.conns {
		if !c.open {
			held = append(held, c.held...)
			c.open, c.held = true, nil
		}
	}
	p.mu.Unlock()
	p.f.Send(held...)
}

// dbToAll lets db of the first node speak to everybody: it is for the other to refuse it.
const dbToAll = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress: []
  egress:
  - to: [{workloads: {}}, {cidr: 0.0.0.0/0}, {cidr: "::/0"}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
  egress:
  - to: [{workloads: {matchLabels: {app: web}}}]
`

// The daemon of either node, or of both, is killed between any two packets of a handshake
// and started again, before or after the next packet arrives: the connection comes about,
// if late, or ends by a reset; what was proven goes on; and what may not pass never does.
func TestFleetKilledInTheHandshake(t *testing.T) {
	for _, tt := range []struct {
		name string
		who  []int
	}{{"the client's", []int{0}}, {"the server's", []int{1}}, {"both", []int{0, 1}}} {
		t.Run(tt.name, func(t *testing.T) {
			if !nstest.Slow() {
				t.Parallel() // they wait for SYNs to be sent again
			}
			a, b, f := forwardedFleet(t)
			k := killing{t: t, nodes: []*machine{a, b}, pauses: newPauses(f), next: 1000}
			must(t, a.apply(dbToAll))
			k.allowed = startParty(t, a.labelled("web", "app=web"), roleCaller)
			k.others = []*party{startParty(t, a.labelled("db", "app=db"), roleCaller),
				startParty(t, a.In("free"), roleCaller)}
			k.answerer = startParty(t, b.labelled("web", "app=web"), roleAnswerer)
			b.labelledProbe("listens", "app=web").Listen("tcp", "[::]:80")
			conn, v := a.labelledProbe("talks", "app=web").DialTo(probe.Target{To: at(false, 80),
				Patience: handshakes})
			if conn == nil {
				t.Fatal(v)
			}
			talk(t, conn)
			for _, late := range []bool{false, true} {
				k.round(tt.who, late, conn)
			}
		})
	}
}

// killing kills daemons.
type killing struct {
	t        *testing.T
	nodes    []*machine
	pauses   *pauses
	allowed  *party
	others   []*party // who may not reach the answerer
	answerer *party
	next     int // port
}

// How many packets of a connection are waited before; the handshake has at most six, and
// then follow data.
const pausedPackets = 8

// round pauses connections of each kind before each of their packets, kills and restarts,
// and lets them go on: late says, while nobody is there.
func (k *killing) round(who []int, late bool, established *probe.Conn) {
	k.t.Helper()
	conns, forbidden := map[int]*paused{}, map[int]bool{}
	var ports []port
	var calls, known, refused []call
	for n := 1; n <= pausedPackets; n++ {
		for kind := range 8 {
			greeted, version6, met := kind&1 != 0, kind&2 != 0, kind&4 != 0
			c := call{To: at(version6, k.next), Bytes: 5000, Greeted: greeted, Wait: killedPatience}
			conns[k.next] = &paused{at: n, known: met}
			ports, calls = append(ports, port{k.next, greeted}), append(calls, c)
			if met {
				known = append(known, c)
			}
			k.next++
		}
	}
	for kind := range 2 {
		// SYNs go at 0, 1 and 3 s
		refused = append(refused, call{To: at(kind == 1, k.next), Bytes: 100, Wait: 3500 * time.Millisecond})
		ports, forbidden[k.next] = append(ports, port{Number: k.next}), true
		k.next++
	}
	k.answerer.listens(ports)
	for _, r := range k.allowed.calls(known) {
		if !r.Whole {
			k.t.Fatalf("before anything is killed: %+v", r)
		}
	}
	k.pauses.add(conns)
	var all sync.WaitGroup
	var results []result
	all.Go(func() { results = k.allowed.calls(calls) })
	for _, p := range k.others {
		all.Go(func() {
			for i, r := range p.calls(refused) {
				if r.Connected {
					k.t.Errorf("%s was reached by who may not: %+v", refused[i].To, r)
				}
			}
		})
	}
	nstest.WaitFor(k.t, 10*time.Second, "all connections to wait", func() bool {
		return k.pauses.waiting() == len(calls)
	})
	for _, i := range who {
		must(k.t, k.nodes[i].daemon.Kill())
		_ = k.nodes[i].daemon.Wait() // it was killed
	}
	talk(k.t, established)
	if late {
		k.pauses.resume()
	}
	for _, i := range who {
		k.nodes[i].start(k.nodes[i].args...)
	}
	if !late {
		k.pauses.resume()
	}
	all.Wait()
	talk(k.t, established)
	k.judge(late, calls, results, conns)
	for port, n := range k.answerer.got() {
		if forbidden[port] && n != 0 {
			k.t.Errorf("%d bytes were delivered at %d of who may not be there", n, port)
		}
	}
}

// killedPatience is what a connection may take that meets a restart: its kernel sends the
// SYN again after 1, 3 and 7 s.
const killedPatience = 20 * time.Second

func (k *killing) judge(late bool, calls []call, results []result, conns map[int]*paused) {
	k.t.Helper()
	first := k.next - len(calls) - 2
	whole, slowest := 0, time.Duration(0)
	for i, r := range results {
		c := conns[first+i]
		what := fmt.Sprintf("late %t, before packet %d, known %t, %+v", late, c.at, c.known, calls[i])
		slowest = max(slowest, r.Elapsed)
		switch {
		case r.Whole:
			whole++
		case r.GivenUp:
			k.t.Errorf("%s: neither came about nor ended: %+v", what, r)
		case !r.Connected && !strings.Contains(r.Error, syscall.ECONNRESET.Error()):
			// A reset of a connect is ECONNREFUSED; ECONNRESET is one of a connection of which the process was not told
			// before.
			k.t.Errorf("%s: the connect failed: %+v", what, r)
		case c.verified:
			k.t.Errorf("%s: it was proven, and ended: %+v", what, r)
		}
	}
	k.t.Logf("late %t: of %d connections %d came about, the others were reset; the slowest took %v", late, len(calls),
		whole, slowest)
}
