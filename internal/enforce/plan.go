package enforce

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
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/remotes"
	"thole/internal/state"
	"thole/ruleset"
	"thole/watch/workload"
)

// errLimit says that policies and workloads together exceed a limit of the compiler.
var errLimit = errors.New("compiling the policies")

// errDrifted says that the table was not what this daemon had loaded.
var errDrifted = errors.New("the loaded table is not the one that was expected")

// A scope says how much of what runs is scanned, and of the policies compiled.
type scope uint8

const (
	whatRan     scope = iota // what events of thole run named since the last scan, and more only if that is quick
	whatChanged              // what events named since the last scan
	allThatRuns              // all that runs, and the policies as they are compiled
	everything               // all that runs, and the policies compiled anew
)

// A plan is a change of the table that is worked out and not made.
type plan struct {
	set        policyset.Set
	found      []condition.Condition // of the last look at all
	delta      delta
	containers state.Containers // then
	unknown    []policy.Cgroup  // then
	remotes    []policy.Remote
	takes      bool // something living may lose an allowance
	running    int  // how many workloads run, where all is compiled
	epoch      uint16

	step   *compiler.Step // of the result that there is; nil: result is new
	patch  ruleset.Patch  // of its table, with a step
	result *compiler.Result
	change ruleset.Change

	loaded   *ruleset.Table   // what the change is made for
	numbers  compiler.Numbers // of that
	comments bool             // there is somebody to read them
}

// observe scans what runs now: all of it, or where that is enough what events named since the last scan. The plan says
// what differs, and not yet what that changes of the table.
func (e *Enforcer) observe(set policyset.Set, scope scope) plan {
	select {
	case <-e.channels.workloads: // what woke us is seen by this scan
	default:
	}
	p := plan{set: set, containers: e.loaded.containers, remotes: e.remotes.Proven, epoch: e.loaded.epoch,
		loaded: e.loaded.table, numbers: e.loaded.numbers}
	p.delta, p.found = e.deltaTo(set, e.scan(set, scope))
	p.found = withSharedNetworks(p.found, e.loaded.result)
	if p.delta.containers != nil {
		p.containers = *p.delta.containers
	}
	p.unknown = e.unknownAfter(&p.delta)
	p.takes = p.delta.takes || !e.loaded.inSync || e.remotes.RevocationPending || !samePolicies(e.set, set)
	return p
}

// scanAll looks at all that runs.
func (e *Enforcer) scanAll(set policyset.Set) workload.Snapshot {
	found := e.scanner.Scan(set.Docs.Bindings)
	e.builtIn.unasked = found.Unasked
	return e.identified(set, found)
}

// scan looks at what runs, and says who it is. A Partial snapshot is enough if the loaded table is what it should be.
func (e *Enforcer) scan(set policyset.Set, scope scope) workload.Snapshot {
	if scope > whatChanged || !e.loaded.inSync || e.remotes.RevocationPending || e.failures.table != nil {
		return e.scanAll(set)
	}
	look := e.scanner.Changes
	if scope == whatRan {
		look = e.scanner.Runs
	}
	changes := look(set.Docs.Bindings)
	if changes.Partial && e.identity != nil && len(e.identity.Require) > 0 && len(e.around(changes)) > 0 {
		return e.scanAll(set) // what is around was found without the labels that the certificate requires
	}
	found := e.identified(set, changes)
	if found.Partial && (len(found.Conditions) > 0 || e.contradicted(found)) {
		return e.scanAll(set) // a problem, or its end, is for all to tell
	}
	return found
}

func samePolicies(a, b policyset.Set) bool {
	return reflect.DeepEqual(a.Docs.Policies, b.Docs.Policies) && reflect.DeepEqual(a.Docs.Settings, b.Docs.Settings)
}

