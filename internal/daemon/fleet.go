package daemon

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/datapath/queue"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/watch"
)

// DefaultQueue is the NFQUEUE that packets between nodes come by.
const DefaultQueue = 5448

// A fleet is this node's part among others: its credentials, the engine that proves workloads' labels to other nodes,
// and what those have proven. Without credentials or engine it is degraded, and the node is enforced all the same.
//
// The goroutine of follow owns credentials and engines (fleet_follow.go). It never changes the table: it orders that
// from the enforcer, whose goroutine carries out all methods of fleet that use the enforcer's fields.
type fleet struct {
	*enforcer
	root        watch.Root
	config      Config
	watched     *watch.NamedFiles
	credentials credentials
	engines     engineKeeper
	reloads     chan chan error           // that somebody waits for
	shown       atomic.Pointer[fleetView] // what follow has made of all this

	mu    sync.Mutex               // guards what follows
	use   map[string]time.Time     // when a Remote was proven last, by remoteKey
	rates map[string]*rate.Limiter // of nodes
}

// A fleetView is what a status is made of. It is not changed.
type fleetView struct {
	node   *pki.Node // nil: no certificate could be used yet
	engine engine    // nil: none runs
	error  string    // why the fleet is degraded, or ""
	failed string    // why no engine runs, a part of error
}

// openFleet prepares the enforcer for other nodes. Where this node's certificate cannot be used, labelled connections
// to and from other nodes stay closed until it can be.
func openFleet(config Config, e *enforcer, host *host) *fleet {
	f := &fleet{
		enforcer: e, root: host.root, config: config, watched: watch.NewNamedFiles(config.PKI, pki.Files()...),
		credentials: credentials{dir: config.PKI}, reloads: make(chan chan error),
		use: map[string]time.Time{}, rates: map[string]*rate.Limiter{},
	}
	f.engines = engineKeeper{ended: make(chan error, 1), start: func(node *pki.Node) (engine, error) {
		return host.engine(datapath.Config{Queue: config.Queue, Node: node, Daemon: f, Log: config.Logger})
	}}
	e.fleet = &compiler.Fleet{Networks: config.Fleet, Queue: config.Queue}
	e.runs = carrier{e.runs, e}
	f.credentials.read(time.Now())
	f.adoptCredentials(f.credentials)
	f.show()
	return f
}

// adoptCredentials has the enforcer use what this node's certificate says of its workloads, and whom it trusts. What
// is not known stays as it was.
func (e *enforcer) adoptCredentials(c credentials) {
	if c.node != nil {
		e.identity = identityOf(c.node)
	}
	if c.trust != nil {
		e.vouches = c.trust.Vouches
	}
}

// status is this node's part among others; nil where there are none.
func (f *fleet) status() *api.FleetStatus {
	if f == nil {
		return nil
	}
	shown := f.shown.Load()
	s := &api.FleetStatus{
		Error: shown.error, Classes: len(f.view.Load().remotes), MaxClasses: maxRemotes,
		Queue: api.FleetQueue{Number: f.config.Queue},
	}
	for _, n := range f.config.Fleet {
		s.Networks = append(s.Networks, n.String())
	}
	if node := shown.node; node != nil {
		s.Node, s.Until = node.Identity.Node, node.Identity.NotAfter
		for _, key := range slices.Sorted(maps.Keys(node.Identity.Require)) {
			s.Required = append(s.Required, key+"="+node.Identity.Require[key])
		}
	}
	if tried, ok := f.kernel.(interface{ NativeQueue() (bool, error) }); ok {
		s.Queue.Native, _ = tried.NativeQueue() // what fails here failed when the table was loaded
	}
	if kernel, err := queue.ReadKernelStats(f.config.Queue); err == nil { // an error: nobody reads it
		s.Queue.Waiting, s.Queue.Full, s.Queue.Overruns = kernel.Waiting, kernel.QueueDropped, kernel.UserDropped
	}
	s.Queue.Error = shown.failed
	if shown.engine != nil {
		e := shown.engine.Status()
		s.Queue.Running, s.Queue.Packets, s.Queue.Dropped = e.Running, e.Queue.Packets, e.Queue.Dropped
		s.Events, s.Refused, s.Known, s.Pending = e.Events, e.Refused, e.Known, e.Pending
	}
	return s
}

// conditions are what an administrator should know of the fleet.
func (f *fleet) conditions() []condition.Condition {
	if f == nil {
		return nil
	}
	return fleetConditions(f.shown.Load().error, f.config.PKI, f.watched.Err())
}

func fleetConditions(degraded, dir string, unwatched error) (list []condition.Condition) {
	if degraded != "" {
		list = append(list, condition.Condition{Code: condition.FleetDegraded, Where: "fleet", Text: degraded})
	}
	if unwatched != nil {
		list = append(list, condition.Condition{Code: condition.PKIUnwatched, Where: dir, Text: fmt.Sprintf(
			"keys and certificates are read once a second, because changes of them are not reported: %v", unwatched)})
	}
	return list
}

// An identity is what this node's certificate says of its workloads.
type identity struct {
	Node    string          `json:"node"`
	Require compiler.Labels `json:"require,omitempty"`
}

func identityOf(node *pki.Node) *identity {
	return &identity{Node: node.Identity.Node, Require: node.Identity.Require}
}

// A carrier puts on what runs what this node's certificate says of it.
type carrier struct {
	scanner
	*enforcer
}

