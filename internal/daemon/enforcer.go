package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	"thole/compiler"
	"thole/policies"
	"thole/ruleset"
	"thole/watch"
)

// errStopped says that the enforcer does not work any more.
var errStopped = errors.New("the daemon is stopping; the table that is loaded stays")

// errLimit says that policies and workloads together exceed a limit of the compiler.
var errLimit = errors.New("compiling the policies")

// errDrifted says that the table was not what this daemon had loaded.
var errDrifted = errors.New("the loaded table is not the one that was expected")

// A scanner says what runs now.
type scanner interface {
	Scan([]compiler.Binding) watch.Snapshot
}

// An enforcer brings the table to what the policy set and the running workloads
// make of it. Whatever fails, the table that is loaded stays as it was.
type enforcer struct {
	kernel Kernel
	runs   scanner
	dead   graveyard
	state  *stateDir
	log    *slog.Logger
	deny   compiler.DenyMode
	now    func() time.Time

	directory string // that is followed, or ""
	changed   <-chan struct{}
	files     <-chan watch.Files

	orders  chan func() // are carried out by Run
	waiters chan chan error
	stopped chan struct{} // closed when Run returned

	view atomic.Pointer[view] // what requests are answered from

	// What follows belongs to the goroutine of Run, and before it to start's.
	set      policySet
	loaded   *ruleset.Table // nil: there is none
	numbers  compiler.Numbers
	epoch    uint16
	enforced []compiler.Workload          // those in the loaded table
	ended    map[uint64]compiler.Workload // those of them whose cgroup is gone, by its id
	settled  bool                         // set and enforced are those of the loaded table
	problems []Message                    // of the last scan
	badSet   *Failure                     // the last set that was offered, if it was bad
	badTable *Failure                     // the last change of the table, if it failed
	applied  time.Time
	retry    time.Duration // how long to wait after the next failure
	result   compiler.Result
}

// A plan is a change of the table that is worked out and not made.
type plan struct {
	set      policySet
	problems []watch.Problem
	running  []compiler.Workload
	ended    map[uint64]compiler.Workload
	epoch    uint16
	result   compiler.Result
	change   ruleset.Change
}

// start adopts the table that is loaded and makes the first change. A policy set
// that can not be used is reported and replaced by the last good one.
func (e *enforcer) start() error {
	if err := e.adopt(); err != nil {
		return err
	}
	e.set = e.firstSet()
	return e.reconcile()
}

// adopt takes over the table that is loaded, if there is one.
func (e *enforcer) adopt() error {
	var err error
	if e.loaded, err = e.kernel.Read(tableName); err != nil {
		return fmt.Errorf("reading the table that is loaded, which stays as it is: %v", err)
	}
	remembered, err := e.state.memory()
	if err != nil {
		e.log.Warn("what is known of the loaded table is lost: connections are decided again", "error", err)
	}
	// Connections keep their marks also where a table was removed: its epochs are over.
	e.epoch = max(remembered.Epoch, 1)
	if e.loaded == nil {
		return nil
	}
	if epoch := epochOf(e.loaded); epoch != 0 {
		e.epoch = epoch
	}
	e.numbers, e.enforced = remembered.Numbers, remembered.Workloads
	e.log.Info("adopted the table that is loaded", "epoch", e.epoch, "workloads", len(e.enforced))
	return nil
}

// firstSet returns the set of the directory that is followed, else the last good
// one, else the embedded default.
func (e *enforcer) firstSet() policySet {
	if e.directory != "" {
		files, err := watch.ReadDirectory(e.directory)
		if err == nil {
			var set policySet
			if set, err = parseSet(SourceDirectory, files); err == nil {
				e.keep(set)
				return set
			}
		}
		e.refuse(err)
	}
	set, ok, err := e.state.policies()
	if err != nil {
		e.refuse(fmt.Errorf("the last good policy set: %w", err))
	}
	switch {
	case !ok:
		set = defaultSet()
	case e.directory == "":
		set.source = SourceApplied // the directory that it came from is not followed any more
	}
	e.log.Info("policy set", "source", set.source, "policies", len(set.docs.Policies))
	return set
}

