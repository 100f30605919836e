package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
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

// disarmedFile is the file whose presence disarms. Its time of modification says since when.
const disarmedFile = "disarmed"

// disarmed returns since when Thole is disarmed; the zero time if it is not.
func (s *stateDir) disarmed() (time.Time, error) {
	info, err := os.Lstat(filepath.Join(s.dir, disarmedFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fmt.Errorf("finding out whether Thole is disarmed: %v", err)
	}
	return info.ModTime(), nil
}

// disarm makes the file. It has no content, so that a full disk does not keep anybody from turning Thole off.
func (s *stateDir) disarm() error {
	err := os.MkdirAll(s.dir, 0o700)
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(filepath.Join(s.dir, disarmedFile), os.O_CREATE|os.O_WRONLY, 0o600)
	}
	if err == nil {
		err = errors.Join(f.Sync(), f.Close(), s.sync())
	}
	if err != nil {
		return fmt.Errorf("storing that Thole is disarmed: %v", err)
	}
	return nil
}

// arm removes the file. ok is false if there was none.
func (s *stateDir) arm() (ok bool, err error) {
	err = os.Remove(filepath.Join(s.dir, disarmedFile))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err = errors.Join(err, s.sync()); err != nil {
		return true, fmt.Errorf("arming: %v", err)
	}
	return true, nil
}

// heed takes over what the file says. changed is true where that is new: somebody disarmed or armed Thole while this
// daemon did not answer. Where it cannot be looked at, what was known counts: a broken disk must neither end the
// enforcement nor bring it back.
func (e *enforcer) heed() (changed bool) {
	since, err := e.state.disarmed()
	e.unheeded = err
	if err != nil || since.IsZero() && e.unstored {
		return false // what could not be written counts until this daemon ends
	}
	changed = since.IsZero() != e.disarmed.IsZero()
	e.disarmed = since
	switch {
	case !changed:
	case since.IsZero():
		e.log.Info("armed: the policies are enforced again")
	default:
		e.log.Warn("disarmed: nothing is enforced until `thole arm`", "since", since)
	}
	return changed
}

// unload removes the table while Thole is disarmed. What is known of it is forgotten: once armed, all connections are
// judged anew.
func (e *enforcer) unload() error {
	if e.loaded != nil {
		if err := e.load(ruleset.Diff(e.loaded, nil), func() *ruleset.Table { return nil }); err != nil {
			return fmt.Errorf("removing the table: %w", err)
		}
		e.log.Warn("the table is removed: nothing is enforced until `thole arm`")
	}
	e.loaded, e.settled, e.unknownEpoch = nil, false, true
	return nil
}

// Disarm removes the table and loads none until Arm, also after a restart. Where that cannot be stored, it holds for as
// long as this daemon runs.
func (e *enforcer) Disarm(ctx context.Context) (answer api.DisarmResponse, err error) {
	answer = api.DisarmResponse{PID: os.Getpid(), StateDir: e.state.dir, Stored: true}
	ordered := e.order(ctx, func() {
		if storeErr := e.state.disarm(); storeErr != nil {
			answer.Stored, answer.Error = false, storeErr.Error()
			e.unstored, e.disarmed = true, e.now()
			e.log.Error("disarmed, but this could not be stored for the next daemon", "error", storeErr)
		}
		answer.Table = e.loaded != nil
		e.heed()
		err = e.unload()
		e.attempt(e.reconcile) // for what is asked: nothing is loaded
	})
	return answer, errors.Join(ordered, err)
}

// Arm loads the table that the policies and what runs now make.
func (e *enforcer) Arm(ctx context.Context) (answer api.ApplyResponse, err error) {
	ordered := e.order(ctx, func() {
		if _, err = e.state.arm(); err != nil {
			return
		}
		e.unstored = false
		defer e.publish()
		var p plan
		if p, err = e.enforce(e.set, everything); err == nil {
			answer = p.answer(false)
		}
	})
	return answer, errors.Join(ordered, err)
}

// setConditions are what is to be said of the active set.
func (e *enforcer) setConditions() []condition.Condition {
	var list []condition.Condition
	if !e.disarmed.IsZero() {
		list = append(list, condition.Condition{Code: condition.Disarmed, Text: fmt.Sprintf(
			"disarmed since %s by `thole cleanup`: nothing is enforced; to enforce again, run `thole arm`",
			e.disarmed.Format(time.DateTime))})
	}
	if e.unheeded != nil {
		list = append(list, condition.Condition{Code: condition.StateUnreadable, Text: fmt.Sprintf(
			"%v: Thole stays armed or disarmed as before", e.unheeded)})
	}
	if len(e.set.docs.Policies) == 0 && !e.set.allowEmpty {
		list = append(list, condition.Condition{Code: condition.NoPolicies,
			Text: "the active set has no policy, so nothing is restricted. Load policies: `thole apply -f PATH`; " +
				"or confirm that there is to be none: `thole apply --allow-empty -f /dev/null`"})
	}
	return list
}

// DisarmState disarms where no daemon answers: the next one that uses this state directory loads nothing.
func DisarmState(dir string) error { return (&stateDir{dir: dir}).disarm() }

// StateDisarmed reports whether it is so.
func StateDisarmed(dir string) bool {
	since, err := (&stateDir{dir: dir}).disarmed()
	return err == nil && !since.IsZero()
}

// ArmState takes that back. ok is false if it was not disarmed.
func ArmState(dir string) (ok bool, err error) { return (&stateDir{dir: dir}).arm() }
