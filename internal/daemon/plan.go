package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"

	"thole/compiler"
	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/ruleset"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// errLimit says that policies and workloads together exceed a limit of the compiler.
var errLimit = errors.New("compiling the policies")

// errDrifted says that the table was not what this daemon had loaded.
var errDrifted = errors.New("the loaded table is not the one that was expected")

// A plan is a change of the table that is worked out and not made.
type plan struct {
	set     policySet
	found   []condition.Condition
	running []policy.Workload
	around  containers
	ended   map[uint64]policy.Workload
	remotes []policy.Remote
	epoch   uint16
	result  *compiler.Result
	change  ruleset.Change

	loaded   *ruleset.Table   // what the change is made for
	numbers  compiler.Numbers // of that
	comments bool             // there is somebody to read them
}

// plan works out what a policy set means for what runs now.
func (e *enforcer) plan(set policySet) (plan, error) {
	select {
	case <-e.changed: // what woke us is seen by this scan
	default:
	}
	snapshot := e.runs.Scan(set.docs.Bindings)
	workloads, unlabelled := policy.Admit(set.docs.Policies, snapshot.Workloads, snapshot.Unlabelled)
	p := plan{
		set:     set,
		found:   slices.Concat(snapshot.Conditions, doubts(set.docs.Policies, workloads, unlabelled)),
		running: workloads,
		around:  containers{Unlabelled: unlabelled, Parents: snapshot.Parents, Bridges: snapshot.Bridges},
		remotes: e.remotes,
		epoch:   e.epoch,
		loaded:  e.loaded,
		numbers: e.numbers,
	}
	p.running = append(p.running, e.unresolved(set, workloads)...)
	var err error
	if p.ended, err = outlived(e.dead, e.enforced.list(), workloads); err != nil {
		p.found = append(p.found, condition.Condition{
			Code: condition.EndedUnknown, Text: fmt.Sprintf("workloads that ended stay in the table: %v", err),
		})
	}
	if err := e.compile(&p); err != nil {
		return p, err
	}
	if !p.change.Empty() && (p.result.Again || e.takesAway(p)) {
		p.epoch = mark.NextEpoch(e.epoch)
		return p, e.compile(&p)
	}
	return p, nil
}

// doubts are the notices about containers with labels that their images have too: those that count as a person's
// labels, and before them all that the policies name.
func doubts(
	policies []policy.Policy, workloads []policy.Workload, unlabelled []policy.Unlabelled,
) []condition.Condition {
	var list []condition.Condition
	named := compiler.NamedKeys(policies)
	add := func(name string, facts, doubtful policy.Labels) {
		var labels, others []string
		for _, key := range slices.Sorted(maps.Keys(doubtful)) {
			switch label := key + "=" + doubtful[key]; {
			case named[key]:
				labels = append(labels, cut(label))
			case policy.IsUserLabel(key):
				others = append(others, cut(label))
			}
		}
		if labels = append(labels, others...); labels == nil {
			return
		}
		if more := len(labels) - doubtsShown; more > 0 {
			labels = append(labels[:doubtsShown], fmt.Sprintf("%d more", more))
		}
		text := fmt.Sprintf("the image %s has the same %s, so nobody can tell who gave it: "+
			"it may restrict the container, and permits it nothing. "+
			"Give the container another key or value, or build the image without it",
			facts[workload.FactImage], strings.Join(labels, ", "))
		list = append(list, condition.Condition{Code: condition.ImageLabel, Where: "container " + name, Text: text})
	}
	for _, w := range workloads {
		add(w.Name, w.Facts, w.Doubtful)
	}
	for _, u := range unlabelled {
		add(u.Name, u.Facts, u.Doubtful)
	}
	return list
}

const (
	doubtsShown  = 3   // labels of one container
	doubtsLength = 130 // bytes of a label: the longest key and value of a person fit
)

// cut shortens what an image's author may have made long, and leaves out the value that nobody can name.
func cut(label string) string {
	label = strings.ReplaceAll(label, policy.UnusableValue, "…")
	if len(label) > doubtsLength {
		label = strings.ToValidUTF8(label[:doubtsLength], "") + "…"
	}
	return label
}

