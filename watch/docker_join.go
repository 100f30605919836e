package watch

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"thole/compiler"
)

const (
	joinInterval = 20 * time.Millisecond // between two looks at a container that is being connected
	joinPatience = 5 * time.Second       // Inspect tells it in the end
)

// join finds out how containers that are being started are connected, before their
// first instruction: Docker connects them when their first process waits already in
// its namespaces, and nobody tells.
func (d *Docker) join(ctx context.Context, e engine) error {
	starting := map[string]time.Time{} // until when
	for {
		var again <-chan time.Time
		if len(starting) > 0 {
			again = time.After(joinInterval)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-d.joins.ready:
			for _, id := range d.joins.takeAll() {
				if _, ok := starting[id]; !ok {
					starting[id] = d.now().Add(joinPatience)
				}
				d.joins.done(id)
			}
		}
		for id, until := range starting {
			joined, err := d.joined(ctx, e, id)
			if err != nil {
				return err
			}
			if joined || d.now().After(until) {
				delete(starting, id)
			}
		}
	}
}

// joined looks once at a container. It returns true if there is nothing more to see.
func (d *Docker) joined(ctx context.Context, e engine, id string) (bool, error) {
	d.mu.Lock()
	cgroup, r := d.living[id], d.records[id]
	bridges := d.bridges
	d.mu.Unlock()
	if r == nil || cgroup.ID == 0 || r.complete(cgroup) {
		return true, nil
	}
	ports := d.portsOf(cgroup)
	var connected []string
	for id, bridge := range bridges {
		if ports[bridge] != "" {
			connected = append(connected, id)
		}
	}
	if len(connected) == 0 {
		return false, nil
	}
	networks, err := e.Networks(ctx, connected...)
	if err != nil {
		return false, err
	}
	var own []compiler.Network
	for _, n := range networks {
		if len(n.members[id]) > 0 {
			own = append(own, compiler.Network{Bridge: n.bridge, Port: ports[n.bridge], Addresses: n.members[id]})
		}
	}
	if len(own) == 0 {
		return false, nil
	}
	sortNetworks(own)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records[id] == r { // what Inspect told meanwhile is newer
		with := *r
		with.own = own
		d.records[id] = &with
		d.wake()
	}
	return true, nil
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
