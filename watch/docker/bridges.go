package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"

	"thole/compiler/policy"
	"thole/internal/condition"
)

// bridges are the network interfaces of the engine's networks.
type bridges struct {
	ports   bridgePorts
	changed func()

	mu         sync.Mutex            // guards what follows
	byNetwork  map[string]string     // network id → bridge; the map is replaced, and never changed
	networkIDs map[string]string     // network name → id
	exclusive  []policy.Bridge       // those of them to which containers alone are connected
	problems   []condition.Condition // of the others
}

// bridgePorts looks up the ports of bridges.
type bridgePorts interface {
	// Ports returns the port by which the network namespace of a process is connected
	// to each bridge.
	Ports(pid int) (map[string]string, error)

	// Foreign returns the ports of a bridge that are not such as containers have
	// (veth): the machine's own, or those of virtual machines. ok is false if there is
	// no such bridge.
	Foreign(bridge string) (ports []string, ok bool, err error)
}

func newBridges(ports bridgePorts, changed func()) *bridges {
	return &bridges{ports: ports, changed: changed, byNetwork: map[string]string{}}
}

// recall takes over the bridges of a snapshot.
func (b *bridges) recall(exclusive []policy.Bridge) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exclusive = exclusive
}

// found returns the bridges to which containers alone are connected, and the problems of the others.
func (b *bridges) found() ([]policy.Bridge, []condition.Condition) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.exclusive, b.problems
}

// all returns the bridges by the ids of their networks. The caller must not change the map.
func (b *bridges) all() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byNetwork
}

// networkID returns the id of the network of that name; "" if none is known.
func (b *bridges) networkID(name string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.networkIDs[name]
}

// read asks the engine which bridges it has, and looks up what is connected to them.
func (b *bridges) read(ctx context.Context, c client) error {
	networks, err := c.Networks(ctx)
	if err != nil {
		return err
	}
	byNetwork, ids, subnets := map[string]string{}, map[string]string{}, map[string][]netip.Prefix{}
	late := map[string]bool{}
	for _, n := range networks {
		byNetwork[n.id], ids[n.name], subnets[n.bridge] = n.bridge, n.id, n.subnets
		late[n.bridge] = n.late
	}
	var exclusive []policy.Bridge
	var problems []condition.Condition
	for _, bridge := range slices.Sorted(maps.Values(byNetwork)) {
		switch foreign, ok, err := b.ports.Foreign(bridge); {
		case err != nil:
			return err
		case len(foreign) > 0:
			text := fmt.Sprintf("this bridge connects not only containers, but also %v: "+
				"containers on this bridge are treated as strangers", foreign)
			problems = append(problems, condition.Condition{Code: condition.BridgeShared, Where: bridge, Text: text})
		case ok || late[bridge]:
			exclusive = append(exclusive, policy.Bridge{Name: bridge, Networks: subnets[bridge]})
		}
	}
	b.mu.Lock()
	changed := !reflect.DeepEqual(b.exclusive, exclusive)
	b.byNetwork, b.networkIDs, b.exclusive, b.problems = byNetwork, ids, exclusive, problems
	b.mu.Unlock()
	if changed {
		b.changed()
	}
	return nil
}

// networksOf returns how a container that was inspected is connected to bridges. A bridge whose port is not known is
// left out: packets from there are dropped.
func (b *bridges) networksOf(ctx context.Context, client client, c container) ([]policy.Network, error) {
	if c.details.pid == 0 || len(c.details.addresses) == 0 {
		return nil, nil
	}
	byNetwork, err := b.allOf(ctx, client, c)
	if err != nil {
		return nil, err
	}
	ports, err := b.ports.Ports(c.details.pid)
	if err != nil {
		return nil, err
	}
	if _, ok := placeOfProcess(c.details.pid, c.id); !ok {
		return nil, nil // it has ended, and the number may be another's
	}
	var networks []policy.Network
	for network, addresses := range c.details.addresses {
		bridge := byNetwork[network]
		if port := ports[bridge]; port != "" {
			networks = append(networks, policy.Network{Bridge: bridge, Port: port, Addresses: addresses})
		}
	}
	sortNetworks(networks)
	return networks, nil
}

func sortNetworks(networks []policy.Network) {
	slices.SortFunc(networks, func(a, b policy.Network) int { return cmp.Compare(a.Bridge, b.Bridge) })
}

// allOf returns the bridges by the ids of their networks. The engine is asked if one of the container's networks is
// not known: it may be new.
func (b *bridges) allOf(ctx context.Context, client client, c container) (map[string]string, error) {
	byNetwork := b.all()
	for network := range c.details.addresses {
		if byNetwork[network] == "" {
			err := b.read(ctx, client)
			return b.all(), err
		}
	}
	return byNetwork, nil
}
