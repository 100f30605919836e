package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// exitStatus runs a command with a text as its standard input. It returns its exit status and what it wrote.
func (m *machine) exitStatus(stdin string, args ...string) (int, string) {
	m.t.Helper()
	cmd := m.Command(m.thole, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), string(out)
	}
	must(m.t, err)
	return 0, string(out)
}

// An emptyInput is one without any policy, as "thole apply" may be given it by mistake.
type emptyInput struct{ name, stdin, path string }

// emptyInputs are all kinds of them.
func emptyInputs(t *testing.T) []emptyInput {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
		return path
	}
	const comment = "# allow-web: later\n"
	return []emptyInput{
		{"nothing on standard input", "", "-"},
		{"comments on standard input", comment, "-"},
		{"an empty file", "", write("empty.yaml", "")},
		{"a file of comments", "", write("comments.yaml", comment)},
		{"a file with a separator", "", write("separator.yaml", "---\n")},
		{"a directory with comments only", "", filepath.Dir(write("comments/a.yaml", comment))},
		{"a directory with an empty file", "", filepath.Dir(write("empty/a.yaml", ""))},
	}
}

// namesWaysOut checks that a refusal of an empty input names both ways to remove all policies on purpose.
func namesWaysOut(t *testing.T, what, text string) {
	t.Helper()
	if !strings.Contains(text, "thole cleanup") || !strings.Contains(text, "--allow-empty") {
		t.Errorf("%s: the refusal does not name both ways: %s", what, text)
	}
}

// An input without any policy is refused, whatever set is active.
func TestEmptyInputIsRefused(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		m.start()
		m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
		free := probe.Start(m.In("elsewhere"), "free")
		for _, active := range []string{"the built-in default", "an applied set"} {
			for _, input := range emptyInputs(t) {
				if active != "the built-in default" {
					must(t, m.apply(policyFrom("web")))
				}
				code, out := m.exitStatus(input.stdin, "apply", "-f", input.path)
				open := free.TCP("127.0.0.1:5432").Allowed()
				what := fmt.Sprintf("%s, %s", active, input.name)
				switch {
				case old && (code != 0 || !open):
					t.Errorf("%s: exit status %d, open %v: the fault is not there", what, code, open)
				case !old && (code != 2 || open):
					t.Errorf("%s: exit status %d, open %v: %s", what, code, open, out)
				case !old:
					namesWaysOut(t, what, out)
				}
				if old {
					continue
				}
				if dry, _ := m.exitStatus(input.stdin, "apply", "--dry-run", "-f", input.path); dry != 2 {
					t.Errorf("%s: exit status %d of a dry run", what, dry)
				}
			}
		}
	})
}

// Without a daemon it is the same.
func TestEmptyInputWithoutDaemon(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		m.start()
		must(t, m.apply(policyFrom("web")))
		m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
		m.daemon.Kill()
		_ = m.daemon.Wait() // it was killed
		code, out := m.exitStatus("", "apply", "--state", "/run/state", "-f", "-")
		open := probe.Start(m.In("elsewhere"), "free").TCP("127.0.0.1:5432").Allowed()
		if want := map[bool]int{true: 0, false: 2}[old]; code != want || open != old {
			t.Errorf("exit status %d, open %v: %s", code, open, out)
		}
	})
}

// A followed directory never removes the last policy, neither while the daemon runs nor at its start.
func TestEmptyDirectoryKeepsPolicies(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		dir := t.TempDir()
		file := filepath.Join(dir, "policy.yaml")
		must(t, os.WriteFile(file, []byte(policyFrom("web")), 0o644))
		m.start("--policies", dir)
		m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
		free := probe.Start(m.In("elsewhere"), "free")
		denied(t, "before", free.TCP("127.0.0.1:5432"))

		must(t, os.Truncate(file, 0))
		if old {
			nstest.WaitFor(t, 10*time.Second, "the node to be open", func() bool {
				return free.TCP("127.0.0.1:5432").Allowed()
			})
			return
		}
		m.until("the refusal in status", func(s api.Status) bool { return s.LastError != nil })
		code, out := m.exitStatus("", "status")
		if code != 1 {
			t.Errorf("thole status exits %d: %s", code, out)
		}
		namesWaysOut(t, "a truncated file", out)
		denied(t, "with a truncated file", free.TCP("127.0.0.1:5432"))

		must(t, m.daemon.Signal(os.Interrupt))
		must(t, m.daemon.Wait())
		m.start("--policies", dir)
		denied(t, "started with a truncated file", free.TCP("127.0.0.1:5432"))
	})
}

// At a first start the default stays in force where a directory has no policy.
func TestEmptyDirectoryAtFirstStart(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "policy.yaml"), []byte("# later\n"), 0o644))
		m.start("--policies", dir)
		m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
		if open := probe.Start(m.In("elsewhere"), "free").TCP("127.0.0.1:5432").Allowed(); open != old {
			t.Errorf("open: %v", open)
		}
	})
}

