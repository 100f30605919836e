package daemon

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
)

// A view is what requests are answered from: the state after the enforcer's last
// change. It is not written to after it was published, but for the roster and locals. What costs
// something is made when it is asked for.
type view struct {
	status   api.Status
	roster   *roster
	result   *compiler.Result // its table and numbers are the enforcer's alone
	policies []policy.Policy
	grants   []policy.LabelGrant

	identity *identity // this node's, in a fleet; nil: not known

	locals sync.Map // datapath.Workload by cgroup, of those that were asked for
}

// publish makes a view of the enforcer's state.
func (e *enforcer) publish() {
	e.view.Store(e.newView(e.loaded.workloads.sizes()))
}

func (e *enforcer) newView(of sizes) *view {
	problems, notices := condition.Split(slices.Concat(e.arming.conditions(), e.set.conditions(), e.conditions))
	return &view{
		status: api.Status{
			Enforcing: e.loaded.table != nil,
			Epoch:     e.loaded.epoch,
			Disarmed:  e.arming.status(),
			SetStatus: api.SetStatus{Source: e.set.source, BuiltIn: e.set.builtIn, Directory: e.directory},
			Applied:   e.loaded.appliedAt,
			Counts: api.Counts{
				Policies:  len(e.set.docs.Policies),
				Workloads: of.all - of.ended,
				Classes:   e.loaded.result.Len(),
				Runs:      of.runs,
			},
			DriftStatus: api.DriftStatus{Mended: e.drift.restored, LastMended: e.drift.status()},
			Ended:       of.ended,
			LastError:   e.failures.first(),
			Findings:    api.Findings{Problems: problems, Notices: notices, Warnings: e.loaded.warnings},
		},
		roster:   e.loaded.workloads,
		result:   e.loaded.result,
		policies: e.set.docs.Policies,
		grants:   e.set.docs.Grants,
		identity: e.identity,
	}
}

func (v *view) workloads() []api.Workload {
	var list []api.Workload
	for _, w := range v.roster.list() {
		list = append(list, apiWorkload(w, v.result.ClassOf(&w)))
	}
	slices.SortFunc(list, byName)
	return list
}

func (v *view) classes() []api.Class {
	var list []api.Class
	for _, c := range v.result.Classes(v.roster.list()) {
		list = append(list, apiClass(c))
	}
	return list
}

// answer says what a plan changes.
func (p plan) answer(dryRun bool) api.ApplyResponse {
	problems, notices := condition.Split(p.found)
	a := api.ApplyResponse{
		Changed:   !p.change.Empty(),
		DryRun:    dryRun,
		Epoch:     p.epoch,
		Policies:  len(p.set.docs.Policies),
		Workloads: p.running,
		Classes:   p.result.Len(),
		Diff:      p.change.String(),
		Warnings:  apiMessages(p.result.Warnings),
		Problems:  problems,
		Notices:   notices,
	}
	if dryRun {
		a.Table = p.result.Table.Text()
	}
	return a
}

func apiWorkload(w policy.Workload, class compiler.Class) api.Workload {
	return api.Workload{
		Name:      w.Name,
		Namespace: w.Namespace,
		Kind:      w.Kind.String(),
		Labels:    w.Labels,
		Facts:     w.Facts,
		Doubtful:  w.Doubtful,
		Cgroup:    w.Cgroup.Path,
		ID:        w.Cgroup.ID,
		Networks:  networks(w.Own),
		Class:     class.Number,
		Ingress:   orEmpty(class.Ingress),
		Egress:    orEmpty(class.Egress),
		Position:  w.Position.String(),
	}
}

// networks says where a container with networks of its own is known:
// "docker0 veth1a2b3c 172.17.0.2".
func networks(own []policy.Network) []string {
	var list []string
	for _, n := range own {
		words := []string{n.Bridge, n.Port}
		for _, a := range n.Addresses {
			words = append(words, a.String())
		}
		list = append(list, strings.Join(words, " "))
	}
	return list
}

func apiClass(c compiler.Class) api.Class {
	labels := make([]map[string]string, len(c.Labels))
	for i, l := range c.Labels {
		labels[i] = maps.Clone(map[string]string(l))
	}
	return api.Class{
		Number:    c.Number,
		Workloads: orEmpty(c.Workloads),
		Labels:    labels,
		Ingress:   orEmpty(c.Ingress),
		Egress:    orEmpty(c.Egress),
	}
}

func (v *view) apiPolicies() []api.Policy {
	selected := v.result.Selected(v.roster.list())
	var out []api.Policy
	for _, p := range v.policies {
		out = append(out, api.Policy{
			Name:     p.Name,
			Audit:    p.Audit,
			Ingress:  p.Ingress.Isolates,
			Egress:   p.Egress.Isolates,
			Rules:    len(p.Ingress.Allow) + len(p.Egress.Allow),
			Denies:   len(p.Ingress.Deny) + len(p.Egress.Deny),
			Selected: selected[p.Name],
			Position: p.Position.String(),
		})
	}
	return out
}

// orEmpty makes JSON's [] of no strings.
func orEmpty(list []string) []string { return append([]string{}, list...) }

// byName orders workloads as people look for them.
func byName(a, b api.Workload) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cgroup, b.Cgroup))
}

// apiMessages are a compiler's warnings as clients see them.
func apiMessages(warnings []compiler.Warning) []api.Message {
	out := make([]api.Message, 0, len(warnings))
	for _, w := range warnings {
		out = append(out, api.Message{Where: w.Position.String(), Text: w.Message})
	}
	return out
}

// Knows reports whether a cgroup is in the loaded table, by its id.
func (e *enforcer) Knows(cgroup uint64) bool {
	_, known := e.view.Load().roster.of(cgroup)
	return known
}

// Grants are those of the active set.
func (e *enforcer) Grants() []policy.LabelGrant { return e.view.Load().grants }
