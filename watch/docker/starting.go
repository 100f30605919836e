package docker

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler/policy"
)

const (
	portInterval  = 20 * time.Millisecond // between two lookups of the ports of a container that is being started
	startPatience = inspectTimeout        // an inspection has the ports in the end
)

// A startWatch finds out how containers that are being started are connected to bridges, before their first
// instruction.
//
// The engine has their addresses when their cgroup is created, and is asked then. It connects them when their first
// process waits already in its namespaces, without an event. So their ports are looked up every portInterval until an
// inspection has told all.
//
// All its fields belong to the goroutine that calls run.
type startWatch struct {
	session    *session
	answers    chan networksAnswer
	containers map[string]*startingContainer // by id
}

// A startingContainer is a container that is being started, and what is known of how it will be connected.
type startingContainer struct {
	cgroup    uint64
	until     time.Time
	asking    bool
	asked     bool
	addresses map[string][]netip.Addr // by bridge
}

// A networksAnswer is the engine's answer to a question about the networks of a container.
type networksAnswer struct {
	id       string
	cgroup   uint64 // that the container had when the engine was asked
	networks []bridgeNetwork
}

func newStartWatch(s *session) *startWatch {
	return &startWatch{session: s, answers: make(chan networksAnswer), containers: map[string]*startingContainer{}}
}

// run returns when the context ends, or the engine does not answer.
func (w *startWatch) run(ctx context.Context) error {
	queue := w.session.queues.starting
	questions, ctx := errgroup.WithContext(ctx)
	for {
		var next <-chan time.Time
		if len(w.containers) > 0 {
			next = time.After(portInterval)
		}
		select {
		case <-ctx.Done():
			return questions.Wait()
		case <-next:
		case a := <-w.answers:
			if c := w.containers[a.id]; c != nil {
				c.add(a)
			}
		case <-queue.ready:
			for _, id := range queue.takeAll() {
				if w.containers[id] == nil {
					w.containers[id] = &startingContainer{until: w.session.now().Add(startPatience)}
				}
				queue.done(id)
			}
		}
		w.checkAll(ctx, questions)
	}
}

// checkAll looks up the ports of all containers, and asks the engine about their networks.
func (w *startWatch) checkAll(ctx context.Context, questions *errgroup.Group) {
	for id, c := range w.containers {
		networks, done := w.check(id, c)
		if done || w.session.now().After(c.until) {
			delete(w.containers, id)
			continue
		}
		if len(networks) == 0 || c.asking {
			continue
		}
		c.asking, c.asked = true, true
		cgroup := c.cgroup
		questions.Go(func() error { return w.ask(ctx, id, cgroup, networks) })
	}
}

// ask asks the engine about networks, and sends the answer to run.
func (w *startWatch) ask(ctx context.Context, id string, cgroup uint64, networks []string) error {
	answer, err := w.session.client.Networks(ctx, networks...)
	if err != nil {
		return err
	}
	select {
	case w.answers <- networksAnswer{id, cgroup, answer}:
	case <-ctx.Done():
	}
	return nil
}

// add stores the addresses that the engine gave the container.
func (c *startingContainer) add(a networksAnswer) {
	c.asking = false
	if c.cgroup != a.cgroup {
		return // it was started again, and may have other addresses
	}
	for _, n := range a.networks {
		if len(n.members[a.id]) > 0 {
			c.addresses[n.bridge] = n.members[a.id]
		}
	}
}

// check looks up the ports of a container once. It returns the networks about which the engine is to be asked, or that
// the container does not have to be checked again.
func (w *startWatch) check(id string, c *startingContainer) (ask []string, done bool) {
	r, cgroup := w.session.containers.get(id)
	if r == nil || cgroup.ID == 0 || r.complete(cgroup) {
		return nil, true
	}
	if c.cgroup != cgroup.ID { // it is being started again
		c.cgroup, c.asked, c.addresses = cgroup.ID, false, map[string][]netip.Addr{}
	}
	if network := w.session.bridges.networkID(r.networkName()); !c.asked && network != "" {
		ask = append(ask, network)
	}
	ports := w.ports(cgroup)
	var found []policy.Network
	for network, bridge := range w.session.bridges.all() {
		switch port := ports[bridge]; {
		case port == "":
		case c.addresses[bridge] == nil:
			ask = append(ask, network)
		default:
			found = append(found, policy.Network{Bridge: bridge, Port: port, Addresses: c.addresses[bridge]})
		}
	}
	sortNetworks(found)
	w.session.containers.attach(id, r, cgroup, found)
	return ask, false
}

// ports returns by which ports the first process of a cgroup is connected; none if there is no process yet.
func (w *startWatch) ports(cgroup policy.Cgroup) map[string]string {
	data, err := os.ReadFile(filepath.Join(w.session.places.root.Path(cgroup.Path), "cgroup.procs"))
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return nil
	}
	ports, err := w.session.bridges.ports.Ports(pid)
	if err != nil {
		return nil // the next lookup may succeed, and otherwise the inspection has the error
	}
	return ports
}
