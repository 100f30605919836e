package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler"
	"thole/datapath"
	"thole/datapath/sockets"
	"thole/internal/account"
	"thole/internal/api"
	"thole/internal/enforce"
	"thole/internal/exposure/live"
	"thole/internal/fleet"
	"thole/internal/policyset"
	"thole/internal/remotes"
	"thole/internal/routes"
	"thole/internal/state"
	"thole/internal/whose"
	"thole/ruleset/kernel"
	"thole/watch"
	"thole/watch/cgroupfs"
	"thole/watch/filewatch"
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
	Default  string       // what the built-in default does: "enforce", "audit"; else what it did, or see POLICY.md
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
	sources   sources
	state     *state.Dir
	directory *filewatch.Directory // nil: none is followed
	enforcer  *enforce.Enforcer
	server    *api.Server
	lock      *state.Lock
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
	if d.lock, err = state.TakeLock(config.Socket, config.State); err != nil {
		return nil, err
	}
	if d.state, d.sources, err = openState(config, host); err != nil {
		return nil, err
	}
	d.enforcer = d.newEnforcer(config)
	accounts := account.Open(account.SubordinateFile, host.now, config.Logger)
	d.sources.scopes.FollowTable(watch.Ledger{Account: accounts.Of, InTable: d.enforcer.Knows})
	if len(config.Fleet) > 0 {
		d.fleet = openFleet(config, d.enforcer, host)
	}
	if err := d.enforcer.Start(); err != nil {
		return nil, fmt.Errorf("enforcing at the start: %w: see `thole doctor`", err)
	}
	keeper := keepRoutes(config, host, d.enforcer)
	if config.Routes || keeper.State().Err != nil {
		d.routes = keeper
	}
	d.server, err = d.listen(config, accounts, keeper)
	return d, err
}

// listen opens the daemon's socket.
func (d *Daemon) listen(config Config, accounts *account.Accounts, keeper *routes.Keeper) (*api.Server, error) {
	host := d.host
	answers := &answers{
		enforcer: d.enforcer,
		kernel:   host.kernel,
		cgroups:  d.sources.cgroups,
		docker:   d.sources.docker,
		fleet:    d.fleet,
		sockets:  live.New(host.bound, host.now),
		root:     host.root,
		local:    keeper,
		version:  config.Version,
		started:  host.now(),
	}
	return api.Listen(api.Config{
		Socket:  config.Socket,
		Changes: changes{d.enforcer, keeper},
		State:   answers,
		Owners:  whose.New(whose.NewLooks(host.open, host.now), host.root, answers.whose),
		Table:   d.enforcer,
		Scopes:  d.sources.scopes,
		Account: accounts.Of,
		Now:     host.now,
		Logger:  config.Logger,
	})
}

// newEnforcer makes the enforcer, and what follows the policy directory.
func (d *Daemon) newEnforcer(config Config) *enforce.Enforcer {
	c := enforcing(config, d.host, d.state, d.sources.cgroups)
	c.Changed = d.sources.cgroups.Changed()
	switch config.Default {
	case "enforce":
		c.Default = new(policyset.Enforced)
	case "audit":
		c.Default = new(policyset.Audited)
	}
	if len(config.Fleet) > 0 {
		c.Fleet = &compiler.Fleet{Networks: config.Fleet, Queue: config.Queue}
	}
	if config.Policies != "" {
		d.directory = filewatch.NewDirectory(config.Policies)
		c.Directory, c.Files = config.Policies, d.directory.Files()
	}
	return enforce.New(c)
}

// Run works until the context ends, or a part fails. The table stays loaded.
func (d *Daemon) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return d.sources.cgroups.Run(ctx) })
	group.Go(func() error { return d.enforcer.Run(ctx) })
	group.Go(func() error { return d.enforcer.FollowWrites(ctx, d.host.writes) })
	group.Go(func() error { return d.server.Run(ctx) })
	if d.sources.docker != nil {
		group.Go(func() error { return d.sources.docker.Run(ctx) })
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
	debug.FreeOSMemory() // what the start alone needed, some 60 MB at 10,000 workloads
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
	if d.sources.cgroups != nil {
		err = d.sources.cgroups.Close()
	}
	if d.state != nil {
		d.state.Close()
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Release())
	}
	return errors.Join(err, d.host.close())
}

// openFleet prepares the enforcer for other nodes.
func openFleet(config Config, e *enforce.Enforcer, host *host) *fleet.Fleet {
	c := fleet.Config{
		Networks: config.Fleet, PKI: config.PKI, Queue: config.Queue, MaxClasses: remotes.Max,
		Engine: host.engine, Now: host.now, Logger: config.Logger,
	}
	if tried, ok := host.kernel.(interface{ NativeQueue() (bool, error) }); ok {
		c.NativeQueue = tried.NativeQueue
	}
	f := fleet.Open(c, e, e.Node(host.root))
	e.UseCredentials(enforce.CredentialsOf(f.Credentials()))
	return f
}

// A host is what the daemon works on: the effects that tests replace.
type host struct {
	root    cgroupfs.Root
	manager watch.Manager // nil: the cgroups of thole run are made by hand
	units   watch.Units   // nil: there is no systemd
	kernel  Kernel
	marks   enforce.Conntrack
	writes  enforce.Notifier
	sockets func() (map[uint64]bool, error)
	dying   func(cgroup string) (id uint64, some bool, err error)
	bound   func(visit func(sockets.Socket) bool) error
	open    func(visit func(sockets.Socket) bool) error
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
	listener, err := kernel.Listen(kernel.Options{}, enforce.TableName)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	table := openRoutes()
	return &host{
		routes: table,
		root:   root, manager: watch.FindManager(), units: watch.FindUnits(),
		kernel: conn, marks: conn, writes: listener,
		sockets: socketCgroups, dying: root.Dying, bound: sockets.Bound, open: sockets.Open, now: time.Now,
		engine: fleet.NewEngine,
		close:  func() error { return errors.Join(listener.Close(), conn.Close(), table.Close()) },
	}, nil
}

// Lives reports whether a cgroup with this id exists.
func (h *host) Lives(cgroup uint64) (bool, error) { return h.root.Lives(cgroup) }

// Dying says what is left of the cgroups that were removed below one.
func (h *host) Dying(cgroup string) (id uint64, some bool, err error) { return h.dying(cgroup) }

// Sockets returns the ids of the cgroups that living sockets were born in.
func (h *host) Sockets() (map[uint64]bool, error) { return h.sockets() }

// A Kernel holds the loaded tables, and counts what they did.
type Kernel interface {
	enforce.Kernel
	Counters(name string) (map[string]kernel.Counter, error)
}

// openState opens the state directory, and what says which workloads run.
func openState(config Config, host *host) (*state.Dir, sources, error) {
	dir, err := state.Open(config.State)
	if err != nil {
		return nil, sources{}, err
	}
	key, err := dir.Key()
	if err != nil {
		return nil, sources{}, err
	}
	found, err := openSources(config, host, key)
	return dir, found, err
}

// enforcing is what a daemon and a single apply have in common.
func enforcing(config Config, host *host, dir *state.Dir, scanner enforce.Scanner) enforce.Config {
	return enforce.Config{
		Kernel:    host.kernel,
		Conntrack: host.marks,
		Scanner:   scanner,
		Cgroups:   host,
		State:     dir,
		Logger:    config.Logger,
		Now:       host.now,
		Deny:      config.Deny,
	}
}
