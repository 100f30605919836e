package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/daemon"
	"thole/internal/printable"
	"thole/watch/filewatch"
)

// applyOptions are the flags of "thole apply".
type applyOptions struct {
	paths         []string
	inventory     string
	dryRun        bool
	allowEmpty    bool
	builtIn       bool
	output        string
	deny          string
	state, socket string
}

func newApply(proc *process) *cobra.Command {
	var o applyOptions
	cmd := &cobra.Command{
		Use:   "apply (-f PATH… | --default) [--dry-run [--inventory FILE]] [--allow-empty] [-o FORMAT] [--deny HOW]",
		Short: "Compile policies into the kernel, or show what would be loaded",
		Long: `Apply replaces the whole policy set: it compiles the policies for the workloads
that run now into one nftables table, and loads the difference in one transaction.
If a file is invalid, nothing changes. If a daemon runs, the daemon does this and
stores the set. If no daemon runs, this command does it once: workloads that start
later are not in the table until the set is applied again.

PATH is a file, a directory (its *.yaml and *.yml files, in the order of their
names), or "-" for standard input.

With --dry-run, apply changes nothing and prints the table as a script for nft.
With --inventory as well, the workloads come from a file of Workload documents
(and from such documents beside the policies). This needs neither root nor a
daemon nor a kernel, and equal files give equal output.

An input without any document of kind Policy is refused, because it is usually a
failed command or a truncated file. To remove all policies on purpose, use
--allow-empty, or "thole cleanup". While the built-in policy is active, LabelGrant
and Workload documents may be applied alone: the built-in policy stays in force
beside them.

With --default, the built-in policy takes the place of all policies, and is
enforced. Documents that are beside it already stay. This also decides after a
first start on a host where labelled workloads ran already: there the built-in
policy only records until somebody applies a set.

While Thole is disarmed ("thole cleanup") the set is stored and not enforced.

With -o json the output is one object: what changed and the warnings; with
--dry-run also the table, as an nft script; with --inventory also the classes.

Warnings go to standard error. Exit status: 0 if the set is enforced, or could be;
1 if not; 2 if the input has no policy.`,
		Example: `  sudo thole apply -f /etc/thole/policies
  sudo thole apply -f web.yaml -f db.yaml --dry-run
  thole apply -f policies --inventory workloads.yaml --dry-run > table.nft
  cat web.yaml | sudo thole apply -f -
  sudo thole apply --default
  sudo thole apply --allow-empty -f /dev/null`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return try(fmt.Errorf("applying policies: %q is given without -f", args[0]), "thole apply -f "+
				strings.Join(args, " -f "))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return apply(cmd, proc, o) },
	}
	f := cmd.Flags()
	f.StringArrayVarP(&o.paths, "file", "f", nil, "policies: the `PATH` of a file or directory, or -; may be given "+
		"several times")
	f.StringVar(&o.inventory, "inventory", "", "take the workloads from this `FILE`; needs --dry-run")
	f.BoolVar(&o.dryRun, "dry-run", false, "change nothing, print the table")
	f.BoolVar(&o.builtIn, "default", false, "enforce the built-in policy")
	f.BoolVar(&o.allowEmpty, "allow-empty", false, "accept an input without any policy: nothing is restricted then")
	fileNames(cmd, "file", "yaml", "yml")
	fileNames(cmd, "inventory", "yaml", "yml")
	outputFlag(cmd, &o.output, "nft", "json")
	denyFlag(cmd, &o.deny)
	stateFlag(cmd, &o.state)
	socketFlag(cmd, &o.socket)
	return cmd
}

func apply(cmd *cobra.Command, proc *process, o applyOptions) error {
	if o.builtIn {
		if len(o.paths) > 0 || o.inventory != "" || o.allowEmpty {
			return try(errors.New("applying policies: --default takes no other set: the built-in policy is one"),
				"thole apply --default")
		}
		return applyLive(cmd, proc, o, nil)
	}
	if len(o.paths) == 0 {
		return try(errors.New("applying policies: no file is given"), "thole apply -f PATH")
	}
	if o.inventory != "" && !o.dryRun {
		return try(errors.New("applying policies: --inventory needs --dry-run: its workloads do not run"),
			strings.Join([]string{"thole apply -f", o.paths[0], "--inventory", o.inventory, "--dry-run"}, " "))
	}
	files, err := readSources(proc, o.paths)
	if errors.Is(err, filewatch.ErrNoPolicyFile) {
		if !o.allowEmpty {
			return exit{exitEmpty, err}
		}
		err = nil
	}
	if err != nil {
		return err
	}
	if o.inventory != "" {
		return planInventory(proc, o, files)
	}
	return applyLive(cmd, proc, o, files)
}

