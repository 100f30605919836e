package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/policies"
)

// A server is a container, or a process, of a host that many situations share. It listens at a port of its own.
type server struct {
	name   string
	labels []string       // of a container: docker run -l
	image  string         // "": one without labels
	args   []string       // more of docker run; none: it is on the host network
	cgroup string         // of a process, instead of all that
	run    *nstest.Cgroup // of thole run
	is     string         // what it is where no policy names a label of it, as describe says; "": unlabelled
}

// A situation is what a person wrote, and what that makes of the host's containers.
type situation struct {
	name      string
	documents []string
	is        map[string]string // what containers are that are something else than server.is
	closed    []string          // those that an unlabelled program does not reach; it reaches all others
	allowed   []string          // connections: "web → db"
	refused   []string
	status    []string // what thole status says, with the codes of conditions; nil: the notices about images
	exit      int      // of thole status
}

// Situations are tried on one host with a daemon.
type situations struct {
	*machine
	kinds   []string                                         // of the workloads that count
	start   func(name string, args ...string) *probe.Process // starts a container
	images  map[string]string                                // by the names that servers give
	free    *probe.Process                                   // unlabelled
	servers []server
	probes  map[string]*probe.Process
	address map[string]string
	notices []string // about images
}

func newSituations(m *machine, kinds ...string) *situations {
	return &situations{machine: m, kinds: kinds, probes: map[string]*probe.Process{}, address: map[string]string{},
		free: probe.Start(m.In("elsewhere"), "free")}
}

// enter starts a server.
func (s *situations) enter(of server) {
	s.t.Helper()
	var p *probe.Process
	switch {
	case of.cgroup != "":
		p = probe.Start(s.In(of.cgroup), of.name)
	case of.run != nil:
		p = probe.Start(of.run, of.name)
	default:
		args := []string{"--net=host"}
		if of.args != nil {
			args = slices.Clone(of.args)
		}
		for _, label := range of.labels {
			args = append(args, "-l", label)
		}
		p = s.start(of.name, append(args, s.images[of.image])...)
	}
	port := 8000 + len(s.servers)
	p.Listen("tcp", fmt.Sprintf("0.0.0.0:%d", port))
	s.probes[of.name], s.address[of.name] = p, fmt.Sprintf("127.0.0.1:%d", port)
	s.servers = append(s.servers, of)
}

