package enforce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"thole/compiler"
	"thole/compiler/chains"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/policyset"
	"thole/internal/remotes"
	"thole/internal/state"
	"thole/ruleset/kernel"
	"thole/watch/filewatch"
	"thole/watch/workload"
)

// errStopped says that the enforcer does not work any more.
var errStopped = errors.New("the daemon is stopping; the loaded table stays in force")

// An Enforcer brings the table to what the policy set and the running workloads
// make of it. Whatever fails, the table that is loaded stays as it was.
type Enforcer struct {
	kernel    Kernel
	conntrack Conntrack
	scanner   Scanner
	cgroups   Cgroups
	state     *state.Dir
	log       *slog.Logger
	now       func() time.Time

	deny      compiler.DenyMode
	fleet     *compiler.Fleet // nil: there are no other nodes
	oneShot   bool            // there is no daemon: what the last one knew of other nodes stays
	directory string          // that is followed, or ""
	builtIn   builtIn

	channels channels
	view     atomic.Pointer[View] // what requests are answered from

	// Only the goroutine of Run uses the fields below; before Run begins, the one of Start.
	set        policyset.Set // the active one
	loaded     loaded
	remotes    remotes.Set
	identity   *state.Identity // this node's, in a fleet; nil: not known
	drift      drift
	arming     arming
	failures   failures
	conditions []condition.Condition // of the last scan
	ending     ending
}

// A builtIn is what decides at a start whether the built-in default is enforced.
type builtIn struct {
	asked          *policyset.DefaultMode // what somebody asked for; nil: nobody did
	enforcedBefore bool                   // an earlier daemon worked on this host
	unasked        bool                   // at the last scan of all, an engine had not said what its containers are
}

// channels wake the goroutine of Run.
type channels struct {
	workloads <-chan struct{}           // what runs may have changed
	files     <-chan filewatch.Policies // of the directory that is followed
	orders    chan func()               // are carried out by Run
	waiters   chan chan error           // of Sync
	writes    chan kernel.Write         // of our table, by any program; lost ones are found by reading the generation
	stopped   chan struct{}             // closed when Run returned
}

// Start adopts the table that is loaded and makes the first change. A policy set
// that cannot be used is reported and replaced by the last good one.
func (e *Enforcer) Start() error {
	if e.checkDisarmed(); e.arming.unreadable != nil {
		return e.arming.unreadable
	}
	if err := e.adopt(); err != nil {
		return err
	}
	var err error
	if e.set, err = e.firstSet(); err != nil {
		return err
	}
	e.log.Info("policy set", "source", e.set.Source, "policies", len(e.set.Docs.Policies))
	store := func(source string) {
		if e.set.Source == source && e.failures.set == nil {
			_ = e.storeSet(e.set) // if it fails, that is logged, and in the status
		}
	}
	store(api.SourceDefault) // before its table, which an earlier daemon could have made of an enforced default
	if err := e.reconcile(); err != nil {
		return err
	}
	store(api.SourceDirectory)
	e.decideDefault()
	return nil
}

// decideDefault decides at the first start on a host whether the built-in default is enforced. Where labelled workloads
// run already, it would cut what works: then it only records, until somebody decides. Until an engine has said which of
// its containers are labelled, nothing is decided.
func (e *Enforcer) decideDefault() {
	if e.set.Default != policyset.Undecided || e.builtIn.unasked || !e.loaded.inSync {
		return
	}
	mode := policyset.Enforced
	if of := e.loaded.workloads.sizes(); of.all > of.ended {
		mode = policyset.Audited
	}
	set := e.set.WithDefault(mode)
	if e.storeSet(set) != nil { // before it is loaded, so that the next daemon does what this one did
		return
	}
	if mode == policyset.Audited {
		e.log.Warn("labelled workloads run already: the built-in default only records, also after a restart. " +
			"To enforce it, run `thole apply --default`; or give your own policies: `thole apply -f PATH`")
	}
	_, _ = e.replaceBy(set) // if it fails, that is logged, and tried again
}

