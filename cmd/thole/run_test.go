package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"thole/internal/lookpath"
)

func TestCommandOf(t *testing.T) {
	for _, test := range []struct {
		name       string
		args, want []string
	}{
		{"plain", []string{"-l", "a=b", "curl", "URL"}, []string{"curl", "URL"}},
		{"the command's own options", []string{"-l", "a=b", "ls", "-l"}, []string{"ls", "-l"}},
		{"dash before", []string{"-l", "a=b", "--", "curl", "URL"}, []string{"curl", "URL"}},
		{"dash after, the predecessor's form", []string{"--label=a=b", "curl", "--", "URL"}, []string{"curl", "URL"}},
		{"dash before and after", []string{"-l", "a=b", "--", "grep", "--", "-x"}, []string{"grep", "--", "-x"}},
		{"dash further on", []string{"-l", "a=b", "git", "log", "--", "file"}, []string{"git", "log", "--", "file"}},
		{"two dashes after", []string{"-l", "a=b", "grep", "--", "--", "x"}, []string{"grep", "--", "x"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			proc, _, _ := testProcess()
			cmd := newRun(proc)
			var got []string
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				got = commandOf(args, cmd.ArgsLenAtDash() >= 0)
				return nil
			}
			cmd.SetArgs(test.args)
			if err := cmd.Execute(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("argv (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	for _, d := range []string{first, second, filepath.Join(first, "tool")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for file, mode := range map[string]os.FileMode{"second/tool": 0o755, "second/text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, file), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	path := first + ":" + second
	for _, test := range []struct {
		name, command, path, want string
		err                       error
	}{
		{"a directory of that name is passed over", "tool", path, second + "/tool", nil},
		{"not executable", "text", path, "", fs.ErrPermission},
		{"nowhere", "nothing", path, "", fs.ErrNotExist},
		{"no name", "", path, "", fs.ErrNotExist},
		{"no PATH", "tool", "", "", fs.ErrNotExist},
		{"with a slash PATH does not count", second + "/tool", "", second + "/tool", nil},
		{"a directory", first, path, first, fs.ErrPermission},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := lookpath.Find(test.command, test.path)
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, test.want, test.err)
			}
		})
	}
}

// TestBecome checks that a script without "#!" goes to the shell, as with execvp(3).
func TestBecome(t *testing.T) {
	proc, _, _ := testProcess()
	var calls [][]string
	proc.exec = func(path string, argv, _ []string) error {
		calls = append(calls, append([]string{path}, argv...))
		return syscall.ENOEXEC
	}
	err := become(proc, "/bin/script", []string{"script", "-x"})
	want := [][]string{{"/bin/script", "script", "-x"}, {"/bin/sh", "/bin/sh", "/bin/script", "-x"}}
	if diff := cmp.Diff(want, calls); diff != "" {
		t.Errorf("exec (-want +got):\n%s", diff)
	}
	if e, ok := errors.AsType[exit](err); !ok || e.code != exitNotExecutable {
		t.Errorf("got %v, want exit code %d", err, exitNotExecutable)
	}
}
