package e2e

import (
	"fmt"
	"strings"
	"testing"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

// On a host where labelled containers run already, the first start cuts nothing: the built-in default only records,
// also after a restart and beside a grant, until somebody decides.
func TestFirstStartOnALiveHost(t *testing.T) {
	m := bareMachine(t)
	e := engine.StartDocker(t, m.Host)
	image := e.Image("box", nil)
	web := e.Probe("web", "--net=host", "-l", "app=web", image)
	web.Listen("tcp", "127.0.0.1:80")
	db := e.Probe("db", "--net=host", "-l", "app=db", image)
	free := probe.Start(m.In("elsewhere"), "free")
	const calls = 100
	refused := func() (n int) {
		for range calls / 2 {
			for _, who := range []*probe.Process{free, db} {
				if !who.TCP("127.0.0.1:80").Allowed() {
					n++
				}
			}
		}
		return n
	}
	records := func(when string) {
		t.Helper()
		m.until("the default to record "+when, func(s api.Status) bool {
			return s.Default == "audit" && s.BuiltIn && s.Workloads == 2
		})
		before := m.status().Counters["would_deny_same-labels"].Packets
		if n := refused(); n > 0 {
			t.Errorf("%s: %d of %d calls were refused", when, n, calls)
		}
		want := fmt.Sprintf("would have refused %d connections", before+calls)
		m.until(want, func(s api.Status) bool {
			return len(s.Problems) == 1 && s.Problems[0].Code == condition.DefaultAudited &&
				strings.Contains(s.Problems[0].Text, want)
		})
		if code, out := m.exitStatus("", "status"); code != 1 || !strings.Contains(out, "thole apply --default") {
			t.Errorf("%s: status exits %d: %s", when, code, out)
		}
	}
	m.start(followDocker)
	records("after the first start")
	m.kill()
	m.start(followDocker)
	records("after a restart")
	must(t, m.apply("apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\nspec: {users: [nobody], "+
		"labels: {app: [x]}}\n"))
	records("beside a grant")
	code, out := m.exitStatus("", "apply", "--default", "--dry-run")
	if code != 0 || !strings.Contains(out, "table inet") {
		t.Errorf("a dry run exits %d: %s", code, out)
	}
	records("after a dry run")

	enforces := func(when string) {
		t.Helper()
		m.until("the default to be enforced "+when, func(s api.Status) bool {
			return s.Default == "" && s.BuiltIn && s.Healthy() && s.Workloads == 2
		})
		if n := refused(); n != calls {
			t.Errorf("%s: %d of %d calls were refused", when, n, calls)
		}
	}
	if code, out := m.exitStatus("", "apply", "--default"); code != 0 {
		t.Fatalf("apply --default exits %d: %s", code, out)
	}
	enforces("once it is applied")
	if out := m.Shell(m.thole + " get grants -o json 2>/dev/null || cat /run/state/policies.json"); !strings.Contains(
		out, "nobody") {
		t.Errorf("the grant beside the default is lost: %s", out)
	}
	m.kill()
	m.start(followDocker)
	enforces("after a restart")
}

// Where nothing labelled runs, the first start enforces the built-in default at once, and containers that come later
// change nothing about it. --default decides either way.
func TestFirstStartElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		before string // a label of what runs before the first start; "": only something unlabelled
		args   []string
		want   string // Status.Default
	}{
		{"nothing runs", "", nil, ""},
		{"only a tool's labels", "traefik.enable=true", nil, ""},
		{"a workload, and enforce", "app=web", []string{"--default", "enforce"}, ""},
		{"nothing runs, and audit", "", []string{"--default", "audit"}, "audit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := bareMachine(t)
			e := engine.StartDocker(t, m.Host)
			image := e.Image("box", nil)
			args := []string{"--net=host"}
			if tt.before != "" {
				args = append(args, "-l", tt.before)
			}
			e.Probe("first", append(args, image)...)
			m.start(append([]string{followDocker}, tt.args...)...)
			m.until("the mode "+tt.want, func(s api.Status) bool { return s.Default == tt.want && s.BuiltIn })
			e.Probe("second", "--net=host", "-l", "app=db", image).Listen("tcp", "127.0.0.1:80")
			m.until("the second", func(s api.Status) bool { return s.Workloads > 0 && s.Default == tt.want })
			free := probe.Start(m.In("elsewhere"), "free")
			if got := free.TCP("127.0.0.1:80"); got.Allowed() != (tt.want == "audit") {
				t.Errorf("an unlabelled call: %v", got)
			}
			m.kill()
			m.start(followDocker)
			m.until("the mode after a restart", func(s api.Status) bool { return s.Default == tt.want && s.BuiltIn })
		})
	}
}
