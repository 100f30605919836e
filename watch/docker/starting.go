package docker

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler"
	"thole/watch/workload"
)

const (
	joinInterval = 20 * time.Millisecond // between two looks at a container that is being connected
	joinPatience = inspectTimeout        // Inspect tells it in the end
)

// A joining is a container that is being started, and what is known of how it will
// be connected.
type joining struct {
	cgroup    uint64
	until     time.Time
	asking    bool
	asked     bool
	addresses map[string][]netip.Addr // by bridge
}

// An answer is what Docker said of the networks about which it was asked for a container.
type answer struct {
	id       string
	cgroup   uint64 // that it had
	networks []bridgeNetwork
}

// join finds out how containers that are being started are connected, before their
// first instruction. Docker knows their addresses when their cgroup is made, and is
// asked then; it connects them when their first process waits already in its
// namespaces, and nobody tells. So they are looked at until Inspect has told all.
func (d *Docker) join(ctx context.Context, e engine) error {
	questions, ctx := errgroup.WithContext(ctx)
	answers := make(chan answer)
	starting := map[string]*joining{}
	for {
		var again <-chan time.Time
		if len(starting) > 0 {
			again = time.After(joinInterval)
		}
		select {
		case <-ctx.Done():
			return questions.Wait()
		case <-again:
		case a := <-answers:
			if j := starting[a.id]; j != nil {
				j.take(a)
			}
		case <-d.joins.ready:
			for _, id := range d.joins.takeAll() {
				if starting[id] == nil {
					starting[id] = &joining{until: d.now().Add(joinPatience)}
				}
				d.joins.done(id)
			}
		}
		for id, j := range starting {
			ask, known := d.look(id, j)
			if known || d.now().After(j.until) {
				delete(starting, id)
				continue
			}
			if len(ask) == 0 || j.asking {
				continue
			}
			j.asking, j.asked = true, true
			cgroup := j.cgroup
			questions.Go(func() error {
				networks, err := e.Networks(ctx, ask...)
				if err != nil {
					return err
				}
				select {
				case answers <- answer{id, cgroup, networks}:
				case <-ctx.Done():
				}
				return nil
			})
		}
	}
}

// take enters the addresses that Docker gave the container.
func (j *joining) take(a answer) {
	j.asking = false
	if j.cgroup != a.cgroup {
		return // the next run may have others
	}
	for _, n := range a.networks {
		if len(n.members[a.id]) > 0 {
			j.addresses[n.bridge] = n.members[a.id]
		}
	}
}

// look looks once at a container. It returns about which networks Docker is to be
// asked, or that there is nothing more to see.
func (d *Docker) look(id string, j *joining) (ask []string, known bool) {
	d.mu.Lock()
	cgroup, r, bridges, network := d.living[id], d.records[id], d.bridges, ""
	if r != nil {
		network = d.named[r.facts[workload.FactNetwork]]
	}
	d.mu.Unlock()
	if r == nil || cgroup.ID == 0 || r.complete(cgroup) {
		return nil, true
	}
	if j.cgroup != cgroup.ID { // it is being started again
		j.cgroup, j.asked, j.addresses = cgroup.ID, false, map[string][]netip.Addr{}
	}
	if !j.asked && network != "" {
		ask = append(ask, network)
	}
	ports := d.portsOf(cgroup)
	var own []compiler.Network
	for network, bridge := range bridges {
		switch port := ports[bridge]; {
		case port == "":
		case j.addresses[bridge] == nil:
			ask = append(ask, network)
		default:
			own = append(own, compiler.Network{Bridge: bridge, Port: port, Addresses: j.addresses[bridge]})
		}
	}
	sortNetworks(own)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records[id] == r && !reflect.DeepEqual(r.connected(cgroup), own) { // if it was replaced, it is looked at again
		with := *r
		with.own, with.ownAs = own, cgroup.ID
		d.records[id] = &with
		d.wake()
	}
	return ask, false
}

// portsOf returns by which ports the first process of a cgroup is connected; none if
// there is no process yet.
func (d *Docker) portsOf(cgroup compiler.Cgroup) map[string]string {
	data, err := os.ReadFile(filepath.Join(d.root.Path(cgroup.Path), "cgroup.procs"))
	if err != nil {
		return nil
	}
	first, _, _ := strings.Cut(string(data), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		return nil
	}
	ports, err := d.links.Ports(pid)
	if err != nil {
		return nil // it is looked at again, or Inspect has the error
	}
	return ports
}