// describe says who a workload is: the labels that count with who gave them, and those that are doubtful. A workload
// without any is one because a policy names a label of it.
func describe(w api.Workload) string {
	var all []string
	for key, value := range w.Labels {
		all = append(all, fmt.Sprintf("%s=%s (%s)", key, value, w.Sources[key]))
	}
	for key, value := range w.Doubtful {
		all = append(all, fmt.Sprintf("%s=%s (%s, doubtful)", key, value, w.Sources[key]))
	}
	if len(all) == 0 {
		return "named"
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// try applies the documents of a situation, and checks what they make of the servers.
func (s *situations) try(t *testing.T, of situation) {
	must(t, s.apply(documents(of.documents...)))
	want, got := s.wanted(of), map[string]string{}
	defer func() {
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the workloads (-want +got)\n%s", diff)
		}
	}()
	nstest.WaitFor(t, shortly, "the workloads", func() bool {
		clear(got)
		for _, kind := range s.kinds {
			for name, w := range s.workloads(kind) {
				got[name] = describe(w)
			}
		}
		return maps.Equal(got, want)
	})
	s.tryConnections(t, of)
	s.tryStatus(t, of)
}

// wanted are the workloads of a situation.
func (s *situations) wanted(of situation) map[string]string {
	want := map[string]string{}
	for _, c := range s.servers {
		want[c.name] = c.is
	}
	maps.Copy(want, of.is)
	maps.DeleteFunc(want, func(_, is string) bool { return is == "" })
	return want
}

// tryConnections has unlabelled programs and containers connect to containers.
func (s *situations) tryConnections(t *testing.T, of situation) {
	t.Helper()
	var closed []string
	for _, c := range s.servers {
		if !s.free.TCP(s.address[c.name]).Allowed() {
			closed = append(closed, c.name)
		}
	}
	slices.Sort(closed)
	wantClosed := slices.Sorted(slices.Values(of.closed))
	if diff := cmp.Diff(wantClosed, closed); diff != "" {
		t.Errorf("closed to unlabelled programs (-want +got)\n%s", diff)
	}
	for want, connections := range map[bool][]string{true: of.allowed, false: of.refused} {
		for _, c := range connections {
			from, to, _ := strings.Cut(c, " → ")
			if v := s.probes[from].TCP(s.addressFrom(from, to)); v.Allowed() != want {
				t.Errorf("%s: %v, want it connected: %t", c, v, want)
			}
		}
	}
}

// addressFrom is where a container reaches another one.
func (s *situations) addressFrom(from, to string) string {
	if slices.Contains(names(bridgeContainers), from) {
		return strings.Replace(s.address[to], "127.0.0.1", "172.17.0.1", 1)
	}
	return s.address[to]
}

// tryStatus asks thole status.
func (s *situations) tryStatus(t *testing.T, of situation) {
	t.Helper()
	want := of.status
	if want == nil {
		want = s.notices
	}
	var status api.Status
	cmd := s.Command(s.thole, "status", "-o", "json")
	decode(t, cmd, &status)
	var got []string
	for _, c := range slices.Concat(status.Problems, status.Notices) {
		name, _ := strings.CutPrefix(c.Where, "container ")
		got = append(got, strings.TrimSpace(string(c.Code)+" "+name))
	}
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" && len(want)+len(got) > 0 {
		t.Errorf("status (-want +got)\n%s\n%v %v", diff, status.Problems, status.Notices)
	}
	if exit := cmd.ProcessState.ExitCode(); exit != of.exit {
		t.Errorf("thole status exits %d, want %d", exit, of.exit)
	}
}

