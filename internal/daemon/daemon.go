package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler"
	"thole/datapath"
	"thole/datapath/sockets"
	"thole/internal/api"
	"thole/internal/fleet"
	"thole/internal/routes"
	"thole/ruleset/kernel"
	"thole/watch"
	"thole/watch/cgroupfs"
	"thole/watch/docker"
)

// Where things are unless a Config says otherwise.
const (
	DefaultQueue  = 5448 // NFQUEUE for the packets between nodes
	DefaultState  = "/var/lib/thole"
	DefaultSocket = "/run/thole/thole.sock"
)

// Config are the settings of a daemon. The zero value is one that starts with the
// last good policy set, or the default.
type Config struct {
	Policies string // a directory to follow; "": none
	State    string // "": DefaultState
	Socket   string // "": DefaultSocket
	Docker   string // where Docker answers; "": as the docker command finds it; DockerOff
	Deny     compiler.DenyMode
	Fleet    []netip.Prefix // where other nodes are; none: connections are judged by address
	PKI      string         // this node's certificate and whom it trusts (package pki); with Fleet
	Queue    uint16         // NFQUEUE for the packets between nodes; 0: DefaultQueue
	Routes   bool           // packets of this node to its own addresses are routed over lo (package routes)
	Version  string
	Logger   *slog.Logger // nil: slog.Default()
}

func (c Config) withDefaults() Config {
	c.State = cmp.Or(c.State, DefaultState)
	c.Socket = cmp.Or(c.Socket, DefaultSocket)
	c.Queue = cmp.Or(c.Queue, DefaultQueue)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

// A Daemon holds the parts together. Its goroutines are those of Run.
type Daemon struct {
	host      *host
	cgroups   *watch.Cgroups
	docker    *docker.Docker   // nil: it is not followed
	directory *watch.Directory // nil: none is followed
	enforcer  *enforcer
	listener  *listener
	server    *api.Server
	lock      *lock
	fleet     *fleet.Fleet   // nil: there are no other nodes
	routes    *routes.Keeper // nil: there are to be none, and there are none
	log       *slog.Logger
}

// New takes the daemon's lock, adopts the table that is loaded, brings it up to
// date, and listens. It does not answer before it is run (Run). If it fails, what
// was loaded before stays and enforces.
func New(config Config) (*Daemon, error) {
	config = config.withDefaults()
	host, err := openHost()
	if err != nil {
		return nil, err
	}
	return newDaemon(config, host)
}

// newDaemon takes over the host: it is closed when New fails, or Run returns.
func newDaemon(config Config, host *host) (_ *Daemon, err error) {
	d := &Daemon{log: config.Logger, host: host}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.lock, err = takeLock(config.Socket, config.State); err != nil {
		return nil, err
	}
	parts, err := newParts(config, host)
	if err != nil {
		return nil, err
	}
	d.cgroups, d.docker, d.enforcer = parts.cgroups, parts.docker, parts.enforcer
	d.enforcer.changed = d.cgroups.Changed()
	d.listener = &listener{from: host.writes, to: d.enforcer.writes, log: config.Logger}
	if len(config.Fleet) > 0 {
		d.fleet = openFleet(config, d.enforcer, host)
	}
	if config.Policies != "" {
		d.directory = watch.NewDirectory(config.Policies)
		d.enforcer.directory, d.enforcer.files = config.Policies, d.directory.Files()
	}
	if err := d.enforcer.start(); err != nil {
		return nil, fmt.Errorf("enforcing at the start: %w: see `thole doctor`", err)
	}
	keeper := keepRoutes(config, host, d.enforcer)
	if config.Routes || keeper.State().Err != nil {
		d.routes = keeper
	}
	d.server, err = api.Listen(api.Config{
		Socket:  config.Socket,
		Changes: changes{d.enforcer, keeper},
		State: &answers{
			enforcer: d.enforcer,
			kernel:   host.kernel,
			docker:   parts.docker,
			fleet:    d.fleet,
			sockets:  &socketWatch{bound: host.bound, root: host.root, now: host.now},
			local:    keeper,
			version:  config.Version,
			started:  host.now(),
		},
		Table:  d.enforcer,
		Scopes: parts.scopes,
		Now:    host.now,
		Logger: config.Logger,
	})
	return d, err
}

// Run works until the context ends, or a part fails. The table stays loaded.
func (d *Daemon) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.cgroups.Run(ctx) })
	group.Go(func() error { return d.enforcer.Run(ctx) })
	group.Go(func() error { return d.listener.Run(ctx) })
	group.Go(func() error { return d.server.Run(ctx) })
	if d.docker != nil {
		group.Go(func() error { return d.docker.Run(ctx) })
	}
	if d.fleet != nil {
		group.Go(func() error { return d.fleet.Run(ctx) })
	}
	if d.routes != nil {
		group.Go(func() error { return d.routes.Run(ctx) })
	}
	if d.directory != nil {
		group.Go(func() error { return d.directory.Run(ctx) })
	}
	d.log.Info("ready", "socket", d.server.Addr())
	err := group.Wait()
	d.log.Info("stopped: a loaded table stays in force")
	return errors.Join(err, d.close())
}

