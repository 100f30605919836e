package docker

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

func TestLabelsOfContainers(t *testing.T) {
	base := policy.Labels{
		workload.FactKind: "container", workload.FactContainer: "", workload.FactImage: "", workload.FactNetwork: "",
	}
	with := func(key, value string) policy.Labels {
		facts := policy.Labels{key: value}
		for k, v := range base {
			facts[k] = v
		}
		return facts
	}
	image := map[string]string{"app": "nginx", "maintainer": "somebody"}
	for _, tt := range []struct {
		name    string
		labels  map[string]string
		image   map[string]string
		want    policy.Labels
		facts   policy.Labels
		refused string
	}{
		{"a person's", map[string]string{"app": "web"}, map[string]string{}, policy.Labels{"app": "web"}, base, ""},
		{"any text", map[string]string{"rule": "Host(`a`) && Path(`/b`)"}, map[string]string{},
			policy.Labels{"rule": "Host(`a`) && Path(`/b`)"}, base, ""},
		{"the image's key", map[string]string{"app": "web"}, image, policy.Labels{"app": "web"}, base, ""},
		{"a tool's", map[string]string{"com.docker.compose.project": "shop"}, map[string]string{},
			policy.Labels{}, with("com.docker.compose.project", "shop"), ""},
		{"ours", map[string]string{"thole/uid": "0"}, map[string]string{}, policy.Labels{}, base, ""},
		{"a tool's text of several lines", map[string]string{"org.opencontainers.image.description": "a\nb"},
			map[string]string{}, policy.Labels{},
			with("org.opencontainers.image.description", policy.UnusableValue), ""},
		{"text of several lines", map[string]string{"app": "a\nb", "tier": "web"}, map[string]string{},
			policy.Labels{"tier": "web"}, with("app", policy.UnusableValue), ""},
		{"9 kB", map[string]string{"note": strings.Repeat("a", 9000)}, map[string]string{}, policy.Labels{},
			with("note", policy.UnusableValue), ""},
		{"no key", map[string]string{"": "a"}, map[string]string{}, policy.Labels{}, base, ""},
		{"a key of several lines", map[string]string{"a\nb": "a"}, map[string]string{}, policy.Labels{},
			with("a\nb", policy.UnusableValue), ""},
		{"the image is gone", map[string]string{"app": "web"}, nil, policy.Labels{"app": "web"}, base,
			"its image was removed, so its labels cannot be distinguished from the image's labels: create the " +
				"container again"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecord(container{labels: tt.labels, imageLabels: tt.image})
			if diff := cmp.Diff(tt.want, r.labels); diff != "" {
				t.Errorf("labels (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.facts, r.facts); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if r.refused != tt.refused {
				t.Errorf("refused: %q, want %q", r.refused, tt.refused)
			}
		})
	}
}

// A label that the image has too, with the same value, is doubtful, whoever gave it.
func TestDoubtfulLabels(t *testing.T) {
	image := map[string]string{
		"app": "nginx", "com.docker.compose.project": "shop", "text": "a\nb", "thole/kind": "run",
	}
	r := newRecord(container{imageLabels: image, labels: map[string]string{
		"app": "nginx", "com.docker.compose.project": "shop", "text": "a\nb", "thole/kind": "run", "tier": "web",
	}})
	want := policy.Labels{"app": "nginx", "com.docker.compose.project": "shop", "text": policy.UnusableValue}
	if diff := cmp.Diff(want, r.doubtful); diff != "" {
		t.Errorf("doubtful (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(policy.Labels{"tier": "web"}, r.labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	r = newRecord(container{imageLabels: image, labels: map[string]string{"app": "web"}})
	if r.doubtful != nil || r.labels["app"] != "web" {
		t.Errorf("another value than the image's: %+v", r)
	}
}

// The key of an image's label is there even if no policy can name the value.
func TestUnusableValueOfImage(t *testing.T) {
	l := map[string]string{"quarantine": "yes\nno"}
	w := newRecord(container{labels: l, imageLabels: l}).workload(policy.Cgroup{})
	exists := policy.Selector{Requirements: []policy.Requirement{{Key: "quarantine", Operator: policy.Exists}}}
	if !exists.Selects(&w, policy.Restricting) {
		t.Errorf("Exists does not match %v", w.Doubtful)
	}
}

// A container that a document gives labels keeps its image's labels when the daemon restarts while Docker is away.
func TestRecallOfBoundContainer(t *testing.T) {
	d := New(cgroupfs.Root{}, Host{})
	id := idOf("a")
	d.Recall(workload.Snapshot{Workloads: []policy.Workload{{
		Name: "bound", Kind: policy.KindCgroup, Labels: policy.Labels{"env": "prod"},
		Doubtful: policy.Labels{"app": "db"}, Cgroup: policy.Cgroup{Path: "docker/" + id, ID: 5},
	}}})
	if r := d.containers.records[id]; r == nil || len(r.labels) > 0 || r.doubtful["app"] != "db" {
		t.Errorf("recalled: %+v", r)
	}
}

// A container whose cgroup a document names, or that a document names itself, is recalled with its own labels: which
// documents there are when the daemon is back is not known here.
func TestRecallOfOwnLabels(t *testing.T) {
	facts := policy.Labels{"thole/container": "c", "thole/kind": "container", "com.docker.compose.service": "db"}
	own := policy.Unlabelled{Name: "c", Cgroup: policy.Cgroup{Path: "docker/" + idOf("a"), ID: 5}, Facts: facts,
		Doubtful: policy.Labels{"app": "db"}}
	document := policy.Workload{Name: "dmz", Kind: policy.KindCgroup,
		Labels: policy.Labels{"app": "web", "env": "prod"}, Facts: policy.Labels{"thole/kind": "cgroup"},
		Cgroup: own.Cgroup}
	byName := own.Workload()
	byName.Labels, byName.Doubtful = document.Labels, nil
	before := own.Workload()
	byName.NoteGiven(&before, "app", "env")
	for what, w := range map[string]policy.Workload{"its cgroup": document.With(own), "its name": byName} {
		d := New(cgroupfs.Root{}, Host{})
		d.Recall(workload.Snapshot{Workloads: []policy.Workload{w}})
		r := d.containers.records[idOf("a")]
		if r == nil {
			t.Fatalf("%s: nothing is recalled", what)
		}
		if got := r.unlabelled(own.Cgroup); len(r.labels) > 0 || !cmp.Equal(own, got, cmpopts.EquateEmpty()) {
			t.Errorf("a document gives %s: recalled %+v with the labels %v, want %+v", what, got, r.labels, own)
		}
	}
}

func TestUserOfContainers(t *testing.T) {
	for _, tt := range []struct {
		details *details
		want    string
	}{
		{nil, ""},
		{&details{}, "0"},
		{&details{user: "root"}, "0"},
		{&details{user: "1000"}, "1000"},
		{&details{user: "0010:5"}, "10"},
		{&details{user: "nginx"}, ""},
		{&details{user: "1000", userNamespace: true}, ""},
	} {
		if got, _ := tt.details.uid(); got != tt.want {
			t.Errorf("%+v: uid %q, want %q", tt.details, got, tt.want)
		}
	}
}
