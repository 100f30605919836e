package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"thole/compiler/inventory"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/daemon"
	"thole/internal/printable"
)

func newGet(proc *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KIND",
		Short: "List workloads, policies, classes or unlabelled listeners",
		Long: `Get lists what the daemon knows: the workloads that run now, the policies of the
active set, the classes, which are groups of workloads that no policy tells apart,
or the listeners that belong to no workload.

If no daemon runs, get (but for "get unlabelled") computes the list from the last
policy set and the workloads that run now, and says so; class numbers then differ
from those of the loaded table.`,
		Example: `  thole get workloads
  thole get policies -o wide
  thole get classes -o json`,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newGetOf(proc, workloadListing()),
		newGetUnlabelled(proc),
		newGetOf(proc, policyListing()),
		newGetOf(proc, classListing()),
	)
	return cmd
}

// A listing is how one kind of thing is fetched and printed.
type listing[T any] struct {
	kind          string // "workloads"
	long, example string
	fetch         func(*api.Client, context.Context) ([]T, error)
	offline       func(daemon.Listing) []T
	name          func(T) string
	columns       []column[T]
	yaml          func(io.Writer, []T) error // nil: the keys of JSON
}

// A column of a table; wide ones are shown with -o wide only.
type column[T any] struct {
	title string
	wide  bool
	cell  func(T) string
}

func workloadListing() listing[api.Workload] {
	return listing[api.Workload]{
		kind: "workloads",
		long: `Get workloads lists the labelled cgroups of this node. The columns INGRESS and
EGRESS name the policies that isolate a workload in this direction. Without such a
policy the direction is not restricted.

STATE is "open" if no enforced policy selects the workload; "isolated" if one
does; "partial" if one does and not everything is enforced, with the codes of the
conditions ("thole status" has their texts); and "ended" if the cgroup is gone and
sockets outlive it. Those that ended come last; "thole status" counts them apart.

-o yaml prints the workloads that have not ended as Workload documents, with who
gave each label (labelSources). It is an inventory: "thole apply --inventory FILE
--dry-run" tries policies with it, without this node.`,
		example: "  thole get workloads\n  thole get workloads web -o yaml",
		fetch:   (*api.Client).Workloads,
		offline: func(l daemon.Listing) []api.Workload { return l.Workloads },
		name:    func(w api.Workload) string { return w.Name },
		yaml:    writeInventory,
		columns: []column[api.Workload]{
			{"NAME", false, func(w api.Workload) string { return w.Name }},
			{"KIND", false, func(w api.Workload) string { return w.Kind }},
			{"STATE", false, func(w api.Workload) string { return w.StateText() }},
			{"LABELS", false, func(w api.Workload) string { return policy.Labels(w.Labels).String() }},
			{"INGRESS", false, func(w api.Workload) string { return strings.Join(w.Ingress, ",") }},
			{"EGRESS", false, func(w api.Workload) string { return strings.Join(w.Egress, ",") }},
			{"CLASS", true, classNumber},
			{"CGROUP", true, func(w api.Workload) string { return w.Cgroup }},
			{"NETWORKS", true, func(w api.Workload) string { return strings.Join(w.Networks, ", ") }},
			{"ID", true, func(w api.Workload) string { return strconv.FormatUint(w.ID, 10) }},
			{"FROM", true, func(w api.Workload) string { return w.Position }},
		},
	}
}

func policyListing() listing[api.Policy] {
	return listing[api.Policy]{
		kind: "policies",
		long: `Get policies lists the active policy set: what each policy isolates, how many
rules it has, and how many of the workloads that run now it selects. A policy
that selects nothing is often a mistake.`,
		example: "  thole get policies\n  thole get policies -o wide",
		fetch:   (*api.Client).Policies,
		offline: func(l daemon.Listing) []api.Policy { return l.Policies },
		name:    func(p api.Policy) string { return p.Name },
		columns: []column[api.Policy]{
			{"NAME", false, func(p api.Policy) string { return p.Name }},
			{"ISOLATES", false, isolates},
			{"ENFORCEMENT", false, enforcement},
			{"SELECTS", false, func(p api.Policy) string { return strconv.Itoa(p.Selected) }},
			{"ALLOW", true, func(p api.Policy) string { return strconv.Itoa(p.Rules) }},
			{"DENY", true, func(p api.Policy) string { return strconv.Itoa(p.Denies) }},
			{"FROM", true, func(p api.Policy) string { return p.Position }},
		},
	}
}

