package e2e

import (
	"strings"
	"testing"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

// policies joins documents into one set.
func documents(texts ...string) string { return strings.Join(texts, "\n---\n") }

// databaseFor is a policy for app=db that is about a peer: allow admits only it, deny refuses it.
func databaseFor(kind, peer string) string {
	spec := "ingress: [{from: [" + peer + "]}]"
	if kind == "deny" {
		spec = "deny: {ingress: [{from: [" + peer + "]}]}"
	}
	return "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: db-" + kind +
		"}\nspec:\n  selector: {matchLabels: {app: db}}\n  " + spec + "\n"
}

const (
	byValue  = "{workloads: {matchLabels: {tier: web}}}"
	notIn    = "{workloads: {matchExpressions: [{key: tier, operator: NotIn, values: [web]}]}}"
	absent   = "{workloads: {matchExpressions: [{key: tier, operator: DoesNotExist}]}}"
	isolates = `apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec: {selector: {matchLabels: {tier: web}}, ingress: [{from: [{any: true}]}], egress: [{to: [{any: true}]}]}
`
)

// An image's label gives a container no access, and where a person gives the same label the container is not
// unlabelled.
func TestImageLabelsPermitNothing(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		m.start(followDocker)
		e := engine.StartDocker(t, m.Host)
		m.until("the daemon to follow Docker", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })
		image := e.Image("nginx", map[string]string{"tier": "web"})
		db := m.labelledProbe("db", "app=db")
		db.Listen("tcp", "127.0.0.1:5432")

		// Attack: whoever builds an image names the label that policies admit. The person's own label is another.
		must(t, m.apply(databaseFor("allow", byValue)))
		mallory := e.Probe("mallory", "--net=host", "-l", "app=report", image)
		m.untilWorkloads("mallory")
		if v := mallory.TCP("127.0.0.1:5432"); v.Allowed() != old {
			t.Errorf("admitted by the label of its image: %v", v)
		}

		// Fault: a person gives the label that the image happens to have, and the container stays open.
		must(t, m.apply(documents(databaseFor("deny", byValue), isolates)))
		e.Docker("rm", "-f", "mallory")
		web := e.Probe("web", "--net=host", "-l", "tier=web", image)
		web.Listen("tcp", "127.0.0.1:80")
		if old {
			nstest.WaitFor(t, patience, "the container to be known", func() bool {
				return probe.Start(m.In("x"), "x").TCP("127.0.0.1:80").Allowed()
			})
			allowed(t, "refused by label, but taken for unlabelled", web.TCP("127.0.0.1:5432"))
			return
		}
		m.untilWorkloads("web")
		denied(t, "isolated by a doubtful label", probe.Start(m.In("x"), "x").TCP("127.0.0.1:80"))
		denied(t, "a policy whose selector is doubtful allows nothing", web.TCP("127.0.0.1:5432"))
	})
}

// The two readings of a doubtful label, with a real engine: as a peer, as a subject, with each operator.
func TestDoubtfulLabels(t *testing.T) {
	m, e := newDockerMachine(t)
	image := e.Image("nginx", map[string]string{"tier": "web"})
	m.labelledProbe("db", "app=db").Listen("tcp", "127.0.0.1:5432")
	both := e.Probe("both", "--net=host", "-l", "app=report", image) // has a label of its own
	only := e.Probe("only", "--net=host", image)                     // has none
	both.Listen("tcp", "127.0.0.1:81")
	only.Listen("tcp", "127.0.0.1:82")
	free := probe.Start(m.In("elsewhere"), "free")

	// Under the built-in default the image's label isolates nobody, and there is a notice.
	m.untilWorkloads("both")
	denied(t, "the default, both", free.TCP("127.0.0.1:81"))
	allowed(t, "the default, only", free.TCP("127.0.0.1:82"))
	m.until("the notices", func(s api.Status) bool {
		var text string
		for _, n := range s.Notices {
			if n.Code == condition.ImageLabel {
				text += n.String() + "\n"
			}
		}
		return s.Healthy() && strings.Contains(text, "container only: the image nginx has the same tier=web") &&
			strings.Contains(text, "container both")
	})

	// makes "only" a workload
	named := strings.Replace(databaseFor("deny", "{sameLabels: [tier]}"), "db-deny", "named", 1)
	for _, tt := range []struct {
		name       string
		policies   string
		both, only bool // reach the database
	}{
		{"allow In", databaseFor("allow", byValue), false, false},
		{"allow NotIn", databaseFor("allow", notIn), false, false},
		{"allow DoesNotExist", databaseFor("allow", absent), false, false},
		{"allow {}", databaseFor("allow", "{workloads: {}}"), true, false},
		{"allow unlabelled", databaseFor("allow", "{unlabelled: true}"), false, true},
		{"allow {}, and it is a workload", documents(databaseFor("allow", "{workloads: {}}"), named), true, false},
		{"allow unlabelled, and it is a workload", documents(databaseFor("allow", "{unlabelled: true}"), named), false,
			false},
		{"deny In", databaseFor("deny", byValue), false, false},
		{"deny NotIn", databaseFor("deny", notIn), false, true},
		{"deny DoesNotExist", databaseFor("deny", absent), false, true},
		{"deny NotIn, and it is a workload", documents(databaseFor("deny", notIn), named), false, false},
		{"deny unlabelled, and it is a workload", documents(databaseFor("deny", "{unlabelled: true}"), named), true,
			false},
		{"deny another value", databaseFor("deny", "{workloads: {matchLabels: {tier: db}}}"), true, true},
	} {
		must(t, m.apply(tt.policies))
		for client, want := range map[*probe.Process]bool{both: tt.both, only: tt.only} {
			if v := client.TCP("127.0.0.1:5432"); v.Allowed() != want {
				t.Errorf("%s, %s → db: %v, want connected %t", tt.name, client.Name, v, want)
			}
		}
	}

	// As a subject it is isolated, also across a restart of the daemon while Docker is away.
	must(t, m.apply(isolates))
	closed := func(when string) {
		t.Helper()
		denied(t, when+", both", free.TCP("127.0.0.1:81"))
		denied(t, when+", only", free.TCP("127.0.0.1:82"))
	}
	closed("isolated")
	e.Kill()
	must(t, m.daemon.Kill())
	_ = m.daemon.Wait() // it was killed
	m.start(followDocker)
	closed("after a restart without Docker")
}