// advance works out a plan as a step of the result that there is, which changes that. ok is false, and nothing is
// changed, where only a compile can tell.
func (e *Enforcer) advance(p *plan) (ok bool) {
	d := &p.delta
	if !e.loaded.inSync || e.remotes.RevocationPending || d.remotesAnew || !samePolicies(e.set, p.set) ||
		!reflect.DeepEqual(p.containers.Bridges, e.loaded.containers.Bridges) {
		return false
	}
	c := compiler.Change{Ended: d.ended, Began: d.began, Met: d.learned, Forgotten: d.forgotten}
	if d.containers != nil {
		c.Unlabelled = &d.containers.Unlabelled
	}
	if len(d.closed)+len(d.opened) > 0 || !slices.Equal(p.containers.Parents, e.loaded.containers.Parents) {
		closed := p.closedCgroups()
		c.Parents = &closed
	}
	if p.step, ok = e.loaded.result.Change(c); !ok {
		return false
	}
	e.loaded.inSync = false // until it is loaded
	if !p.step.Empty() {
		p.epoch = e.loaded.epochAfter(p.takes)
	}
	p.patch, p.result = p.step.Patch(p.epoch), e.loaded.result
	p.change = p.patch.Change(TableName)
	return true
}

// compileAnew works out a plan of all that there is.
func (e *Enforcer) compileAnew(p *plan) error {
	if err := e.compile(p); err != nil || p.change.Empty() {
		return err
	}
	// Again: a number is given again, of which the table may remember something.
	epoch := e.loaded.epochAfter(p.takes || p.result.Again)
	if epoch == p.epoch {
		return nil
	}
	p.epoch = epoch
	p.result.EnterEpoch(epoch)
	p.change = ruleset.Diff(p.loaded, &p.result.Table)
	return nil
}

