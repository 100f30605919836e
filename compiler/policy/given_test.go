package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
)

// Labels that documents gave a container are removed again; the labels that the container itself has stay.
func TestWithoutGiven(t *testing.T) {
	type labels = policy.Labels
	own := policy.Workload{Name: "c", Kind: policy.KindContainer, Labels: labels{"app": "web", "env": "prod"},
		Facts:    labels{"thole/container": "c", "traefik.enable": "true", "note": policy.UnusableValue},
		Doubtful: labels{"tier": "web"}, DoubtfulFacts: labels{"build.id": "7"}}
	bound := own
	bound.Labels = labels{"app": "db", "env": "prod", "tier": "db", "zone": "a", "note": "short"}
	bound.Facts, bound.Doubtful = labels{"thole/container": "c", "traefik.enable": "false"}, nil
	bound.NoteGiven(&own, "app", "tier", "note", "traefik.enable")
	again := bound
	again.Labels, again.DoubtfulFacts = labels{"app": "mail", "env": "prod", "tier": "db", "zone": "a", "note": "short",
		"build.id": "8"}, nil
	again.NoteGiven(&bound, "app", "build.id", "zone")
	want := own
	want.Labels = labels{"env": "prod"}
	want.Facts = labels{"thole/container": "c", "app": "web", "traefik.enable": "true", "note": policy.UnusableValue}
	want.Doubtful, want.DoubtfulFacts = labels{"tier": "web", "build.id": "7"}, labels{}
	// The label zone was there before the second document gave it: it is the container's own.
	want.Facts["zone"] = "a"
	diff := cmp.Diff(want, again.WithoutGiven(), cmpopts.EquateEmpty(), cmpopts.EquateComparable(want.Address))
	if diff != "" {
		t.Errorf("the container's own labels (-want +got)\n%s", diff)
	}
	if bound.Given.Has("zone") || !bound.Given.Has("app") || !again.Given.Has("zone") || own.Given.Has("app") {
		t.Errorf("given: %v, then %v", bound.Given, again.Given)
	}
}

// A container in a cgroup that a document names has the document's labels, and it is known which those are.
func TestGivenByTheCgroupAround(t *testing.T) {
	type labels = policy.Labels
	docs, err := policy.Parse([]policy.File{{Name: "a.yaml", Data: []byte(selectsService)}})
	if err != nil {
		t.Fatal(err)
	}
	slice := policy.Workload{Name: "dmz", Kind: policy.KindCgroup, Labels: labels{"zone": "dmz"},
		Facts: labels{"thole/kind": "cgroup"}, Cgroup: policy.Cgroup{Path: "docker", ID: 1}}
	inside := policy.Unlabelled{Name: "c", Cgroup: policy.Cgroup{Path: "docker/c", ID: 2},
		Facts: labels{"thole/container": "c", "com.docker.compose.service": "db"}}
	found, _ := docs.Identify([]policy.Workload{slice}, []policy.Unlabelled{inside})
	exact := slice.With(inside) // the document names the container's own cgroup
	for _, w := range append(found[1:], exact) {
		own := w.WithoutGiven()
		if !w.Given.Has("zone") || w.Given.Has("com.docker.compose.service") || len(own.Labels) > 0 ||
			own.Facts["com.docker.compose.service"] != "db" {
			t.Errorf("%+v: given %+v, own %+v", w, w.Given, own)
		}
	}
	if len(found) != 2 {
		t.Errorf("found %+v", found)
	}
}