// The containers of a host with Docker: what people run, with the labels that their tools and they give.
var dockerContainers = []server{
	{name: "mine", labels: []string{"app=db"}, is: "app=db (person)"},
	{name: "both", labels: []string{"app=web", "traefik.enable=true", "com.docker.compose.project=shop",
		"com.docker.compose.service=web"}, is: "app=web (person)"},
	{name: "twin", labels: []string{"app=db", "com.docker.compose.project=shop", "com.docker.compose.service=twin"},
		is: "app=db (person)"},
	{name: "kubernetes-style", labels: []string{"app.kubernetes.io/name=shop"},
		is: "app.kubernetes.io/name=shop (person)"},
	{name: "pid-host", labels: []string{"app=agent"}, args: []string{"--net=host", "--pid=host"},
		is: "app=agent (person)"},
	{name: "joined", labels: []string{"app=joined"}, args: []string{"--network=container:mine"},
		is: "app=joined (person)"},
	{name: "maintained", labels: []string{"maintainer=ops"}, is: "maintainer=ops (person)"},
	{name: "built", labels: []string{"build.id=7", "build.host=a"},
		is: "build.host=a (person), build.id=7 (person)"},
	{name: "noted", labels: []string{"com.docker.compose.service=cache", "note=short"}, is: "note=short (person)"},

	{name: "compose", labels: []string{"com.docker.compose.project=shop", "com.docker.compose.service=db",
		"com.docker.compose.oneoff=False", "com.docker.compose.config-hash=0f1e"}},
	{name: "stack", labels: []string{"com.docker.stack.namespace=shop", "com.docker.swarm.service.name=shop_web",
		"com.docker.swarm.task.id=x1", "com.docker.swarm.node.id=n1"}},
	{name: "traefik", labels: []string{"traefik.enable=true", "traefik.http.routers.a.rule=Host(`a.example.com`)",
		"traefik.http.services.a.loadbalancer.server.port=80"}},
	{name: "caddy", labels: []string{"caddy=a.example.com", "caddy.reverse_proxy={{upstreams 80}}",
		"caddy_1.respond=ok"}},
	{name: "watched", labels: []string{"com.centurylinklabs.watchtower.enable=true", "diun.enable=true"}},
	{name: "portainer", labels: []string{"io.portainer.accesscontrol.teams=ops"}},
	{name: "runner", labels: []string{"com.gitlab.gitlab-runner.job.id=42", "com.gitlab.gitlab-runner.type=build"}},
	{name: "testcontainer", labels: []string{"org.testcontainers=true", "org.testcontainers.sessionId=a1"}},
	{name: "devcontainer", labels: []string{"devcontainer.local_folder=/home/alice/src/shop",
		"dev.containers.id=shop", "vsch.quality=stable"}},
	{name: "nomad", labels: []string{"com.hashicorp.nomad.alloc_id=6a1c"}},
	{name: "kubelet", labels: []string{"io.kubernetes.pod.name=shop-0", "io.kubernetes.pod.namespace=default"}},
	{name: "podman-compose", labels: []string{"io.podman.compose.project=shop", "PODMAN_SYSTEMD_UNIT=a.service"}},
	{name: "dashboard", labels: []string{"homepage.group=Media", "net.unraid.docker.managed=dockerman"}},
	{name: "jobs", labels: []string{"ofelia.enabled=true", "docker-volume-backup.stop-during-backup=true"}},
	{name: "monitored", labels: []string{"prometheus.io/scrape=true", "com.datadoghq.ad.logs=[]"}},
	{name: "healed", labels: []string{"autoheal=true", "sablier.enable=true"}},

	{name: "lines", labels: []string{"note=two\nlines"}},
	{name: "coloured", labels: []string{"note=\x1b[31mred"}},
	{name: "long", labels: []string{"note=" + strings.Repeat("x", 9000)}},
	{name: "forged", labels: []string{"thole/kind=run", "thole/uid=0"}}, // only the daemon gives these
	{name: "nothing"},

	{name: "by-image", image: "web"}, // tier=web, maintainer=somebody
	{name: "as-image", image: "web", labels: []string{"tier=web"}},
	{name: "unlike-image", image: "web", labels: []string{"tier=db"},
		is: "maintainer=somebody (image, doubtful), tier=db (person)"},
	{name: "described", image: "oci"}, // org.opencontainers.image.title and source
}

// The workloads of dockerContainers where no policy names a label.
var dockerWorkloads = []string{"both", "built", "joined", "kubernetes-style", "maintained", "mine", "noted", "pid-host",
	"twin", "unlike-image"}

// The notices about dockerContainers: their images, and the service of Swarm.
var hostNotices = []string{"image-label as-image", "image-label by-image", "image-label unlike-image",
	ofSwarm}

const ofSwarm = "swarm-service service shop_web"

// names are those of containers.
func names(containers []server) (names []string) {
	for _, c := range containers {
		names = append(names, c.name)
	}
	return names
}

// without is a list without some names.
func without(list []string, names ...string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(n string) bool { return slices.Contains(names, n) })
}

// with is a list with more names, sorted.
func with(list []string, names ...string) []string {
	return slices.Sorted(slices.Values(slices.Concat(list, names)))
}

// term is a selector of one term.
func term(key, operator string, values ...string) string {
	of := ""
	if len(values) > 0 {
		of = ", values: ['" + strings.Join(values, "', '") + "']"
	}
	return fmt.Sprintf("{matchExpressions: [{key: '%s', operator: %s%s}]}", key, operator, of)
}

// audited is a policy that only records.
func audited(policy string) string {
	return strings.Replace(policy, "spec: {", "spec: {enforcement: audit, ", 1)
}

// binding is a Workload document.
func binding(name, labels, spec string) string {
	return fmt.Sprintf("apiVersion: thole/v1\nkind: Workload\nmetadata: {name: %s, labels: %s}\nspec: %s\n", name,
		labels, spec)
}