// doubts are the notices about containers with labels that their images have too: those that count as a person's
// labels, and before them all that the policies name.
func doubts(set policyset.Set, workloads []policy.Workload, unlabelled []policy.Unlabelled) []condition.Condition {
	var list []condition.Condition
	add := func(name string, facts, doubtful policy.Labels) {
		var labels, others []string
		for _, key := range slices.Sorted(maps.Keys(doubtful)) {
			switch label := key + "=" + doubtful[key]; {
			case set.Names(key):
				labels = append(labels, cut(label))
			case set.Docs.Settings.Counts(key):
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

// withSharedNetworks returns conditions with the notices about the network namespaces of a result that containers of
// different labels share, instead of those of an earlier one.
func withSharedNetworks(found []condition.Condition, r *compiler.Result) []condition.Condition {
	is := func(c condition.Condition) bool { return c.Code == condition.NetworkShared }
	if !slices.ContainsFunc(found, is) && (r == nil || len(r.SharedNetworks) == 0) {
		return found
	}
	found = slices.DeleteFunc(slices.Clone(found), is)
	for _, n := range r.SharedNetworks {
		var containers []string
		for _, c := range n.Containers[:min(sharersShown, len(n.Containers))] {
			containers = append(containers, cut(c))
		}
		if more := len(n.Containers) - sharersShown; more > 0 {
			containers = append(containers, fmt.Sprintf("%d more", more))
		}
		found = append(found, condition.Condition{
			Code: condition.NetworkShared, Where: "container " + n.Owner,
			Text: fmt.Sprintf("these containers share its network, and the policies treat them differently: %s. A "+
				"connection of this network is allowed only if it is allowed for each of them. "+
				"Give them the same labels, or networks of their own", strings.Join(containers, "; ")),
		})
	}
	return found
}

// sharersShown is how many containers of one shared network are named.
const sharersShown = 5

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
func (e *Enforcer) unresolved(set policyset.Set, found []policy.Workload) []policy.Workload {
	is := map[uint64]bool{}
	for _, w := range found {
		is[w.Cgroup.ID] = true
	}
	var kept []policy.Workload
	for _, w := range e.loaded.workloads.list() {
		if w.Kind < policy.KindUnit || is[w.Cgroup.ID] || e.loaded.workloads.ended[w.Cgroup.ID] {
			continue
		}
		binding, ok := e.stillBinds(set, w)
		if !ok {
			continue
		}
		if lives, err := e.cgroups.Lives(w.Cgroup.ID); err != nil || lives {
			kept = append(kept, e.boundBy(set, binding, w))
		}
	}
	return kept
}

// boundBy is a workload of the loaded table with the labels of its document, as the set's Settings and this node's
// certificate are now.
func (e *Enforcer) boundBy(set policyset.Set, binding policy.Binding, w policy.Workload) policy.Workload {
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
func (e *Enforcer) stillBinds(now policyset.Set, w policy.Workload) (binding policy.Binding, ok bool) {
	named := func(b policy.Binding) bool { return b.Name == w.Name }
	i := slices.IndexFunc(now.Docs.Bindings, named)
	if i < 0 {
		return binding, false
	}
	binding = now.Docs.Bindings[i]
	if j := slices.IndexFunc(e.set.Docs.Bindings, named); j >= 0 {
		return binding, reflect.DeepEqual(binding, e.set.Docs.Bindings[j])
	}
	return binding, maps.Equal(e.boundBy(now, binding, w).Labels, w.Labels)
}

// compile compiles all that there is then, for the plan's epoch.
func (e *Enforcer) compile(p *plan) error {
	workloads := e.loaded.workloads.after(&p.delta)
	p.running = 0
	for _, w := range workloads {
		if !e.loaded.workloads.ended[w.Cgroup.ID] && !slices.Contains(p.delta.outlived, w.Cgroup.ID) {
			p.running++
		}
	}
	result, err := compiler.Compile(compiler.Input{
		Policies:   p.set.Docs.Policies,
		Settings:   p.set.Docs.Settings,
		Workloads:  workloads,
		Parents:    p.closedCgroups(),
		Unlabelled: p.containers.Unlabelled,
		Bridges:    p.containers.Bridges,
		Options:    compiler.Options{Deny: e.deny, Epoch: p.epoch, Comments: p.comments},
		Numbers:    p.numbers,
		Fleet:      e.fleet,
		Remotes:    p.remotes,
	})
	if err != nil {
		return fmt.Errorf("%w: %v", errLimit, err)
	}
	p.result, p.change = &result, ruleset.Diff(p.loaded, &result.Table)
	p.found = withSharedNetworks(p.found, p.result)
	return nil
}

// explain compiles a plan anew, with comments for a person.
func (e *Enforcer) explain(p *plan) error {
	p.comments = true
	return e.compile(p)
}

// commit changes the table as planned. If it fails, the table is as before, and
// the plan is forgotten.
func (e *Enforcer) commit(p plan) error {
	if e.checkDisarmed(); e.arming.isDisarmed() { // since it was planned
		return e.withhold(p)
	}
	if !p.change.Empty() {
		if err := e.clearEpoch(p.epoch); err != nil {
			return fmt.Errorf("%w. The previous table stays in force", err)
		}
		if err := e.load(p.change, p.table); err != nil {
			return fmt.Errorf("loading the table: %w. The previous table stays in force", err)
		}
	}
	if p.step != nil {
		p.result.Table.Patch(p.patch)
	}
	e.loaded.table = &p.result.Table
	if e.checkDisarmed(); e.arming.isDisarmed() { // just now: "thole cleanup" found no table yet
		return e.withhold(p)
	}
	e.loaded.epochUnknown, e.loaded.epoch = false, p.epoch
	e.loaded.inSync, e.remotes.RevocationPending = true, false
	e.adoptPlan(p)
	if !p.change.Empty() {
		e.log.Info("table changed", "epoch", e.loaded.epoch, "steps", len(p.change.Steps),
			"began", len(p.delta.began), "ended", len(p.delta.ended))
	}
	e.storeChange(p)
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
func (e *Enforcer) withhold(p plan) error {
	if err := e.unload(); err != nil {
		return err
	}
	e.adoptPlan(p)
	return nil
}

// adoptPlan makes a plan what requests are answered from.
func (e *Enforcer) adoptPlan(p plan) {
	e.set = p.set
	e.logConditions(p.found)
	e.loaded.result, e.loaded.numbers = p.result, p.result.Numbers
	e.loaded.warnings, e.loaded.containers = Messages(p.result.Warnings), p.containers
	e.loaded.appliedAt = e.now()
	e.adoptEnding(&p)
	e.loaded.version++
	e.failures.tableChanged()
	e.remotes.SetLoaded(remotes.Table{Remotes: p.remotes, Classes: p.result.Remotes, Step: p.step != nil,
		Learned: p.delta.learned, Forgotten: p.delta.forgotten})
	// A request that sees the changed workload must not see the status from before the change.
	e.loaded.workloads.applyAnd(&p.delta, func(of sizes) { e.view.Store(e.newView(of)) })
}

// logConditions logs the conditions that are new.
func (e *Enforcer) logConditions(found []condition.Condition) {
	if len(found) == len(e.conditions) && (len(found) == 0 || &found[0] == &e.conditions[0]) {
		return // nothing was looked at that can change them
	}
	reported := make(map[condition.Condition]bool, len(e.conditions))
	for _, c := range e.conditions {
		reported[c] = true
	}
	for _, c := range found {
		if reported[c] {
			continue
		}
		kind, level := "problem", slog.LevelWarn
		if c.Code.IsNotice() {
			kind, level = "notice", slog.LevelInfo
		}
		e.log.Log(context.Background(), level, kind, "code", c.Code, "where", c.Where, "text", c.Text)
	}
	e.conditions = found
}

// clearEpoch makes an epoch fit to be used: no connection says that it was allowed in it. It
// does nothing but when epochs come round, or where it is not known which were used.
func (e *Enforcer) clearEpoch(epoch uint16) error {
	sweep, needed := mark.SweepBefore(epoch)
	if e.loaded.epochUnknown {
		sweep, needed = mark.Sweep{}, true
	}
	if !needed || epoch == e.loaded.epoch && !e.loaded.epochUnknown {
		return nil
	}
	n, err := e.conntrack.Remark(sweep.Mask, sweep.Bits, sweep.Of)
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
func (e *Enforcer) load(change ruleset.Change, want func() *ruleset.Table) error {
	failure := e.kernel.Apply(change)
	if failure == nil {
		// If others were at it meanwhile, what they did is looked at next time.
		if now, err := e.kernel.Generation(); err == nil && now == e.loaded.generation+1 {
			e.loaded.generation = now
		}
		return nil
	}
	loaded, err := e.kernel.Read(TableName)
	if err != nil {
		return errors.Join(failure, err)
	}
	before := e.loaded.table
	e.loaded.replacedBy(loaded)
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

// storeTable stores what belongs to the loaded table.
func (e *Enforcer) storeTable() {
	err := e.state.SaveTable(state.TableState{
		Epoch: e.loaded.epoch, Numbers: e.loaded.numbers, Workloads: e.loaded.workloads.list(),
		Containers: e.loaded.containers, Unknown: e.ending.unknown, Dropped: e.ending.dropped,
		Fleet: e.fleet, Identity: e.identity, Remotes: e.remotes.Proven,
	})
	e.noteStorage(&e.failures.tableStorage, "the table is changed, but its numbers are not stored: they "+
		"are lost when the daemon is started again, unless they can be written before", err)
}

// storeChange stores what a plan changes of that. All is stored where the changes would be more to read. If the table
// stays as it is, that can wait for the next change of the table.
func (e *Enforcer) storeChange(p plan) {
	if p.step != nil && !p.delta.concernsState() && p.change.Empty() {
		return
	}
	room := max(leastChanges, e.loaded.workloads.sizes().all)
	switch {
	case p.step != nil && e.state.AppendChange(p.tableChange(), room):
	case p.change.Empty():
		e.state.Close() // so that all is stored with the next change
	default:
		e.storeTable()
	}
}

func (p *plan) tableChange() state.TableChange {
	c := state.TableChange{Began: slices.Concat(p.delta.began, p.delta.renamed), Numbers: p.step.Numbers,
		Epoch: p.epoch, Containers: p.delta.containers, Met: p.delta.learned, Forgotten: p.delta.forgotten,
		Closed: p.delta.closed, Opened: p.delta.opened, Dropped: p.delta.dropped}
	for _, w := range p.delta.ended {
		c.Ended = append(c.Ended, w.Cgroup.ID)
	}
	return c
}

func (e *Enforcer) failed(err error) {
	e.loaded.version++ // an answer that was made meanwhile may have seen a step that was undone
	longest := retryLast
	if e.loaded.table == nil {
		longest = driftPoll // nothing is enforced meanwhile
	}
	e.failures.tableFailed(e.now(), err, longest)
}
