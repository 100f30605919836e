package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func newCompletion(proc *process) *cobra.Command {
	shells := []string{"bash", "fish", "zsh"}
	return &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes thole's commands in a shell",
		Long: `Completion prints a script for bash, fish or zsh. When the shell has loaded it,
the tab key completes commands, options, and the names of workloads and policies
that the daemon knows.`,
		Example: `  source <(thole completion bash)
  thole completion zsh > "${fpath[1]}/_thole"
  thole completion fish > ~/.config/fish/completions/thole.fish`,
		Args:      oneArgument,
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(proc.stdout, true)
			case "fish":
				return root.GenFishCompletion(proc.stdout, true)
			case "zsh":
				return root.GenZshCompletion(proc.stdout)
			}
			return fmt.Errorf("completing for %q: want %s", args[0], strings.Join(shells, ", "))
		},
	}
}
