package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"thole/watch"
)

// A runner labels processes that ask for it.
//
// The order matters. The table must know the cgroup before the first process is in
// it, so the process is moved last; and a process can end at any moment and its
// pid be given to another, so it is looked at again after it was moved.
type runner struct {
	scopes  *watch.Scopes
	table   Table
	account func(uid uint32) uint32 // whom a uid is charged to
	log     *slog.Logger
	now     func() time.Time

	mu     sync.Mutex // makes counting and creating one step, and guards what follows
	number int        // of the last derived name
	beyond refusedRuns
}

// refusedRuns are how many runs were refused for want of room.
type refusedRuns struct{ runs, runsOfUser, labelSets uint64 }

// An asker is who asks for labels, and whether he still waits for them.
type asker interface {
	caller() (caller, error)
	process() (pid int, err error) // fails when it has ended
	waiting() error                // fails when it has hung up
}

// run labels the process of the asker. If it fails, nothing is left behind.
func (r *runner) run(ctx context.Context, a asker, req RunRequest) (RunResponse, error) {
	run, err := r.admit(a, req)
	if err != nil {
		return RunResponse{}, err
	}
	run, err = r.create(run, req)
	if err != nil {
		return RunResponse{}, err
	}
	if err := r.bring(ctx, a, run); err != nil {
		if left := r.scopes.Discard(run); left != nil {
			r.log.Error("the cgroup of a refused run stays until its processes have ended",
				"cgroup", run.Cgroup.Path, "error", left)
		}
		return RunResponse{}, err
	}
	r.scopes.Settle(run)
	if _, err := a.process(); err != nil {
		return RunResponse{}, err
	}
	r.log.Info("labelled a process", "name", run.Name, "labels", run.Labels.String(), "uid", run.UID)
	return RunResponse{Name: run.Name, Cgroup: run.Cgroup.Path, ID: run.Cgroup.ID, Labels: run.Labels}, nil
}

// admit finds out who asks and with which labels he may run.
func (r *runner) admit(a asker, req RunRequest) (watch.Run, error) {
	if err := checkLabels(req.Labels); err != nil {
		return watch.Run{}, &Refusal{Code: http.StatusBadRequest, Message: err.Error()}
	}
	if req.Name != "" && !runName.MatchString(req.Name) {
		return watch.Run{}, &Refusal{Code: http.StatusBadRequest, Message: fmt.Sprintf(
			"invalid name %q: must be at most 63 letters, digits, - _ and . with a letter or digit first", req.Name)}
	}
	c, err := a.caller()
	if err != nil {
		return watch.Run{}, err
	}
	labels, err := grant(r.table.Grants(), c, req.Labels)
	if err != nil {
		return watch.Run{}, &Refusal{Code: http.StatusForbidden, Message: err.Error()}
	}
	if !r.table.Settings().CountsAny(labels) {
		return watch.Run{}, &Refusal{Code: http.StatusBadRequest, Message: fmt.Sprintf(
			"none of the labels %s counts (identityLabels of the Settings): give at least one that counts", labels)}
	}
	return watch.Run{
		Labels: labels, UID: c.uid, User: c.user, Started: r.now().UTC(),
		Command: c.process, KillOnMove: req.KillOnMove,
	}, nil
}

var (
	runName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	notInName = regexp.MustCompile(`[^A-Za-z0-9_-]+`)
)

// create makes the cgroup under the name asked for, or a free one.
func (r *runner) create(run watch.Run, req RunRequest) (watch.Run, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.room(run); err != nil {
		return run, err
	}
	if req.Name != "" {
		run.Name = req.Name
		made, err := r.scopes.Create(run)
		if errors.Is(err, fs.ErrExist) {
			return run, &Refusal{Code: http.StatusConflict, Message: fmt.Sprintf(
				"a workload named %q runs already: choose another --name, or see `thole get workloads`", run.Name)}
		}
		return made, err
	}
	base := deriveName(req.Command)
	for {
		r.number++
		run.Name = fmt.Sprintf("%s-%d", base, r.number)
		made, err := r.scopes.Create(run)
		if !errors.Is(err, fs.ErrExist) {
			return made, err
		}
	}
}

