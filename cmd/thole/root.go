package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"thole/internal/printable"
)

// execute runs the command that w.args names and returns the exit code.
func execute(ctx context.Context, proc *process) int {
	root := newRoot(proc)
	args := proc.args
	if len(args) > 0 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd) {
		args = printable.Lines(args) // cobra prints the words that it does not understand
	}
	root.SetArgs(args)
	return report(proc, root.ExecuteContext(ctx))
}

func newRoot(proc *process) *cobra.Command {
	root := &cobra.Command{
		Use:   "thole COMMAND",
		Short: "Isolate processes and containers by their labels",
		Long: `Thole is a label firewall. It isolates processes and containers that share this
machine's network from each other by their labels, although they share one address
and one port space. Policies are YAML files. Thole compiles them into one nftables
table, and the kernel decides.`,
		Example: `  thole daemon --policies /etc/thole/policies
  thole run --label app=nginx nginx -g 'daemon off;'
  thole run --label app=nginx curl http://127.0.0.1
  thole apply -f policies --dry-run`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(proc.stdin)
	root.SetOut(proc.stdout)
	root.SetErr(proc.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return try(err, cmd.CommandPath()+" --help")
	})
	root.CompletionOptions.DisableDefaultCmd = true
	root.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	root.AddCommand(
		newApply(proc),
		newArm(proc),
		newCleanup(proc),
		newCompletion(proc),
		newDaemon(proc),
		newDoctor(proc),
		newGet(proc),
		newMan(proc),
		newOwner(proc),
		newPKI(proc),
		newRun(proc),
		newStatus(proc),
		newVersion(proc),
	)
	usageAsWritten(root)
	root.SetUsageTemplate(usageTemplate(root.UsageTemplate()))
	return root
}

// usageTemplate is cobra's without the second usage line of commands that have
// subcommands: their own says it.
func usageTemplate(cobras string) string {
	return strings.Replace(cobras, "{{if .HasAvailableSubCommands}}\n  {{.CommandPath}} [command]{{end}}", "", 1)
}

// usageAsWritten keeps cobra from adding "[flags]" to usage lines.
func usageAsWritten(cmd *cobra.Command) {
	cmd.DisableFlagsInUseLine = true
	for _, sub := range cmd.Commands() {
		usageAsWritten(sub)
	}
}

// unknownCommand refuses the arguments of a command that only has subcommands.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	err := fmt.Errorf("there is no command %q", cmd.CommandPath()+" "+args[0])
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return try(err, cmd.CommandPath()+" "+near[0])
	}
	return try(err, cmd.CommandPath()+" --help")
}

func noArguments(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return try(fmt.Errorf("%s takes no argument, but was given %q", cmd.CommandPath(), args[0]), cmd.CommandPath()+
		" --help")
}

func oneArgument(cmd *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return try(fmt.Errorf("%s takes one argument, but was given %d", cmd.CommandPath(), len(args)), cmd.CommandPath()+
		" --help")
}
