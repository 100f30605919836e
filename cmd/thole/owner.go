package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/owner"
	"thole/internal/printable"
)

func newOwner(proc *process) *cobra.Command {
	var output, socket string
	cmd := &cobra.Command{
		Use:   "owner PID|:PORT|ADDRESS:PORT [-o FORMAT] [--socket PATH]",
		Short: "Say which workload a process, a listener or a connection belongs to, and why",
		Long: `Owner says which workload a process belongs to, with its sockets; or the listeners
on a port; or the listeners and connections at an address of this node. It says
why: the cgroup, and the container, "thole run" or Workload document that labels
it. An address is that of the socket's own end. Where no socket is bound to the
address itself, listeners on all addresses are shown.

A socket belongs to the workload in whose cgroup it was made, wherever its process
is now: this is what the kernel judges. Owner says so if a process has left the
cgroup of its socket.

The sockets are those of TCP and UDP in the daemon's network namespace, so not
those inside containers on a bridge. The sockets of a process, and the processes
of a socket, are known to root, and to the user whose processes they are.

Exit status: 0 if all that was found belongs to workloads; 2 if something is
unlabelled or closed; 1 if nothing was found, or the question cannot be answered.`,
		Example: `  sudo thole owner 4242
  sudo thole owner :5432
  sudo thole owner 127.0.0.1:43210 -o json`,
		Args: oneArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			q, err := owner.ParseQuestion(args[0])
			if err != nil {
				return try(err, "thole owner --help")
			}
			answer, err := q.Ask(ctx, api.NewClient(socket))
			if err != nil {
				return asking("looking for the owner of "+args[0], socket, err)
			}
			if output == "json" {
				err = printable.WriteJSON(proc.stdout, answer)
			} else {
				_, err = io.WriteString(proc.stdout, answer.Text())
			}
			if err == nil && answer.AnyUnlabelled() {
				return exit{code: exitUnlabelled}
			}
			return err
		},
	}
	outputFlag(cmd, &output, "text", "json")
	socketFlag(cmd, &socket)
	return cmd
}