// selectsTool is the situation in which an enforced policy selects a container by the label of a tool.
func selectsTool(what, container, key, value string) situation {
	s := situation{name: "a policy selects " + what, documents: []string{isolating("p", term(key, "In", value))},
		is: map[string]string{container: "named"}, closed: []string{container},
		refused: []string{"mine → " + container}}
	if container == "stack" {
		s.status = without(hostNotices, ofSwarm)
	}
	return s
}

const (
	serviceDB   = "{matchLabels: {com.docker.compose.service: db}}"
	serviceKey  = "com.docker.compose.service"
	projectShop = "{matchLabels: {com.docker.compose.project: shop}}"
	appDB       = "{matchLabels: {app: db}}"
)

// Situations about the labels of tools.
var toolSituations = []situation{
	{name: "a policy selects nobody", documents: []string{isolating("p", "{matchLabels: {app: absent}}")},
		allowed: []string{"both → mine", "compose → mine", "mine → compose"}},
	{name: "a policy selects a person's label", documents: []string{isolating("p", appDB)},
		closed: []string{"mine", "twin"}, refused: []string{"both → mine", "joined → mine", "mine → twin"},
		allowed: []string{"mine → both", "mine → compose"}},
	{name: "a policy selects every workload", documents: []string{isolating("p", "{}")}, closed: dockerWorkloads,
		refused: []string{"compose → mine"}, allowed: []string{"mine → compose"}},
	{name: "the built-in policy: equal labels, whatever the tools' labels are",
		documents: []string{string(policies.Default)},
		closed:    dockerWorkloads, allowed: []string{"twin → mine", "mine → twin"},
		refused: []string{"both → mine", "mine → both", "mine → compose", "compose → mine", "pid-host → mine"}},
	selectsTool("a Compose service", "compose", serviceKey, "db"),
	selectsTool("a Swarm service, by the label of its tasks", "stack", "com.docker.swarm.service.name", "shop_web"),
	selectsTool("Traefik's routers", "traefik", "traefik.http.routers.a.rule", "Host(`a.example.com`)"),
	selectsTool("Caddy's sites", "caddy", "caddy", "a.example.com"),
	selectsTool("what watchtower updates", "watched", "com.centurylinklabs.watchtower.enable", "true"),
	selectsTool("a team of Portainer", "portainer", "io.portainer.accesscontrol.teams", "ops"),
	selectsTool("jobs of GitLab Runner", "runner", "com.gitlab.gitlab-runner.type", "build"),
	selectsTool("test containers", "testcontainer", "org.testcontainers", "true"),
	selectsTool("a development container", "devcontainer", "devcontainer.local_folder", "/home/alice/src/shop"),
	selectsTool("an allocation of Nomad", "nomad", "com.hashicorp.nomad.alloc_id", "6a1c"),
	selectsTool("a pod of Kubernetes", "kubelet", "io.kubernetes.pod.name", "shop-0"),
	selectsTool("a unit of Podman", "podman-compose", "PODMAN_SYSTEMD_UNIT", "a.service"),
	selectsTool("a dashboard's group", "dashboard", "homepage.group", "Media"),
	selectsTool("jobs of Ofelia", "jobs", "ofelia.enabled", "true"),
	selectsTool("what Prometheus scrapes", "monitored", "prometheus.io/scrape", "true"),
	selectsTool("what autoheal restarts", "healed", "autoheal", "true"),

	{name: "a policy selects every Compose service", documents: []string{isolating("p", term(serviceKey, "Exists"))},
		is: map[string]string{"compose": "named"}, closed: []string{"both", "compose", "noted", "twin"}},
	{name: "a policy names a Compose service with NotIn only",
		documents: []string{isolating("p", term(serviceKey, "NotIn", "web"))},
		closed:    without(dockerWorkloads, "both"), allowed: []string{"mine → compose"}},
	{name: "a policy names Compose services with DoesNotExist only",
		documents: []string{isolating("p", term(serviceKey, "DoesNotExist"))},
		closed:    without(dockerWorkloads, "both", "noted", "twin")},
	{name: "only an audit policy selects a Compose service",
		documents: []string{audited(isolating("a", serviceDB)), isolating("p", appDB)},
		closed:    []string{"mine", "twin"}, allowed: []string{"mine → compose"}},
	{name: "an allow rule names a Compose service",
		documents: []string{databaseFor("allow", "{workloads: "+serviceDB+"}")},
		is:        map[string]string{"compose": "named"}, closed: []string{"mine", "twin"},
		allowed: []string{"compose → mine"}, refused: []string{"both → mine", "stack → mine"}},
	{name: "a deny rule names a Compose service",
		documents: []string{databaseFor("deny", "{workloads: "+serviceDB+"}")},
		is:        map[string]string{"compose": "named"},
		allowed:   []string{"both → mine", "mine → compose"}, refused: []string{"compose → mine"}},
	{name: "only services of one Compose project reach each other",
		documents: []string{strings.Replace(isolating("p", projectShop), "ingress: []",
			"ingress: [{from: [{sameLabels: [com.docker.compose.project]}]}]", 1)},
		is: map[string]string{"compose": "named"}, closed: []string{"both", "compose", "twin"},
		allowed: []string{"compose → both", "both → compose", "twin → compose"},
		refused: []string{"mine → compose", "stack → compose"}},
	{name: "a Compose service may call nobody",
		documents: []string{strings.Replace(isolating("p", serviceDB), "ingress: []", "egress: []", 1)},
		is:        map[string]string{"compose": "named"},
		refused:   []string{"compose → mine", "compose → nothing"}, allowed: []string{"mine → compose"}},
	{name: "a policy names a container that is no workload, by a label of the daemon",
		documents: []string{isolating("p", "{matchLabels: {thole/container: nothing}}")},
		status:    with(hostNotices, "container-unprotected stdin:3:18"), exit: 1},
	{name: "a policy names a workload by a label of the daemon",
		documents: []string{isolating("p", "{matchLabels: {thole/container: mine}}")}, closed: []string{"mine"}},
	{name: "a label that only the daemon gives is not believed",
		documents: []string{isolating("p", "{matchLabels: {thole/kind: run}}")}, allowed: []string{"mine → forged"}},
}

