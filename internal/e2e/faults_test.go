package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/faults"
)

var faultsFor = flag.Duration("faults", 4*time.Second, "how long netlink of daemons fails")

// faultRate is how many calls of netlink of a daemon there are to one that fails.
const faultRate = 300

// seen reports whether a call of each kind has failed, in any of the daemons.
func seen(kinds []string, daemons ...*machine) bool {
	count := map[string]int{}
	for _, m := range daemons {
		for kind, n := range m.faults.Count() {
			count[kind] += n
		}
	}
	return !slices.ContainsFunc(kinds, func(kind string) bool { return count[kind] == 0 })
}

// underFaults has netlink of machines' daemons fail while do is done, over and over: until
// the time is over, and a call of each kind has failed.
func underFaults(t *testing.T, kinds []string, daemons []*machine, do func(i int)) {
	t.Helper()
	for _, m := range daemons {
		m.faults.Set(faultRate)
	}
	began := time.Now()
	for i := 0; time.Since(began) < *faultsFor || !seen(kinds, daemons...); i++ {
		if time.Since(began) > *faultsFor+time.Minute {
			t.Errorf("no call has failed of one of %q", kinds)
			break
		}
		do(i)
	}
	for _, m := range daemons {
		m.faults.Set(0)
		t.Logf("failed: %v", m.faults.Count())
	}
}

func faultsSeed(t *testing.T) uint64 {
	n := *seed
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("-seed %d", n)
	return n
}

// again starts a daemon that has ended, as systemd does, until it enforces, and returns how
// often it had ended.
func (m *machine) again() (ended int) {
	m.t.Helper()
	select {
	case <-m.daemon.Done():
		lines := strings.Split(strings.TrimSpace(m.daemon.Output()), "\n")
		m.t.Logf("a daemon has ended: %s", lines[len(lines)-1])
		m.faults.Set(0)
		m.start(m.args...)
		m.faults.Set(faultRate)
		return 1
	default:
		return 0
	}
}

// Every call on a netlink socket of two nodes' daemons, one in 300, fails: of the table, of
// conntrack, of the queue and of the socket lookup. What is forbidden never comes about,
// and what is allowed does at once when the faults end.
func TestFleetFaults(t *testing.T) {
	n := faultsSeed(t)
	a, b := bareMachine(t), bareMachine(t)
	for i, m := range []*machine{a, b} {
		m.faults = faults.New(n + uint64(i))
		m.args = []string{"--log-level", "warn"}
	}
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", b.Host, "10.0.0.2/24", "fd00:10::2/64")
	startFleet(t, newFleetCA(t), a, b)
	tell(t, a, b)
	web, db, free := startParty(t, a.labelled("web", "app=web"), roleCaller),
		startParty(t, a.labelled("db", "app=db"), roleCaller), startParty(t, a.In("free"), roleCaller)
	answerer := startParty(t, b.labelled("web", "app=web"), roleAnswerer)
	answerer.listens([]port{{Number: 80}, {Number: 81}})

	came, tried, ended := 0, 0, 0
	kinds := []string{"netfilter read", "netfilter write", "sock_diag read", "sock_diag write"}
	underFaults(t, kinds, []*machine{a, b}, func(i int) {
		for _, m := range []*machine{a, b} {
			ended += m.again()
		}
		for _, r := range web.calls(slices.Repeat([]call{{To: at(i%2 == 0, 80), Bytes: 100, Wait: time.Second}}, 10)) {
			tried++
			if r.Whole {
				came++
			}
		}
		for _, p := range []*party{db, free} {
			p.calls([]call{{To: at(i%2 == 0, 81), Bytes: 100, Wait: 50 * time.Millisecond}})
		}
		// A label set more is a change of the table, which may fail.
		_, _ = b.run(fmt.Sprintf("app=web%d", i), "true")
	})
	t.Logf("under faults %d of %d calls came about; daemons ended %d times", came, tried, ended)
	for _, m := range []*machine{a, b} {
		m.again()
		m.faults.Set(0)
	}
	if came == 0 {
		t.Error("nothing that is allowed came about")
	}
	nstest.WaitFor(t, 20*time.Second, "what is allowed to come about again", func() bool {
		return web.calls([]call{{To: at(false, 80), Bytes: 100, Wait: handshakes}})[0].Whole
	})
	for i := range 20 {
		if r := web.calls([]call{{To: at(i%2 == 0, 80), Bytes: 100, Wait: handshakes}})[0]; !r.Whole {
			t.Errorf("after the faults: %+v", r)
		}
	}
	if d := answerer.delivered(); d.Connections[81] != 0 || d.Bytes[81] != 0 {
		t.Errorf("what is forbidden: %d connections, %d bytes", d.Connections[81], d.Bytes[81])
	}
}

// The same of a daemon that follows Docker, which asks rtnetlink behind which ports of a
// bridge containers are: while they come and go the table stands, and is what a fresh
// compile makes soon after the faults have ended.
func TestDockerFaults(t *testing.T) {
	m := bareMachine(t)
	m.faults = faults.New(faultsSeed(t))
	h := newHarbourOn(m, 4)
	underFaults(t, []string{"netfilter read", "netfilter write", "route read", "route write"}, []*machine{m},
		func(i int) {
			h.run(fmt.Sprintf("more%d", i))
			h.stands("under faults")
			if i > 3 {
				h.engine.Docker("rm", "-f", fmt.Sprintf("more%d", i-4))
			}
		})
	h.untilFresh(shortly, "the table to be a fresh compile's")
	h.stands("after the faults")
}
