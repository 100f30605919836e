package daemon

import (
	"context"
	"flag"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

var (
	kills    = flag.Int("kills", 15, "how often the daemon is killed")
	testSeed = flag.Uint64("seed", 0, "seed of what happens by chance; 0: a fresh one, printed")
)

// chance returns a source that the test's log says how to have again.
func chance(t *testing.T) *rand.Rand {
	seed := *testSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// allowFrom lets one app, and web, reach web.
func allowFrom(app string) string {
	return allowWeb + strings.Replace("---\n"+strings.Replace(allowWeb, "name: web", "name: other", 1),
		"from: [{workloads: {matchLabels: {app: web}}}]", "from: [{workloads: {matchLabels: {app: "+app+"}}}]", 1)
}

// The daemon is killed at random moments, also while it starts, under connects and
// changes. What is forbidden never succeeds, what is allowed always does, a connection
// that lives goes on, and each daemon that comes brings the table to what a fresh
// compile says.
func TestKilledAtRandom(t *testing.T) {
	r := chance(t)
	m := newMachine(t)
	web := map[string]string{"app": "web"}
	m.apply(allowWeb)
	server := probe.Start(m.host.In(m.run(web).Answer.Cgroup), "server")
	friend := probe.Start(m.host.In(m.run(web).Answer.Cgroup), "friend")
	enemy := probe.Start(m.host.In(m.run(map[string]string{"app": "dev"}).Answer.Cgroup), "enemy")
	free := probe.Start(m.host.In("elsewhere"), "free")
	l := server.Listen("tcp", "127.0.0.1:80")
	alive := server.Listen("tcp", "127.0.0.1:81", probe.Manual)
	client, v := probe.Start(m.host.In(m.run(web).Answer.Cgroup), "alive").Dial(alive.Addr)
	if client == nil {
		t.Fatal(v)
	}
	conn := alive.Accept(patience)

	var done atomic.Bool
	var tries [3]atomic.Int64
	var all sync.WaitGroup
	defer all.Wait()
	defer done.Store(true)
	for i, p := range []*probe.Process{friend, enemy, free} {
		all.Go(func() {
			for !done.Load() {
				if v := p.TCP(l.Addr); v.Allowed() != (p == friend) {
					t.Errorf("probe %d of friend, enemy, free: %s", i, v)
				}
				tries[i].Add(1)
			}
		})
	}
	sets := []string{allowWeb, allowFrom("other"), allowFrom("more")}
	for n := range *kills {
		stop := m.churn(sets, r.Uint64())
		if n%3 == 0 {
			<-time.After(time.Duration(r.IntN(300)) * time.Millisecond)
		}
		m.kill()
		if n%2 == 0 { // and once more, while it starts
			m.launch()
			<-time.After(time.Duration(r.IntN(60)) * time.Millisecond)
			m.kill()
		}
		stop()
		m.start()
		nstest.WaitFor(t, patience, "the table to be that of a fresh compile", func() bool {
			return m.unlikeAll(sets) == ""
		})
		client.Send("still here")
		if data, o := conn.Receive(patience); data != "still here" {
			t.Fatalf("after kill %d, the living connection: %q, %s", n, data, o)
		}
	}
	done.Store(true)
	all.Wait()
	t.Logf("%d kills, under %d allowed and %d forbidden connects", *kills, tries[0].Load(),
		tries[1].Load()+tries[2].Load())
}

// apply replaces the policy set.
func (m *machine) apply(policies string) {
	m.t.Helper()
	_, err := m.client.Apply(context.Background(),
		api.ApplyRequest{Files: []api.File{{Name: "test.yaml", Data: policies}}})
	if err != nil {
		m.t.Fatal(err)
	}
}

// kill ends the daemon without a word.
func (m *machine) kill() {
	m.t.Helper()
	if err := m.daemon.Process.Kill(); err != nil {
		m.t.Error(err)
	}
	_ = m.daemon.Wait() // killed
}

// churn changes policies, and starts and ends workloads, until it is stopped. There may
// be no daemon that answers.
func (m *machine) churn(sets []string, seed uint64) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	r := rand.New(rand.NewPCG(seed, 1))
	var all sync.WaitGroup
	all.Go(func() {
		for ctx.Err() == nil {
			_, _ = m.client.Apply(ctx,
				api.ApplyRequest{Files: []api.File{{Name: "test.yaml", Data: sets[r.IntN(len(sets))]}}})
		}
	})
	all.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			app := []string{"other", "dev"}[n%2] // one whose class comes and goes, and one whose class stays
			p := begin(m.t, m.in("",
				clientArgs(m.t, m.socket(), api.RunRequest{Labels: map[string]string{"app": app}, Command: "x"},
					nil)...))
			p.end()
		}
	})
	return func() { cancel(); all.Wait() }
}

// unlikeAll is unlike for a set that is one of several.
func (m *machine) unlikeAll(sets []string) (unlike string) {
	for _, set := range sets {
		if unlike = m.unlike(set); unlike == "" {
			break
		}
	}
	return unlike
}