// adopt takes over the table that is loaded, if there is one.
func (e *Enforcer) adopt() error {
	var err error
	e.loaded.workloads = newRoster(nil, nil)
	if e.loaded.generation, err = e.kernel.Generation(); err != nil {
		return err
	}
	if e.loaded.table, err = e.kernel.Read(TableName); err != nil {
		return fmt.Errorf("reading the loaded table, which stays unchanged: %v", err)
	}
	e.loaded.readAt = e.now()
	stored, err := e.state.Table()
	if err != nil {
		e.log.Warn("the state of the loaded table is lost: connections are decided again", "error", err)
	}
	e.builtIn.enforcedBefore = stored.Epoch != 0 || e.loaded.table != nil || err != nil
	// Connections keep their marks also where a table was removed: its epochs are over.
	e.loaded.epoch = max(stored.Epoch, 1)
	if epoch := chains.EpochOf(e.loaded.table); epoch != 0 {
		e.loaded.epoch = epoch
	} else {
		e.loaded.epochUnknown = true // what is stored may be older than the last table
	}
	if e.loaded.table == nil {
		// After a boot, Docker starts containers before it answers: their parent cgroups are closed until then.
		e.scanner.Recall(workload.Snapshot{Parents: stored.Parents})
		return nil
	}
	e.loaded.numbers, e.loaded.containers = stored.Numbers, stored.Containers
	e.loaded.workloads = newRoster(stored.Workloads, e.loaded.containers.Unlabelled)
	e.ending.unknown, e.ending.dropped = stored.Unknown, stored.Dropped
	if e.oneShot {
		e.fleet = stored.Fleet
	}
	if e.fleet != nil {
		if e.identity == nil {
			e.identity = stored.Identity
		}
		e.remotes.Proven = stored.Remotes // connections have their classes
		e.endRevoked()
	}
	e.scanner.Recall(workload.Snapshot{
		Workloads:  stored.Workloads,
		Unlabelled: stored.Unlabelled,
		Parents:    stored.Parents,
		Bridges:    stored.Bridges,
	})
	e.log.Info("adopted the loaded table", "epoch", e.loaded.epoch, "workloads", len(stored.Workloads))
	return nil
}

// firstSet returns the set of the directory that is followed, else the last good
// one, else the embedded default.
func (e *Enforcer) firstSet() (policyset.Set, error) {
	last, err := e.lastSet()
	if e.directory == "" {
		return last, err
	}
	files, bad := filewatch.ReadPolicies(e.directory)
	var set policyset.Set
	if bad == nil {
		set, bad = policyset.Parse(api.SourceDirectory, files)
	}
	if bad == nil {
		set, bad = set.After(last, false)
	}
	if bad == nil {
		return set, nil
	}
	_ = e.refuse(bad)
	return last, err
}

// lastSet returns the last good set, else the embedded default. It fails where the default would replace a set
// that is enforced and can only not be read.
func (e *Enforcer) lastSet() (policyset.Set, error) {
	set, ok, err := e.state.Policies()
	switch {
	case err != nil && e.loaded.table != nil:
		return policyset.Set{Docs: policyset.Default().Docs}, fmt.Errorf("the last good policy set: %w. "+
			"The loaded table stays in force: "+
			"give a set with --policies, or remove the table with `thole cleanup`", err)
	case err != nil:
		_ = e.refuse(fmt.Errorf("the last good policy set: %w", err))
		return policyset.Default(), nil
	case !ok:
		return e.firstDefault(), nil
	case e.directory == "" && set.Source == api.SourceDirectory:
		set.Source = api.SourceApplied // that directory is not followed any more
	}
	if set.BuiltIn && e.builtIn.asked != nil {
		set = set.WithDefault(*e.builtIn.asked)
	}
	return set, nil
}

