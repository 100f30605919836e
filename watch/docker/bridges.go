package docker

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"

	"thole/compiler"
	"thole/internal/condition"
)

// connections returns on which bridges the container is known. One whose port is
// not known is left out: what comes from there is closed.
func (d *Docker) connections(ctx context.Context, e engine, c container) ([]compiler.Network, error) {
	if c.details.pid == 0 || len(c.details.addresses) == 0 {
		return nil, nil
	}
	bridges, err := d.bridgesOf(ctx, e, c)
	if err != nil {
		return nil, err
	}
	ports, err := d.links.Ports(c.details.pid)
	if err != nil {
		return nil, err
	}
	if _, ok := d.placeOfProcess(c.details.pid, c.id); !ok {
		return nil, nil // it has ended, and the number may be another's
	}
	var own []compiler.Network
	for network, addresses := range c.details.addresses {
		bridge := bridges[network]
		if port := ports[bridge]; port != "" {
			own = append(own, compiler.Network{Bridge: bridge, Port: port, Addresses: addresses})
		}
	}
	sortNetworks(own)
	return own, nil
}

func sortNetworks(own []compiler.Network) {
	slices.SortFunc(own, func(a, b compiler.Network) int { return cmp.Compare(a.Bridge, b.Bridge) })
}

// bridgesOf returns the interfaces of networks, by id. Docker is asked if one of the
// container's is not known: it may be new.
func (d *Docker) bridgesOf(ctx context.Context, e engine, c container) (map[string]string, error) {
	known := func() (map[string]string, bool) {
		d.mu.Lock()
		defer d.mu.Unlock()
		for network := range c.details.addresses {
			if d.bridges[network] == "" {
				return d.bridges, false
			}
		}
		return d.bridges, true
	}
	if bridges, all := known(); all {
		return bridges, nil
	}
	err := d.readBridges(ctx, e)
	bridges, _ := known()
	return bridges, err
}

// readBridges asks which bridges there are, and looks at what is connected to them.
func (d *Docker) readBridges(ctx context.Context, e engine) error {
	networks, err := e.Networks(ctx)
	if err != nil {
		return err
	}
	bridges, named, subnets := map[string]string{}, map[string]string{}, map[string][]netip.Prefix{}
	for _, n := range networks {
		bridges[n.id], named[n.name], subnets[n.bridge] = n.bridge, n.id, n.subnets
	}
	var alike []compiler.Bridge
	var problems []condition.Condition
	for _, bridge := range slices.Sorted(maps.Values(bridges)) {
		switch foreign, ok, err := d.links.Foreign(bridge); {
		case err != nil:
			return err
		case len(foreign) > 0:
			problems = append(problems, condition.Condition{Code: condition.BridgeShared, Where: bridge, Text: fmt.Sprintf(
				"not only containers are connected to this bridge, but also %v: containers on it are taken for strangers", foreign)})
		case ok:
			alike = append(alike, compiler.Bridge{Name: bridge, Networks: subnets[bridge]})
		}
	}
	d.mu.Lock()
	changed := !reflect.DeepEqual(d.alike, alike)
	d.bridges, d.named, d.alike, d.problems = bridges, named, alike, problems
	d.mu.Unlock()
	if changed {
		d.wake()
	}
	return nil
}