// unresolved returns the enforced workloads whose Workload document stands unchanged
// and whose cgroup lives, but which the scan did not find: a user's name cannot be
// resolved just now, or a cgroup not be read. They keep their labels.
func (e *enforcer) unresolved(set policySet, found []policy.Workload) []policy.Workload {
	is := map[uint64]bool{}
	for _, w := range found {
		is[w.Cgroup.ID] = true
	}
	var kept []policy.Workload
	for _, w := range e.enforced.list() {
		if w.Kind < policy.KindUnit || is[w.Cgroup.ID] {
			continue
		}
		binding, ok := e.stillBinds(set, w)
		if !ok {
			continue
		}
		if lives, err := e.dead.Lives(w.Cgroup.ID); err != nil || lives {
			kept = append(kept, e.carriedAgain(w, binding))
		}
	}
	return kept
}

// carriedAgain is a workload of the loaded table with what this node's certificate says of it now, which may be
// something else than when the workload was found.
func (e *enforcer) carriedAgain(w policy.Workload, binding policy.Binding) policy.Workload {
	if e.identity == nil {
		return w
	}
	w.Labels, w.Facts = binding.Labels, maps.Clone(w.Facts)
	delete(w.Facts, policy.NodeFact)
	carry(e.identity, &w) // what contradicts was told when it was found
	return w
}

// stillBinds returns the document that bound w in the present set, if it is in the new one and says the same. At the
// start the present set is empty: then the document has to give the labels that w has.
func (e *enforcer) stillBinds(now policySet, w policy.Workload) (binding policy.Binding, ok bool) {
	named := func(b policy.Binding) bool { return b.Name == w.Name }
	i := slices.IndexFunc(now.docs.Bindings, named)
	if i < 0 {
		return binding, false
	}
	binding = now.docs.Bindings[i]
	if j := slices.IndexFunc(e.set.docs.Bindings, named); j >= 0 {
		return binding, reflect.DeepEqual(binding, e.set.docs.Bindings[j])
	}
	return binding, maps.Equal(carried(e.identity, binding.Labels), w.Labels)
}

func (e *enforcer) compile(p *plan) error {
	result, err := compiler.Compile(compiler.Input{
		Policies:   p.set.docs.Policies,
		Workloads:  withEnded(p.running, p.ended),
		Parents:    p.around.Parents,
		Unlabelled: p.around.Unlabelled,
		Bridges:    p.around.Bridges,
		Options:    compiler.Options{Deny: e.deny, Epoch: p.epoch, Comments: p.comments},
		Numbers:    p.numbers,
		Fleet:      e.fleet,
		Remotes:    p.remotes,
	})
	if err != nil {
		return fmt.Errorf("%w: %v", errLimit, err)
	}
	p.result, p.change = &result, ruleset.Diff(p.loaded, &result.Table)
	return nil
}

// explain compiles a plan anew, with comments for who reads it.
func (e *enforcer) explain(p *plan) error {
	p.comments = true
	return e.compile(p)
}

// takesAway reports whether a plan may end an allowance that something living has,
// so that connections must be decided again. It says no only where all that
// changes is that cgroups begin that had no connections, or that workloads ended
// and left no socket.
func (e *enforcer) takesAway(p plan) bool {
	if !e.settled || e.disbelieved || !reflect.DeepEqual(e.set.docs.Policies, p.set.docs.Policies) ||
		e.closes(p.around) {
		return true
	}
	was := map[uint64]policy.Workload{}
	for _, w := range e.enforced.list() {
		was[w.Cgroup.ID] = w
	}
	for _, w := range p.running {
		before, ok := was[w.Cgroup.ID]
		if !ok && !e.beginsAlone(w) {
			return true // it may have had connections as an unlabelled one
		}
		if ok && (!sameIdentity(before, w) || missing(before.Own, w.Own)) {
			return true
		}
		delete(was, w.Cgroup.ID)
	}
	for id, w := range was {
		if len(w.Own) > 0 {
			return true // its addresses may be another's now
		}
		if _, ok := p.ended[id]; ok {
			continue
		}
		if lives, err := e.dead.Lives(id); err != nil || lives {
			return true // it is unlabelled now
		}
	}
	return false
}

