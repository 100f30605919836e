package e2e

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/ruleset/kernel"
)

var connections = flag.Int("connections", 400, "living connections, of which half are revoked")

// delayedACK is the longest that a kernel waits with an acknowledgement (linux:
// include/net/tcp.h, TCP_DELACK_MAX), and then some.
const delayedACK = 300 * time.Millisecond

// Many live connections, of which half are revoked at once. Nothing is delivered on those
// that was sent after the first packet of their client that follows the commit. (What is
// in buffers by then was sent before.) The others do not notice.
//
// On a third of them only the server sends, and the client's kernel acknowledges. When
// that was cannot be seen, but the second of two records that are further apart than an
// acknowledgement may be delayed comes after it.
func TestRevocationUnderTraffic(t *testing.T) {
	m := newMachine(t)
	must(t, m.apply(policyFrom("web")+extraFrom("dev")))
	const address = "127.0.0.1:5432"
	period := max(400*time.Millisecond, time.Duration(*connections)*150*time.Microsecond)
	half := *connections / 2
	server := startStreams(t, m.labelled("db", "app=db"), roleStreamServer,
		streamPlan{Address: address, Count: 2 * half, Period: period})
	server.says("listening")
	good := startStreams(t, m.labelled("web", "app=web"), roleStreamClient,
		streamPlan{Address: address, Count: half, Pushed: 3, Period: period})
	bad := startStreams(t, m.labelled("dev", "app=dev"), roleStreamClient,
		streamPlan{Address: address, First: 1 << 31, Count: half, Pushed: 3, Period: period})
	for _, s := range []*streamer{good, bad, server} {
		s.says("ready")
	}

	writes := m.listen()
	pass := func() window {
		w := window{from: monotonic()}
		nstest.WaitFor(t, time.Minute, "traffic to go on", func() bool {
			return time.Duration(monotonic()-w.from) > 4*period
		})
		w.to = monotonic()
		return w
	}
	pass()
	must(t, m.apply(policyFrom("web")+extraFrom("dev"))) // nothing changes
	control := pass()
	before := monotonic()
	must(t, m.apply(policyFrom("web")))
	committed := <-writes
	revocation := pass()
	revocation.from = before

	g, b, s := good.end(), bad.end(), server.end()
	if len(g) != half || len(b) != half || len(s) != 2*half {
		t.Fatalf("%d, %d and %d connections; want %d, %d and %d", len(g), len(b), len(s), half, half, 2*half)
	}
	delivered, pushed := 0, 0
	for id, client := range b {
		if n := checkRevoked(t, client, s[id], committed); client.Push {
			pushed += n
		} else {
			delivered += n
		}
	}
	t.Logf("%d connections revoked; %d records were on the way, and %d pushed before they were acknowledged", half,
		delivered, pushed)
	var usual, longest time.Duration
	for id, client := range g {
		if client.endedBefore(revocation.to) || s[id].endedBefore(revocation.to) {
			t.Errorf("allowed connection %d ended: %q, %q", id, client.End, s[id].End)
		}
		ends := []stream{client, s[id]}
		if client.Push {
			ends = ends[:1] // the server gets nothing there
		}
		for _, end := range ends {
			usual, longest = max(usual, end.gap(control)), max(longest, end.gap(revocation))
		}
	}
	t.Logf("allowed connections, one record each %v: the longest gap was %v, and %v while the others were revoked",
		period, usual, longest)
	if longest > 2*usual {
		t.Errorf("the longest gap of an allowed connection was %v; in the control %v", longest, usual)
	}
}

// checkRevoked counts what was delivered although it was sent after the commit, where it
// may: before the first packet of the client that follows it.
func checkRevoked(t *testing.T, client, server stream, committed int64) int {
	t.Helper()
	if n := len(server.sentAfter(committed)); n > 0 {
		t.Errorf("connection %#x: the server read %d records that were sent after the commit", client.ID, n)
	}
	late := client.sentAfter(committed)
	if client.Push {
		if n := len(late); n > 1 && late[n-1]-late[0] > int64(delayedACK) {
			t.Errorf("connection %#x: the client read %d records that were pushed after the commit, %v apart",
				client.ID, n, time.Duration(late[n-1]-late[0]))
		}
		return len(late)
	}
	first, ok := client.firstAfter(committed)
	if !ok {
		return len(late) // it ended by an acknowledgement
	}
	for _, stamp := range late {
		if stamp > first {
			t.Errorf("connection %#x: the client read a record that was sent %v after its first packet", client.ID,
				time.Duration(stamp-first))
		}
	}
	return len(late)
}

// extraFrom is a second policy for db.
func extraFrom(app string) string {
	return "---\n" + strings.Replace(policyFrom(app), "name: db", "name: db-"+app, 1)
}

// listen returns when our table is changed, by the clock of streams.
func (m *machine) listen() <-chan int64 {
	m.t.Helper()
	var l *kernel.Listener
	var err error
	must(m.t, m.Do(func() { l, err = kernel.Listen(kernel.Options{}, "thole") }))
	must(m.t, err)
	times := make(chan int64, 1000)
	go func() {
		defer close(times)
		for {
			_, err := l.Next()
			if err != nil {
				return
			}
			times <- monotonic()
		}
	}()
	m.t.Cleanup(func() {
		_ = l.Close()
		for range times {
		}
	})
	return times
}

// labelled returns the cgroup of a workload, with labels that commas divide.
func (m *machine) labelled(name, label string) *nstest.Cgroup {
	m.t.Helper()
	return m.labelledBy(name, label)
}

// labelledBy is labelled by a command that executes what it is given, for example as another user.
func (m *machine) labelledBy(name, label string, by ...string) *nstest.Cgroup {
	m.t.Helper()
	args := append(by, m.thole, "run", "--name", name)
	for l := range strings.SplitSeq(label, ",") {
		args = append(args, "--label", l)
	}
	args = append(args, "sleep", "infinity")
	hold := m.In("hold").Start(args[0], args[1:]...)
	var path string
	nstest.WaitFor(m.t, 10*time.Second, "the workload "+name, func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", hold.Pid))
		_, after, found := strings.Cut(string(data), "/thole.slice/")
		path = "thole.slice/" + strings.TrimSpace(after)
		return err == nil && found
	})
	return m.In(path)
}
