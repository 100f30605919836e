package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/state"
	"thole/ruleset"
)

// Thole is disarmed from "thole cleanup" to "thole arm": no table is loaded, whatever the policies say. The file in the
// state directory is what says so, across restarts and reboots; each change of the table looks for it first.
//
// The daemon goes on running: it answers, takes policies and stores them, and knows what runs, so that arming is one
// change of the table.

// errDisarmed refuses "thole run": a process whose labels do not hold must not start.
var errDisarmed = &api.Refusal{
	Code: http.StatusConflict,
	Message: "Thole is disarmed, so nothing is enforced and labels have no effect: " +
		"run `thole arm`, or start the command without thole run",
}

// arming is whether a table is to be loaded.
type arming struct {
	disarmedSince time.Time // zero: Thole is armed
	unstored      bool      // it is disarmed, and that could not be stored
	unreadable    error     // why it cannot be known what the file says
}

func (a *arming) isDisarmed() bool { return !a.disarmedSince.IsZero() }

// read takes over what the file says. changed is true where that is new: somebody disarmed or armed Thole while this
// daemon did not answer. Where the file cannot be read, what was known counts: a broken disk must neither end the
// enforcement nor bring it back.
func (a *arming) read(dir *state.Dir) (changed bool) {
	since, err := dir.Disarmed()
	a.unreadable = err
	if err != nil || since.IsZero() && a.unstored {
		return false // what could not be written counts until this daemon ends
	}
	changed = since.IsZero() == a.isDisarmed()
	a.disarmedSince = since
	return changed
}

// conditions are what is to be said of it.
func (a *arming) conditions() (list []condition.Condition) {
	if a.isDisarmed() {
		list = append(list, condition.Condition{Code: condition.Disarmed, Text: fmt.Sprintf(
			"disarmed since %s by `thole cleanup`: nothing is enforced; to enforce again, run `thole arm`",
			a.disarmedSince.Format(time.DateTime))})
	}
	if a.unreadable != nil {
		list = append(list, condition.Condition{Code: condition.StateUnreadable, Text: fmt.Sprintf(
			"%v: Thole stays armed or disarmed as before", a.unreadable)})
	}
	return list
}

// status is since when Thole is disarmed, as clients see it; nil: it is armed.
func (a *arming) status() *time.Time {
	if !a.isDisarmed() {
		return nil
	}
	since := a.disarmedSince
	return &since
}

// checkDisarmed reads whether Thole is disarmed. changed is true where that is new.
func (e *Enforcer) checkDisarmed() (changed bool) {
	changed = e.arming.read(e.state)
	switch {
	case !changed:
	case e.arming.isDisarmed():
		e.log.Warn("disarmed: nothing is enforced until `thole arm`", "since", e.arming.disarmedSince)
	default:
		e.log.Info("armed: the policies are enforced again")
	}
	return changed
}

// unload removes the table while Thole is disarmed. What is known of it is forgotten: once armed, all connections are
// judged anew.
func (e *Enforcer) unload() error {
	if e.loaded.table != nil {
		if err := e.load(ruleset.Diff(e.loaded.table, nil), func() *ruleset.Table { return nil }); err != nil {
			return fmt.Errorf("removing the table: %w", err)
		}
		e.log.Warn("the table is removed: nothing is enforced until `thole arm`")
	}
	e.loaded.replacedBy(nil)
	e.loaded.epochUnknown = true
	return nil
}

// Disarm removes the table and loads none until Arm, also after a restart. Where that cannot be stored, it holds for as
// long as this daemon runs.
func (e *Enforcer) Disarm(ctx context.Context) (answer api.DisarmResponse, err error) {
	answer = api.DisarmResponse{PID: os.Getpid(), StateDir: e.state.Path(), Stored: true}
	ordered := e.order(ctx, func() {
		if storeErr := e.state.Disarm(); storeErr != nil {
			answer.Stored, answer.Error = false, storeErr.Error()
			e.arming.unstored, e.arming.disarmedSince = true, e.now()
			e.log.Error("disarmed, but this could not be stored for the next daemon", "error", storeErr)
		}
		answer.Table = e.loaded.table != nil
		e.checkDisarmed()
		err = e.unload()
		e.attempt(e.reconcile) // for what is asked: nothing is loaded
	})
	return answer, errors.Join(ordered, err)
}

// Arm loads the table that the policies and what runs now make.
func (e *Enforcer) Arm(ctx context.Context) (answer api.ApplyResponse, err error) {
	ordered := e.order(ctx, func() {
		if _, err = e.state.Arm(); err != nil {
			return
		}
		e.arming.unstored = false
		defer e.publish()
		var p plan
		if p, err = e.enforce(e.set, everything); err == nil {
			answer = p.answer(false)
		}
	})
	return answer, errors.Join(ordered, err)
}