// beginsAlone reports whether a new workload had no connections: cgroups of thole run
// are empty until they are in the table, and a container below a parent that the
// table knows was closed.
func (e *enforcer) beginsAlone(w policy.Workload) bool {
	if w.Kind == policy.KindRun {
		return true
	}
	return !e.enforced.free[w.Cgroup.ID] && slices.ContainsFunc(e.around.Parents, func(p policy.Cgroup) bool {
		return p.Path == path.Dir(w.Cgroup.Path)
	})
}

// closes reports whether containers that were free may be closed now, whatever they
// are: below another parent, on another bridge, or no more known to be unlabelled.
func (e *enforcer) closes(now containers) bool {
	if missing(others(now.Parents), e.around.Parents) || missing(now.Bridges, e.around.Bridges) {
		return true
	}
	free := map[uint64]policy.Unlabelled{}
	for _, u := range now.Unlabelled {
		free[u.Cgroup.ID] = u
	}
	for _, before := range e.around.Unlabelled {
		u, ok := free[before.Cgroup.ID]
		if ok && !missing(before.Own, u.Own) {
			continue
		}
		if len(before.Own) > 0 {
			return true // its addresses may be another's now
		}
		if lives, err := e.dead.Lives(before.Cgroup.ID); err != nil || lives {
			return true
		}
	}
	return false
}

// others are the parents but that of thole run's scopes, which is empty when it is made.
func others(parents []policy.Cgroup) []policy.Cgroup {
	return slices.DeleteFunc(slices.Clone(parents), func(p policy.Cgroup) bool {
		return p.Path == cgroupfs.TholeSlice
	})
}

// missing reports whether something of one list is not in the other.
func missing[T any](of, in []T) bool {
	return slices.ContainsFunc(of, func(a T) bool {
		return !slices.ContainsFunc(in, func(b T) bool { return reflect.DeepEqual(a, b) })
	})
}

// sameIdentity reports whether no policy can tell two states of a cgroup apart.
func sameIdentity(a, b policy.Workload) bool {
	return maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Facts, b.Facts) && maps.Equal(a.Doubtful, b.Doubtful)
}

// commit changes the table as planned. If it fails, the table is as before, and
// the plan is forgotten.
func (e *enforcer) commit(p plan) error {
	if e.heed(); !e.disarmed.IsZero() { // since it was planned
		return e.withhold(p)
	}
	if !p.change.Empty() {
		if err := e.sweep(p.epoch); err != nil {
			return fmt.Errorf("%w. The previous table stays in force", err)
		}
		if err := e.load(p.change, func() *ruleset.Table { return &p.result.Table }); err != nil {
			return fmt.Errorf("loading the table: %w. The previous table stays in force", err)
		}
	}
	e.loaded = &p.result.Table
	if e.heed(); !e.disarmed.IsZero() { // just now: "thole cleanup" found no table yet
		return e.withhold(p)
	}
	e.unknownEpoch, e.epoch = false, p.epoch
	e.settled, e.disbelieved = true, false
	e.adoptPlan(p)
	if p.change.Empty() {
		return nil
	}
	e.log.Info("table changed", "epoch", e.epoch, "steps", len(p.change.Steps),
		"workloads", len(p.running), "ended", len(p.ended))
	e.remember()
	return nil
}

// withhold loads nothing, because Thole is disarmed. Requests are answered by the plan all the same.
func (e *enforcer) withhold(p plan) error {
	if err := e.unload(); err != nil {
		return err
	}
	e.adoptPlan(p)
	return nil
}

