package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"thole/internal/api"
	"thole/policies"
)

// The processes of a host without containers, by the cgroups in which systemd, cron and people put them.
var processes = []server{
	{name: "nginx", cgroup: "system.slice/nginx.service"},
	{name: "nginx-worker", cgroup: "system.slice/nginx.service/worker"}, // in a unit with Delegate=yes
	{name: "nginx-debug", cgroup: "system.slice/nginx-debug.service"},
	{name: "worker-1", cgroup: `system.slice/system-worker.slice/worker@1.service`},
	{name: "worker-2", cgroup: `system.slice/system-worker.slice/worker@2.service`},
	{name: "cron", cgroup: "system.slice/cron.service"},
	{name: "session", cgroup: "user.slice/user-1000.slice/session-4.scope"},
	{name: "user-unit", cgroup: "user.slice/user-1000.slice/user@1000.service/app.slice/sync.service"},
	{name: "other-user", cgroup: "user.slice/user-1001.slice/session-5.scope"},
	{name: "job-1", cgroup: "batch.slice/job-1.scope"},
	{name: "report", cgroup: "batch.slice/report.scope"},
	{name: "night", cgroup: "batch.slice/batch-night.slice/job-2.scope"},
	{name: "init", cgroup: "init.scope"},
}

// everything isolates all workloads.
var everything = isolating("p", "{}")

var processSituations = []situation{
	{name: "no document", documents: []string{everything}, allowed: []string{"cron → nginx"}},
	{name: "a unit", documents: []string{binding("web", "{app: nginx}", "{unit: nginx.service}"), everything},
		is: map[string]string{"web": "app=nginx (document)"}, closed: []string{"nginx", "nginx-worker"},
		allowed: []string{"nginx → nginx-worker", "nginx → nginx-debug"},
		refused: []string{"cron → nginx", "nginx-debug → nginx"}},
	{name: "all instances of a template", documents: []string{
		binding("workers", "{app: worker}", "{unit: worker@*.service}"), everything},
		is: map[string]string{
			"workers:system.slice/system-worker.slice/worker@1.service": "app=worker (document)",
			"workers:system.slice/system-worker.slice/worker@2.service": "app=worker (document)"},
		closed: []string{"worker-1", "worker-2"}, refused: []string{"worker-1 → worker-2"}},
	{name: "instances that may reach each other", documents: []string{
		binding("workers", "{app: worker}", "{unit: worker@*.service}"), string(policies.Default)},
		is: map[string]string{
			"workers:system.slice/system-worker.slice/worker@1.service": "app=worker (document)",
			"workers:system.slice/system-worker.slice/worker@2.service": "app=worker (document)"},
		closed: []string{"worker-1", "worker-2"}, allowed: []string{"worker-1 → worker-2"},
		refused: []string{"cron → worker-1"}},
	{name: "one instance of a template", documents: []string{
		binding("worker", "{app: worker}", "{unit: worker@1.service}"), everything},
		is: map[string]string{"worker": "app=worker (document)"}, closed: []string{"worker-1"},
		refused: []string{"worker-2 → worker-1"}, allowed: []string{"worker-1 → worker-2"}},
	{name: "a slice, and the slices in it", documents: []string{
		binding("batch", "{app: batch}", "{unit: batch.slice}"), everything},
		is: map[string]string{"batch": "app=batch (document)"}, closed: []string{"job-1", "report", "night"},
		allowed: []string{"job-1 → night", "report → job-1"}, refused: []string{"cron → report"}},
	{name: "a slice, and a slice in it that has a document of its own", documents: []string{
		binding("batch", "{app: batch}", "{unit: batch.slice}"),
		binding("night", "{app: night}", "{unit: batch-night.slice}"), everything},
		is:     map[string]string{"batch": "app=batch (document)", "night": "app=night (document)"},
		closed: []string{"job-1", "report", "night"}, allowed: []string{"job-1 → report"},
		refused: []string{"job-1 → night", "night → job-1"}},
	{name: "a user's sessions and units", documents: []string{
		binding("alice", "{team: a}", `{user: "1000"}`), everything},
		is: map[string]string{"alice": "team=a (document)"}, closed: []string{"session", "user-unit"},
		allowed: []string{"session → user-unit"}, refused: []string{"other-user → session"}},
	{name: "cgroups by a pattern", documents: []string{
		binding("jobs", "{app: job}", "{cgroup: batch.slice/job-*.scope}"), everything},
		is: map[string]string{"jobs:batch.slice/job-1.scope": "app=job (document)"}, closed: []string{"job-1"}},
	{name: "a unit and its cgroup", documents: []string{
		binding("by-unit", "{app: unit}", "{unit: cron.service}"),
		binding("by-cgroup", "{app: cgroup}", "{cgroup: system.slice/cron.service}"), everything},
		is: map[string]string{"by-unit": "app=unit (document)"}, closed: []string{"cron"},
		status: []string{"binding-overlap stdin:9:18"}, exit: 1},
	{name: "a unit with a misspelt name", documents: []string{
		binding("web", "{app: nginx}", "{unit: ngnix.service}"), everything},
		allowed: []string{"cron → nginx"}, status: []string{"unit-absent stdin:3:18"}},
	{name: "a user that does not exist", documents: []string{
		binding("bob", "{team: b}", "{user: nobody-has-this-name}"), everything},
		status: []string{"binding-unresolved stdin:3:18"}, exit: 1},
	{name: "a container, and no engine is followed", documents: []string{
		binding("web", "{app: web}", "{container: web}"), everything},
		status: []string{"binding-unresolved stdin:3:18"}, exit: 1},
	{name: "a label that counts beside those of tools", documents: []string{
		binding("cron", `{app: cron, traefik.enable: "true"}`, "{unit: cron.service}"),
		isolating("p", `{matchLabels: {traefik.enable: "true"}}`)},
		is: map[string]string{"cron": "app=cron (document)"}, closed: []string{"cron"}},
}

