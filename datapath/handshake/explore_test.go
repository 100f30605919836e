package handshake

import (
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"
)

var deep = flag.Bool("deep", false, "explore with larger bounds")

// TestExplore visits every state of the model that can be reached within the bounds,
// breadth first, and holds in each: no data flows unproven, on the wire every byte has a
// number of its own (both in the model), and something leads out: if from now on nothing
// is lost, the connection is established, or, where a daemon was restarted or the
// client's port was used again, has ended for both.
func TestExplore(t *testing.T) {
	restarts, nonces := uint8(1), uint8(2)
	if *deep {
		nonces = 3
	}
	configs := []config{
		{name: "both know, attacked", clientKnows: true, serverKnows: true, attack: true},
		{name: "nobody knows, attacked", attack: true},
		{name: "the server forgot", clientKnows: true},
		{name: "server speaks first", clientKnows: true, serverKnows: true, serverSpeaksFirst: true, attack: true},
		{name: "SYN cookies", cookies: true, clientKnows: true, serverKnows: true, attack: true},
		{name: "deferred accept", deferAccept: true},
		{name: "denied", denied: true, clientKnows: true, serverKnows: true, attack: true},
		{name: "restarts", clientKnows: true, serverKnows: true, restarts: restarts},
		{name: "restarts, full", restarts: restarts},
		{name: "restarts, server speaks first", serverSpeaksFirst: true, restarts: restarts},
		{name: "restarts, cookies", cookies: true, restarts: restarts},
		{name: "port used again", reuse: true},
	}
	if *deep {
		configs = append(configs,
			config{name: "restarts, attacked", attack: true, restarts: 1, nonces: 2},
			config{name: "restarts, port used again", reuse: true, restarts: 1, nonces: 2})
	}
	total := 0
	for _, c := range configs {
		if c.nonces == 0 {
			c.nonces = nonces
		}
		t.Run(c.name, func(t *testing.T) { total += explore(t, c) })
	}
	t.Logf("%d states in all", total)
}

func explore(t *testing.T, c config) int {
	m := newModel(t, c)
	start := state{client: end{phase: begun}}
	m.clientTimer(&start)
	start.put(m.emitted)
	early, late := m.attackers()
	start.put(early)
	parent := map[state]step{start: {}}
	queue := []state{start}
	ends := map[string]int{}
	began, transitions := time.Now(), 0
	for i := 0; i < len(queue); i++ {
		st := queue[i]
		for _, next := range m.successors(st) {
			transitions++
			if next.to.t2 != 0 {
				next.to.put(late)
			}
			if m.err != nil {
				m.trail(parent, st, next.how)
				t.Fatal(m.err)
			}
			if _, ok := parent[next.to]; !ok {
				parent[next.to] = step{next.how, st}
				queue = append(queue, next.to)
			}
		}
		outcome := m.leadsOut(st)
		ends[outcome]++
		if !c.expects(&st, outcome) || m.err != nil {
			m.trail(parent, st, "")
			t.Fatalf("ends %s, %v", outcome, m.err)
		}
	}
	t.Logf("%d states, %d transitions, %d steps, %d packets, ends %v, %.1f s", len(queue), transitions, len(m.memo),
		len(m.wire), ends, time.Since(began).Seconds())
	return len(queue)
}

// expects reports whether a run from st may end so.
func (c *config) expects(st *state, outcome string) bool {
	switch outcome {
	case "established":
		return !c.denied
	case "reset":
		return c.denied || st.client.restarts+st.server.restarts > 0
	case "reset late":
		return st.client.restarts+st.server.restarts > 0
	case "silence late":
		// The client's daemon was restarted, its application says nothing (or the server's
		// kernel, by SYN cookies, does not ask again), and the proof was lost with the daemon, or
		// a SYN from before the restart came after one from behind it. As with a lost ACK and SYN
		// cookies elsewhere, only TCP's own timers, or a keepalive, notice. With the attacker's
		// SYN, which makes the server's conntrack forget a connection that was reset, what the
		// client still sends is a stranger's.
		return st.client.restarts > 0 && (c.cookies || c.serverSpeaksFirst || c.attack)
	}
	return false
}

