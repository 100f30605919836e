package reference

import (
	"testing"

	"thole/compiler/policy"
)

// Containers whose labels their images have too. only has no other label; a and b differ in their image's label.
var (
	only    = container("only", nil, policy.Labels{"tier": "web"})
	onlyToo = container("only too", nil, policy.Labels{"tier": "web"})
	shop    = container("shop", policy.Labels{"app": "shop"}, policy.Labels{"tier": "web"})
	shopToo = container("shop too", policy.Labels{"app": "shop"}, policy.Labels{"tier": "db"})
	tier    = workload("tier", policy.Labels{"tier": "web"})
	compose = container("compose", nil, policy.Labels{"com.docker.compose.service": "web"})
)

func container(name string, labels, doubtful policy.Labels) *policy.Workload {
	w := workload(name, labels)
	w.Kind, w.Doubtful = policy.KindContainer, doubtful
	return w
}

// terms selects by one requirement.
func terms(r ...policy.Requirement) policy.Selector { return policy.Selector{Requirements: r} }

// docs/POLICY.md, "Labels of images".
func TestDoubtfulLabels(t *testing.T) {
	everyone := policy.Selector{}
	isolated := ingress("isolated", has("app", "db"), allow())
	admits := func(p policy.Peer) []policy.Policy {
		return set(ingress("admits", has("app", "db"), allow(peersOnly(p))))
	}
	// named makes only a workload, and changes nothing else.
	named := ingress("named", has("tier", "web", "ghost", "x"), deny(peersOnly(same("ghost"))))
	refuses := func(p policy.Peer) []policy.Policy {
		return set(ingress("refuses", has("app", "db"), deny(peersOnly(p))), named)
	}
	from := func(w *policy.Workload) Connection { return tcp(end(w), end(db), 5432) }
	to := func(w *policy.Workload) Connection { return tcp(end(db), end(w), 80) }
	for _, test := range []judgement{
		// Permitting use, peer: both readings must match.
		{"In admits nobody by an image's label", admits(workloads(has("tier", "web"))), from(shop), denied},
		{"Exists admits nobody by an image's label", admits(workloads(terms(term("tier", policy.Exists)))), from(shop),
			denied},
		{"NotIn does not admit who may have the value", admits(workloads(terms(term("tier", policy.NotIn, "web")))),
			from(shop), denied},
		{"NotIn admits who has the value in no reading", admits(workloads(terms(term("tier", policy.NotIn, "db")))),
			from(shop), allowed},
		{"DoesNotExist does not admit who may have the label",
			admits(workloads(terms(term("tier", policy.DoesNotExist)))), from(shop), denied},
		{"a person's label admits", admits(workloads(has("tier", "web"))), from(tier), allowed},
		{"another label admits", admits(workloads(has("app", "shop"))), from(shop), allowed},
		{"sameLabels admits nobody by an image's label",
			set(ingress("p", has("tier", "web"), allow(peersOnly(same("tier"))))), tcp(end(shop), end(tier), 80),
			denied},
		{"sameLabels all leaves an image's labels out", set(ingress("p", everyone, allow(peersOnly(same())))),
			tcp(end(shop), end(shopToo), 80), allowed},
		{"who has no label that counts equals nobody", set(ingress("p", everyone, allow(peersOnly(same()))), named),
			tcp(end(only), end(onlyToo), 80), denied},

		// Restricting use, peer: either reading suffices.
		{"In denies by an image's label", refuses(workloads(has("tier", "web"))), from(shop), denied},
		{"Exists denies by an image's label", refuses(workloads(terms(term("tier", policy.Exists)))), from(shop),
			denied},
		{"NotIn denies who may lack the value", refuses(workloads(terms(term("tier", policy.NotIn, "web")))),
			from(shop), denied},
		{"DoesNotExist denies who may lack the label", refuses(workloads(terms(term("tier", policy.DoesNotExist)))),
			from(shop), denied},
		{"a value in no reading denies nobody", refuses(workloads(has("tier", "db"))), from(shop), allowed},
		{"sameLabels denies by an image's label", set(ingress("p", has("tier", "web"), deny(peersOnly(same("tier"))))),
			tcp(end(shop), end(tier), 80), denied},
		{"sameLabels all denies if some reading is equal", set(ingress("p", everyone, deny(peersOnly(same())))),
			tcp(end(shop), end(shopToo), 80), denied},
		{"sameLabels all denies two with the same image's labels alone",
			set(ingress("p", everyone, deny(peersOnly(same()))), named), tcp(end(only), end(onlyToo), 80), denied},

		// A policy's own selector: it isolates and denies in either reading, and allows in both.
		{"an image's label isolates", set(ingress("p", has("tier", "web"), allow())), to(shop), denied},
		{"it isolates, and its allow rules do not count", set(ingress("p", has("tier", "web"), allow(policy.Rule{}))),
			to(shop), denied},
		{"its deny rules count", set(ingress("p", has("tier", "web"), deny(policy.Rule{}))), to(shop), denied},
		{"DoesNotExist isolates who may lack the label",
			set(ingress("p", terms(term("tier", policy.DoesNotExist)), allow())), to(shop), denied},
		{"NotIn isolates who may lack the value", set(ingress("p", terms(term("tier", policy.NotIn, "web")), allow())),
			to(shop), denied},
		{"rules of another policy admit to it", set(ingress("p", has("tier", "web"), allow()),
			ingress("q", has("app", "shop"), allow(policy.Rule{}))), to(shop), allowed},
		{"egress likewise", set(egress("p", has("tier", "web"), allow(policy.Rule{}))), from(shop), denied},

		// Containers that doubtful labels alone make workloads, or do not.
		{"nobody by {}", set(ingress("p", everyone, allow())), tcp(Endpoint{}, end(only), 80), allowed},
		{"nobody by NotIn", set(ingress("p", terms(term("tier", policy.NotIn, "db")), allow())),
			tcp(Endpoint{}, end(only), 80), allowed},
		{"nobody by an allow rule", set(isolated,
			ingress("p", has("app", "db"), allow(peersOnly(workloads(has("tier", "web")))))), from(only), denied},
		{"nobody by an audit policy", set(audited(ingress("p", has("tier", "web"), allow())),
			ingress("q", everyone, allow())), tcp(Endpoint{}, end(only), 80), allowed},
		{"who a selector names", set(ingress("p", has("tier", "web"), allow())), tcp(Endpoint{}, end(only), 80),
			denied},
		{"who a selector names with another value", set(ingress("p", has("tier", "db"), allow()),
			ingress("q", everyone, allow())), tcp(Endpoint{}, end(only), 80), denied},
		{"who a deny rule names", set(ingress("p", has("app", "db"), deny(peersOnly(workloads(has("tier", "db"))))),
			ingress("q", everyone, allow())), tcp(Endpoint{}, end(only), 80), denied},
		{"who sameLabels in a deny rule names", set(ingress("p", has("app", "db"), deny(peersOnly(same("tier")))),
			ingress("q", everyone, allow())), tcp(Endpoint{}, end(only), 80), denied},
		{"a tool's label in the image likewise", set(ingress("p", has("com.docker.compose.service", "web"), allow())),
			tcp(Endpoint{}, end(compose), 80), denied},
		{"unlabelled admits it where no policy names it", admits(unlabelled), from(only), allowed},

		// As a peer it is neither a workload nor unlabelled where that permits, and both where that restricts.
		{"{} does not admit it", append(admits(workloads(everyone)), named), from(only), denied},
		{"DoesNotExist of another label does not admit it",
			append(admits(workloads(terms(term("ghost", policy.DoesNotExist)))), named), from(only), denied},
		{"unlabelled does not admit it", append(admits(unlabelled), named), from(only), denied},
		{"any admits it", append(admits(anything), named), from(only), allowed},
		{"{} denies it", refuses(workloads(everyone)), from(only), denied},
		{"unlabelled denies it", refuses(unlabelled), from(only), denied},
		{"it reaches itself", set(ingress("p", has("tier", "web"), allow())), tcp(end(only), end(only), 80), allowed},
	} {
		test.run(t)
	}
}