// room fails when there are as many cgroups, or label sets, as there may be.
func (r *runner) room(run watch.Run) error {
	use, total := r.scopes.Use(run.UID, run.Labels)
	if total >= maxRuns {
		_, total = r.scopes.MostUse() // some may have ended
	}
	user := chargedTo(run.UID, r.account(run.UID))
	switch {
	case total >= maxRuns:
		r.beyond.runs++
		return &Refusal{Code: http.StatusTooManyRequests, Message: fmt.Sprintf(
			"thole run has %d workloads, which is the maximum: end some, see `thole get workloads`", total)}
	case run.UID == 0:
		return nil
	case use.Runs >= maxRunsPerUser:
		r.beyond.runsOfUser++
		return &Refusal{Code: http.StatusTooManyRequests, Message: fmt.Sprintf(
			"%s has %d workloads of thole run, which is the maximum for a user: end some, see `thole get "+
				"workloads`; %d of them ended, and sockets outlive them", user, use.Runs, use.Ended)}
	case !use.Has && use.Labels >= maxLabelSetsPerUser:
		r.beyond.labelSets++
		return &Refusal{Code: http.StatusTooManyRequests, Message: fmt.Sprintf(
			"%s has workloads of thole run with %d different sets of labels, which is the maximum for a user: use "+
				"one of them, or end some, see `thole get workloads`", user, use.Labels)}
	}
	return nil
}

// chargedTo names a user as messages do, with who holds the uid.
func chargedTo(uid, user uint32) string {
	if uid == user {
		return fmt.Sprintf("uid %d", uid)
	}
	return fmt.Sprintf("uid %d, whose subordinate uid %d is,", user, uid)
}

// deriveName makes the first part of a name from a command.
func deriveName(command string) string {
	name := notInName.ReplaceAllString(filepath.Base(command), "-")
	name = strings.TrimLeft(name, "-_")
	if len(name) > 40 {
		name = name[:40]
	}
	if name == "" {
		return "run"
	}
	return name
}

// bring loads the table that knows the cgroup, and moves the process in.
func (r *runner) bring(ctx context.Context, a asker, run watch.Run) error {
	if err := r.table.Sync(ctx); err != nil {
		return fmt.Errorf("the process was not started, because its labels could not be loaded: %w", err)
	}
	if !r.table.Knows(run.Cgroup.ID) {
		return fmt.Errorf("the process was not started: the cgroup %s is not in the table, see `thole status`",
			run.Cgroup.Path)
	}
	if err := a.waiting(); err != nil {
		return err
	}
	pid, err := a.process()
	if err != nil {
		return err
	}
	if err := r.scopes.Move(run, pid); err != nil {
		return err
	}
	return r.checkMoved(a, run, pid)
}

// checkMoved makes sure that the process that was moved is the one that asked: if
// it lives now, its pid was its own when it was moved.
func (r *runner) checkMoved(a asker, run watch.Run, pid int) error {
	if _, err := a.process(); err != nil {
		return err
	}
	in, err := r.scopes.Holds(run, pid)
	if err != nil {
		return err
	}
	if !in {
		return &Refusal{Code: http.StatusConflict, Message: fmt.Sprintf(
			"the process was moved out of the cgroup %s at once: does it send several requests at the same time?",
			run.Cgroup.Path)}
	}
	return nil
}

// connAsker is the asker at the other end of a connection.
type connAsker struct {
	conn *net.UnixConn
	peer *peer
}

func (a connAsker) caller() (caller, error) {
	p := a.peer
	groups := p.groups
	if p.uid == 0 {
		groups = nil
	}
	c := newCaller(p.uid, groups)
	c.process = p.process
	return c, nil
}

func (a connAsker) process() (int, error) { return a.peer.process.PID, a.peer.check() }

func (a connAsker) waiting() error {
	if closed(a.conn) {
		return errors.New("the process that asked has closed the connection")
	}
	return nil
}