// Situations about values that no policy can name.
var valueSituations = []situation{
	{name: "a policy selects everything with a note", documents: []string{isolating("p", term("note", "Exists"))},
		is:      map[string]string{"lines": "named", "coloured": "named", "long": "named"},
		closed:  []string{"lines", "coloured", "long", "noted"},
		allowed: []string{"long → mine"}},
	{name: "a policy selects one note", documents: []string{isolating("p", "{matchLabels: {note: short}}")},
		is:     map[string]string{"lines": "named", "coloured": "named", "long": "named"},
		closed: []string{"noted"}, allowed: []string{"mine → lines"}},
	{name: "an allow rule admits all notes but one", documents: []string{databaseFor("allow",
		"{workloads: "+term("note", "NotIn", "long")+"}"), isolating("p", term("note", "Exists"))},
		is:      map[string]string{"lines": "named", "coloured": "named", "long": "named"},
		closed:  []string{"coloured", "lines", "long", "mine", "noted", "twin"},
		allowed: []string{"noted → mine", "both → mine"},
		refused: []string{"lines → mine", "coloured → mine", "long → mine", "nothing → mine"}},
}

// Situations about the labels of images. The image of three containers has tier=web.
var imageSituations = []situation{
	{name: "a policy selects an image's label", documents: []string{isolating("p", "{matchLabels: {tier: web}}")},
		is: map[string]string{
			"by-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)",
			"as-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)"},
		closed: []string{"as-image", "by-image"}},
	{name: "an allow rule names an image's label", documents: []string{databaseFor("allow", byValue)},
		closed: []string{"mine", "twin"}, refused: []string{"by-image → mine", "as-image → mine"}},
	{name: "a deny rule names an image's label", documents: []string{databaseFor("deny", byValue)},
		is: map[string]string{
			"by-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)",
			"as-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)"},
		refused: []string{"by-image → mine", "as-image → mine"},
		allowed: []string{"unlike-image → mine", "nothing → mine"}},
	{name: "a person gives another value than the image",
		documents: []string{isolating("p", "{matchLabels: {tier: db}}")},
		is: map[string]string{
			"by-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)",
			"as-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)"},
		closed: []string{"unlike-image"}},
	{name: "the Settings trust the image", documents: []string{settings("{trustImages: [registry.example.com/*]}"),
		isolating("p", "{}")},
		is: map[string]string{"by-image": "maintainer=somebody (person), tier=web (person)",
			"as-image":     "maintainer=somebody (person), tier=web (person)",
			"unlike-image": "maintainer=somebody (person), tier=db (person)"},
		closed: with(dockerWorkloads, "as-image", "by-image"), status: []string{ofSwarm}},
	{name: "the Settings trust another image", documents: []string{
		settings("{trustImages: [registry.example.org/*]}"), isolating("p", "{}")}, closed: dockerWorkloads},
}

