package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// isolating is a policy that lets nobody connect to what it selects.
func isolating(name, selector string) string {
	return fmt.Sprintf("apiVersion: thole/v1\nkind: Policy\nmetadata: {name: %s}\n"+
		"spec: {selector: %s, ingress: []}\n", name, selector)
}

// settings is a Settings document.
func settings(spec string) string {
	return "apiVersion: thole/v1\nkind: Settings\nmetadata: {name: settings}\nspec: " + spec + "\n"
}

// TestLabelsThatCount starts containers as people and their tools start them, and holds against each set of documents
// who is a workload, and who can be reached by an unlabelled program.
func TestLabelsThatCount(t *testing.T) {
	m, e := newDockerMachine(t)
	plain := e.Image("plain", nil)
	web := e.Image("registry.example.com/web", map[string]string{"tier": "web", "maintainer": "somebody"})
	free := probe.Start(m.In("elsewhere"), "free")
	containers := map[string]struct {
		image  string
		labels []string
	}{
		"mine":     {plain, []string{"app=db"}},
		"compose":  {plain, []string{"com.docker.compose.project=shop", "com.docker.compose.service=db"}},
		"traefik":  {plain, []string{"traefik.enable=true", "traefik.http.routers.a.rule=Host(`a.example.com`)"}},
		"watched":  {plain, []string{"com.centurylinklabs.watchtower.enable=true"}},
		"podman":   {plain, []string{"io.podman.compose.project=shop", "PODMAN_SYSTEMD_UNIT=a.service"}},
		"both":     {plain, []string{"app=web", "com.docker.compose.service=web", "traefik.enable=true"}},
		"built":    {plain, []string{"build.id=7", "build.host=a"}},
		"image":    {web, nil},
		"odd":      {plain, []string{"note=two\nlines"}},
		"long":     {plain, []string{"note=" + strings.Repeat("x", 9000)}},
		"nothing":  {plain, nil},
		"selected": {plain, []string{"com.docker.compose.service=cache", "note=short"}},
	}
	ports := map[string]string{}
	for i, name := range slices.Sorted(maps.Keys(containers)) {
		c := containers[name]
		args := []string{"--net=host"}
		for _, label := range c.labels {
			args = append(args, "-l", label)
		}
		ports[name] = fmt.Sprintf("127.0.0.1:%d", 8000+i)
		e.Probe(name, append(args, c.image)...).Listen("tcp", ports[name])
	}
	const (
		byService  = "{matchLabels: {com.docker.compose.service: db}}"
		hasService = "{matchExpressions: [{key: com.docker.compose.service, operator: Exists}]}"
		notService = "{matchExpressions: [{key: com.docker.compose.service, operator: NotIn, values: [web]}]}"
		hasNote    = "{matchExpressions: [{key: note, operator: Exists}]}"

		hasWatchtower = "{matchExpressions: [{key: com.centurylinklabs.watchtower.enable, operator: Exists}]}"
	)
	always := []string{"both", "built", "mine", "selected"} // they have a label that counts by default
	audit := strings.Replace(isolating("audit", byService), "spec: {", "spec: {enforcement: audit, ", 1)
	peer := func(p string) string { return databaseFor("allow", p) }
	for _, tt := range []struct {
		name      string
		documents string
		also      []string // workloads beside those of always, or those alone if only is set
		only      bool
		closed    []string // unlabelled programs cannot reach them
	}{
		{name: "a person's label", documents: isolating("p", "{matchLabels: {app: db}}"), closed: []string{"mine"}},
		{name: "everything that is a workload", documents: isolating("p", "{}"), closed: always},
		{name: "a Compose service", documents: isolating("p", byService), also: []string{"compose"},
			closed: []string{"compose"}},
		{name: "every Compose service", documents: isolating("p", hasService), also: []string{"compose"},
			closed: []string{"both", "compose", "selected"}},
		{name: "all but a service", documents: isolating("p", notService),
			closed: []string{"built", "mine", "selected"}},
		{name: "audited", documents: documents(audit, isolating("p", "{matchLabels: {app: db}}")),
			closed: []string{"mine"}},
		{name: "a service as a peer", documents: peer("{workloads: " + byService + "}"), also: []string{"compose"},
			closed: []string{"mine"}},
		{name: "sameLabels with a tool's key", documents: peer("{sameLabels: [com.docker.compose.project]}"),
			also: []string{"compose"}, closed: []string{"mine"}},
		{name: "Traefik's label", documents: isolating("p", `{matchLabels: {traefik.enable: "true"}}`),
			also: []string{"traefik"}, closed: []string{"both", "traefik"}},
		{name: "watchtower's label",
			documents: isolating("p", hasWatchtower),
			also:      []string{"watched"}, closed: []string{"watched"}},
		{name: "Podman's label", documents: isolating("p", "{matchLabels: {PODMAN_SYSTEMD_UNIT: a.service}}"),
			also: []string{"podman"}, closed: []string{"podman"}},
		{name: "a note of any length", documents: isolating("p", hasNote), also: []string{"long", "odd"},
			closed: []string{"long", "odd", "selected"}},
		{name: "an image's label", documents: isolating("p", "{matchLabels: {tier: web}}"), also: []string{"image"},
			closed: []string{"image"}},
		{name: "an image's label as a peer", documents: peer("{workloads: {matchLabels: {tier: web}}}"),
			closed: []string{"mine"}},
		{name: "a trusted image", documents: documents(settings("{trustImages: [registry.example.com/*]}"),
			isolating("p", "{}")), also: []string{"image"}, closed: append([]string{"image"}, always...)},
		{name: "another image is trusted", documents: documents(settings("{trustImages: [registry.example.org/*]}"),
			isolating("p", "{}")), closed: always},
		{name: "excluded", documents: documents(settings("{identityLabels: {exclude: [build.*]}}"),
			isolating("p", "{}")), also: []string{"both", "mine", "selected"}, only: true,
			closed: []string{"both", "mine", "selected"}},
		{name: "excluded, and selected", documents: documents(settings("{identityLabels: {exclude: [build.*]}}"),
			isolating("p", `{matchLabels: {build.id: "7"}}`)), closed: []string{"built"}},
		{name: "included", documents: documents(settings("{identityLabels: {include: [com.docker.compose.*]}}"),
			isolating("p", "{}")), also: []string{"compose"}, closed: append([]string{"compose"}, always...)},
		{name: "only what is included", documents: documents(
			settings("{identityLabels: {include: [com.docker.compose.service], exclude: ['*']}}"),
			isolating("p", "{}")),
			also: []string{"both", "compose", "selected"}, only: true, closed: []string{"both", "compose", "selected"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			must(t, m.apply(tt.documents))
			want := slices.Clone(tt.also)
			if !tt.only {
				want = append(want, always...)
			}
			slices.Sort(want)
			var got []string
			nstest.WaitFor(t, patience, fmt.Sprintf("the workloads %q", want), func() bool {
				got = slices.Sorted(maps.Keys(m.workloads("container")))
				return slices.Equal(got, want)
			})
			var closed []string
			for _, name := range slices.Sorted(maps.Keys(ports)) {
				if !free.TCP(ports[name]).Allowed() {
					closed = append(closed, name)
				}
			}
			slices.Sort(tt.closed)
			if diff := cmp.Diff(tt.closed, closed); diff != "" {
				t.Errorf("closed to unlabelled programs (-want +got)\n%s", diff)
			}
		})
	}
}

