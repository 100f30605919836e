package watch

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"thole/compiler"
)

const (
	joinInterval = 20 * time.Millisecond // between two looks at a container that is being connected
	joinPatience = inspectTimeout        // Inspect tells it in the end
)

// A joining is a container that is being started, and what was seen of it.
type joining struct {
	until time.Time
	ports map[string]string  // by bridge
	own   []compiler.Network // what Docker said of these ports
}

// join finds out how containers that are being started are connected, before their
// first instruction: Docker connects them when their first process waits already in
// its namespaces, and nobody tells. They are looked at until Inspect has told it.
func (d *Docker) join(ctx context.Context, e engine) error {
	starting := map[string]*joining{}
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
				if starting[id] == nil {
					starting[id] = &joining{until: d.now().Add(joinPatience)}
				}
				d.joins.done(id)
			}
		}
		for id, j := range starting {
			known, err := d.look(ctx, e, id, j)
			if err != nil {
				return err
			}
			if known || d.now().After(j.until) {
				delete(starting, id)
			}
		}
	}
}

// look looks once at a container. It returns true if there is nothing more to see.
// Docker is asked only where the ports are others than before.
func (d *Docker) look(ctx context.Context, e engine, id string, j *joining) (known bool, err error) {
	d.mu.Lock()
	cgroup, r, bridges := d.living[id], d.records[id], d.bridges
	d.mu.Unlock()
	if r == nil || cgroup.ID == 0 || r.complete(cgroup) {
		return true, nil
	}
	ports := d.portsOf(cgroup)
	if !maps.Equal(ports, j.ports) {
		if j.own, err = d.members(ctx, e, id, ports, bridges); err != nil {
			return false, err
		}
		if len(j.own) == len(ports) {
			j.ports = ports // else it is asked again
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records[id] == r && !reflect.DeepEqual(r.connected(cgroup), j.own) { // if it was replaced, it is looked at again
		with := *r
		with.own, with.ownAs = j.own, cgroup.ID
		d.records[id] = &with
		d.wake()
	}
	return false, nil
}

// members returns the addresses that Docker gave a container on the bridges to which
// these ports belong.
func (d *Docker) members(ctx context.Context, e engine, id string, ports, bridges map[string]string) ([]compiler.Network, error) {
	var connected []string
	for network, bridge := range bridges {
		if ports[bridge] != "" {
			connected = append(connected, network)
		}
	}
	if len(connected) == 0 {
		return nil, nil
	}
	networks, err := e.Networks(ctx, connected...)
	if err != nil {
		return nil, err
	}
	var own []compiler.Network
	for _, n := range networks {
		if len(n.members[id]) > 0 {
			own = append(own, compiler.Network{Bridge: n.bridge, Port: ports[n.bridge], Addresses: n.members[id]})
		}
	}
	sortNetworks(own)
	return own, nil
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
