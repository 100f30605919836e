package main

import (
	"flag"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"thole/compiler"
	"thole/internal/api"
	"thole/internal/daemon"
	"thole/internal/owner"
	"thole/internal/promise"
)

var updatePromise = flag.Bool("update-promise", false, "write testdata/promise.txt anew")

// TestPromise: what scripts and other programs use stays as it is: commands and flags, JSON fields, exit codes,
// counters. A change of the file needs a line in CHANGELOG.md, "Breaks".
func TestPromise(t *testing.T) {
	promise.Hold(t, "testdata/promise.txt", promised(newRoot(&process{})), *updatePromise)
}

func promised(root *cobra.Command) string {
	var b strings.Builder
	writeCommands(&b, root)
	for _, answer := range []struct {
		of    string
		value any
	}{
		{"thole apply -o json", api.ApplyResponse{}},
		{"thole apply --inventory -o json", daemon.InventoryPlan{}},
		{"thole arm -o json", api.ApplyResponse{}},
		{"thole doctor -o json", diagnosis{}},
		{"thole get workloads -o json", []api.Workload{}},
		{"thole get unlabelled -o json", []unlabelled{}},
		{"thole get policies -o json", []api.Policy{}},
		{"thole get classes -o json", []api.Class{}},
		{"thole owner -o json", owner.Answer{}},
		{"thole status -o json", api.Status{}},
		{"thole version -o json", build{}},
	} {
		fmt.Fprintf(&b, "%s\n%s", answer.of, promise.Fields("  ", reflect.TypeOf(answer.value)))
	}
	fmt.Fprintf(&b, "exit codes\n  ok %d\n  failed %d\n  apply without a policy %d\n", exitOK, exitFailed, exitEmpty)
	fmt.Fprintf(&b, "  owner: unlabelled %d\n", exitUnlabelled)
	fmt.Fprintf(&b, "  run: not executable %d\n  run: not found %d\n", exitNotExecutable, exitNotFound)
	fmt.Fprintf(&b, "counters\n")
	result, err := compiler.Compile(compiler.Input{})
	if err != nil {
		return err.Error()
	}
	for _, counter := range result.Table.Counters {
		fmt.Fprintf(&b, "  %s\n", counter)
	}
	return b.String()
}

// writeCommands lists a command and those below it, with their flags.
func writeCommands(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "%s\n", c.CommandPath())
	c.LocalFlags().VisitAll(func(f *pflag.Flag) {
		fmt.Fprintf(b, "  --%s %s", f.Name, f.Value.Type())
		if f.Shorthand != "" {
			fmt.Fprintf(b, ", -%s", f.Shorthand)
		}
		if f.DefValue != "" && f.DefValue != "[]" {
			fmt.Fprintf(b, ", default %s", f.DefValue)
		}
		b.WriteString("\n")
	})
	for _, sub := range c.Commands() {
		writeCommands(b, sub)
	}
}
