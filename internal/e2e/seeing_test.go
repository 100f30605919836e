package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/daemon"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// An asked owner is the answer of thole owner -o json.
type askedOwner struct {
	Process *api.OwnedProcess
	Sockets []api.OwnedSocket
}

// ownerOf asks for an owner, and checks the exit status and what the text says.
func (m *machine) ownerOf(of string, code int, says ...string) (answer askedOwner) {
	m.t.Helper()
	got, text := m.exitStatus("", "owner", of)
	if got != code {
		m.t.Errorf("thole owner %s: exit status %d, want %d\n%s", of, got, code, text)
	}
	for _, want := range says {
		if !strings.Contains(text, want) {
			m.t.Errorf("thole owner %s does not say %q:\n%s", of, want, text)
		}
	}
	if code == 1 {
		return answer
	}
	m.ask(&answer, "owner", of)
	return answer
}

// Processes, listeners and connections of containers, of thole run and of nobody, with a real daemon and Docker: whose
// each is, and why; and which listeners are nobody's.
func TestOwner(t *testing.T) {
	m, e := newDockerMachine(t)
	must(t, m.apply(documents(isolating("db", "{matchLabels: {app: db}}"), databaseFor("allow",
		"{workloads: {matchLabels: {app: web}}}"))))
	image := e.Image("web", map[string]string{"tier": "web"})
	box := e.Probe("box", "--net=host", "-l", "app=web", "-l", "com.docker.compose.service=web", image)
	box.Listen("tcp4", "0.0.0.0:8080")
	plain := e.Probe("plain", "--net=host", image)
	plain.Listen("tcp", "127.0.0.1:8081")
	db := m.labelledProbe("db", "app=db")
	db.Listen("tcp", "127.0.0.1:5432")
	free := probe.Start(m.In("elsewhere/deep"), "free")
	free.Listen("tcp", "127.0.0.1:9000")
	free.OpenUDP("udp", "127.0.0.1:9001")
	m.untilWorkloads("box")

	answer := m.ownerOf(":5432", 0, "tcp 127.0.0.1:5432, listening", "db (run), isolated", "`thole run` \"db\"",
		"app=db (person)", "thole/kind=run (daemon, does not count)", fmt.Sprintf("process    %d ", db.PID()))
	if len(answer.Sockets) != 1 || answer.Sockets[0].Workload == nil || answer.Sockets[0].Workload.Name != "db" {
		t.Errorf("the listener: %+v", answer)
	}
	answer = m.ownerOf(fmt.Sprint(box.PID()), 0, `the container "box"`, "app=web (person)",
		"tier=web (image, doubtful)",
		"com.docker.compose.service=web (tool, does not count)", "tcp 0.0.0.0:8080, listening", "that of the process")
	if answer.Process == nil || answer.Process.Workload == nil || answer.Process.Workload.Name != "box" {
		t.Errorf("the container's process: %+v", answer.Process)
	}
	m.ownerOf("127.0.0.1:8080", 0, "tcp 0.0.0.0:8080, listening", "box (container), open") // on all addresses
	m.ownerOf(":8081", 2, "nobody: it is unlabelled", "a container without a label that counts")
	m.ownerOf("127.0.0.1:9000", 2, "nobody: it is unlabelled", "labels its cgroup elsewhere/deep or one above it")
	m.ownerOf(":9999", 1, "there is no such socket")
	m.ownerOf("99999999", 1, "there is no process 99999999")

	// Both ends of a connection.
	conn, verdict := box.Dial("127.0.0.1:5432")
	allowed(t, "the connection", verdict)
	defer conn.Close()
	var local string
	for _, s := range m.ownerOf(fmt.Sprint(box.PID()), 0).Sockets {
		if s.Remote == "127.0.0.1:5432" {
			local = s.Local
		}
	}
	m.ownerOf(local, 0, "tcp "+local+", connected to 127.0.0.1:5432", "box (container)")
	if answer = m.ownerOf("127.0.0.1:5432", 0); len(answer.Sockets) != 2 || !answer.Sockets[0].Listens ||
		answer.Sockets[1].Remote != local || answer.Sockets[1].Workload.Name != "db" {
		t.Errorf("the listener and the connection: %+v", answer.Sockets)
	}

	// The process leaves the cgroup of its sockets: they stay the workload's, and the process is not.
	must(t, os.WriteFile(m.CgroupDir("elsewhere/deep")+"/cgroup.procs", fmt.Append(nil, db.PID()), 0))
	m.ownerOf(":5432", 0, "db (run)", "which has left the cgroup of the socket: it is in elsewhere/deep")
	answer = m.ownerOf(fmt.Sprint(db.PID()), 2, "nobody: it is unlabelled", "db (run)")
	if answer.Process.Workload != nil || len(answer.Sockets) != 2 || answer.Sockets[0].Workload == nil {
		t.Errorf("the process that was moved: %+v", answer)
	}

	var list []struct {
		api.Socket
		Processes []struct{ PID int }
	}
	m.ask(&list, "get", "unlabelled")
	found, ports := map[string]int{}, []string{"5432", "8080", "8081", "9000", "9001"}
	for _, u := range list {
		if _, port, _ := strings.Cut(u.Local, ":"); slices.Contains(ports, port) { // the rest is nstest's
			found[u.Protocol+" "+u.Local+" "+u.Cgroup] = len(u.Processes)
		}
	}
	want := map[string]int{"tcp 127.0.0.1:9000 elsewhere/deep": 1, "udp 127.0.0.1:9001 elsewhere/deep": 1,
		"tcp 127.0.0.1:8081 " + strings.TrimPrefix(e.Cgroup("plain").Path(), "/"): 1}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Errorf("unlabelled listeners (-want +got):\n%s", diff)
	}
}

