package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"thole/compiler"
	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/ruleset"
	"thole/watch/workload"
)

// errLimit says that policies and workloads together exceed a limit of the compiler.
var errLimit = errors.New("compiling the policies")

// errDrifted says that the table was not what this daemon had loaded.
var errDrifted = errors.New("the loaded table is not the one that was expected")

// A scope says how much of what runs is looked at, and of the policies compiled.
type scope uint8

const (
	whatChanged scope = iota // of what runs, of which something was heard
	allThatRuns              // and the policies as they are compiled
	everything
)

// A plan is a change of the table that is worked out and not made.
type plan struct {
	set     policySet
	found   []condition.Condition // of the last look at all
	delta   delta
	around  containers // then
	remotes []policy.Remote
	takes   bool // something living may lose an allowance
	running int  // how many workloads run, where all is compiled
	epoch   uint16

	step   *compiler.Step // of the result that there is; nil: result is new
	patch  ruleset.Patch  // of its table, with a step
	result *compiler.Result
	change ruleset.Change

	loaded   *ruleset.Table   // what the change is made for
	numbers  compiler.Numbers // of that
	comments bool             // there is somebody to read them
}

// observe looks at what runs now: at all of it, or where that is enough at what was heard of since. The plan says what
// differs, and not yet what that changes of the table.
func (e *enforcer) observe(set policySet, scope scope) plan {
	select {
	case <-e.changed: // what woke us is seen by this look
	default:
	}
	look := e.runs.Changes
	if scope > whatChanged || !e.settled || e.disbelieved || e.badTable != nil {
		look = e.runs.Scan
	}
	p := plan{set: set, around: e.around, remotes: e.remotes, epoch: e.epoch, loaded: e.loaded, numbers: e.numbers}
	running := e.identified(set, look(set.docs.Bindings))
	if running.Partial && len(running.Conditions) > 0 {
		running = e.identified(set, e.runs.Scan(set.docs.Bindings)) // a problem is for a scan to tell
	}
	p.delta, p.found = e.differs(set, running)
	if p.delta.containers != nil {
		p.around = *p.delta.containers
	}
	p.takes = p.delta.takes || !e.settled || e.disbelieved || !samePolicies(e.set, set)
	return p
}

func samePolicies(a, b policySet) bool {
	return reflect.DeepEqual(a.docs.Policies, b.docs.Policies) && reflect.DeepEqual(a.docs.Settings, b.docs.Settings)
}

// advance works out a plan as a step of the result that there is, which changes that. ok is false, and nothing is
// changed, where only a compile can tell.
func (e *enforcer) advance(p *plan) (ok bool) {
	d := &p.delta
	if !e.settled || e.disbelieved || d.remotesAnew || !samePolicies(e.set, p.set) ||
		!reflect.DeepEqual(p.around.Bridges, e.around.Bridges) {
		return false
	}
	c := compiler.Change{Ended: d.ended, Began: d.began, Met: d.met, Forgotten: d.forgotten}
	if d.containers != nil {
		c.Parents, c.Unlabelled = &d.containers.Parents, &d.containers.Unlabelled
	}
	if p.step, ok = e.result.Change(c); !ok {
		return false
	}
	e.settled = false // until it is loaded
	if !p.step.Empty() {
		p.epoch = e.epochAfter(p, false)
	}
	p.patch, p.result = p.step.Patch(p.epoch), e.result
	p.change = p.patch.Change(tableName)
	return true
}

// compileAnew works out a plan of all that there is.
func (e *enforcer) compileAnew(p *plan) error {
	if err := e.compile(p); err != nil || p.change.Empty() {
		return err
	}
	epoch := e.epochAfter(p, p.result.Again)
	if epoch == p.epoch {
		return nil
	}
	p.epoch = epoch
	return e.compile(p)
}

// epochAfter returns the epoch for a change of the table: the next one where something living may lose an allowance, or
// where a number is given again of which the table may remember something.
func (e *enforcer) epochAfter(p *plan, again bool) uint16 {
	if p.takes || again {
		return mark.NextEpoch(e.epoch)
	}
	return e.epoch
}

