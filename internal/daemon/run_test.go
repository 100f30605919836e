package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/ruleset"
)

func TestRunLabelsTheCaller(t *testing.T) {
	b := newBench(t)
	// The table knows the cgroup while nobody is in it yet.
	b.kernel.Change(func() {
		b.kernel.Before = func(c ruleset.Change) {
			if id := b.host.CgroupID("thole.slice/web.scope"); id != 0 && knows(c.Want, id) && !knows(c.Have, id) {
				if pids := b.host.In("thole.slice/web.scope").Pids(); len(pids) > 0 {
					t.Errorf("processes %v were in the cgroup before the table knew it", pids)
				}
			}
		}
	})
	p := b.run("web", map[string]string{"app": "web"})
	want := api.RunResponse{Name: "web", Cgroup: "thole.slice/web.scope", ID: b.host.CgroupID("thole.slice/web.scope"),
		Labels: map[string]string{"app": "web"}}
	if diff := cmp.Diff(want, p.Answer); diff != "" {
		t.Errorf("answer (-want +got)\n%s", diff)
	}
	if pids := b.host.In("thole.slice/web.scope").Pids(); !slices.Equal(pids, []int{p.cmd.Process.Pid}) {
		t.Errorf("in the cgroup are %v; want %d", pids, p.cmd.Process.Pid)
	}
	if !b.knows(want.ID) {
		t.Error("the table does not know the cgroup")
	}
	got, err := b.client.Workloads(context.Background())
	if err != nil || len(got) != 1 {
		t.Fatalf("workloads %v, %v", got, err)
	}
	wantWorkload := api.Workload{Name: "web", Kind: "run", State: api.StateIsolated,
		Labels: map[string]string{"app": "web"},
		Facts:  map[string]string{"thole/kind": "run", "thole/uid": "0", "thole/user": "root"},
		Sources: map[string]policy.Source{"app": policy.SourcePerson, "thole/kind": policy.SourceDaemon,
			"thole/uid": policy.SourceDaemon, "thole/user": policy.SourceDaemon},
		Cgroup: want.Cgroup, ID: want.ID, Class: got[0].Class, Ingress: []string{"same-labels"},
		Egress: []string{"same-labels"}, Position: "-"}
	if diff := cmp.Diff(wantWorkload, got[0]); diff != "" || got[0].Class == 0 {
		t.Errorf("workload (-want +got)\n%s", diff)
	}

	p.end()
	b.until("the end of the workload", func() bool { return b.empty() && b.status().Workloads == 0 })
	b.until("the table without the cgroup", func() bool { return !b.knows(want.ID) })
}

func TestRunNames(t *testing.T) {
	b := newBench(t)
	labels := map[string]string{"app": "web"}
	b.run("web", labels)
	p := startClient(t, 0, b.config.Socket, api.RunRequest{Name: "web", Labels: labels})
	if p.Code != http.StatusConflict || !strings.Contains(p.Error, "--name") {
		t.Errorf("a second one of the name: %d %s", p.Code, p.Error)
	}
	for _, command := range []string{"/usr/sbin/nginx", "/usr/sbin/nginx", "../..", ""} {
		p := startClient(t, 0, b.config.Socket, api.RunRequest{Command: command, Labels: labels})
		if p.Error != "" {
			t.Errorf("command %q: %s", command, p.Error)
		}
	}
	var names []string
	workloads, err := b.client.Workloads(context.Background())
	for _, w := range workloads {
		names = append(names, w.Name)
	}
	if diff := cmp.Diff([]string{"nginx-1", "nginx-2", "run-3", "run-4", "web"}, names); err != nil || diff != "" {
		t.Errorf("%v, names (-want +got)\n%s", err, diff)
	}
}

func TestRunRefusals(t *testing.T) {
	const alice, bob = 4242, 4243
	b := newBench(t)
	b.apply(allowWeb + grantAlice)
	tests := []struct {
		name string
		uid  uint32
		req  api.RunRequest
		code int
		want []string // in the message
	}{
		{"no label", 0, api.RunRequest{}, 400, []string{"no label", "--label"}},
		{"the daemon's label", 0, api.RunRequest{Labels: map[string]string{"thole/user": "root"}}, 400,
			[]string{"thole/"}},
		{"a tool's label", 0, api.RunRequest{Labels: map[string]string{"com.docker.x": "y"}}, 400,
			[]string{"com.docker."}},
		{"no key", 0, api.RunRequest{Labels: map[string]string{"a b": "y"}}, 400, []string{"label key"}},
		{"no value", 0, api.RunRequest{Labels: map[string]string{"a": "\x00"}}, 400, []string{"label"}},
		{"bad name", 0, api.RunRequest{Name: "../x", Labels: map[string]string{"app": "web"}}, 400, []string{"../x"}},
		{"no grant", bob, api.RunRequest{Labels: map[string]string{"app": "web"}}, 403,
			[]string{"uid 4243", "app=web", "LabelGrant"}},
		{"other value", alice, api.RunRequest{Labels: map[string]string{"app": "mail"}}, 403,
			[]string{"app=mail", "app=web|db env=* (team=a is added)"}},
		{"other key", alice, api.RunRequest{Labels: map[string]string{"app": "web", "tier": "1"}}, 403,
			[]string{"tier=1", "app=web|db"}},
		{"against what is required", alice, api.RunRequest{Labels: map[string]string{"app": "web", "team": "b"}}, 403,
			[]string{"team=b", "requires team=a"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := startClient(t, tt.uid, b.config.Socket, tt.req)
			if p.Code != tt.code {
				t.Errorf("code %d; want %d", p.Code, tt.code)
			}
			for _, want := range tt.want {
				if !strings.Contains(p.Error, want) {
					t.Errorf("message %q lacks %q", p.Error, want)
				}
			}
			if !b.empty() {
				t.Error("a cgroup is left")
			}
		})
	}
	p := startClient(t, alice, b.config.Socket,
		api.RunRequest{Labels: map[string]string{"app": "web", "env": "anything"}})
	want := map[string]string{"app": "web", "env": "anything", "team": "a"}
	if diff := cmp.Diff(want, p.Answer.Labels); diff != "" {
		t.Errorf("what is granted: %s, labels (-want +got)\n%s", p.Error, diff)
	}
}