// The states of workloads. The list and the status count the same.
func TestWorkloadStates(t *testing.T) {
	m, e := newDockerMachine(t)
	must(t, m.apply(documents(isolating("db", "{matchLabels: {app: db}}"),
		strings.Replace(isolating("audit", "{}"), "spec: {", "spec: {enforcement: audit, ", 1),
		"apiVersion: thole/v1\nkind: Policy\nmetadata: {name: guard}\nspec: {selector: {matchLabels: {app: guard}}, "+
			"deny: {ingress: [{ports: [22/tcp]}]}}\n")))
	m.labelled("web", "app=web")
	m.labelled("guard", "app=guard")
	m.labelled("db", "app=db")
	m.labelledProbe("bound", "app=db").OpenUDP("udp", "0.0.0.0:5353", probe.Device("docker0"))
	passedSocket(t, e, "passer", "-l", "app=db")
	e.Docker("rm", "-f", "passer")
	m.until("the socket that outlives", func(s api.Status) bool { return s.Ended == 1 })

	states := func() (got map[string]string, counts map[api.WorkloadState]int) {
		var list []api.Workload
		m.ask(&list, "get", "workloads")
		if last := len(list) - 1; last >= 0 && list[last].Name != "passer" {
			t.Errorf("the last one of the list is %s, not the one that ended", list[last].Name)
		}
		got, counts = map[string]string{}, map[api.WorkloadState]int{}
		for _, w := range list {
			got[w.Name] = fmt.Sprint(w.State, w.Missing)
			counts[w.State]++
		}
		return got, counts
	}
	want := map[string]string{"web": "open[]", "guard": "isolated[]", "db": "isolated[]",
		"bound": "partial[" + string(condition.SocketExposedUser) + "]", "passer": "ended[]"}
	var got map[string]string
	var counts map[api.WorkloadState]int
	nstest.WaitFor(t, patience, "the states", func() bool {
		got, counts = states()
		return maps.Equal(got, want)
	})
	status := m.status()
	running := counts[api.StateOpen] + counts[api.StateIsolated] + counts[api.StatePartial]
	if running != status.Workloads || counts[api.StateEnded] != status.Ended {
		t.Errorf("get counts %v, status %d workloads and %d that ended", counts, status.Workloads, status.Ended)
	}
	var policies []api.Policy
	var classes []api.Class
	m.ask(&policies, "get", "policies")
	m.ask(&classes, "get", "classes")
	if len(policies) != status.Policies || len(classes) != status.Classes {
		t.Errorf("get counts %d policies and %d classes, status %d and %d", len(policies), len(classes),
			status.Policies, status.Classes)
	}
	if out, err := m.Command(m.thole, "get", "workloads").Output(); err != nil ||
		!strings.Contains(string(out), "partial:"+string(condition.SocketExposedUser)) {
		t.Errorf("the table: %v\n%s", err, out)
	}

	// Disarmed, nothing is enforced of what is selected.
	m.Shell(m.thole + " cleanup --state /run/state")
	got, _ = states()
	if got["db"] != "partial["+string(condition.Disarmed)+"]" || got["web"] != "open[]" {
		t.Errorf("disarmed: %v", got)
	}
}