// Situations beside those, with two commands that thole run started.
var runSituations = []situation{
	{name: "commands that thole run started", documents: []string{everything},
		is:      map[string]string{"by-root": "app=web (person)", "by-user": "app=web (grant), team=a (grant)"},
		closed:  []string{"by-root", "by-user"},
		refused: []string{"by-root → by-user", "nginx → by-root"}, allowed: []string{"by-root → nginx"}},
	{name: "the grant's required label distinguishes them", documents: []string{grant, string(policies.Default)},
		is:      map[string]string{"by-root": "app=web (person)", "by-user": "app=web (grant), team=a (grant)"},
		closed:  []string{"by-root", "by-user"},
		refused: []string{"by-root → by-user", "by-user → by-root"}},
	{name: "Settings exclude all labels of a command that runs", documents: []string{
		settings("{identityLabels: {exclude: [app]}}"), everything},
		is:     map[string]string{"by-root": "named", "by-user": "team=a (grant)"},
		closed: []string{"by-root", "by-user"}},
}

const grant = "apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\n" +
	"spec: {users: [1000], labels: {app: [web]}, require: {team: a}}\n"

// TestWhichProcessesAreWorkloads is TestWhoIsAWorkload for units, users, cgroups and thole run.
func TestWhichProcessesAreWorkloads(t *testing.T) {
	m := newMachine(t, "--docker=off")
	s := newSituations(m, "unit", "user", "cgroup", "run")
	for _, p := range processes {
		s.enter(p)
	}
	for _, of := range processSituations {
		t.Run(of.name, func(t *testing.T) { s.try(t, of) })
	}
	must(t, m.apply(documents(grant, everything)))
	must(t, os.Chmod(filepath.Dir(m.thole), 0o755)) // another user executes it
	s.enter(server{name: "by-root", run: m.labelled("by-root", "app=web")})
	s.enter(server{name: "by-user", run: m.labelledBy("by-user", "app=web", "setpriv", "--reuid=1000", "--regid=1000",
		"--clear-groups")})
	for _, of := range runSituations {
		t.Run(of.name, func(t *testing.T) { s.try(t, of) })
	}
}

