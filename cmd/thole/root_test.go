package main

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// commands returns every command but cobra's own "help".
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, sub := range cmd.Commands() {
		if sub.Name() != "help" {
			all = append(all, commands(sub)...)
		}
	}
	return all
}

// testProcess is a process in which nothing is real.
func testProcess(args ...string) (*process, *bytes.Buffer, *bytes.Buffer) {
	var stdout, stderr bytes.Buffer
	return &process{
		args:    args,
		stdin:   strings.NewReader(""),
		stdout:  &stdout,
		stderr:  &stderr,
		getenv:  func(string) string { return "" },
		environ: func() []string { return nil },
		exec:    func(string, []string, []string) error { return nil },
	}, &stdout, &stderr
}

func TestEveryCommandExplainsItself(t *testing.T) {
	proc, _, _ := testProcess()
	for _, cmd := range commands(newRoot(proc)) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || strings.Contains(cmd.Short, "\n") {
				t.Errorf("Short is no single line without a full stop: %q", cmd.Short)
			}
			if len(cmd.Long) <= len(cmd.Short) {
				t.Errorf("Long says no more than Short: %q", cmd.Long)
			}
			for line := range strings.Lines(cmd.Long) {
				if utf8.RuneCountInString(line) > 83 {
					t.Errorf("a line of Long is too long for a terminal: %q", line)
				}
			}
			if !strings.Contains(cmd.Example+"\n", cmd.CommandPath()+" ") &&
				!strings.Contains(cmd.Example+"\n", cmd.CommandPath()+"\n") {
				t.Errorf("no example of %q: %q", cmd.CommandPath(), cmd.Example)
			}
			if cmd.Runnable() && cmd.Args == nil && cmd.ValidArgsFunction == nil {
				t.Error("arguments are not checked")
			}
		})
	}
}

// TestExamplesParse keeps the examples from naming options that there are not.
func TestExamplesParse(t *testing.T) {
	proc, _, _ := testProcess()
	root := newRoot(proc)
	for _, cmd := range commands(root) {
		for line := range strings.Lines(cmd.Example) {
			_, words, ok := strings.Cut(line, "thole ")
			if !ok {
				continue
			}
			words, _, _ = strings.Cut(words, " >")
			args := strings.Fields(strings.TrimRight(words, ")\n"))
			found, rest, err := root.Find(args)
			if err != nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if err := found.ParseFlags(rest); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		}
	}
}

func TestColour(t *testing.T) {
	for _, test := range []struct {
		name     string
		terminal bool
		env      map[string]string
		want     bool
	}{
		{"terminal", true, nil, true},
		{"pipe", false, nil, false},
		{"NO_COLOR", true, map[string]string{"NO_COLOR": "1"}, false},
		{"dumb terminal", true, map[string]string{"TERM": "dumb"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			proc := &process{terminal: test.terminal, getenv: func(k string) string { return test.env[k] }}
			if got := proc.colour(); got != test.want {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}