func defaultSet() policySet {
	set, err := parseSet(SourceDefault, []compiler.File{{Name: "same-labels.yaml", Data: policies.Default}})
	if err != nil {
		panic("the embedded default is no policy set: " + err.Error()) // a test parses it
	}
	return set
}

// Run carries out changes until the context ends. It leaves the table as it is.
func (e *enforcer) Run(ctx context.Context) error {
	defer close(e.stopped)
	for ctx.Err() == nil {
		again, stop := e.alarm()
		select {
		case <-ctx.Done():
		case <-e.changed:
			e.attempt()
		case files := <-e.files:
			e.follow(files)
		case order := <-e.orders:
			order()
		case first := <-e.waiters:
			e.answer(first)
		case <-again:
			e.attempt()
		}
		stop()
	}
	return nil
}

// alarm says when to try again without an event: after a failure, or to see whether
// the sockets that outlived their cgroup are gone.
func (e *enforcer) alarm() (<-chan time.Time, func() bool) {
	switch {
	case e.badTable != nil:
		t := time.NewTimer(e.retry)
		return t.C, t.Stop
	case len(e.ended) > 0:
		t := time.NewTimer(endedPoll)
		return t.C, t.Stop
	default:
		return nil, func() bool { return false }
	}
}

// attempt reconciles when nobody waits for the outcome.
func (e *enforcer) attempt() {
	if err := e.reconcile(); err != nil {
		e.log.Error("the table could not be changed: what was loaded before stays and enforces", "error", err)
	}
}

// answer reconciles once for all who wait now.
func (e *enforcer) answer(first chan error) {
	waiting := []chan error{first}
	for {
		select {
		case next := <-e.waiters:
			waiting = append(waiting, next)
			continue
		default:
		}
		break
	}
	err := e.reconcile()
	for _, w := range waiting {
		w <- err // there is room
	}
}

// Sync returns when the table knows what ran when it was called.
func (e *enforcer) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case e.waiters <- done:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopped:
		return errStopped
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopped:
		return errStopped
	}
}

