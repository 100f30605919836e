package daemon

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

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
	settings policy.Settings

	identity *identity // this node's, in a fleet; nil: not known

	locals sync.Map // datapath.Workload by cgroup, of those that were asked for
}

// publish makes a view of the enforcer's state.
func (e *enforcer) publish() {
	e.view.Store(e.newView(e.enforced.sizes()))
}

func (e *enforcer) newView(of sizes) *view {
	problems, notices := condition.Split(slices.Concat(e.setConditions(), e.found))
	return &view{
		status: api.Status{
			Enforcing:  e.loaded != nil,
			Epoch:      e.epoch,
			Source:     e.set.source,
			BuiltIn:    e.set.builtIn,
			Disarmed:   disarmedSince(e.disarmed),
			Directory:  e.directory,
			Applied:    e.applied,
			Policies:   len(e.set.docs.Policies),
			Workloads:  of.all - of.ended,
			Runs:       of.runs,
			Classes:    e.result.Len(),
			Ended:      of.ended,
			Mended:     e.mended,
			LastMended: e.mending(),
			Problems:   problems,
			Notices:    notices,
			Warnings:   e.warnings,
			LastError:  cmp.Or(e.badTable, e.badSet, e.unkept, e.unsaved),
		},
		roster:   e.enforced,
		result:   e.result,
		policies: e.set.docs.Policies,
		grants:   e.set.docs.Grants,
		settings: e.set.docs.Settings,
		identity: e.identity,
	}
}

// disarmedSince is nil where Thole is armed.
func disarmedSince(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
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
		Doubtful:  w.AllDoubtful(),
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

// Settings are those of the active set.
func (e *enforcer) Settings() *policy.Settings { return &e.view.Load().settings }