func TestOnlyRootMayApply(t *testing.T) {
	b := newBench(t)
	// Status is for everybody: a client that may not run still gets a clear answer.
	cmd := exec.Command("curl", "-s", "--unix-socket", b.config.Socket, "-d", `{"files":[]}`, "http://thole/v1/apply")
	cmd.SysProcAttr = &unix.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "only root") {
		t.Errorf("apply by a user: %s, %v", out, err)
	}
}

// A forged cgroup is no workload, and is told of.
func TestForgedAttribute(t *testing.T) {
	b := newBench(t)
	b.run("web", map[string]string{"app": "web"})
	b.stop() // a daemon would remove an empty cgroup at once
	b.host.In("thole.slice/evil.scope").Start("sleep", "infinity")
	value := make([]byte, 64<<10)
	n, err := unix.Lgetxattr(b.root.Path("thole.slice/web.scope"), "trusted.thole.labels", value)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Lsetxattr(b.root.Path("thole.slice/evil.scope"), "trusted.thole.labels", value[:n], 0); err != nil {
		t.Fatal(err)
	}
	b.start()
	s := b.status()
	if s.Workloads != 1 || len(s.Problems) != 1 || s.Problems[0].Where != "thole.slice/evil.scope" {
		t.Errorf("status %+v", s)
	}
	if b.knows(b.host.CgroupID("thole.slice/evil.scope")) || !strings.Contains(b.logs.String(), "refused") {
		t.Error("it is in the table, or not in the log")
	}
}

func TestClosedConnectionLeavesNothing(t *testing.T) {
	b := newBench(t)
	changing, goOn := make(chan struct{}), make(chan struct{})
	b.kernel.Change(func() {
		b.kernel.Before = func(ruleset.Change) {
			changing <- struct{}{}
			<-goOn
		}
	})
	conn, err := net.Dial("unix", b.config.Socket)
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(api.RunRequest{Name: "web", Labels: map[string]string{"app": "web"}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "POST /v1/run HTTP/1.1\r\nHost: thole\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	<-changing // the table is being changed: for the cgroup, or for the parent of all, which is made before
	b.until("the cgroup", func() bool { return !b.empty() })
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.kernel.Change(func() { b.kernel.Before = nil })
	close(goOn)
	b.until("the end of the cgroup", b.empty)
	if in, err := os.ReadFile("/proc/self/cgroup"); err != nil || strings.Contains(string(in), "web.scope") {
		t.Errorf("the test itself was moved: %s, %v", in, err)
	}
	b.until("the table without it", func() bool { return b.status().Workloads == 0 })
}

func TestFailingKernelRefusesRuns(t *testing.T) {
	b := newBench(t)
	b.kernel.Change(func() { b.kernel.Fail = errors.New("cannot allocate memory") })
	before := b.kernel.Loaded()
	p := startClient(t, 0, b.config.Socket, api.RunRequest{Labels: map[string]string{"app": "web"}})
	if p.Code != 500 || !strings.Contains(p.Error, "cannot allocate memory") {
		t.Errorf("answer %d %q", p.Code, p.Error)
	}
	if !b.empty() {
		t.Error("a cgroup is left")
	}
	if !sameTable(before, b.kernel.Loaded()) {
		t.Error("the table changed")
	}
	b.kernel.Change(func() { b.kernel.Fail = nil })
	b.run("web", map[string]string{"app": "web"})
}

// 10,000 requests of one user: most are refused, and nothing is left of the others.
func TestFloodOfOneUser(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb + grantAlice)
	files := openFiles(t)
	p := startClient(t, 4242, b.config.Socket, api.RunRequest{Labels: map[string]string{"app": "web"},
		Command: "flood"}, "flood", "10000")
	total := 0
	for code, n := range p.Codes {
		total += n
		// 409: the one process was moved on by another of its requests
		if !slices.Contains([]int{200, 409, 429}, code) {
			t.Errorf("%d answers of %d", n, code)
		}
	}
	t.Logf("answers by code: %v", p.Codes)
	if total != 10_000 || p.Codes[429] == 0 || p.Codes[200] == 0 {
		t.Errorf("answers %v; want 10,000, some granted and some refused", p.Codes)
	}
	// Root is served meanwhile and afterwards.
	b.run("root", map[string]string{"app": "web"}).end()
	p.end()
	b.until("the end of all cgroups", b.empty)
	b.until("the table without them", func() bool { return b.status().Workloads == 0 })
	b.until("the connections' end", func() bool { return openFiles(t) <= files })
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