// TestWorkloadDocumentsOfContainers gives labels to containers that were started without any: by name, and by Compose
// service, also to those that start later.
func TestWorkloadDocumentsOfContainers(t *testing.T) {
	m, e := newDockerMachine(t)
	image := e.Image("box", nil)
	service := []string{"-l", "com.docker.compose.project=shop", "-l", "com.docker.compose.service=db"}
	e.Probe("plain", "--net=host", image).Listen("tcp", "127.0.0.1:80")
	e.Probe("shop-db-1", append(append([]string{"--net=host"}, service...), image)...).Listen("tcp", "127.0.0.1:81")
	free := probe.Start(m.In("elsewhere"), "free")
	binding := func(name, spec string) string {
		return fmt.Sprintf("apiVersion: thole/v1\nkind: Workload\nmetadata: {name: %s, labels: {app: %[1]s}}\n"+
			"spec: %s\n", name, spec)
	}
	byName, byService := binding("web", "{container: plain}"), binding("db", "{compose: {project: shop, service: db}}")
	must(t, m.apply(documents(byName, byService, isolating("p", "{}"))))
	found := m.untilWorkloads("plain", "shop-db-1")
	if app := found["plain"].Labels["app"] + found["shop-db-1"].Labels["app"]; app != "webdb" {
		t.Errorf("the labels are %+v", found)
	}
	denied(t, "by name", free.TCP("127.0.0.1:80"))
	denied(t, "by service", free.TCP("127.0.0.1:81"))
	later := e.Probe("shop-db-2", append(append([]string{"--net=host"}, service...), image)...)
	later.Listen("tcp", "127.0.0.1:82")
	denied(t, "by service, later", free.TCP("127.0.0.1:82"))
	m.untilWorkloads("plain", "shop-db-1", "shop-db-2")
	must(t, m.apply(documents(byName, isolating("p", "{}"))))
	m.untilWorkloads("plain")
	allowed(t, "without its document", free.TCP("127.0.0.1:81"))

	// Two documents that name one container are a problem as long as both do.
	must(t, m.apply(documents(byName, byService, binding("second", "{container: shop-db-1}"), isolating("p", "{}"))))
	m.until("the problem", func(s api.Status) bool {
		return len(s.Problems) == 1 && s.Problems[0].Code == condition.BindingOverlap
	})
	e.Docker("rm", "-f", "shop-db-1")
	m.until("its end", func(s api.Status) bool { return len(s.Problems) == 0 && s.Workloads == 2 })
}
