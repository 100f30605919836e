package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
)

const (
	selectsService = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {selector: {matchLabels: {com.docker.compose.service: db}}, ingress: []}
`
	allowsService = `
apiVersion: thole/v1
kind: Policy
metadata: {name: app}
spec:
  selector: {matchLabels: {app: web}}
  ingress: [{from: [{workloads: {matchLabels: {com.docker.compose.service: db}}}]}]
`
	auditsService = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec: {enforcement: audit, selector: {matchLabels: {com.docker.compose.service: db}}, ingress: []}
`
	avoidsService = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchExpressions: [{key: com.docker.compose.service, operator: NotIn, values: [web]}]}
  ingress: []
`
	sameProject = `
apiVersion: thole/v1
kind: Policy
metadata: {name: project}
spec: {selector: {}, ingress: [{from: [{sameLabels: [com.docker.compose.project]}]}]}
`
	everything = `
apiVersion: thole/v1
kind: Policy
metadata: {name: all}
spec: {selector: {}, ingress: [{from: [{sameLabels: all}]}]}
`
	existsNote = `
apiVersion: thole/v1
kind: Policy
metadata: {name: note}
spec: {selector: {matchExpressions: [{key: note, operator: Exists}]}, ingress: []}
`
)

func settings(spec string) string {
	return "\n---\napiVersion: thole/v1\nkind: Settings\nmetadata: {name: settings}\nspec: " + spec + "\n"
}

// An identity is what one container becomes: nothing, or a workload with labels.
type identity struct {
	Labels, Doubtful policy.Labels
	Named            bool
}

// TestIdentify decides for one container who it is.
func TestIdentify(t *testing.T) {
	type labels = policy.Labels
	compose := labels{"com.docker.compose.project": "shop", "com.docker.compose.service": "db"}
	for _, tt := range []struct {
		name                    string
		documents               string
		labels, facts, doubtful labels
		want                    *identity // nil: it is unlabelled
	}{
		{"a person's label", everything, labels{"app": "db"}, nil, nil, &identity{Labels: labels{"app": "db"}}},
		{"a tool's labels alone", everything, nil, compose, nil, nil},
		{"a policy selects a tool's label", selectsService, nil, compose, nil, &identity{Named: true}},
		{"a rule allows a tool's label", allowsService, nil, compose, nil, &identity{Named: true}},
		{"sameLabels names a tool's label", sameProject, nil, compose, nil, &identity{Named: true}},
		{"an audit policy selects it", auditsService, nil, compose, nil, nil},
		{"a policy names it with NotIn", avoidsService, nil, compose, nil, nil},
		{"a policy selects it beside a person's", selectsService, labels{"app": "db"}, compose, nil,
			&identity{Labels: labels{"app": "db"}}},
		{"an image's label that a rule allows", allowsService, nil, nil, compose, nil},
		{"an image's label that a policy selects", selectsService, nil, nil, compose, &identity{}},
		{"included", everything + settings("{identityLabels: {include: ['*.service']}}"), nil, compose, nil,
			&identity{Labels: labels{"com.docker.compose.service": "db"}}},
		{"included, and the image has it", everything + settings("{identityLabels: {include: ['*.service']}}"), nil,
			nil, compose, nil},
		{"excluded", everything + settings("{identityLabels: {exclude: [build.*]}}"), labels{"build.id": "7"}, nil, nil,
			nil},
		{"excluded beside another", everything + settings("{identityLabels: {exclude: [build.*]}}"),
			labels{"build.id": "7", "app": "db"}, nil, nil, &identity{Labels: labels{"app": "db"}}},
		{"included and excluded", everything + settings("{identityLabels: {include: [build.id], exclude: [build.*]}}"),
			labels{"build.id": "7", "build.host": "a"}, nil, nil, &identity{Labels: labels{"build.id": "7"}}},
		{"of a trusted image", everything + settings("{trustImages: [registry.example.com/*]}"), nil, nil,
			labels{"app": "db"}, &identity{Labels: labels{"app": "db"}}},
		{"of another image", everything + settings("{trustImages: [registry.example.org/*]}"), nil, nil,
			labels{"app": "db"}, nil},
		{"text that no policy can name", everything, nil, labels{"note": policy.UnusableValue}, nil, nil},
		{"text that no policy can name, and one says Exists", existsNote, nil,
			labels{"note": policy.UnusableValue}, nil, &identity{Named: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			docs, err := policy.Parse([]policy.File{{Name: "a.yaml", Data: []byte(tt.documents)}})
			if err != nil {
				t.Fatal(err)
			}
			facts := labels{"thole/kind": "container", "thole/image": "registry.example.com/db"}
			for key, value := range tt.facts {
				facts[key] = value
			}
			var found []policy.Workload
			var unlabelled []policy.Unlabelled
			if len(tt.labels) > 0 {
				found = []policy.Workload{{Name: "c", Kind: policy.KindContainer, Labels: tt.labels, Facts: facts,
					Doubtful: tt.doubtful}}
			} else {
				unlabelled = []policy.Unlabelled{{Name: "c", Facts: facts, Doubtful: tt.doubtful}}
			}
			workloads, rest := docs.Identify(found, unlabelled)
			if len(workloads)+len(rest) != 1 {
				t.Fatalf("%d workloads and %d unlabelled containers of one", len(workloads), len(rest))
			}
			var got *identity
			for i := range workloads {
				w := &workloads[i]
				got = &identity{Labels: w.Labels, Named: w.Named}
				if len(w.Labels) == 0 {
					got.Labels = nil
				}
				if again, _ := docs.Identify(workloads, nil); tt.want != nil && len(again) == 1 &&
					!cmp.Equal(again[0].Labels, w.Labels) {
					t.Errorf("asked again: %v", again)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// The labels of tools and of the daemon are no person's.
func TestIsUserLabel(t *testing.T) {
	for key, want := range map[string]bool{
		"app": true, "maintainer": true, "com.example.app": true, "app.kubernetes.io/name": true, "caddyshack": true,
		"traefikish": true, "org.testcontainersx": true,
		"thole/kind": false, "com.docker.compose.service": false, "org.opencontainers.image.title": false,
		"io.kubernetes.pod.name": false, "desktop.docker.io/ports": false, "traefik.enable": false, "caddy": false,
		"caddy_1.reverse_proxy": false, "com.centurylinklabs.watchtower.enable": false,
		"io.podman.compose.project": false,
		"PODMAN_SYSTEMD_UNIT":       false, "io.buildah.version": false, "org.testcontainers": false,
		"com.gitlab.gitlab-runner.job.id": false, "devcontainer.local_folder": false,
		"io.portainer.accesscontrol.teams": false,
		"com.hashicorp.nomad.alloc_id":     false,
	} {
		if got := policy.IsUserLabel(key); got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

// A container whose cgroup a Workload document names has the document's labels if none of its own counts, whether it
// has labels that Settings exclude or none at all.
func TestIdentifyBoundContainer(t *testing.T) {
	docs, err := policy.Parse([]policy.File{{Name: "a.yaml",
		Data: []byte(everything + settings("{identityLabels: {exclude: [build.*]}}"))}})
	if err != nil {
		t.Fatal(err)
	}
	document := &policy.Workload{Name: "dmz", Kind: policy.KindCgroup, Labels: policy.Labels{"zone": "dmz"},
		Facts: policy.Labels{"thole/kind": "cgroup"}}
	for own, want := range map[string]policy.Labels{"build.id": {"zone": "dmz"}, "app": {"app": "x"}} {
		workloads, rest := docs.Identify([]policy.Workload{{Name: "c", Kind: policy.KindContainer,
			Labels: policy.Labels{own: "x"}, Facts: policy.Labels{"com.docker.compose.service": "db"},
			Document: document}}, nil)
		if len(workloads) != 1 || len(rest) != 0 || workloads[0].Document != nil {
			t.Fatalf("%s: workloads %+v, unlabelled %+v", own, workloads, rest)
		}
		w := workloads[0]
		if diff := cmp.Diff(want, w.Labels); diff != "" {
			t.Errorf("%s: labels (-want +got)\n%s", own, diff)
		}
		if v, _ := w.Label("com.docker.compose.service"); v != "db" {
			t.Errorf("%s: the tool's label is lost: %+v", own, w)
		}
	}
}

// What is not a container is divided as well: the label of a tool does not count, whoever gave it, with and without
// Settings.
func TestIdentifyToolsLabelOfRun(t *testing.T) {
	for _, more := range []string{"", settings("{trustImages: [a/*]}")} {
		docs, err := policy.Parse([]policy.File{{Name: "a.yaml", Data: []byte(everything + more)}})
		if err != nil {
			t.Fatal(err)
		}
		workloads, _ := docs.Identify([]policy.Workload{{Name: "r", Kind: policy.KindRun,
			Labels: policy.Labels{"app": "web", "caddy": "a"}, Facts: policy.Labels{"thole/kind": "run"}}}, nil)
		if diff := cmp.Diff(policy.Labels{"app": "web"}, workloads[0].Labels); diff != "" {
			t.Errorf("labels (-want +got)\n%s", diff)
		}
		if workloads[0].Facts["caddy"] != "a" {
			t.Errorf("the label cannot be selected any more: %+v", workloads[0])
		}
	}
}
