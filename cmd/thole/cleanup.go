package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"thole/internal/daemon"
)

func newCleanup(w *world) *cobra.Command {
	var force bool
	var socket string
	cmd := &cobra.Command{
		Use:   "cleanup [--force] [--socket PATH]",
		Short: "Remove Thole's table and empty cgroups: the way out",
		Long: `Cleanup removes Thole's table, in one transaction, and the cgroups of "thole run"
in which nothing runs. From then on nothing is enforced. Other programs' tables,
rules and cgroups are not touched, nor are policies and what runs.

It needs no daemon. Where one runs it refuses: the daemon would load the table
again. Stop the daemon first, or use --force to remove the table for as long as
the daemon does not notice.

The policies in the state directory stay: the next daemon loads them again.

Exit status: 0 if nothing is left of Thole that can be removed; 1 if not.`,
		Example: "  sudo thole cleanup\n  systemctl stop thole && sudo thole cleanup",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := refuseBesideDaemon(cmd.Context(), socket, force); err != nil {
				return err
			}
			result, err := daemon.Cleanup(cmd.Context())
			if err != nil {
				return asRoot(w, fmt.Errorf("cleaning up: %w", err))
			}
			return writeCleanup(w.stdout, result)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "also while a daemon runs, which will load the table again")
	socketFlag(cmd, &socket)
	return cmd
}

func writeCleanup(out io.Writer, r daemon.CleanupResult) error {
	line := "there was no table"
	if r.Table {
		line = "the table is removed: nothing is enforced any more"
	}
	if _, err := fmt.Fprintln(out, line); err != nil {
		return err
	}
	for _, cgroup := range r.Stay {
		if _, err := fmt.Fprintf(out, "%s stays: processes live in it; they are unlabelled now\n", cgroup); err != nil {
			return err
		}
	}
	return nil
}

// refuseBesideDaemon keeps cleanup from a fight with a daemon.
func refuseBesideDaemon(ctx context.Context, socket string, force bool) error {
	if force {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	s, err := daemon.NewClient(socket).Status(ctx)
	switch {
	case errors.Is(err, daemon.ErrNoDaemon):
		return nil
	case err != nil: // somebody has the socket
		return try(fmt.Errorf("cleaning up: a daemon may be running: %w", err), "thole cleanup --force")
	}
	return try(fmt.Errorf("cleaning up: a daemon runs (process %d) and would load the table again", s.PID),
		fmt.Sprintf("kill %d && thole cleanup", s.PID))
}