func classListing() listing[api.Class] {
	return listing[api.Class]{
		kind: "classes",
		long: `Get classes lists the classes of the loaded table. Workloads that no policy of
the set tells apart are in one class; the table's maps contain classes.`,
		example: "  thole get classes\n  thole get classes -o json",
		fetch:   (*api.Client).Classes,
		offline: func(l daemon.Listing) []api.Class { return l.Classes },
		name:    func(c api.Class) string { return strconv.FormatUint(uint64(c.Number), 10) },
		columns: []column[api.Class]{
			{"CLASS", false, func(c api.Class) string { return strconv.FormatUint(uint64(c.Number), 10) }},
			{"WORKLOADS", false, func(c api.Class) string { return strings.Join(c.Workloads, ",") }},
			{"INGRESS", false, func(c api.Class) string { return strings.Join(c.Ingress, ",") }},
			{"EGRESS", false, func(c api.Class) string { return strings.Join(c.Egress, ",") }},
			{"LABELS", true, func(c api.Class) string { return labelSets(c.Labels) }},
		},
	}
}

func newGetOf[T any](proc *process, l listing[T]) *cobra.Command {
	var output, socket, state string
	cmd := &cobra.Command{
		Use:     l.kind + " [NAME…] [-o FORMAT] [--socket PATH] [--state DIR]",
		Short:   "List " + l.kind,
		Long:    l.long,
		Example: l.example,
		RunE: func(cmd *cobra.Command, names []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			items, err := l.fetch(api.NewClient(socket), ctx)
			if errors.Is(err, api.ErrNoDaemon) {
				_ = say(proc.stderr, "thole: no daemon answers at %s: "+
					"this list is computed from the last policy set and the workloads that run now\n", socket)
				var all daemon.Listing
				all, err = daemon.List(daemon.Config{State: state})
				items = l.offline(all)
			}
			if err != nil {
				return asRoot(proc, fmt.Errorf("listing %s: %w", l.kind, err))
			}
			if items, err = l.pick(items, names); err != nil {
				return err
			}
			return l.write(proc, items, output)
		},
		ValidArgsFunction: func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return l.completions(cmd.Context(), socket), cobra.ShellCompDirectiveNoFileComp
		},
	}
	outputFlag(cmd, &output, "table", "wide", "json", "yaml")
	socketFlag(cmd, &socket)
	stateFlag(cmd, &state)
	return cmd
}

// pick returns the items with these names; all, if there are no names.
func (l listing[T]) pick(items []T, names []string) ([]T, error) {
	if len(names) == 0 {
		return items, nil
	}
	for _, name := range names {
		if !slices.ContainsFunc(items, func(t T) bool { return l.isNamed(t, name) }) {
			return nil, try(fmt.Errorf("listing %s: there is none with the name %q", l.kind, name), "thole get "+l.kind)
		}
	}
	return slices.DeleteFunc(items, func(t T) bool {
		return !slices.ContainsFunc(names, func(name string) bool { return l.isNamed(t, name) })
	}), nil
}

// isNamed reports whether this is an item's name, as it is or as it is printed and completed.
func (l listing[T]) isNamed(t T, name string) bool {
	return l.name(t) == name || printable.Cell(l.name(t)) == name
}

func (l listing[T]) write(proc *process, items []T, output string) error {
	switch output {
	case "json":
		return printable.WriteJSON(proc.stdout, nonNil(items))
	case "yaml":
		if l.yaml != nil {
			return l.yaml(proc.stdout, items)
		}
		return printable.WriteYAML(proc.stdout, nonNil(items))
	}
	if len(items) == 0 {
		return say(proc.stderr, "There are no %s.\n", l.kind)
	}
	columns := slices.DeleteFunc(slices.Clone(l.columns), func(c column[T]) bool { return c.wide && output != "wide" })
	var header []string
	for _, c := range columns {
		header = append(header, c.title)
	}
	var rows [][]string
	for _, item := range items {
		var row []string
		for _, c := range columns {
			row = append(row, c.cell(item))
		}
		rows = append(rows, row)
	}
	return printable.WriteTable(proc.stdout, header, rows)
}

// completions are the names that the daemon knows; none, if it does not answer.
func (l listing[T]) completions(ctx context.Context, socket string) []string {
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	items, err := l.fetch(api.NewClient(socket), ctx)
	if err != nil {
		return nil
	}
	var names []string
	for _, item := range items {
		names = append(names, printable.Cell(l.name(item)))
	}
	return names
}

// nonNil makes an empty list of none, which JSON would call null.
func nonNil[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}

// writeInventory writes workloads as documents.
func writeInventory(w io.Writer, workloads []api.Workload) error {
	return inventory.Write(w, api.Inventory(workloads))
}

// classNumber is empty where a workload is in no class, or it is not known in which.
func classNumber(w api.Workload) string {
	if w.Class == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(w.Class), 10)
}

func isolates(p api.Policy) string {
	var directions []string
	if p.Ingress {
		directions = append(directions, "ingress")
	}
	if p.Egress {
		directions = append(directions, "egress")
	}
	return strings.Join(directions, ",")
}

func enforcement(p api.Policy) string {
	if p.Audit {
		return "audit"
	}
	return "enforce"
}

func labelSets(sets []map[string]string) string {
	var out []string
	for _, set := range sets {
		out = append(out, policy.Labels(set).String())
	}
	return strings.Join(out, " ")
}