// Containers of Podman, as people, podman-compose, Quadlet and pods start them.
var podmanContainers = []server{
	{name: "mine", labels: []string{"app=db"}, is: "app=db (person)"},
	{name: "quadlet", labels: []string{"PODMAN_SYSTEMD_UNIT=quadlet.service", "io.containers.autoupdate=registry"}},
	{name: "compose", labels: []string{"io.podman.compose.project=shop", "com.docker.compose.project=shop",
		"com.docker.compose.service=db"}},
	{name: "by-image", image: "web"}, // tier=web, io.buildah.version
	{name: "pod-web", labels: []string{"app=web"}, args: []string{"--pod=shop"}, is: "app=web (person)"},
	{name: "pod-tool", labels: []string{"traefik.enable=true"}, args: []string{"--pod=shop"}},
	{name: "nothing"},
}

var podmanSituations = []situation{
	{name: "a policy selects every workload", documents: []string{everything}, closed: []string{"mine", "pod-web"},
		refused: []string{"pod-tool → pod-web", "mine → pod-web"}, allowed: []string{"pod-web → pod-tool"}},
	{name: "a policy selects a container of Quadlet", documents: []string{
		isolating("p", "{matchLabels: {PODMAN_SYSTEMD_UNIT: quadlet.service}}")},
		is: map[string]string{"quadlet": "named"}, closed: []string{"quadlet"}, refused: []string{"mine → quadlet"}},
	{name: "a policy selects a service of podman-compose", documents: []string{isolating("p", serviceDB)},
		is: map[string]string{"compose": "named"}, closed: []string{"compose"}},
	{name: "a policy selects an image's label", documents: []string{
		isolating("p", "{matchLabels: {tier: web}}")},
		is:     map[string]string{"by-image": "io.buildah.version=1.28 (image, doubtful), tier=web (image, doubtful)"},
		closed: []string{"by-image"}},
	{name: "the Settings trust the image", documents: []string{settings(`{trustImages: ["*/web:latest"]}`), everything},
		is:     map[string]string{"by-image": "tier=web (person)"},
		closed: []string{"by-image", "mine", "pod-web"}, status: []string{}},
	{name: "a policy selects a container of a pod by a tool's label", documents: []string{
		isolating("p", `{matchLabels: {traefik.enable: "true"}}`)},
		is: map[string]string{"pod-tool": "named"}, closed: []string{"pod-tool"},
		refused: []string{"pod-web → pod-tool"}},
	{name: "a document names a container", documents: []string{
		binding("web", "{app: bound}", "{container: nothing}"), isolating("p", "{matchLabels: {app: bound}}")},
		is: map[string]string{"nothing": "app=bound (document)"}, closed: []string{"nothing"}},
	{name: "a document names a service of podman-compose", documents: []string{
		binding("db", "{store: data}", "{compose: {project: shop, service: db}}"),
		isolating("p", "{matchLabels: {store: data}}")},
		is: map[string]string{"compose": "store=data (document)"}, closed: []string{"compose"}},
}

// TestWhoIsAWorkloadOfPodman is TestWhoIsAWorkload for Podman.
func TestWhoIsAWorkloadOfPodman(t *testing.T) {
	m, p := newPodmanMachine(t)
	s := newSituations(m, "container")
	s.start, s.notices = p.Probe, []string{"image-label by-image"}
	s.images = map[string]string{"": p.Image("plain", nil),
		"web": p.Image("web", map[string]string{"tier": "web", "io.buildah.version": "1.28"})}
	p.Podman("pod", "create", "--name=shop", "--network=host", "--share-parent=false", "--infra-image="+s.images[""],
		"--infra-command=/bin/sleep 1000")
	for _, c := range podmanContainers {
		s.enter(c)
	}
	for _, of := range podmanSituations {
		t.Run(of.name, func(t *testing.T) { s.try(t, of) })
	}
	m.Shell("ip netns add apart")
	p.Podman("run", "-d", "--name=apart", "--net=ns:/run/netns/apart", s.images[""], "sleep", "1000")
	m.until("the container to be found", func(s api.Status) bool { return len(s.Problems) > 0 })
	t.Run("a container in a network that a person made", func(t *testing.T) {
		s.try(t, situation{documents: []string{everything}, closed: []string{"mine", "pod-web"},
			status: with([]string{"container-not-judged apart"}, s.notices...), exit: 1})
	})
	p.Podman("rm", "-f", "-t=0", "apart")
}
