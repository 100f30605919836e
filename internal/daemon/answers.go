package daemon

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"os"
	"slices"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/enforce"
	"thole/internal/exposure"
	"thole/internal/exposure/live"
	"thole/internal/fleet"
	"thole/internal/routes"
	"thole/watch"
	"thole/watch/docker"
)

// changes are the requests that change something, with what they change beside the table.
type changes struct {
	enforcer *enforce.Enforcer
	local    *routes.Keeper
}

// Apply replaces the policy set.
func (c changes) Apply(ctx context.Context, req api.ApplyRequest) (api.ApplyResponse, error) {
	return c.enforcer.Apply(ctx, req)
}

// Reload reads the policy directory at once.
func (c changes) Reload(ctx context.Context) (api.ApplyResponse, error) {
	return c.enforcer.Reload(ctx)
}

// Disarm removes the table, and then the local routes.
func (c changes) Disarm(ctx context.Context) (api.DisarmResponse, error) {
	answer, err := c.enforcer.Disarm(ctx)
	return answer, errors.Join(err, c.local.Sync())
}

// Arm loads the table, and then makes the local routes.
func (c changes) Arm(ctx context.Context) (api.ApplyResponse, error) {
	answer, err := c.enforcer.Arm(ctx)
	_ = c.local.Sync() // where it fails, a problem says so
	return answer, err
}

// answers are what questions are answered from.
type answers struct {
	enforcer *enforce.Enforcer
	kernel   Kernel
	cgroups  *watch.Cgroups
	docker   *docker.Docker // nil: it is not followed
	fleet    *fleet.Fleet   // nil: there are no other nodes
	sockets  *live.Watch
	root     enforce.Namer
	local    *routes.Keeper
	version  string
	started  time.Time
}

// Status puts together what the parts of the daemon say of themselves.
func (a *answers) Status() api.Status {
	counters, err := a.kernel.Counters(enforce.TableName)
	view := a.enforcer.View()
	status := view.Status()
	status.Version, status.PID, status.Started = a.version, os.Getpid(), a.started
	status.Counters = map[string]api.Counter{}
	for name, c := range counters {
		status.Counters[name] = api.Counter(c)
	}
	status.Bounds = patternBounds(a.cgroups.PatternUse())
	status.Docker = apiDocker(a.docker)
	status.Fleet = a.fleet.Status()
	more := a.fleet.Conditions()
	if status.Default != "" {
		more = append(more, defaultRecords(status))
	}
	if err != nil {
		more = append(more, condition.Condition{Code: condition.CountersUnreadable,
			Text: fmt.Sprintf("the counters cannot be read: %v", err)})
	}
	var exposed []condition.Condition
	state := a.local.State()
	status.LocalRoutes = apiLocalRoutes(state)
	more = append(more, localRoutesConditions(state)...)
	status.Sockets, exposed = a.exposed(view)
	problems, notices := condition.Split(append(more, exposed...))
	status.Problems = slices.Concat(status.Problems, problems) // the view's stay as they are
	status.Notices = slices.Concat(status.Notices, notices)
	return status
}

// patternBounds are the limits of what users make where patterns look.
func patternBounds(use watch.PatternUse) []api.Bound {
	return []api.Bound{
		{Name: api.BoundPatternCgroups, Now: uint64(use.Cgroups), Max: uint64(use.MaxCgroups), Beyond: use.Full},
		{Name: api.BoundPatternLooks, Now: uint64(use.Looks), Max: uint64(use.MaxLooks), Beyond: use.Churned},
	}
}

// exposed looks for exposed sockets; without a table there is none that could be bypassed.
func (a *answers) exposed(view *enforce.View) (*api.SocketStatus, []condition.Condition) {
	if !view.Enforcing() {
		return nil, nil
	}
	owner := func(cgroup uint64) exposure.Owner { return view.Owner(a.root, cgroup) }
	return a.sockets.Look(owner, exposure.Options{LocalRoutes: a.local.State().Closed()})
}

// defaultRecords is the problem that nobody decided whether the built-in default is enforced.
func defaultRecords(s api.Status) condition.Condition {
	return condition.Condition{Code: condition.DefaultAudited, Text: fmt.Sprintf(
		"the built-in default only records, because nobody decided to enforce it: it restricts nothing, and "+
			"would have refused %d connections. To enforce it, run `thole apply --default`; or give your own "+
			"policies: `thole apply -f PATH`", s.Counters["would_deny_same-labels"].Packets)}
}

// Workloads lists what is labelled now, by name.
func (a *answers) Workloads() api.Listing[api.Workload] {
	view := a.enforcer.View()
	codes := a.exposedWorkloads(view)
	seen := fnv.New64a()
	for _, name := range slices.Sorted(maps.Keys(codes)) {
		fmt.Fprintf(seen, "%q=%q ", name, codes[name])
	}
	version := view.Version() + seen.Sum64() // what is exposed changes without a change of the table
	return api.Listing[api.Workload]{Version: version, Make: func() []api.Workload {
		list := view.Workloads()
		for i := range list {
			w := &list[i]
			code, exposed := codes[w.Name]
			if exposed && (w.State == api.StateIsolated || w.State == api.StatePartial) {
				w.State, w.Missing = api.StatePartial, append(w.Missing, code)
			}
		}
		return list
	}}
}

// exposedWorkloads returns why workloads are partial that have an exposed socket, by name.
func (a *answers) exposedWorkloads(view *enforce.View) map[string]condition.Code {
	sockets, found := a.exposed(view)
	if sockets == nil {
		return nil
	}
	codes := map[string]condition.Code{}
	for i, port := range sockets.Exposed {
		for _, s := range port.Sockets {
			if codes[s.Workload] == "" { // what an administrator must do comes first
				codes[s.Workload] = found[i].Code // there is a condition for each port, and others behind them
			}
		}
	}
	return codes
}

// whose says whose a cgroup is, as the table has it now.
func (a *answers) whose(cgroup uint64) (path string, whose api.Ownership) {
	return a.enforcer.View().Whose(a.root, cgroup)
}

// Policies lists the active set, by name.
func (a *answers) Policies() api.Listing[api.Policy] {
	v := a.enforcer.View()
	return api.Listing[api.Policy]{Version: v.Version(), Make: v.Policies}
}

// Classes lists the classes of the loaded table, by number.
func (a *answers) Classes() api.Listing[api.Class] {
	v := a.enforcer.View()
	return api.Listing[api.Class]{Version: v.Version(), Make: v.Classes}
}