// Situations about Settings.
var settingsSituations = []situation{
	{name: "a person's label is excluded", documents: []string{
		settings("{identityLabels: {exclude: [build.*, maintainer]}}"), isolating("p", "{}")},
		is:     map[string]string{"built": "", "maintained": ""},
		status: without(hostNotices, "image-label unlike-image"),
		closed: without(dockerWorkloads, "built", "maintained")},
	{name: "a person's label is excluded, and selected", documents: []string{
		settings("{identityLabels: {exclude: [build.*]}}"), isolating("p", `{matchLabels: {build.id: "7"}}`)},
		is: map[string]string{"built": "named"}, closed: []string{"built"}},
	{name: "Compose's labels are included", documents: []string{
		settings("{identityLabels: {include: [com.docker.compose.service]}}"), string(policies.Default)},
		is: map[string]string{"compose": "com.docker.compose.service=db (tool)",
			"both":  "app=web (person), com.docker.compose.service=web (tool)",
			"twin":  "app=db (person), com.docker.compose.service=twin (tool)",
			"noted": "com.docker.compose.service=cache (tool), note=short (person)"},
		closed: with(dockerWorkloads, "compose"), refused: []string{"twin → mine", "mine → compose"}},
	{name: "nothing but a service's name counts", documents: []string{
		settings("{identityLabels: {include: [com.docker.compose.service], exclude: ['*']}}"), isolating("p", "{}")},
		is: map[string]string{"compose": "com.docker.compose.service=db (tool)",
			"both":  "com.docker.compose.service=web (tool)",
			"twin":  "com.docker.compose.service=twin (tool)",
			"noted": "com.docker.compose.service=cache (tool)",
			"mine":  "", "kubernetes-style": "", "pid-host": "", "joined": "", "maintained": "", "built": "",
			"unlike-image": ""},
		closed: []string{"both", "compose", "noted", "twin"}, status: []string{ofSwarm}},
	{name: "nothing counts, and a policy selects a label", documents: []string{
		settings("{identityLabels: {exclude: ['*']}}"), isolating("p", appDB)},
		is: map[string]string{"mine": "named", "twin": "named", "both": "named", "pid-host": "named",
			"joined": "named", "kubernetes-style": "", "maintained": "", "built": "", "noted": "", "unlike-image": ""},
		closed: []string{"mine", "twin"}, allowed: []string{"mine → both"}, status: []string{ofSwarm}},
}