// doubts are the notices about containers with labels that their images have too: those that count as a person's
// labels, and before them all that the policies name.
func doubts(
	docs *policy.Documents, workloads []policy.Workload, unlabelled []policy.Unlabelled,
) []condition.Condition {
	var list []condition.Condition
	named := compiler.NamedKeys(docs.Policies)
	add := func(name string, facts, doubtful policy.Labels) {
		var labels, others []string
		for _, key := range slices.Sorted(maps.Keys(doubtful)) {
			switch label := key + "=" + doubtful[key]; {
			case named[key]:
				labels = append(labels, cut(label))
			case docs.Settings.Counts(key):
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
		add(w.Name, w.Facts, w.AllDoubtful())
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
			kept = append(kept, e.boundBy(set, binding, w))
		}
	}
	return kept
}

// boundBy is a workload of the loaded table with the labels of its document, as the set's Settings and this node's
// certificate are now.
func (e *enforcer) boundBy(set policySet, binding policy.Binding, w policy.Workload) policy.Workload {
	facts := maps.Clone(w.Facts)
	delete(facts, policy.NodeFact)
	for key := range binding.Labels {
		delete(facts, key) // it may count now
	}
	w.Labels, w.Facts = binding.Labels, facts
	return e.identified(set, workload.Snapshot{Workloads: []policy.Workload{w}}).Workloads[0]
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
	return binding, maps.Equal(e.boundBy(now, binding, w).Labels, w.Labels)
}

// compile compiles all that there is then, for the plan's epoch.
func (e *enforcer) compile(p *plan) error {
	workloads := e.enforced.after(&p.delta)
	p.running = 0
	for _, w := range workloads {
		if !e.enforced.ended[w.Cgroup.ID] && !slices.Contains(p.delta.outlived, w.Cgroup.ID) {
			p.running++
		}
	}
	result, err := compiler.Compile(compiler.Input{
		Policies:   p.set.docs.Policies,
		Settings:   p.set.docs.Settings,
		Workloads:  workloads,
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
		if err := e.load(p.change, p.table); err != nil {
			return fmt.Errorf("loading the table: %w. The previous table stays in force", err)
		}
	}
	if p.step != nil {
		p.result.Table.Patch(p.patch)
	}
	e.loaded = &p.result.Table
	if e.heed(); !e.disarmed.IsZero() { // just now: "thole cleanup" found no table yet
		return e.withhold(p)
	}
	e.unknownEpoch, e.epoch = false, p.epoch
	e.settled, e.disbelieved = true, false
	e.adoptPlan(p)
	if !p.change.Empty() {
		e.log.Info("table changed", "epoch", e.epoch, "steps", len(p.change.Steps),
			"began", len(p.delta.began), "ended", len(p.delta.ended))
	}
	e.record(p)
	return nil
}

// table returns what the table becomes.
func (p *plan) table() *ruleset.Table {
	if p.step != nil {
		return p.result.Table.Patched(p.patch)
	}
	return &p.result.Table
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
	e.around, e.met = p.around, p.remotes
	e.report(p.found)
	e.badTable, e.retry = nil, retryFirst
	e.applied = e.now()
	e.classes.take(&p)
	// A request that sees the changed workload must not see the status from before the change.
	e.enforced.takeAnd(&p.delta, func(of sizes) { e.view.Store(e.newView(of)) })
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

// record stores what a plan changes of that. All is stored where the changes would be more to read. What leaves the
// table as it is can wait for the next change, with which all is stored.
func (e *enforcer) record(p plan) {
	if p.change.Empty() {
		if p.step == nil || p.delta.concernsMemory() {
			e.state.close()
		}
		return
	}
	all := e.enforced.sizes().all
	if p.step == nil || !e.state.saveChange(p.memoryChange(), max(leastChanges, all)) {
		e.remember()
	}
}

func (p *plan) memoryChange() memoryChange {
	c := memoryChange{Began: slices.Concat(p.delta.began, p.delta.renamed), Numbers: p.step.Numbers, Epoch: p.epoch,
		Containers: p.delta.containers, Met: p.delta.met, Forgotten: p.delta.forgotten}
	for _, w := range p.delta.ended {
		c.Ended = append(c.Ended, w.Cgroup.ID)
	}
	return c
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