// Scan is a method of scanner.
func (c carrier) Scan(bindings []compiler.Binding) watch.Snapshot {
	s := c.scanner.Scan(bindings)
	if c.identity == nil {
		return s
	}
	for i := range s.Unlabelled { // a policy may make them workloads; what is required is not theirs
		if u := &s.Unlabelled[i]; u.Doubtful != nil {
			u.Facts = withNode(c.identity, u.Facts)
		}
	}
	s.Workloads = slices.Clone(s.Workloads)
	for i := range s.Workloads {
		s.Conditions = append(s.Conditions, carry(c.identity, &s.Workloads[i])...)
	}
	return s
}

// Glance is a method of scanner. A problem is for a Scan to tell.
func (c carrier) Glance() (watch.Glance, bool) {
	g, ok := c.scanner.Glance()
	if !ok || c.identity == nil {
		return g, ok
	}
	for i := range g.Workloads {
		ok = ok && carry(c.identity, &g.Workloads[i]) == nil
	}
	return g, ok
}

// carry puts on one workload what its node's certificate says of it.
func carry(id *identity, w *compiler.Workload) (conditions []condition.Condition) {
	code := condition.CertificateContradicts
	if w.Kind == compiler.KindRun {
		code = condition.CertificateContradictsRun // a user's thole run suffices
	}
	doubtful := maps.Clone(w.Doubtful)
	for key, value := range id.Require {
		has, ok := w.Labels[key]
		if doubt, is := w.Doubtful[key]; is && doubt == value {
			delete(doubtful, key) // the certificate says so, whoever else does
		} else if is {
			has, ok = doubt, true
		}
		if ok && has != value {
			conditions = append(conditions, condition.Condition{Code: code, Where: w.Name, Text: fmt.Sprintf(
				"its label %s=%s contradicts this node's certificate, which requires %[1]s=%[3]s: other nodes are told nothing of it", key, has, value)})
		}
	}
	w.Labels = carried(id, w.Labels)
	maps.DeleteFunc(w.Labels, func(key, _ string) bool { _, is := doubtful[key]; return is })
	w.Doubtful = doubtful
	w.Facts = withNode(id, w.Facts)
	return conditions
}

// withNode adds this node's name to a workload's facts.
func withNode(id *identity, facts compiler.Labels) compiler.Labels {
	with := compiler.Labels{compiler.NodeFact: id.Node}
	maps.Copy(with, facts)
	return with
}

// carried are a workload's labels with those that its node's certificate requires. A
// label of its own stays: who contradicts the certificate can prove nothing.
func carried(id *identity, labels compiler.Labels) compiler.Labels {
	if id == nil || len(id.Require) == 0 {
		return labels
	}
	all := maps.Clone(id.Require)
	maps.Copy(all, labels)
	return all
}

// Workload is a method of datapath.Daemon. As in the table, the deepest cgroup that says
// something counts.
func (f *fleet) Workload(cgroup uint64) (datapath.Workload, bool) {
	v := f.view.Load()
	if w, ok := v.local(cgroup); ok {
		return w, true
	}
	id, _ := v.roster.above(f.root, cgroup)
	return v.local(id)
}

// Allows is a method of datapath.Daemon.
func (f *fleet) Allows(from, to uint32, port uint16) bool {
	return f.view.Load().result.Allows(from, to, compiler.TCP, port)
}

// AllowsAddress is a method of datapath.Daemon.
func (f *fleet) AllowsAddress(from uint32, to netip.AddrPort) bool {
	return f.view.Load().result.AllowsAddress(from, to, compiler.TCP)
}

// remoteKey names what was proven. A part has its length before it, so that no two
// Remotes have the same.
func remoteKey(r compiler.Remote) string {
	var space [256]byte
	b := append(space[:0], r.Address.String()...)
	part := func(s string) {
		b = strconv.AppendInt(append(b, ' '), int64(len(s)), 10)
		b = append(append(b, ':'), s...)
	}
	part(r.Node)
	part(r.Certificate)
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		part(key)
		part(r.Labels[key])
	}
	b = append(b, " unsaid"...)
	for _, key := range r.Unsaid {
		part(key)
	}
	return string(b)
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
	if e.fleet == nil || e.result == nil {
		return
	}
	v.remotes = map[string]uint32{}
	for i, class := range e.result.Remotes {
		if r := e.met[i]; !r.Ended {
			v.remotes[remoteKey(r)] = class
		}
	}
}

// requiredOf reports whether a workload has the labels that its node's certificate requires. An image's label of one of
// these keys contradicts the certificate: then nothing is said of the workload.
func (id *identity) requiredOf(w compiler.Workload) bool {
	if id == nil {
		return true
	}
	for key := range id.Require {
		if _, ok := w.Labels[key]; !ok {
			return false
		}
	}
	return true
}

// local is a workload of this node, as the datapath sees it. It is asked at each packet
// of a handshake.
func (v *view) local(cgroup uint64) (datapath.Workload, bool) {
	if known, ok := v.locals.Load(cgroup); ok {
		return known.(datapath.Workload), true
	}
	w, ok := v.roster.of(cgroup)
	if !ok {
		return datapath.Workload{}, false
	}
	local := datapath.Workload{Cgroup: cgroup, Class: v.result.ClassOf(&w).Number}
	if v.identity.requiredOf(w) {
		local.Labels = userLabels(w)
	}
	v.locals.Store(cgroup, local)
	return local, true
}
