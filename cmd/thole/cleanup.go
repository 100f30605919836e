package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/daemon"
)

// cleanupOptions are the flags of "thole cleanup".
type cleanupOptions struct {
	state, socket string
	force         bool
}

func newCleanup(proc *process) *cobra.Command {
	var o cleanupOptions
	cmd := &cobra.Command{
		Use:   "cleanup [--force] [--socket PATH] [--state DIR]",
		Short: "Turn Thole off: remove its table, and keep it removed",
		Long: `Cleanup disarms Thole: it removes Thole's table, in one transaction, the routes
of --local-routes, and the empty cgroups of "thole run". From then on nothing is
enforced. Until "thole arm", nothing loads a table: the daemon goes on running
without one, and a daemon that systemd starts again, also after a reboot, loads
none.

Cleanup does not touch other programs' tables, rules and cgroups, nor the policies
and the processes. While Thole is disarmed, "thole apply" stores policies without
enforcing them, "thole run" starts nothing, and "thole status" says "disarmed" and
exits 1.

Cleanup needs no daemon. A daemon of an older version cannot be disarmed and would
load the table again: stop it first. With --force, cleanup removes the table
anyway, until that daemon loads it again.

Exit status: 0 if everything that can be removed is removed, and Thole is
disarmed; 1 if not.`,
		Example: "  sudo thole cleanup\n  sudo thole cleanup && systemctl stop thole",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.state = stateOf(cmd, o.state, o.socket)
			removed, notDisarmed := o.disarm(cmd.Context(), proc)
			if notDisarmed != nil && !o.force {
				return notDisarmed
			}
			result, err := daemon.Cleanup(cmd.Context())
			if err != nil {
				return asRoot(proc, fmt.Errorf("cleaning up: %w", err))
			}
			result.Table = result.Table || removed
			if err := writeCleanup(proc.stdout, result); err != nil || notDisarmed != nil {
				return errors.Join(err, notDisarmed)
			}
			return say(proc.stdout,
				"disarmed: no daemon loads it again, nor does a reboot. To enforce again: thole arm\n")
		},
	}
	cmd.Flags().BoolVar(&o.force, "force", false, "remove the table even if the daemon cannot be disarmed")
	stateFlag(cmd, &o.state)
	socketFlag(cmd, &o.socket)
	return cmd
}

// disarm has the daemon load nothing any more, and the daemons that come. It reports whether the daemon removed the
// table.
func (o cleanupOptions) disarm(ctx context.Context, proc *process) (removed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	answer, err := api.NewClient(o.socket).Disarm(ctx)
	refusal, refused := errors.AsType[*api.Refusal](err)
	switch {
	case err == nil && answer.Stored:
		return answer.Table, say(proc.stdout, "the daemon (process %d) is disarmed and goes on running\n", answer.PID)
	case err == nil:
		return answer.Table, fmt.Errorf("cleaning up: the daemon (process %d) is disarmed, but the next one will "+
			"not be: %s", answer.PID, answer.Error)
	case refused && refusal.Code == http.StatusNotFound:
		return false, try(errors.New("cleaning up: the daemon is of an older version, cannot be disarmed, and would "+
			"load the table again"),
			"systemctl stop thole && thole cleanup")
	case refused:
		return false, asRoot(proc, fmt.Errorf("cleaning up: %w", err))
	case !errors.Is(err, api.ErrNoDaemon): // it hangs: it finds the file when it works again
		if err := say(proc.stderr, "thole: the daemon does not answer: %s\n", err.Error()); err != nil {
			return false, err
		}
	}
	if err := daemon.DisarmState(o.state); err != nil {
		return false, asRoot(proc, fmt.Errorf("cleaning up: %w", err))
	}
	return false, say(proc.stdout, "daemons whose state directory is %s are disarmed; for another one, use --state\n",
		o.state)
}

func writeCleanup(out io.Writer, r daemon.CleanupResult) error {
	line := "there is no table: nothing is enforced"
	if r.Table {
		line = "the table is removed: nothing is enforced any more"
	}
	if err := say(out, "%s\n", line); err != nil {
		return err
	}
	for _, cgroup := range r.Stay {
		if err := say(out, "%s stays, because processes run in it; they are unlabelled now\n", cgroup); err != nil {
			return err
		}
	}
	return nil
}
