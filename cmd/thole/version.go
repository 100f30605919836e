package main

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"thole/internal/printable"
)

// version is set by the Makefile (-ldflags -X); else Go's own stamp counts.
var version string

// A build says what this program was built from.
type build struct {
	Version  string `json:"version" yaml:"version"`
	Commit   string `json:"commit,omitempty" yaml:"commit,omitempty"`
	Modified bool   `json:"modified" yaml:"modified"`
	Go       string `json:"go" yaml:"go"`
}

func newVersion(proc *process) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "version [-o FORMAT]",
		Short: "Print the version of this program",
		Long: `Version prints the version and the commit that this program was built from, and
the version of Go that built it. "modified" means that the sources had changes
which are in no commit.`,
		Example: "  thole version\n  thole version -o json",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			b := buildOf(debug.ReadBuildInfo())
			if output == "json" {
				return printable.WriteJSON(proc.stdout, b)
			}
			return say(proc.stdout, "%s\n", b)
		},
	}
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func buildOf(info *debug.BuildInfo, ok bool) build {
	b := build{Version: "unknown", Go: runtime.Version()}
	if !ok {
		return b
	}
	b.Version = cmp.Or(version, info.Main.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

func (b build) String() string {
	s := "thole " + b.Version
	if b.Commit != "" {
		s += " commit " + b.Commit
	}
	if b.Modified {
		s += " (modified)"
	}
	return s + " " + b.Go
}

// short is the version with as much of the commit as people need.
func (b build) short() string {
	if b.Commit == "" {
		return b.Version
	}
	return b.Version + "+" + b.Commit[:min(len(b.Commit), 12)]
}
