package daemon

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/datapath/pki/pkitest"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/fleet"
)

// A fakeEngine runs until its context ends, or until it is told to fail.
type fakeEngine struct {
	node *pki.Node
	fail chan error
}

func (e *fakeEngine) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-e.fail:
		return err
	}
}

func (e *fakeEngine) Replace(*pki.Node) error { return nil }
func (e *fakeEngine) Status() datapath.Status { return datapath.Status{Running: true} }

// engines makes fakeEngines, or fails to.
type engines struct {
	mu      sync.Mutex
	failure error // of the next makings
	made    []*fakeEngine
}

func (m *engines) make(c datapath.Config) (fleet.Engine, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure != nil {
		return nil, m.failure
	}
	e := &fakeEngine{node: c.Node, fail: make(chan error, 1)}
	m.made = append(m.made, e)
	return e, nil
}

func (m *engines) setFailure(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failure = err
}

func (m *engines) all() []*fakeEngine {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.made)
}

// newFleetDaemon starts a daemon with other nodes whose directory is dir.
func newFleetDaemon(t *testing.T, dir string, m *engines) *bench {
	t.Helper()
	return newBench(t, func(b *bench) {
		b.config.Fleet, b.config.PKI = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, dir
		b.engine = m.make
	})
}

// degraded is why the fleet is degraded, or "".
func (b *bench) degraded() string {
	b.t.Helper()
	for _, p := range b.status().Problems {
		if p.Code == condition.FleetDegraded {
			return p.Text
		}
	}
	return ""
}

// workload returns what the daemon says of a workload.
func (b *bench) workload(name string) api.Workload {
	b.t.Helper()
	list, err := b.client.Workloads(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, w := range list {
		if w.Name == name {
			return w
		}
	}
	return api.Workload{}
}

// Without a certificate the node is enforced; when one appears, its workloads get what it requires, and the engine
// starts. A certificate that requires something else changes the workloads. The next daemon knows it without a file.
func TestFleetCertificateAppears(t *testing.T) {
	a, dir, m := pkitest.New(t), filepath.Join(t.TempDir(), "etc", "pki"), &engines{}
	b := newFleetDaemon(t, dir, m)
	b.apply(strings.ReplaceAll(allowWeb, "{app: web}", "{team: a}"))
	web := b.run("web", map[string]string{"app": "web"})
	if text := b.degraded(); !strings.Contains(text, "no such file") || len(m.all()) != 0 {
		t.Errorf("degraded %q, %d engines", text, len(m.all()))
	}
	if w := b.workload("web"); w.Labels["team"] != "" || !b.knows(web.Answer.ID) {
		t.Errorf("before: %+v", w)
	}
	for _, team := range []string{"a", "b"} {
		epoch := b.status().Epoch
		a.Install(dir, map[string]string{"team": team})
		b.until("the required label", func() bool { return b.workload("web").Labels["team"] == team })
		if w := b.workload("web"); w.Facts[policy.NodeFact] != "node-a" {
			t.Errorf("facts %v", w.Facts)
		}
		if now := b.status().Epoch; now == epoch {
			t.Errorf("connections are not decided again: epoch %d stays", now)
		}
	}
	b.until("the fleet to be well", func() bool {
		s := b.status()
		return len(s.Problems) == 0 && s.Fleet.Queue.Running
	})
	if n := len(m.all()); n != 1 {
		t.Errorf("%d engines were started", n)
	}
	b.stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	b.start()
	if w := b.workload("web"); w.Labels["team"] != "b" || b.degraded() == "" {
		t.Errorf("after a restart without the files: %+v", w)
	}
}

// An engine that cannot start, or ends, leaves the node enforced; it is started again, and the status says why.
func TestFleetEngineFails(t *testing.T) {
	a, dir, m := pkitest.New(t), filepath.Join(t.TempDir(), "pki"), &engines{failure: errors.New("no raw socket")}
	a.Install(dir, map[string]string{"team": "a"})
	b := newFleetDaemon(t, dir, m)
	b.until("the reason", func() bool { return strings.Contains(b.degraded(), "no raw socket") })
	b.run("web", map[string]string{"app": "web"})
	w, f := b.workload("web"), b.status().Fleet
	if w.Labels["team"] != "a" || f.Node != "node-a" || f.Queue.Error == "" {
		t.Errorf("%+v, fleet %+v", w, f)
	}
	m.setFailure(nil)
	b.until("the engine", func() bool { return b.degraded() == "" && b.status().Fleet.Queue.Running })

	m.setFailure(errors.New("bound by another process"))
	m.all()[0].fail <- errors.New("the queue is gone")
	b.until("the reason", func() bool { return strings.Contains(b.degraded(), "bound by another process") })
	b.run("later", map[string]string{"app": "web"})
	m.setFailure(nil)
	b.until("the next engine", func() bool { return b.degraded() == "" && len(m.all()) == 2 })

	m.all()[1].fail <- nil
	b.until("one more", func() bool { return b.degraded() == "" && len(m.all()) == 3 })
}
