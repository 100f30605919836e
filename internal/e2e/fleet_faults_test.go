package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"thole/internal/nstest/wire"
)

// A fault is what happens to one packet of a connection.
type fault struct {
	name string
	rule func(*faulty, *wire.Frame) []*wire.Frame // of that packet
}

// networkFaults are what may go wrong between the nodes.
var networkFaults = []fault{
	{"lost", func(*faulty, *wire.Frame) []*wire.Frame { return nil }},
	{"repeated", func(_ *faulty, p *wire.Frame) []*wire.Frame { return []*wire.Frame{p, p} }},
	{"repeated late", func(c *faulty, p *wire.Frame) []*wire.Frame {
		c.late, c.after = p, 3
		return []*wire.Frame{p}
	}},
	{"behind the next", func(c *faulty, p *wire.Frame) []*wire.Frame {
		c.next = p
		return nil
	}},
}

// A faulty connection: one of its packets meets a fault.
type faulty struct {
	fault  fault
	fromA  bool // whose packets are counted
	number int  // which, from 1
	known  bool // the peer was met before

	seen  int
	next  *wire.Frame // goes behind the next of its direction
	late  *wire.Frame // goes once more, after so many
	after int
	short bool // T1 short was on the SYN
	armed bool
}

func (c *faulty) String() string {
	from, met := "the server", "first contact"
	if c.fromA {
		from = "the client"
	}
	if c.known {
		met = "known peer"
	}
	return fmt.Sprintf("packet %d of %s, %s, %s", c.number, from, c.fault.name, met)
}

// pass says what becomes of a packet of the connection.
func (c *faulty) pass(p *wire.Frame) []*wire.Frame {
	if o, ok := p.TCP.Option(254); ok && p.FromA && o[2] == 1 {
		c.short = true
	}
	if c.late != nil {
		if c.after--; c.after == 0 {
			late := c.late
			c.late = nil
			return []*wire.Frame{p, late}
		}
	}
	if p.FromA != c.fromA {
		return []*wire.Frame{p}
	}
	if c.next != nil {
		next := c.next
		c.next = nil
		return []*wire.Frame{p, next}
	}
	if c.seen++; c.seen == c.number {
		return c.fault.rule(c, p)
	}
	return []*wire.Frame{p}
}

// Each packet of each form of the handshake is lost, repeated and overtaken: all
// connections come about, and what they carry is whole.
func TestFleetFaultyNetwork(t *testing.T) {
	a, b, f := forwardedFleet(t)
	caller := startParty(t, a.labelled("web", "app=web"), roleCaller)
	answerer := startParty(t, b.labelled("web", "app=web"), roleAnswerer)

	const first, each, patience = 1000, 4, 20 * time.Second
	var (
		mu    sync.Mutex // guards the connections while frames pass
		conns = map[int]*faulty{}
		ports []port
		calls []call
		known []call
	)
	for _, version6 := range []bool{false, true} {
		for _, greeted := range []bool{false, true} {
			for _, met := range []bool{false, true} {
				for _, fault := range networkFaults {
					for _, fromA := range []bool{false, true} {
						for n := 1; n <= each; n++ {
							number := first + len(conns)
							conns[number] = &faulty{fault: fault, fromA: fromA, number: n, known: met, armed: !met}
							ports = append(ports, port{number, greeted})
							c := call{To: at(version6, number), Bytes: 5000, Greeted: greeted, Wait: patience}
							calls = append(calls, c)
							if met {
								known = append(known, c)
							}
						}
					}
				}
			}
		}
	}
	answerer.listens(ports)
	f.SetRule(func(p *wire.Frame) []*wire.Frame {
		mu.Lock()
		defer mu.Unlock()
		if p.TCP != nil {
			if c := conns[portOf(p.TCP)]; c != nil && c.armed {
				return c.pass(p)
			}
		}
		return []*wire.Frame{p}
	})
	for _, r := range caller.someCalls(known) {
		if !r.Whole {
			t.Fatalf("without a fault: %+v", r)
		}
	}
	mu.Lock()
	for _, c := range conns {
		c.armed = true
	}
	mu.Unlock()
	slowest := time.Duration(0)
	for i, r := range caller.someCalls(calls) {
		slowest = max(slowest, r.Elapsed)
		if !r.Whole {
			t.Errorf("%s (%v, greeted %t): %+v", conns[first+i], calls[i].To, calls[i].Greeted, r)
		}
	}
	t.Logf("%d connections; the slowest took %v", len(calls), slowest)
	short, untouched := 0, 0
	for _, c := range conns {
		if c.known && c.short {
			short++
		}
		if c.seen < c.number {
			untouched++
			t.Errorf("%s: there were %d", c, c.seen)
		}
	}
	if short == 0 {
		t.Error("no SYN had a short token: no peer was known")
	}
}
