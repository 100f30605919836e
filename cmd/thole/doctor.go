package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os/exec"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/daemon"
	"thole/internal/doctor"
	"thole/internal/printable"
)

// A diagnosis is what -o json prints.
type diagnosis struct {
	Complete bool             `json:"complete"` // enforcement is, or would be
	Findings []doctor.Finding `json:"findings"`
}

func newDoctor(proc *process) *cobra.Command {
	var output, socket, docker string
	cmd := &cobra.Command{
		Use:   "doctor [-o FORMAT] [--docker HOST] [--socket PATH]",
		Short: "Check that this machine can enforce policies",
		Long: `Doctor checks every feature of the kernel, of cgroups and of nftables that Thole
needs. It tries the features: it loads small tables and sends packets through
them, in a network namespace and a cgroup of its own, which it removes afterwards.
It changes nothing else. For each missing feature, doctor describes the effect and
the repair.

Doctor also names the container engine that the daemon follows or would follow. If
the daemon has the option --docker, give the same one here. It warns of processes
that send for the containers of rootless engines: policies cannot distinguish
these.

Exit status: 0 if enforcement is complete, with or without warnings; 1 if a needed
feature is missing or could not be checked.`,
		Example: "  sudo thole doctor\n  sudo thole doctor -o json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings := examine(cmd.Context(), socket, docker)
			complete := doctor.Complete(findings)
			var err error
			if output == "json" {
				err = printable.WriteJSON(proc.stdout, diagnosis{complete, findings})
			} else {
				err = writeFindings(proc, findings)
			}
			if err == nil && !complete {
				return exit{code: exitFailed}
			}
			return err
		},
	}
	outputFlag(cmd, &output, "text", "json")
	dockerFlag(cmd, &docker)
	socketFlag(cmd, &socket)
	cmd.AddCommand(newDoctorProbe(proc))
	return cmd
}

// newDoctorProbe is what doctor starts in its namespace.
func newDoctorProbe(proc *process) *cobra.Command {
	return &cobra.Command{
		Use:   "probe",
		Short: "Try out what the kernel can do, in this network namespace",
		Long: `Probe loads and deletes tables in the network namespace that it is started in.
Doctor starts it in an empty one, in a cgroup of its own.`,
		Example: "  unshare --net thole doctor probe",
		Hidden:  true,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			findings, err := doctor.Probe(cmd.Context())
			if err != nil {
				return err
			}
			return printable.WriteJSON(proc.stdout, findings)
		},
	}
}

func examine(ctx context.Context, socket, docker string) []doctor.Finding {
	self := func(ctx context.Context) *exec.Cmd {
		cmd := exec.CommandContext(ctx, "/proc/self/exe", "doctor", "probe")
		cmd.Args[0] = "thole"
		return cmd
	}
	return doctor.Examine(ctx, doctor.Machine{
		Table:        tableName,
		Disarmed:     daemon.StateDisarmed(cmp.Or(daemon.StateOf(socket), daemon.DefaultState)),
		Daemon:       api.NewClient(socket),
		Docker:       docker,
		ProbeCommand: self,
	})
}

func writeFindings(proc *process, findings []doctor.Finding) error {
	out := bufio.NewWriter(proc.stdout)
	for _, f := range findings {
		fmt.Fprintf(out, "%s  %-24s %s\n", paint(proc, f.Status), f.Check, printable.Text(f.Found))
		if f.Follows != "" {
			fmt.Fprintf(out, "%8s what follows: %s\n", "", printable.Text(f.Follows))
		}
		if f.Mend != "" {
			fmt.Fprintf(out, "%8s try: %s\n", "", printable.Line(f.Mend))
		}
	}
	verdict := "Nothing is missing: this machine can enforce policies."
	if !doctor.Complete(findings) {
		verdict = "Enforcement is, or would be, INCOMPLETE on this machine."
	}
	fmt.Fprintln(out, verdict)
	return out.Flush()
}

// paint pads a status to a column and colours it, on a terminal.
func paint(proc *process, s doctor.Status) string {
	word := fmt.Sprintf("%-7s", s)
	if !proc.colour() {
		return word
	}
	colour := map[doctor.Status]int{doctor.OK: 32, doctor.Warning: 33}[s]
	if colour == 0 {
		colour = 31
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, word)
}
