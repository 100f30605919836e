package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"thole/compiler"
	"thole/internal/daemon"
)

// A choice is a flag that takes one of a few words; the first is the default.
type choice struct {
	value *string
	words []string
}

func (c choice) String() string { return *c.value }
func (c choice) Type() string   { return "string" }

func (c choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		return fmt.Errorf("want %s", strings.Join(c.words, ", "))
	}
	*c.value = s
	return nil
}

func choiceFlag(cmd *cobra.Command, value *string, name, short, usage string, words ...string) {
	*value = words[0]
	cmd.Flags().VarP(choice{value, words}, name, short, usage+": "+strings.Join(words, ", "))
	completeFlag(cmd, name, words...)
}

func outputFlag(cmd *cobra.Command, value *string, words ...string) {
	choiceFlag(cmd, value, "output", "o", "the output's `FORMAT`", words...)
}

func denyFlag(cmd *cobra.Command, value *string) {
	choiceFlag(cmd, value, "deny", "", "`HOW` to answer a denied connection", "default", "drop", "reject")
}

func dockerFlag(cmd *cobra.Command, value *string) {
	const usage = "the `HOST` of Docker's or Podman's API (unix:///run/docker.sock), or off"
	cmd.Flags().StringVar(value, "docker", "", usage)
	completeFlag(cmd, "docker", daemon.DockerOff, "unix:///var/run/docker.sock", "unix:///run/podman/podman.sock")
}

func denyMode(word string) compiler.DenyMode {
	switch word {
	case "drop":
		return compiler.DenyDrop
	case "reject":
		return compiler.DenyReject
	default:
		return compiler.DenyDefault
	}
}

func completeFlag(cmd *cobra.Command, name string, words ...string) {
	complete := cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err) // there is no such flag
	}
}

// noFileCompletion keeps the shell from offering file names for flags that take none.
func noFileCompletion(cmd *cobra.Command, names ...string) {
	for _, name := range names {
		completeFlag(cmd, name)
	}
}

// fileNames lets the shell offer files with these extensions for a flag.
func fileNames(cmd *cobra.Command, name string, extensions ...string) {
	if err := cmd.MarkFlagFilename(name, extensions...); err != nil {
		panic(err) // there is no such flag
	}
}

// dirNames lets the shell offer directories for a flag.
func dirNames(cmd *cobra.Command, name string) {
	if err := cmd.MarkFlagDirname(name); err != nil {
		panic(err) // there is no such flag
	}
}
