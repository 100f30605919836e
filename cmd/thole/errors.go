package main

import (
	"errors"
	"fmt"
	"strings"

	"thole/internal/api"
)

// Exit codes. What "thole run" starts has its own.
const (
	exitOK            = 0
	exitFailed        = 1
	exitEmpty         = 2   // apply: the input has no policy
	exitUnlabelled    = 2   // owner: something is unlabelled or closed
	exitNotExecutable = 126 // run: as env(1)
	exitNotFound      = 127
)

// A hint is an error with the command that mends it.
type hint struct {
	error
	try string
}

func (h hint) Unwrap() error { return h.error }

// try adds to err what the user can do about it.
func try(err error, command string) error { return hint{err, command} }

// asRoot adds to the error of someone who is not root that it may be for that.
func asRoot(proc *process, err error) error {
	if proc.uid == 0 {
		return err
	}
	return try(err, "sudo thole "+strings.Join(proc.args, " "))
}

// An exit is an error with an exit code of its own. Without an error it is silent.
type exit struct {
	code int
	err  error
}

func (e exit) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e exit) Unwrap() error { return e.err }

// report prints err as users see it and returns the exit code that belongs to it.
func report(proc *process, err error) int {
	if err == nil {
		return exitOK
	}
	code := exitFailed
	if e, ok := errors.AsType[exit](err); ok {
		code = e.code
		if e.err == nil {
			return code
		}
	}
	for line := range strings.Lines(oneLine(err.Error(), err, proc.args)) {
		_ = say(proc.stderr, "thole: %s\n", strings.TrimSuffix(line, "\n"))
	}
	if r, ok := errors.AsType[*api.Refusal](err); ok && r.Reason == api.ReasonNoPolicy {
		code = exitEmpty
	}
	if h, ok := errors.AsType[hint](err); ok {
		_ = say(proc.stderr, "try: %s\n", h.try)
	}
	return code
}