// Situations about Workload documents.
var documentSituations = []situation{
	{name: "a document names a container without labels", documents: []string{
		binding("web", "{app: bound}", "{container: nothing}"), isolating("p", "{matchLabels: {app: bound}}")},
		is: map[string]string{"nothing": "app=bound (document)"}, closed: []string{"nothing"}},
	{name: "a document names a Compose service", documents: []string{
		binding("db", "{store: data}", "{compose: {project: shop, service: db}}"),
		isolating("p", "{matchLabels: {store: data}}")},
		is: map[string]string{"compose": "store=data (document)"}, closed: []string{"compose"}},
	{name: "a document gives a label of another value, and keeps the others", documents: []string{
		binding("builder", `{build.id: "8"}`, "{container: built}"), isolating("p", `{matchLabels: {build.id: "7"}}`)},
		is: map[string]string{"built": "build.host=a (person), build.id=8 (document)"}},
	{name: "a document gives the label that is doubtful", documents: []string{
		binding("web", "{tier: web}", "{container: by-image}"), isolating("p", "{matchLabels: {tier: web}}")},
		is: map[string]string{"by-image": "maintainer=somebody (image, doubtful), tier=web (document)",
			"as-image": "maintainer=somebody (image, doubtful), tier=web (image, doubtful)"},
		closed: []string{"as-image", "by-image"}},
	{name: "two documents name one container", documents: []string{
		binding("one", "{app: one}", "{container: compose}"),
		binding("two", "{app: two}", "{compose: {project: shop, service: db}}"), isolating("p", "{}")},
		is: map[string]string{"compose": "app=one (document)"}, closed: with(dockerWorkloads, "compose"),
		status: with([]string{"binding-overlap stdin:9:18"}, hostNotices...), exit: 1},
	{name: "a document names a container that is not there", documents: []string{
		binding("web", "{app: bound}", "{container: absent}"), isolating("p", "{matchLabels: {app: bound}}")},
		status: with(hostNotices, "container-absent stdin:3:18")},
	{name: "a document names a unit that never ran", documents: []string{
		binding("web", "{app: bound}", "{unit: absent.service}"), isolating("p", "{matchLabels: {app: bound}}")},
		status: with(hostNotices, "unit-absent stdin:3:18")},
	{name: "a document names the cgroup of all containers", documents: []string{
		binding("dmz", "{zone: dmz}", "{cgroup: docker}"), isolating("p", "{matchLabels: {zone: dmz}}")},
		closed:  without(names(dockerContainers), dockerWorkloads...),
		refused: []string{"mine → compose"}, allowed: []string{"compose → mine", "nothing → mine"}},
}

// Containers on a bridge. They share the network of the first one.
var bridgeContainers = []server{
	{name: "bridged", labels: []string{"app=bridged"}, args: []string{"--net=bridge"}, is: "app=bridged (person)"},
	{name: "sidecar", labels: []string{"app=sidecar"}, args: []string{"--net=container:bridged"},
		is: "app=sidecar (person)"},
	{name: "traefik-sidecar", labels: []string{"traefik.enable=true"}, args: []string{"--net=container:bridged"}},
}

// Situations about containers that share a network on a bridge.
var bridgeSituations = []situation{
	{name: "a policy is about none of the containers of a shared network",
		documents: []string{isolating("p", appDB)}, closed: []string{"mine", "twin"},
		refused: []string{"bridged → mine", "sidecar → mine", "traefik-sidecar → mine"},
		allowed: []string{"bridged → noted", "mine → bridged", "sidecar → compose"},
		status:  with(hostNotices, "network-shared bridged")},
	{name: "an allow rule names one container of a shared network",
		documents: []string{databaseFor("allow", "{workloads: {matchLabels: {app: bridged}}}")},
		closed:    []string{"mine", "twin"}, refused: []string{"bridged → mine", "sidecar → mine"},
		status: with(hostNotices, "network-shared bridged")},
	{name: "the allow rule admits each container of a shared network",
		documents: []string{databaseFor("allow", "{workloads: "+term("app", "In", "bridged", "sidecar")+
			"}, {unlabelled: true}")},
		allowed: []string{"bridged → mine", "sidecar → mine", "traefik-sidecar → mine"},
		refused: []string{"both → mine"},
		status:  with(hostNotices, "network-shared bridged")},
	{name: "a policy isolates one container of a shared network (unlabelled programs reach every bridge)",
		documents: []string{isolating("p", "{matchLabels: {app: sidecar}}")},
		refused:   []string{"mine → bridged", "mine → traefik-sidecar"}, allowed: []string{"bridged → mine"},
		status: with(hostNotices, "network-shared bridged")},
	{name: "a deny rule names the unlabelled container of a shared network by a tool's label",
		documents: []string{databaseFor("deny", `{workloads: {matchLabels: {traefik.enable: "true"}}}`)},
		is:        map[string]string{"traefik": "named", "traefik-sidecar": "named"},
		refused:   []string{"bridged → mine", "sidecar → mine", "traefik → mine", "both → mine"},
		status:    with(hostNotices, "network-shared bridged")},
}

