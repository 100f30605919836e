package main

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/daemon"
)

func newArm(proc *process) *cobra.Command {
	var state, socket string
	cmd := &cobra.Command{
		Use:   "arm [--socket PATH] [--state DIR]",
		Short: "Enforce again after \"thole cleanup\"",
		Long: `Arm undoes "thole cleanup": the daemon compiles the last policy set for the
workloads that run now, and loads the table. If no daemon runs, the next one does.

Connections that were opened while Thole was disarmed are judged at their next
packet, like all others. The labels of processes that "thole run" started before
the cleanup are in force again.

Exit status: 0 if the policies are enforced, or will be by the next daemon; 1 if
not.`,
		Example: "  sudo thole arm && thole status",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := api.NewClient(socket).Arm(cmd.Context())
			if err == nil {
				return say(proc.stdout, "armed: %s, %s in %s are enforced\n",
					plural(answer.Policies, "policy", "policies"),
					plural(answer.Workloads, "workload", "workloads"), plural(answer.Classes, "class", "classes"))
			}
			if refusal, ok := errors.AsType[*api.Refusal](err); ok && refusal.Code == http.StatusNotFound {
				return try(errors.New("arming: the daemon is of an older version, which is never disarmed"),
					"systemctl restart thole")
			}
			if !errors.Is(err, api.ErrNoDaemon) {
				return asRoot(proc, fmt.Errorf("arming: %w", err))
			}
			state = stateOf(cmd, state, socket)
			was, err := daemon.ArmState(state)
			if err != nil {
				return asRoot(proc, fmt.Errorf("arming: %w", err))
			}
			if !was {
				return say(proc.stdout, "Thole was not disarmed in %s, and no daemon runs: systemctl start thole\n",
					state)
			}
			return say(proc.stdout, "armed: no daemon runs; the next one with the state directory %s enforces: "+
				"systemctl start thole\n", state)
		},
	}
	stateFlag(cmd, &state)
	socketFlag(cmd, &socket)
	return cmd
}