func (st *state) put(wire []int) {
	for _, i := range wire {
		st.net[i/64] |= 1 << (i % 64)
	}
}

// A step leads to a state, or from one.
type step struct {
	how string
	to  state
}

// successors are what may happen next.
func (m *model) successors(st state) []step {
	var all []step
	try := func(how string, f func(*state) bool) {
		next := st
		m.emitted, m.pruned = m.emitted[:0], false
		if f(&next) && !m.pruned {
			next.put(m.emitted)
			if next != st || m.err != nil {
				all = append(all, step{how, next})
			}
		}
	}
	for i := range m.wire {
		if st.net[i/64]&(1<<(i%64)) != 0 {
			try(m.names[i], func(n *state) bool { m.deliver(n, i); return true })
		}
	}
	try("client's timer", m.clientTimer)
	try("server's timer", m.serverTimer)
	if st.client.restarts < m.restarts && (*deep || st.server.restarts == 0) {
		try("client's daemon restarts", func(n *state) bool { n.client.restarts++; n.client.conn = 0; return true })
	}
	if st.server.restarts < m.restarts && (*deep || st.client.restarts == 0) {
		try("server's daemon restarts", func(n *state) bool { n.server.restarts++; n.server.conn = 0; return true })
	}
	if m.reuse && !st.reused {
		try("the client's port is used again", func(n *state) bool {
			n.reused = true
			n.client = end{phase: begun, isn: 1, mark: n.client.mark, conn: n.client.conn, nonces: n.client.nonces,
				restarts: n.client.restarts}
			return true
		})
	}
	return all
}

func (m *model) deliver(st *state, wire int) {
	p := m.wire[wire]
	if m.packets[p].Source == serverEnd {
		m.clientGets(st, p)
	} else {
		m.serverGets(st, p)
	}
}

// leadsOut goes on from st without losses, and says how it ends. If that does not happen
// by itself, time passes: what has a deadline is forgotten, the server's kernel gives up.
func (m *model) leadsOut(st state) string {
	st.net = [2]uint64{}
	st.client.nonces, st.server.nonces = 100, 100 // never drawn before; no bound here
	for round := range 12 {
		if round == 6 {
			if !m.clientTimer(&st) {
				st.client.conn = 0 // nothing kept it alive
			}
			m.emitted = m.emitted[:0]
			st.server.conn = 0
			if st.server.phase != opened {
				st.server.listen()
				st.server.mark, st.server.aborted = noEntry, false
			}
		}
		late := ""
		if round >= 6 {
			late = " late"
		}
		if o := m.outcome(&st); o != "" {
			return o + late
		}
		m.emitted = m.emitted[:0]
		m.clientTimer(&st)
		m.serverTimer(&st)
		for n := 0; len(m.emitted) > 0; n++ {
			if n > 200 {
				return "goes round and round"
			}
			i := m.emitted[0]
			m.emitted = m.emitted[1:]
			m.deliver(&st, i)
		}
	}
	if st.client.phase == opened && st.server.phase == idle && st.server.mark == noEntry {
		return "silence late" // TCP gives up
	}
	return fmt.Sprintf("nowhere: client %+v, server %+v", st.client, st.server)
}

func (m *model) outcome(st *state) string {
	c, s := &st.client, &st.server
	switch {
	case c.reset:
		return "reset"
	case c.phase == opened && s.phase == opened && c.isn == s.isn && c.got && s.got && c.mark == settled &&
		s.mark == settled:
		return "established"
	}
	return ""
}

// trail logs how the exploration came to st.
func (m *model) trail(parent map[state]step, st state, last string) {
	lines := []string{last}
	for {
		p := parent[st]
		end := func(e *end) string { return fmt.Sprintf("%+v %v", *e, m.conns[e.conn].State) }
		lines = append(lines, fmt.Sprintf("   client %s\n   server %s", end(&st.client), end(&st.server)), p.how)
		if p.how == "" {
			break
		}
		st = p.to
	}
	slices.Reverse(lines)
	for _, l := range lines {
		m.t.Log(l)
	}
}
