package enforce

import (
	"log/slog"
	"time"

	"thole/compiler"
	"thole/internal/api"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/ruleset/kernel"
	"thole/watch/filewatch"
)

// A Config is what an Enforcer works with.
type Config struct {
	Kernel    Kernel
	Conntrack Conntrack
	Scanner   Scanner
	Cgroups   Cgroups
	State     *state.Dir
	Logger    *slog.Logger
	Now       func() time.Time

	Deny      compiler.DenyMode
	Fleet     *compiler.Fleet           // nil: there are no other nodes
	Directory string                    // the policy directory that is followed, or ""
	Default   *policyset.DefaultMode    // of the built-in default; nil: as before, or decided at the first start
	Files     <-chan filewatch.Policies // of it
	Changed   <-chan struct{}           // what runs may have changed
}

// New returns an Enforcer that did nothing yet: see Start.
func New(c Config) *Enforcer {
	return &Enforcer{
		scanner: c.Scanner,
		kernel:  c.Kernel, conntrack: c.Conntrack, cgroups: c.Cgroups, state: c.State, log: c.Logger, now: c.Now,
		deny: c.Deny, fleet: c.Fleet, directory: c.Directory, builtIn: builtIn{asked: c.Default},
		channels: channels{
			workloads: c.Changed, files: c.Files, orders: make(chan func()), waiters: make(chan chan error),
			writes: make(chan kernel.Write), stopped: make(chan struct{}),
		},
	}
}

// ApplyOnce does what a running Enforcer would do with a request, where none runs. What is known of other nodes stays.
func ApplyOnce(c Config, req api.ApplyRequest) (api.ApplyResponse, error) {
	e := New(c)
	e.oneShot = true
	defer e.state.Close()
	if err := e.adopt(); err != nil {
		return api.ApplyResponse{}, err
	}
	e.set, _ = e.lastSet() // a set that cannot be read counts as one with policies
	if req.DryRun {
		return e.preview(req)
	}
	return e.apply(req)
}