// order has a function carried out by Run and waits for it. Once it has begun it
// is waited for in any case: the caller then knows what became of it.
func (e *enforcer) order(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case e.orders <- func() { f(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.stopped:
		return errStopped
	}
	<-done
	return nil
}

// Apply replaces the policy set.
func (e *enforcer) Apply(ctx context.Context, files []compiler.File, dryRun bool) (answer ApplyResponse, err error) {
	if e.directory != "" && !dryRun {
		return answer, &Refusal{Code: http.StatusConflict, Message: fmt.Sprintf(
			"the daemon follows the policy directory %s: change the files there, or start it without --policies. Nothing was changed", e.directory)}
	}
	ordered := e.order(ctx, func() {
		if dryRun {
			answer, err = e.preview(files)
		} else {
			answer, err = e.replace(SourceApplied, files)
		}
	})
	return answer, errors.Join(ordered, err)
}

// Reload reads the policy directory, or the stored set, again.
func (e *enforcer) Reload(ctx context.Context) (answer ApplyResponse, err error) {
	ordered := e.order(ctx, func() { answer, err = e.reload() })
	return answer, errors.Join(ordered, err)
}

func (e *enforcer) reload() (ApplyResponse, error) {
	if e.directory == "" {
		return e.replace(e.set.source, e.set.files)
	}
	files, err := watch.ReadDirectory(e.directory)
	if err != nil {
		return ApplyResponse{}, e.refuse(err)
	}
	return e.replace(SourceDirectory, files)
}

// follow takes over what the directory holds now.
func (e *enforcer) follow(f watch.Files) {
	if f.Err != nil {
		_ = e.refuse(f.Err) // it is logged, and there is nobody else to tell
		return
	}
	if e.badSet == nil && e.set.equal(policySet{source: SourceDirectory, files: f.Files}) {
		return
	}
	_, _ = e.replace(SourceDirectory, f.Files) // it is logged, too
}

// refuse records that a policy set can not be used. The one before stays.
func (e *enforcer) refuse(err error) error {
	e.badSet = &Failure{Time: e.now(), Text: err.Error()}
	e.log.Error("bad policy set: the last good one stays", "error", err)
	e.publish()
	return &Refusal{Code: http.StatusUnprocessableEntity, Message: err.Error() + "\nNothing was changed: the last good policy set stays."}
}

// preview says what a policy set would change.
func (e *enforcer) preview(files []compiler.File) (ApplyResponse, error) {
	set, err := parseSet(SourceApplied, files)
	var p plan
	if err == nil {
		p, err = e.plan(set)
	}
	if err != nil {
		return ApplyResponse{}, &Refusal{Code: http.StatusUnprocessableEntity, Message: err.Error()}
	}
	return p.answer(true), nil
}

// replace makes a policy set the active one: it is parsed, compiled and loaded, or
// else nothing changes.
func (e *enforcer) replace(source string, files []compiler.File) (ApplyResponse, error) {
	set, err := parseSet(source, files)
	if err != nil {
		return ApplyResponse{}, e.refuse(err)
	}
	defer e.publish()
	p, err := e.enforce(set)
	if errors.Is(err, errLimit) {
		return ApplyResponse{}, e.refuse(err)
	}
	if err != nil {
		e.log.Error("the policy set could not be loaded: the one before stays", "error", err)
		return ApplyResponse{}, err
	}
	e.badSet = nil
	e.log.Info("policy set", "source", set.source, "policies", len(set.docs.Policies))
	e.keep(set)
	return p.answer(false), nil
}

// keep stores a set as the last good one. The default is not: the next version of
// the program may have another.
func (e *enforcer) keep(set policySet) {
	if set.source == SourceDefault {
		return
	}
	if err := e.state.savePolicies(set); err != nil {
		e.badSet = &Failure{Time: e.now(), Text: fmt.Sprintf("the policy set is enforced, but is lost when the daemon is started again: %v", err)}
		e.log.Error("the policy set is enforced, but not stored", "error", err)
	}
}

// reconcile brings the table to what runs now.
func (e *enforcer) reconcile() error {
	defer e.publish()
	_, err := e.enforce(e.set)
	return err
}

// enforce plans and commits. Where somebody else changed the table meanwhile, it
// does so a second time, from what is loaded now.
func (e *enforcer) enforce(set policySet) (plan, error) {
	p, err := e.planAndCommit(set)
	if errors.Is(err, errDrifted) {
		e.log.Warn("somebody else changed the table: mending it", "error", err)
		p, err = e.planAndCommit(set)
	}
	if err != nil {
		e.failed(err)
	}
	return p, err
}

func (e *enforcer) planAndCommit(set policySet) (plan, error) {
	p, err := e.plan(set)
	if err != nil {
		return p, err
	}
	return p, e.commit(p)
}

// plan works out what a policy set means for what runs now.
func (e *enforcer) plan(set policySet) (plan, error) {
	select {
	case <-e.changed: // what woke us is seen by this scan
	default:
	}
	snapshot := e.runs.Scan(set.docs.Bindings)
	p := plan{set: set, problems: snapshot.Problems, running: snapshot.Workloads, epoch: e.epoch}
	var err error
	if p.ended, err = outlived(e.dead, e.enforced, snapshot.Workloads); err != nil {
		p.problems = append(p.problems, watch.Problem{Text: fmt.Sprintf("workloads that ended stay in the table: %v", err)})
	}
	if err := e.compile(&p); err != nil {
		return p, err
	}
	if !p.change.Empty() && e.takesAway(p) {
		p.epoch = nextEpoch(e.epoch)
		return p, e.compile(&p)
	}
	return p, nil
}

func (e *enforcer) compile(p *plan) error {
	var err error
	p.result, err = compiler.Compile(compiler.Input{
		Policies:  p.set.docs.Policies,
		Workloads: withEnded(p.running, p.ended),
		Options:   compiler.Options{Deny: e.deny, Epoch: p.epoch},
		Numbers:   e.numbers,
	})
	if err != nil {
		return fmt.Errorf("%w: %v", errLimit, err)
	}
	p.change = ruleset.Diff(e.loaded, &p.result.Table)
	return nil
}

// takesAway reports whether a plan may end an allowance that something living has,
// so that connections must be decided again. It says no only where all that
// changes is that cgroups of thole run begin, which are empty until they are in
// the table, or that workloads ended and left no socket.
func (e *enforcer) takesAway(p plan) bool {
	if !e.settled || !reflect.DeepEqual(e.set.docs.Policies, p.set.docs.Policies) {
		return true
	}
	was := map[uint64]compiler.Workload{}
	for _, w := range e.enforced {
		was[w.Cgroup.ID] = w
	}
	for _, w := range p.running {
		before, ok := was[w.Cgroup.ID]
		if !ok && w.Kind != compiler.KindRun {
			return true // it may have had connections as an unlabelled one
		}
		if ok && !sameIdentity(before, w) {
			return true
		}
		delete(was, w.Cgroup.ID)
	}
	for id := range was {
		if _, ok := p.ended[id]; ok {
			continue
		}
		if lives, err := e.dead.Lives(id); err != nil || lives {
			return true // it is unlabelled now
		}
	}
	return false
}

// sameIdentity reports whether no policy can tell two states of a cgroup apart.
func sameIdentity(a, b compiler.Workload) bool {
	return reflect.DeepEqual(a.Labels, b.Labels) && reflect.DeepEqual(a.Facts, b.Facts)
}

// commit changes the table as planned. If it fails, the table is as before, and
// the plan is forgotten.
func (e *enforcer) commit(p plan) error {
	if !p.change.Empty() {
		if err := e.load(p); err != nil {
			return fmt.Errorf("loading the table: %w. What was loaded before stays and enforces", err)
		}
	}
	e.loaded = &p.result.Table
	e.set, e.epoch, e.numbers, e.result = p.set, p.epoch, p.result.Numbers, p.result
	e.enforced, e.ended = withEnded(p.running, p.ended), p.ended
	e.report(apiProblems(p.problems))
	e.settled, e.badTable, e.retry = true, nil, retryFirst
	e.applied = e.now()
	if p.change.Empty() {
		return nil
	}
	e.log.Info("table changed", "epoch", e.epoch, "steps", len(p.change.Steps), "workloads", len(p.running), "ended", len(p.ended))
	e.remember()
	return nil
}

// report logs the problems that are new.
func (e *enforcer) report(problems []Message) {
	for _, p := range problems {
		if !slices.Contains(e.problems, p) {
			e.log.Warn("problem", "where", p.Where, "text", p.Text)
		}
	}
	e.problems = problems
}

// load applies the plan's change. Where the kernel reports an error, what it holds
// afterwards is what counts.
func (e *enforcer) load(p plan) error {
	failure := e.kernel.Apply(p.change)
	if failure == nil {
		return nil
	}
	loaded, err := e.kernel.Read(tableName)
	if err != nil {
		return errors.Join(failure, err)
	}
	e.loaded, e.settled = loaded, false
	if sameTable(loaded, &p.result.Table) {
		e.log.Warn("the change is loaded although the kernel reported an error", "error", failure)
		return nil
	}
	if !sameTable(loaded, p.change.Have) {
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
	err := e.state.saveMemory(memory{Epoch: e.epoch, Numbers: e.numbers, Workloads: e.enforced})
	if err != nil {
		e.log.Warn("the table is changed, but the daemon will not know its numbers when it is started again", "error", err)
	}
}

func (e *enforcer) failed(err error) {
	if e.badTable == nil {
		e.retry = retryFirst
	} else {
		e.retry = min(2*e.retry, retryLast)
	}
	e.badTable = &Failure{Time: e.now(), Text: err.Error()}
}