// adoptPlan makes a plan what requests are answered from.
func (e *enforcer) adoptPlan(p plan) {
	e.result, e.set, e.numbers, e.warnings = p.result, p.set, p.result.Numbers, apiMessages(p.result.Warnings)
	e.enforced, e.around = newRoster(p.running, p.ended, p.around.Unlabelled), p.around
	e.met = p.remotes
	e.report(p.found)
	e.badTable, e.retry = nil, retryFirst
	e.applied = e.now()
}

// report logs the conditions that are new.
func (e *enforcer) report(found []condition.Condition) {
	for _, c := range found {
		if slices.Contains(e.found, c) {
			continue
		}
		kind, level := "problem", slog.LevelWarn
		if c.Code.IsNotice() {
			kind, level = "notice", slog.LevelInfo
		}
		e.log.Log(context.Background(), level, kind, "code", c.Code, "where", c.Where, "text", c.Text)
	}
	e.found = found
}

// sweep makes an epoch fit to be used: no connection says that it was allowed in it. It
// does nothing but when epochs come round, or where it is not known which were used.
func (e *enforcer) sweep(epoch uint16) error {
	sweep, needed := mark.SweepBefore(epoch)
	if e.unknownEpoch {
		sweep, needed = mark.Sweep{}, true
	}
	if !needed || epoch == e.epoch && !e.unknownEpoch {
		return nil
	}
	n, err := e.connections.Remark(sweep.Mask, sweep.Bits, sweep.Of)
	if err != nil {
		return fmt.Errorf("cannot reuse epoch %d, because conntrack entries still carry it: %w", epoch, err)
	}
	if n > 0 {
		e.log.Info("connections of old epochs are decided again", "epoch", epoch, "connections", n)
	}
	return nil
}

// load applies a change, after which the table is as wanted. Where the kernel reports an
// error, what it holds afterwards is what counts.
func (e *enforcer) load(change ruleset.Change, want func() *ruleset.Table) error {
	failure := e.kernel.Apply(change)
	if failure == nil {
		// If others were at it meanwhile, what they did is looked at next time.
		if now, err := e.kernel.Generation(); err == nil && now == e.seen+1 {
			e.seen = now
		}
		return nil
	}
	loaded, err := e.kernel.Read(tableName)
	if err != nil {
		return errors.Join(failure, err)
	}
	before := e.loaded
	e.loaded, e.settled = loaded, false
	if sameTable(loaded, want()) {
		e.log.Warn("the change is loaded although the kernel reported an error", "error", failure)
		return nil
	}
	if !sameTable(loaded, before) {
		return fmt.Errorf("%w (%v)", errDrifted, failure)
	}
	return failure
}

// sameTable compares two tables, nil being none.
func sameTable(a, b *ruleset.Table) bool {
	if a == nil || b == nil {
		return a == b
	}
	return ruleset.Same(*a, *b)
}

// remember stores what belongs to the loaded table.
func (e *enforcer) remember() {
	err := e.state.saveMemory(memory{
		Epoch: e.epoch, Numbers: e.numbers, Workloads: e.enforced.list(), containers: e.around,
		Fleet: e.fleet, Identity: e.identity, Remotes: e.remotes,
	})
	e.unsaved = e.stored(e.unsaved, "the table is changed, but its numbers are not stored: they "+
		"are lost when the daemon is started again, unless they can be written before", err)
}

// record stores what a small change changes of that. All is stored where the changes
// would be more to read than that.
func (e *enforcer) record(t turnover, d compiler.Difference) {
	c := memoryChange{Began: t.began, Numbers: d.Numbers}
	for _, w := range t.ended {
		c.Ended = append(c.Ended, w.Cgroup.ID)
	}
	all, _, _ := e.enforced.count()
	if !e.state.saveChange(c, max(leastChanges, all)) {
		e.remember()
	}
}

func (e *enforcer) failed(err error) {
	last := retryLast
	if e.loaded == nil {
		last = driftPoll // nothing is enforced meanwhile
	}
	if e.badTable == nil {
		e.retry = retryFirst
	} else {
		e.retry = min(2*e.retry, last)
	}
	e.badTable = &api.Failure{Time: e.now(), Text: err.Error()}
}