// firstDefault is the built-in default where no set is stored. It is undecided what it does at the first start on a
// host, unless somebody said so. An earlier version stored nothing of the default, and enforced it.
func (e *Enforcer) firstDefault() policyset.Set {
	switch {
	case e.builtIn.asked != nil:
		return policyset.Default().WithDefault(*e.builtIn.asked)
	case e.directory != "" || e.builtIn.enforcedBefore:
		return policyset.Default()
	}
	return policyset.Default().WithDefault(policyset.Undecided)
}

// Run carries out changes until the context ends. It leaves the table as it is.
func (e *Enforcer) Run(ctx context.Context) error {
	defer close(e.channels.stopped)
	for ctx.Err() == nil {
		select { // who waits for labels comes first, and then what else there is: so nobody delays it for ever
		case first := <-e.channels.waiters:
			e.answer(first)
		default:
		}
		again, stop := e.alarm()
		select {
		case <-ctx.Done():
		case <-e.channels.workloads:
			e.attempt(e.catchUp)
		case files := <-e.channels.files:
			e.follow(files)
		case order := <-e.channels.orders:
			order()
		case first := <-e.channels.waiters:
			e.answer(first)
		case w := <-e.channels.writes:
			e.tableWritten(w)
		case <-again:
			e.again()
		}
		stop()
	}
	return nil
}

// alarm says when to look again without an event: after a failure, to see whether
// something is left of workloads that ended, or whether somebody else changed the
// table.
func (e *Enforcer) alarm() (<-chan time.Time, func() bool) {
	wait := driftPoll
	switch {
	case e.failures.table != nil: // however many events come meanwhile
		wait = e.failures.retryIn(e.now())
	case e.loaded.workloads.endedCount() > 0:
		wait = min(wait, e.ending.wait)
	}
	t := time.NewTimer(wait)
	return t.C, t.Stop
}

// again does what the alarm was for.
func (e *Enforcer) again() {
	if e.failures.table != nil || e.loaded.workloads.endedCount() > 0 {
		e.attempt(e.catchUp)
		return
	}
	e.restore()
	e.retryStorage()
}

// attempt changes the table when nobody waits for the outcome.
func (e *Enforcer) attempt(how func() error) {
	if err := how(); err != nil {
		e.log.Error("the table could not be changed: the previous table stays in force", "error", err)
	}
	e.retryStorage()
}

// answer catches up once for all callers of Sync that wait now.
func (e *Enforcer) answer(first chan error) {
	waiting := []chan error{first}
	for {
		select {
		case next := <-e.channels.waiters:
			waiting = append(waiting, next)
			continue
		default:
		}
		break
	}
	err := e.catchUpTo(whatRan)
	if err == nil && e.arming.isDisarmed() {
		err = errDisarmed
	}
	for _, w := range waiting {
		w <- err // there is room
	}
}

// Sync returns when the table knows the cgroups of thole run that were made before it was
// called, or that cannot be.
func (e *Enforcer) Sync(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case e.channels.waiters <- done:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.channels.stopped:
		return errStopped
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-e.channels.stopped:
		return errStopped
	}
}