// planInventory prints the table for workloads that are only written down.
func planInventory(proc *process, o applyOptions, files []policy.File) error {
	inventory, err := readFile(o.inventory)
	if err != nil {
		return fmt.Errorf("reading the inventory: %w", err)
	}
	plan, err := daemon.PlanInventory(daemon.Inventory{
		Policies: files, Workloads: inventory, Deny: denyMode(o.deny), AllowEmpty: o.allowEmpty,
	})
	if errors.Is(err, daemon.ErrNotWorkload) {
		return try(err, "thole apply -f POLICIES --inventory WORKLOADS --dry-run")
	}
	if err != nil {
		return err
	}
	printMessages(proc.stderr, "warning", plan.Warnings)
	if o.output == "json" {
		return printable.WriteJSON(proc.stdout, plan)
	}
	_, err = io.WriteString(proc.stdout, printable.Script(plan.Table))
	return err
}

// applyLive lets the daemon apply the files; without one it is done here.
func applyLive(cmd *cobra.Command, proc *process, o applyOptions, files []policy.File) error {
	request := api.ApplyRequest{DryRun: o.dryRun, AllowEmpty: o.allowEmpty, Default: o.builtIn}
	for _, f := range files {
		request.Files = append(request.Files, api.File{Name: f.Name, Data: string(f.Data)})
	}
	answer, err := api.NewClient(o.socket).Apply(cmd.Context(), request)
	if errors.Is(err, api.ErrNoDaemon) {
		answer, err = daemon.ApplyOnce(cmd.Context(), o.config(proc), request)
	} else if err == nil && cmd.Flags().Changed("deny") {
		_ = say(proc.stderr, "thole: --deny %s is not used: the daemon has its own\n", o.deny)
	}
	if err != nil {
		return asRoot(proc, fmt.Errorf("applying policies: %w", err))
	}
	return writeAnswer(proc, o, answer)
}

// config is a daemon's, for one change.
func (o applyOptions) config(proc *process) daemon.Config {
	return daemon.Config{
		State:  o.state,
		Socket: o.socket,
		Deny:   denyMode(o.deny),
		Logger: slog.New(slog.NewTextHandler(proc.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

func writeAnswer(proc *process, o applyOptions, a api.ApplyResponse) error {
	printMessages(proc.stderr, "warning", a.Warnings)
	printConditions(proc.stderr, "problem", a.Problems)
	printConditions(proc.stderr, "notice", a.Notices)
	var err error
	switch {
	case o.output == "json":
		err = printable.WriteJSON(proc.stdout, a)
	case o.dryRun:
		_, err = io.WriteString(proc.stdout, printable.Script(a.Table))
	default:
		err = say(proc.stdout, "%s\n", summary(a))
	}
	if err == nil && a.Disarmed != nil && !o.dryRun {
		return try(exit{exitFailed, fmt.Errorf("applying policies: the set is stored, and nothing is enforced: "+
			"Thole is disarmed since %s",
			a.Disarmed.Format(time.DateTime))}, "thole arm")
	}
	return err
}

// printMessages prints one message a line, as compilers do.
func printMessages(w io.Writer, kind string, messages []api.Message) {
	for _, m := range messages {
		where := ""
		if m.Where != "" {
			where = printable.Line(m.Where) + ": "
		}
		_, _ = io.WriteString(w, where+kind+": "+printable.Text(m.Text)+"\n")
	}
}

// printConditions prints one condition a line, in the form of printMessages.
func printConditions(w io.Writer, kind string, conditions []condition.Condition) {
	var messages []api.Message
	for _, c := range conditions {
		messages = append(messages, api.Message{Where: c.Where, Text: c.Text})
	}
	printMessages(w, kind, messages)
}

func summary(a api.ApplyResponse) string {
	applied, what := "applied", "nothing to change"
	if a.Disarmed != nil {
		applied, what = "stored", "nothing is enforced"
	}
	if a.Changed {
		added, removed := elementChanges(a.Diff)
		what = fmt.Sprintf("+%d −%d elements", added, removed)
	}
	return fmt.Sprintf("%s: %s, %s in %s, %s", applied,
		plural(a.Policies, "policy", "policies"), plural(a.Workloads, "workload", "workloads"),
		plural(a.Classes, "class", "classes"), what)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprint(n, " ", many)
}

// elementChanges counts the elements that a difference adds and removes. Their lines
// are "+ set NAME: KEY" or "+ map NAME: KEY : VALUE" (ruleset.Change); the sets'
// own have a brace for the colon.
func elementChanges(diff string) (added, removed int) {
	for line := range strings.Lines(diff) {
		sign, rest, _ := strings.Cut(line, " ")
		kind, rest, _ := strings.Cut(rest, " ")
		name, _, _ := strings.Cut(rest, " ")
		if kind != "set" && kind != "map" || !strings.HasSuffix(name, ":") {
			continue
		}
		switch sign {
		case "+":
			added++
		case "-":
			removed++
		}
	}
	return added, removed
}
