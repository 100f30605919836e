package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"thole/compiler"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/watch"
)

// DefaultQueue is the NFQUEUE that packets between nodes come by.
const DefaultQueue = 5448

// openFleet prepares the enforcer for other nodes, and returns the engine that proves
// workloads' labels to them.
func openFleet(config Config, e *enforcer, root watch.Root) (*datapath.Engine, error) {
	node, err := pki.Load(config.PKI, time.Now())
	if err != nil {
		return nil, fmt.Errorf("this node's certificate, in %s: %w: see `thole pki`", config.PKI, err)
	}
	e.fleet = &compiler.Fleet{Networks: config.Fleet, Queue: config.Queue}
	return datapath.New(datapath.Config{Queue: config.Queue, Node: node, Daemon: fleet{e, root}, Log: config.Logger})
}

// reloadPKI reads this node's certificate and trust again.
func (d *Daemon) reloadPKI() error {
	if d.engine == nil {
		return nil
	}
	node, err := pki.Load(d.pki, time.Now())
	if err == nil {
		err = d.engine.Replace(node)
	}
	if err != nil {
		return fmt.Errorf("%s was not read again: %w", d.pki, err)
	}
	return nil
}

// fleet answers the datapath's questions, from the view of the last change.
type fleet struct {
	*enforcer
	root watch.Root
}

// Workload is a method of datapath.Daemon. As in the table, the deepest cgroup that says
// something counts.
func (f fleet) Workload(cgroup uint64) (datapath.Workload, bool) {
	v := f.view.Load()
	if w, ok := v.local[cgroup]; ok {
		return w, true
	}
	name, err := f.root.Named(cgroup)
	for err == nil && name != "." && name != "/" {
		if id, known := v.paths[name]; known {
			w, ok := v.local[id]
			return w, ok
		}
		name = path.Dir(name)
	}
	return datapath.Workload{}, false
}

// Allows is a method of datapath.Daemon.
func (f fleet) Allows(from, to uint32, port uint16) bool {
	return f.view.Load().allows(from, to, port)
}

// Class is a method of datapath.Daemon.
func (f fleet) Class(r compiler.Remote) (uint32, error) {
	key := remoteKey(r)
	if class, ok := f.view.Load().remotes[key]; ok {
		return class, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), classPatience)
	defer cancel()
	var err error
	ordered := f.order(ctx, func() { err = f.meet(r) })
	if err = errors.Join(ordered, err); err != nil {
		return 0, err
	}
	class, ok := f.view.Load().remotes[key]
	if !ok {
		return 0, errors.New("the table does not know it")
	}
	return class, nil
}

// meet has the table know what another node's workload proved. It is not forgotten as
// long as the daemon, or one after it, runs: connections may have its class.
func (e *enforcer) meet(r compiler.Remote) error {
	if len(e.remotes) >= maxRemotes {
		return fmt.Errorf("%d workloads of other nodes are known, which is the most there may be", maxRemotes)
	}
	e.remotes = append(e.remotes, r)
	err := e.reconcile()
	if err != nil {
		e.remotes = e.remotes[:len(e.remotes)-1]
	}
	return err
}

// remoteKey names what was proven.
func remoteKey(r compiler.Remote) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %s", r.Node, r.Address)
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		fmt.Fprintf(&b, " %q=%q", key, r.Labels[key])
	}
	fmt.Fprintf(&b, " %q", r.Unsaid)
	return b.String()
}

// userLabels are those that are sent.
func userLabels(w compiler.Workload) map[string]string {
	labels := map[string]string{}
	for key, value := range w.Labels {
		if compiler.IsUserLabel(key) {
			labels[key] = value
		}
	}
	return labels
}

// publishFleet adds to a view what the datapath asks.
func (e *enforcer) publishFleet(v *view) {
	if e.fleet == nil {
		return
	}
	result := e.result
	v.allows = func(from, to uint32, port uint16) bool { return result.Allows(from, to, compiler.TCP, port) }
	v.local, v.remotes = map[uint64]datapath.Workload{}, map[string]uint32{}
	for _, w := range e.enforced {
		v.local[w.Cgroup.ID] = datapath.Workload{Cgroup: w.Cgroup.ID, Labels: userLabels(w), Class: e.numbers.Workloads[w.Cgroup.Path]}
	}
	v.paths = map[string]uint64{}
	for _, w := range e.enforced {
		v.paths[w.Cgroup.Path] = w.Cgroup.ID
	}
	for _, u := range e.around.Unlabelled {
		v.paths[u.Cgroup.Path] = u.Cgroup.ID
	}
	for i, class := range e.result.Remotes {
		v.remotes[remoteKey(e.remotes[i])] = class
	}
}