// order has a function carried out by Run and waits for it. Once it has begun it
// is waited for in any case: the caller then knows what became of it.
func (e *Enforcer) order(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case e.channels.orders <- func() { f(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-e.channels.stopped:
		return errStopped
	}
	<-done
	return nil
}

// Apply replaces the policy set.
func (e *Enforcer) Apply(ctx context.Context, req api.ApplyRequest) (answer api.ApplyResponse, err error) {
	if e.directory != "" && !req.DryRun {
		return answer, &api.Refusal{Code: http.StatusConflict, Message: fmt.Sprintf(
			"the daemon follows the policy directory %s: change the files there, or start it without --policies. "+
				"Nothing was changed", e.directory)}
	}
	ordered := e.order(ctx, func() {
		if req.DryRun {
			answer, err = e.preview(req)
			e.attempt(e.reconcile) // what was looked at and is watched now is the other set's
		} else {
			answer, err = e.apply(req)
		}
	})
	return answer, errors.Join(ordered, err)
}

// Reload reads the policy directory at once, and loads its set. Without a policy directory it looks at all workloads
// again, and loads the active set for them.
func (e *Enforcer) Reload(ctx context.Context) (answer api.ApplyResponse, err error) {
	ordered := e.order(ctx, func() { answer, err = e.reload() })
	return answer, errors.Join(ordered, err)
}

func (e *Enforcer) reload() (api.ApplyResponse, error) {
	if e.directory == "" {
		return e.replaceBy(e.set)
	}
	files, err := filewatch.ReadPolicies(e.directory)
	if err != nil {
		return api.ApplyResponse{}, e.refuse(err)
	}
	return e.replace(api.SourceDirectory, files, false)
}

// follow takes over what the directory holds now.
func (e *Enforcer) follow(f filewatch.Policies) {
	if f.Err != nil {
		_ = e.refuse(f.Err) // it is logged, and there is nobody else to tell
		return
	}
	if e.failures.set == nil && e.set.Equal(policyset.Set{Source: api.SourceDirectory, Files: f.Files}) {
		return
	}
	_, _ = e.replace(api.SourceDirectory, f.Files, false) // it is logged, too
}

// refuse records that a policy set cannot be used. The one before stays.
func (e *Enforcer) refuse(err error) error {
	e.failures.set = &api.Failure{Time: e.now(), Text: err.Error()}
	e.log.Error("invalid policy set: the last good set stays in force", "error", err)
	e.publish()
	return refusalOf(err, "\nNothing was changed: the last good policy set stays in force.")
}

// refusalOf is a bad set's error as an answer, with its reason if it has one.
func refusalOf(err error, more string) *api.Refusal {
	answer := &api.Refusal{Code: http.StatusUnprocessableEntity, Message: err.Error() + more}
	if r, ok := errors.AsType[*api.Refusal](err); ok {
		answer.Reason = r.Reason
	}
	return answer
}

// requested is the set that a request asks for.
func (e *Enforcer) requested(req api.ApplyRequest) (policyset.Set, error) {
	switch {
	case req.Default && e.set.BuiltIn: // its other documents stay
		return e.set.WithDefault(policyset.Enforced), nil
	case req.Default:
		return policyset.Default(), nil
	}
	set, err := policyset.Parse(api.SourceApplied, policyset.Files(req.Files))
	if err != nil {
		return set, err
	}
	return set.After(e.set, req.AllowEmpty)
}

// apply makes the set that a request asks for the active one.
func (e *Enforcer) apply(req api.ApplyRequest) (api.ApplyResponse, error) {
	set, err := e.requested(req)
	if err != nil {
		return api.ApplyResponse{}, e.refuse(err)
	}
	return e.replaceBy(set)
}

// preview says what a policy set would change.
func (e *Enforcer) preview(req api.ApplyRequest) (api.ApplyResponse, error) {
	set, err := e.requested(req)
	var p plan
	if err == nil {
		p = e.observe(set, everything)
		err = e.compileAnew(&p)
	}
	if err == nil {
		err = e.explain(&p)
	}
	if err != nil {
		return api.ApplyResponse{}, refusalOf(err, "")
	}
	return p.answer(true), nil
}

// replace makes a policy set the active one: it is parsed, compiled and loaded, or
// else nothing changes.
func (e *Enforcer) replace(source string, files []policy.File, allowEmpty bool) (api.ApplyResponse, error) {
	set, err := policyset.Parse(source, files)
	if err == nil {
		set, err = set.After(e.set, allowEmpty)
	}
	if err != nil {
		return api.ApplyResponse{}, e.refuse(err)
	}
	return e.replaceBy(set)
}

// replaceBy makes a valid policy set the active one.
func (e *Enforcer) replaceBy(set policyset.Set) (api.ApplyResponse, error) {
	defer e.publish()
	p, err := e.enforce(set, everything)
	if errors.Is(err, errLimit) {
		return api.ApplyResponse{}, e.refuse(err)
	}
	if err != nil {
		e.log.Error("the policy set could not be loaded: the previous set stays in force", "error", err)
		return api.ApplyResponse{}, err
	}
	if err := e.explain(&p); err != nil {
		return api.ApplyResponse{}, err
	}
	e.failures.set = nil
	e.log.Info("policy set", "source", set.Source, "policies", len(set.Docs.Policies))
	answer := p.answer(false)
	if e.arming.isDisarmed() {
		answer.Changed, answer.Diff, answer.Disarmed = false, "", e.arming.status()
	}
	return answer, e.storeSet(set)
}

// storeSet stores a set as the last good one. If it fails, the set is enforced all the same.
func (e *Enforcer) storeSet(set policyset.Set) error {
	err := e.state.SavePolicies(set)
	e.noteStorage(&e.failures.setStorage, "the policy set is enforced but not stored: it is lost at the next start, "+
		"unless it can be written before", err)
	if err != nil {
		return errors.New(e.failures.setStorage.Text)
	}
	return nil
}

// retryStorage writes again what could not be written, as where the disk was full.
func (e *Enforcer) retryStorage() {
	if e.failures.setStorage == nil && e.failures.tableStorage == nil {
		return
	}
	if e.failures.setStorage != nil {
		_ = e.storeSet(e.set) // it is in the status
	}
	if e.failures.tableStorage != nil {
		e.storeTable()
	}
	e.publish()
}

// noteStorage changes what the status says of a file after it was written, or was not. It is
// logged when that changes.
func (e *Enforcer) noteStorage(failure **api.Failure, what string, err error) {
	switch before := *failure; {
	case err == nil && before != nil:
		e.log.Info("stored, after an earlier failure", "was", before.Text)
		*failure = nil
	case err != nil && before == nil:
		e.log.Error(what, "error", err)
		*failure = &api.Failure{Time: e.now(), Text: fmt.Sprintf("%s: %v", what, err)}
	}
}

// catchUp brings the table to what runs now, of which only what events named is scanned.
func (e *Enforcer) catchUp() error { return e.catchUpTo(whatChanged) }

func (e *Enforcer) catchUpTo(s scope) error {
	defer e.publish()
	_, err := e.enforce(e.set, s)
	e.decideDefault()
	return err
}

// reconcile brings the table to what runs now, all of which is scanned.
func (e *Enforcer) reconcile() error {
	defer e.publish()
	_, err := e.enforce(e.set, allThatRuns)
	return err
}

// enforce plans and commits. Where that fails, it does so again at once, from what is
// loaded now: somebody else was quicker, or netlink failed this time.
func (e *Enforcer) enforce(set policyset.Set, scope scope) (plan, error) {
	p, err := e.planAndCommit(set, scope)
	for again := 1; again < triesAtOnce && err != nil && !errors.Is(err, errLimit); again++ {
		e.log.Warn("the table could not be changed: trying again", "error", err)
		p, err = e.planAndCommit(set, max(scope, allThatRuns))
	}
	if err != nil {
		e.failed(err)
	}
	return p, err
}

func (e *Enforcer) planAndCommit(set policyset.Set, scope scope) (plan, error) {
	if _, err := e.checkTable(); err != nil {
		return plan{}, err
	}
	if e.arming.isDisarmed() {
		if err := e.unload(); err != nil {
			return plan{}, err
		}
	}
	p := e.observe(set, scope)
	if scope <= whatChanged && e.loaded.inSync && p.delta.empty() {
		p.result = e.loaded.result
		e.logConditions(p.found)
		return p, nil
	}
	if scope == everything || !e.advance(&p) {
		if err := e.compileAnew(&p); err != nil {
			return p, err
		}
	}
	err := e.commit(p)
	if err != nil && p.step != nil {
		p.step.Undo(&e.loaded.numbers)
	}
	return p, err
}