const grantForAlice = `
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: alice}
spec: {users: ["1234"], labels: {app: [web]}}
`

// While the built-in default is active, grants may be applied alone; the default stays, also across a restart.
func TestDefaultStaysBesideGrants(t *testing.T) {
	m := newMachine(t)
	m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
	free := probe.Start(m.In("elsewhere"), "free")
	must(t, os.Chmod(filepath.Dir(m.thole), 0o755))
	must(t, m.apply(grantForAlice))
	for _, when := range []string{"applied", "after a restart"} {
		denied(t, when, free.TCP("127.0.0.1:5432"))
		m.until("the default beside the grant", func(s api.Status) bool {
			return s.BuiltIn && s.Policies == 1 && s.Source == api.SourceApplied && s.Healthy()
		})
		out, err := m.In("users").As(1234).Command(m.thole, "run", "-l", "app=web", "--", "true").CombinedOutput()
		if err != nil {
			t.Errorf("%s, a granted run: %v: %s", when, err, out)
		}
		must(t, m.daemon.Signal(os.Interrupt))
		must(t, m.daemon.Wait())
		m.start()
	}
	must(t, m.apply(policyFrom("web")))
	if err := m.apply(grantForAlice); err == nil || !strings.Contains(err.Error(), "--allow-empty") {
		t.Errorf("grants alone, over an applied set: %v", err)
	}
}

// --allow-empty removes all policies on purpose, also for the next daemon.
func TestAllowEmpty(t *testing.T) {
	m := newMachine(t)
	m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
	free := probe.Start(m.In("elsewhere"), "free")
	if code, out := m.exitStatus("", "apply", "--allow-empty", "-f", "-"); code != 0 {
		t.Fatalf("exit status %d: %s", code, out)
	}
	for range 2 {
		allowed(t, "without policies", free.TCP("127.0.0.1:5432"))
		m.until("a healthy status", func(s api.Status) bool { return s.Policies == 0 && s.Healthy() })
		must(t, m.daemon.Signal(os.Interrupt))
		must(t, m.daemon.Wait())
		m.start()
	}
}

// Under traffic, while each kind of empty input arrives again and again, no forbidden call is let through.
func TestEmptyInputUnderTraffic(t *testing.T) {
	const calls = 10_000 // of each half
	t.Run("apply", func(t *testing.T) {
		m := newMachine(t)
		must(t, m.apply(policyFrom("web")))
		inputs := emptyInputs(t)
		underTraffic(t, m, calls, func(n int) {
			input := inputs[n%len(inputs)]
			if code, out := m.exitStatus(input.stdin, "apply", "-f", input.path); code != 2 {
				t.Errorf("%s: exit status %d: %s", input.name, code, out)
			}
		}, len(inputs))
	})
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		file, good := filepath.Join(dir, "policy.yaml"), []byte(policyFrom("web"))
		must(t, os.WriteFile(file, good, 0o644))
		m := newMachine(t, "--policies", dir)
		arrivals := []func(){
			func() { must(t, os.Truncate(file, 0)) },
			func() { must(t, os.WriteFile(file, []byte("# none\n"), 0o644)) },
			func() { must(t, os.Remove(file)) },
			func() {
				must(t, os.WriteFile(file+".new", nil, 0o644))
				must(t, os.Rename(file+".new", file))
			},
		}
		underTraffic(t, m, calls, func(n int) {
			if n%2 == 1 {
				must(t, os.WriteFile(file, good, 0o644))
				m.until("the good set", func(s api.Status) bool { return s.LastError == nil })
				return
			}
			arrivals[n/2%len(arrivals)]()
			m.until("the refusal", func(s api.Status) bool { return s.LastError != nil })
		}, 2*len(arrivals))
	})
}

// underTraffic makes forbidden calls while inputs arrive, each at least once.
func underTraffic(t *testing.T, m *machine, calls int, arrive func(n int), kinds int) {
	t.Helper()
	m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
	var through atomic.Int64
	var callers sync.WaitGroup
	for i := range 4 {
		caller := probe.Start(m.In("elsewhere"), fmt.Sprintf("caller-%d", i))
		callers.Go(func() {
			for range calls / 4 {
				if caller.TCP("127.0.0.1:5432").Allowed() {
					through.Add(1)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { callers.Wait(); close(done) }()
	arrived := 0
	for calling := true; calling || arrived < kinds; arrived++ {
		arrive(arrived)
		select {
		case <-done:
			calling = false
		default:
		}
	}
	<-done
	t.Logf("%d inputs arrived under %d forbidden calls", arrived, calls)
	if n := through.Load(); n != 0 {
		t.Errorf("%d of %d forbidden calls were let through", n, calls)
	}
}
