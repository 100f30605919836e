package e2e

import (
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/baseline"
)

// A daemon of the present version takes over the table of an older one, in which the bits of marks meant something
// else, and whose chains were others. Allowed connections, also those on which only the server sends, do not end; what
// is revoked afterwards ends.
func TestUpgradeUnderTraffic(t *testing.T) {
	if nstest.Slow() {
		t.Skip("there is no compiler here to build the older program")
	}
	const count, period, address = 200, 200 * time.Millisecond, "127.0.0.1:5432"
	m := bareMachine(t)
	present := m.thole
	m.thole = baseline.Program(t)
	m.start()
	must(t, m.apply(policyFrom("web")))
	server := startStreams(t, m.labelled("db", "app=db"), roleStreamServer,
		streamPlan{Address: address, Count: count, Period: period})
	server.says("listening")
	client := startStreams(t, m.labelled("web", "app=web"), roleStreamClient,
		streamPlan{Address: address, Count: count, Pushed: 3, Period: period})
	client.says("ready")
	server.says("ready")
	pass := func() {
		from := monotonic()
		nstest.WaitFor(t, time.Minute, "traffic to go on", func() bool {
			return time.Duration(monotonic()-from) > 5*period
		})
	}
	pass()
	m.kill()
	m.thole = present
	m.start()
	pass()
	upgraded := monotonic()
	must(t, m.apply(policyFrom("nobody")))
	pass()
	served, asked := server.end(), client.end()
	if len(asked) != count || len(served) != count {
		t.Fatalf("%d and %d connections; want %d", len(asked), len(served), count)
	}
	for id, c := range asked {
		s := served[id]
		if c.endedBefore(upgraded) || s.endedBefore(upgraded) {
			t.Errorf("connection %d ended with the upgrade: %q, %q", id, c.End, s.End)
		}
		if late := s.sentAfter(upgraded + int64(2*period)); len(late) > 0 {
			t.Errorf("connection %d goes on after its revocation", id)
		}
	}
}