// Reload is what SIGHUP asks for: it reads the policy directory, and this node's certificate and trust, at once. Both
// are also followed without it. The error names what is bad; that changes nothing.
func (d *Daemon) Reload(ctx context.Context) error {
	_, err := d.enforcer.Reload(ctx)
	if d.fleet != nil {
		err = errors.Join(err, d.fleet.Reload(ctx))
	}
	return err
}

// close gives back what New took. The server closes its listener itself.
func (d *Daemon) close() error {
	var err error
	if d.cgroups != nil {
		err = d.cgroups.Close()
	}
	if d.enforcer != nil {
		d.enforcer.state.close()
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.release())
	}
	return errors.Join(err, d.host.close())
}

// openFleet prepares the enforcer for other nodes.
func openFleet(config Config, e *enforcer, host *host) *fleet.Fleet {
	e.fleet = &compiler.Fleet{Networks: config.Fleet, Queue: config.Queue}
	c := fleet.Config{
		Networks: config.Fleet, PKI: config.PKI, Queue: config.Queue, MaxClasses: maxRemotes,
		Engine: host.engine, Now: host.now, Logger: config.Logger,
	}
	if tried, ok := host.kernel.(interface{ NativeQueue() (bool, error) }); ok {
		c.NativeQueue = tried.NativeQueue
	}
	f := fleet.Open(c, e, fleetNode{e, host.root})
	e.adoptCredentials(f.Credentials())
	return f
}

// A host is what the daemon works on: the effects that tests replace.
type host struct {
	root    cgroupfs.Root
	manager watch.Manager // nil: the cgroups of thole run are made by hand
	kernel  Kernel
	marks   conntrack
	writes  notifier
	sockets func() (map[uint64]bool, error)
	bound   func(visit func(sockets.Socket) bool) error
	routes  routes.Table
	now     func() time.Time
	engine  func(datapath.Config) (fleet.Engine, error) // that carries the handshakes of a fleet
	close   func() error
}

// openHost takes the cgroup tree and the network namespace of this process.
func openHost() (*host, error) {
	root, err := cgroupfs.OpenRoot()
	if err != nil {
		return nil, err
	}
	conn, err := kernel.Open(kernel.Options{})
	if err != nil {
		return nil, fmt.Errorf("%w: are you root? See `thole doctor`", err)
	}
	listener, err := kernel.Listen(kernel.Options{}, tableName)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	table := openRoutes()
	return &host{
		routes: table,
		root:   root, manager: watch.FindManager(), kernel: conn, marks: conn, writes: listener,
		sockets: socketCgroups, bound: sockets.Bound, now: time.Now, engine: fleet.NewEngine,
		close: func() error { return errors.Join(listener.Close(), conn.Close(), table.Close()) },
	}, nil
}

// Lives reports whether a cgroup with this id exists.
func (h *host) Lives(cgroup uint64) (bool, error) { return h.root.Lives(cgroup) }

// Sockets returns the ids of the cgroups that living sockets were born in.
func (h *host) Sockets() (map[uint64]bool, error) { return h.sockets() }

// parts are what a daemon and a single apply have in common.
type parts struct {
	sources
	enforcer *enforcer
}

func newParts(config Config, host *host) (parts, error) {
	state, err := openState(config.State)
	if err != nil {
		return parts{}, err
	}
	key, err := state.key()
	if err != nil {
		return parts{}, err
	}
	found, err := openSources(config, host, key)
	if err != nil {
		return parts{}, err
	}
	return parts{sources: found, enforcer: &enforcer{
		kernel:      host.kernel,
		connections: host.marks,
		runs:        found.cgroups,
		dead:        host,
		state:       state,
		log:         config.Logger,
		deny:        config.Deny,
		now:         host.now,
		orders:      make(chan func()),
		waiters:     make(chan chan error),
		writes:      make(chan kernel.Write),
		stopped:     make(chan struct{}),
	}}, nil
}
