package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler/policy"
	"thole/datapath"
	"thole/datapath/pki"
	"thole/datapath/queue"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/watch/filewatch"
)

// A Table is the loaded table, as far as it knows other nodes' workloads.
type Table interface {
	Class(policy.Remote) (class uint32, ok bool) // of one that was proven just now; false: it has none yet
	Learn(context.Context, policy.Remote) error  // gives it a class
	Forget(context.Context)                      // takes the classes that nobody uses any more

	// Believe has the table follow this node's certificate and whom it trusts. nil: what is not known stays as it was.
	Believe(context.Context, *pki.Node, *pki.Trust) error
}

// A Node is this node, as the engine asks for it (datapath.Daemon).
type Node interface {
	Workload(cgroup uint64) (datapath.Workload, bool)
	Allows(from, to uint32, port uint16) bool
	AllowsAddress(from uint32, to netip.AddrPort) bool
	Remotes() int // classes of other nodes' workloads that the loaded table has
}

// A Config says where other nodes are, and what the handshakes with them stand on.
type Config struct {
	Networks    []netip.Prefix                        // where other nodes are
	PKI         string                                // the directory of this node's certificate and whom it trusts
	Queue       uint16                                // NFQUEUE for the packets between nodes
	MaxClasses  int                                   // of other nodes' workloads
	Engine      func(datapath.Config) (Engine, error) // NewEngine, but in tests
	NativeQueue func() (bool, error)                  // whether nft has an expression for it; nil: not known
	Now         func() time.Time
	Logger      *slog.Logger
}

// A Fleet is this node's part among others: its credentials, the engine that proves workloads' labels to other nodes,
// and how often each of them may be met. Without credentials or engine it is degraded, and the node is enforced all the
// same.
//
// The goroutine of follow owns credentials and engines. The table is changed through Table alone.
type Fleet struct {
	table       Table
	node        Node
	config      Config
	watched     *filewatch.Named
	credentials credentials
	engines     engineKeeper
	reloads     chan chan error           // that somebody waits for
	stopped     chan struct{}             // closed when follow has ended
	shown       atomic.Pointer[fleetView] // what follow has made of all this
	log         *slog.Logger

	mu    sync.Mutex               // guards what follows
	rates map[string]*rate.Limiter // of nodes
}

// A fleetView is what a status is made of. It is not changed.
type fleetView struct {
	node   *pki.Node // nil: no certificate could be used yet
	engine Engine    // nil: none runs
	error  string    // why the fleet is degraded, or ""
	failed string    // why no engine runs, a part of error
}

// Open reads this node's certificate. Where it cannot be used, labelled connections to and from other nodes stay closed
// until it can be.
func Open(config Config, table Table, node Node) *Fleet {
	f := &Fleet{
		table: table, node: node, config: config, watched: filewatch.NewNamed(config.PKI, pki.Files()...),
		credentials: credentials{dir: config.PKI}, reloads: make(chan chan error), stopped: make(chan struct{}),
		log: config.Logger, rates: map[string]*rate.Limiter{},
	}
	f.engines = engineKeeper{ended: make(chan error, 1), start: func(node *pki.Node) (Engine, error) {
		return config.Engine(datapath.Config{Queue: config.Queue, Node: node, Daemon: asked{f.node, f},
			Log: config.Logger})
	}}
	f.credentials.read(config.Now())
	f.show()
	return f
}

// Credentials are those that were read when the fleet was opened; nil where they could not be used. They are for who
// sets up the table, before Run.
func (f *Fleet) Credentials() (*pki.Node, *pki.Trust) { return f.credentials.node, f.credentials.trust }

// asked is what the engine asks.
type asked struct {
	Node
	fleet *Fleet
}

// Class is a method of datapath.Daemon.
func (a asked) Class(r policy.Remote) (uint32, error) { return a.fleet.class(r) }

// Status is this node's part among others; nil where there are none.
func (f *Fleet) Status() *api.FleetStatus {
	if f == nil {
		return nil
	}
	shown := f.shown.Load()
	s := &api.FleetStatus{
		Error: shown.error, Classes: f.node.Remotes(), MaxClasses: f.config.MaxClasses,
		Queue: api.FleetQueue{Number: f.config.Queue},
	}
	for _, n := range f.config.Networks {
		s.Networks = append(s.Networks, n.String())
	}
	if node := shown.node; node != nil {
		s.Node, s.Until = node.Identity.Node, node.Identity.NotAfter
		for _, key := range slices.Sorted(maps.Keys(node.Identity.Require)) {
			s.Required = append(s.Required, key+"="+node.Identity.Require[key])
		}
	}
	if f.config.NativeQueue != nil {
		s.Queue.Native, _ = f.config.NativeQueue() // what fails here failed when the table was loaded
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

// Conditions are what an administrator should know of the fleet.
func (f *Fleet) Conditions() []condition.Condition {
	if f == nil {
		return nil
	}
	return conditions(f.shown.Load().error, f.config.PKI, f.watched.Err())
}

func conditions(degraded, dir string, unwatched error) (list []condition.Condition) {
	if degraded != "" {
		list = append(list, condition.Condition{Code: condition.FleetDegraded, Where: "fleet", Text: degraded})
	}
	if unwatched != nil {
		list = append(list, condition.Condition{Code: condition.PKIUnwatched, Where: dir, Text: fmt.Sprintf(
			"keys and certificates are read once a second, because changes of them are not reported: %v", unwatched)})
	}
	return list
}