// A refusal is a command that would give something labels of which none counts.
type refusal struct {
	name    string
	stdin   string
	command []string
	exit    int
	says    string
}

var refusals = []refusal{
	{"thole run, with the label of a tool alone", "", []string{"run", "-l", "traefik.enable=true", "--", "true"}, 1,
		"none of the labels traefik.enable=true counts"},
	{"thole run, with a label that the Settings exclude", "", []string{"run", "-l", "build.id=7", "--", "true"}, 1,
		"none of the labels build.id=7 counts"},
	{"a document, with the label of a tool alone", documents(binding("web", "{traefik.enable: \"true\"}",
		"{container: nothing}"), isolating("p", "{}")), []string{"apply", "-f", "-"}, 1,
		`none of the labels of the workload "web" counts: {traefik.enable=true}`},
	{"a document, with a label that the Settings exclude", documents(
		settings("{identityLabels: {exclude: [build.*]}}"), binding("web", "{build.id: \"7\"}",
			"{container: nothing}"), isolating("p", "{}")), []string{"apply", "-f", "-"}, 1,
		`none of the labels of the workload "web" counts: {build.id=7} (Settings are at stdin:3:18)`},
	{"a grant of labels that the Settings exclude", documents(settings("{identityLabels: {exclude: [build.*]}}"),
		"apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\n"+
			"spec: {users: [1000], labels: {build.id: [\"7\"]}}\n", isolating("p", "{}")),
		[]string{"apply", "-f", "-"}, 1, `none of the labels of the grant "g" counts: {build.id=…}`},
	{"a grant of labels of the daemon", documents("apiVersion: thole/v1\nkind: LabelGrant\nmetadata: {name: g}\n"+
		"spec: {users: [1000], labels: {thole/user: [root]}}\n", isolating("p", "{}")),
		[]string{"apply", "-f", "-"}, 1, "only the daemon sets keys that begin with thole/"},
}

// TestWhoIsAWorkload: containers as people and their tools start them. For each set of documents, who is a workload,
// with which labels, what the daemon's status says, and who reaches whom.
func TestWhoIsAWorkload(t *testing.T) {
	m, e := newDockerMachine(t)
	s := newSituations(m, "container")
	s.start, s.notices = e.Probe, hostNotices
	s.images = map[string]string{"": e.Image("plain", nil),
		"web": e.Image("registry.example.com/web", map[string]string{"tier": "web", "maintainer": "somebody"}),
		"oci": e.Image("oci", map[string]string{"org.opencontainers.image.title": "shop",
			"org.opencontainers.image.source": "https://example.com/shop"})}
	for _, c := range dockerContainers {
		s.enter(c)
	}
	for _, table := range [][]situation{toolSituations, valueSituations, imageSituations, settingsSituations,
		documentSituations} {
		for _, of := range table {
			t.Run(of.name, func(t *testing.T) { s.try(t, of) })
		}
	}
	for _, c := range bridgeContainers {
		s.enter(c)
		s.address[c.name] = strings.Replace(s.address[c.name], "127.0.0.1", "172.17.0.2", 1)
	}
	for _, of := range bridgeSituations {
		t.Run(of.name, func(t *testing.T) { s.try(t, of) })
	}
	must(t, s.apply(documents(settings("{identityLabels: {exclude: [build.*]}}"), isolating("p", "{}"))))
	for _, of := range refusals {
		t.Run("refused: "+of.name, func(t *testing.T) {
			exit, text := s.exitStatus(of.stdin, of.command...)
			if exit != of.exit || !strings.Contains(text, of.says) {
				t.Errorf("exit status %d, want %d, and %q:\n%s", exit, of.exit, of.says, text)
			}
		})
	}
}