// The workloads of a node are printed as an inventory. From it, the same policies make the same classes.
func TestInventoryOfWhatRuns(t *testing.T) {
	m, e := newDockerMachine(t)
	withoutBindings := documents(
		settings("{identityLabels: {include: [com.docker.compose.project], exclude: [build.*]}}"),
		isolating("db", "{matchLabels: {com.docker.compose.service: db}}"),
		isolating("tier", "{matchExpressions: [{key: tier, operator: Exists}]}"),
		isolating("plain", "{matchExpressions: [{key: app, operator: In, values: [web, report]}]}"),
		"apiVersion: thole/v1\nkind: Policy\nmetadata: {name: all}\n"+
			"spec: {selector: {}, egress: [{to: [{sameLabels: all}]}]}\n")
	must(t, m.apply(documents(withoutBindings, binding("jobs", "{app: web}", `{cgroup: "jobs/*"}`),
		binding("named", "{app: report, build.id: \"8\"}", "{container: named}"),
		binding("cache", "{zone: a}", "{compose: {project: shop, service: cache}}"))))
	image := e.Image("nginx", map[string]string{"tier": "web", "maintainer": "somebody"})
	run := func(name string, args ...string) {
		e.Probe(name, slices.Concat([]string{"--net=host"}, args, []string{image})...)
	}
	run("by_image")
	run("Both", "-l", "app=report", "-l", "note=two\nlines", "-l", "My_Key#1=a: #b")
	run("compose", "-l", "com.docker.compose.service=db", "-l", "build.id=7")
	run("project", "-l", "com.docker.compose.project=shop")
	run("named", "-l", "app=own")
	run("shop-cache-1", "-l", "com.docker.compose.project=shop", "-l", "com.docker.compose.service=cache")
	m.In("jobs/a").Start("sleep", "infinity")
	m.In("jobs/b").Start("sleep", "infinity")
	m.labelled("db", "app=db,traefik.enable=true")
	m.until("all to be known", func(s api.Status) bool { return s.Workloads == 9 })

	out, err := m.Command(m.thole, "get", "workloads", "-o", "yaml").Output()
	must(t, err)
	dir := t.TempDir()
	inventory, set := filepath.Join(dir, "inventory.yaml"), filepath.Join(dir, "policies.yaml")
	must(t, os.WriteFile(inventory, out, 0o600))
	// The documents of the set bind cgroups of the node; the inventory says what that came to.
	must(t, os.WriteFile(set, []byte(withoutBindings), 0o600))
	planned, err := m.Command(m.thole, "apply", "-f", set, "--inventory", inventory, "--dry-run", "-o", "json").Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"app: document", "zone: document", "build.id: document",
		"com.docker.compose.service: tool"} {
		if !strings.Contains(string(out), "\n    "+want+"\n") {
			t.Errorf("the inventory does not say %s\n%s", want, out)
		}
	}
	var plan daemon.InventoryPlan
	must(t, json.Unmarshal(planned, &plan))
	var live []api.Class
	m.ask(&live, "get", "classes")
	if diff := cmp.Diff(classesSay(live), classesSay(plan.Classes)); diff != "" || len(plan.Classes) == 0 {
		t.Errorf("classes (-node +inventory):\n%s\n%s", diff, out)
	}
}

// classesSay is what there is to say of classes, but for their numbers and the names of their workloads.
func classesSay(classes []api.Class) (all []string) {
	for _, c := range classes {
		var labels []string
		for _, l := range c.Labels {
			labels = append(labels, fmt.Sprint(l))
		}
		slices.Sort(labels)
		all = append(all, fmt.Sprint(len(c.Workloads), labels, c.Ingress, c.Egress))
	}
	slices.Sort(all)
	return all
}
