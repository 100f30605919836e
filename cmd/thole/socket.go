package main

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/daemon"
)

// tableName is the name of our nftables table, of family inet.
const tableName = "thole"

// completionTimeout is how long a shell waits for names.
const completionTimeout = 500 * time.Millisecond

// answerTimeout is how long a daemon may take to say what it knows. One that hangs
// is then reported, and not waited for.
const answerTimeout = 10 * time.Second

func socketFlag(cmd *cobra.Command, socket *string) {
	cmd.Flags().StringVar(socket, "socket", daemon.DefaultSocket, "the `PATH` of the daemon's socket")
	fileNames(cmd, "socket")
}

func stateFlag(cmd *cobra.Command, state *string) {
	cmd.Flags().StringVar(state, "state", daemon.DefaultState, "the `DIR` in which the daemon keeps its state")
	dirNames(cmd, "state")
}

// stateOf is the state directory that a command works on without a daemon: the one that is given, else that of the last
// daemon at the socket, else the usual one.
func stateOf(cmd *cobra.Command, state, socket string) string {
	if f := cmd.Flags().Lookup("state"); f != nil && f.Changed {
		return state
	}
	return cmp.Or(daemon.StateOf(socket), state)
}

// asking says what was being done when the daemon at the socket failed to answer.
func asking(what, socket string, err error) error {
	if errors.Is(err, api.ErrNoDaemon) {
		return try(fmt.Errorf("%s: no daemon answers at %s", what, socket), "thole daemon --help")
	}
	return fmt.Errorf("%s: %w", what, err)
}
