package enforce

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/enforce/explain"
	"thole/internal/exposure"
	"thole/internal/state"
)

// A View is what requests are answered from: the state after the enforcer's last
// change. It is not written to after it was published, but for the roster and locals. What costs
// something is made when it is asked for.
type View struct {
	status   api.Status
	version  uint64 // of what Workloads, Policies and Classes return
	roster   *roster
	result   *compiler.Result // its table and numbers are the enforcer's alone
	policies []policy.Policy
	grants   []policy.LabelGrant
	settings policy.Settings
	parents  []policy.Cgroup // of containers, and of thole run

	identity *state.Identity // this node's, in a fleet; nil: not known

	locals sync.Map // datapath.Workload by cgroup, of those that were asked for

	named func() (problems, notices []condition.Condition) // about containers that documents name; nil: none are known
}

// View returns what requests are answered from.
func (e *Enforcer) View() *View { return e.view.Load() }

// Describe returns a View of workloads that no table contains.
func Describe(
	policies []policy.Policy, workloads []policy.Workload, unlabelled []policy.Unlabelled, result *compiler.Result,
) *View {
	return &View{roster: newRoster(workloads, unlabelled), result: result, policies: policies}
}

// Status is what the enforcer says of itself. Its lists are not to be written to.
func (v *View) Status() api.Status {
	s := v.status
	if v.named != nil {
		problems, notices := v.named()
		s.Problems, s.Notices = slices.Concat(s.Problems, problems), slices.Concat(s.Notices, notices)
	}
	return s
}

// Version tells apart what Workloads, Policies and Classes return: it grows with each change of that.
func (v *View) Version() uint64 { return v.version }

// Enforcing reports whether a table is loaded.
func (v *View) Enforcing() bool { return v.status.Enforcing }

// Grants are those of the active set.
func (v *View) Grants() []policy.LabelGrant { return v.grants }

// Owner says what a socket of a cgroup belongs to. As in the table, the deepest cgroup that says something counts.
func (v *View) Owner(root Namer, cgroup uint64) exposure.Owner {
	id, path := v.roster.above(root, cgroup)
	if id == 0 {
		id = cgroup // it may have ended
	}
	workload, ok := v.roster.of(id)
	if !ok {
		return exposure.Owner{Cgroup: path}
	}
	class := v.result.ClassOf(&workload)
	owner := exposure.Owner{
		Workload: workload.Name,
		Cgroup:   path,
		Side:     uint64(class.Number),
		Selected: len(class.Ingress)+len(class.Egress) > 0,
		Users:    workload.Kind == policy.KindRun || workload.Kind == policy.KindUser,
	}
	if class.Number == 0 || class.Divided {
		owner.Side = 1<<63 | id // its own: no class has so high a number
	}
	return owner
}

// publish makes a view of the enforcer's state.
func (e *Enforcer) publish() {
	e.loaded.version++ // also where only what is to be said has changed
	e.view.Store(e.newView(e.loaded.workloads.sizes()))
}

func (e *Enforcer) newView(of sizes) *View {
	problems, notices := condition.Split(slices.Concat(e.arming.conditions(), e.set.Conditions(),
		e.ending.conditions(), e.conditions))
	docs, roster, containers, found := e.set.Docs, e.loaded.workloads, e.loaded.containers.Unlabelled, e.conditions
	return &View{
		named: sync.OnceValues(func() (problems, notices []condition.Condition) {
			return condition.Split(explain.Named(&docs, roster.running(), containers, found))
		}),
		status: api.Status{
			Enforcing: e.loaded.table != nil,
			Epoch:     e.loaded.epoch,
			Disarmed:  e.arming.status(),
			SetStatus: api.SetStatus{Source: e.set.Source, BuiltIn: e.set.BuiltIn, Default: string(e.set.Default),
				Directory: e.directory},
			Applied: e.loaded.appliedAt,
			Counts: api.Counts{
				Policies:  len(e.set.Docs.Policies),
				Workloads: of.all - of.ended,
				Classes:   e.loaded.result.Len(),
				Runs:      of.runs,
			},
			DriftStatus:  api.DriftStatus{Mended: e.drift.restored, LastMended: e.drift.status()},
			Ended:        of.ended,
			EndedUnknown: len(e.ending.unknown),
			LastError:    e.failures.first(),
			Findings:     api.Findings{Problems: problems, Notices: notices, Warnings: e.loaded.warnings},
		},
		version:  e.loaded.version,
		roster:   e.loaded.workloads,
		result:   e.loaded.result,
		policies: e.set.Docs.Policies,
		grants:   e.set.Docs.Grants,
		settings: e.set.Docs.Settings,
		parents:  e.loaded.containers.Parents,
		identity: e.identity,
	}
}

// Workloads lists what is labelled now, by name. Those that ended come last.
func (v *View) Workloads() []api.Workload {
	var list []api.Workload
	for _, w := range v.roster.all() {
		list = append(list, v.apiWorkload(w))
	}
	slices.SortFunc(list, func(a, b api.Workload) int { return cmp.Or(endedLast(a, b), byName(a, b)) })
	return list
}

// Classes lists the classes, by number.
func (v *View) Classes() []api.Class {
	var list []api.Class
	for _, c := range v.result.Classes(v.roster.list()) {
		list = append(list, Class(c))
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
		Policies:  len(p.set.Docs.Policies),
		Workloads: p.running,
		Classes:   p.result.Len(),
		Diff:      p.change.String(),
		Warnings:  Messages(p.result.Warnings),
		Problems:  problems,
		Notices:   notices,
	}
	if dryRun {
		a.Table = p.result.Table.Text()
	}
	return a
}

func (v *View) apiWorkload(w listed) api.Workload {
	class := v.result.ClassOf(&w.Workload)
	state, missing := explain.State(&w.Workload, w.ended, class.Selected, v.status.Problems)
	return api.Workload{
		Name:      w.Name,
		Namespace: w.Namespace,
		Kind:      w.Kind.String(),
		State:     state,
		Missing:   missing,
		Labels:    w.Labels,
		Facts:     w.Facts,
		Doubtful:  w.AllDoubtful(),
		Sources:   explain.Sources(&w.Workload),
		Cgroup:    w.Cgroup.Path,
		ID:        w.Cgroup.ID,
		Networks:  explain.Networks(w.Own),
		Class:     class.Number,
		Ingress:   orEmpty(class.Ingress),
		Egress:    orEmpty(class.Egress),
		Position:  w.Position.String(),
	}
}

// Class is a class as clients see it.
func Class(c compiler.Class) api.Class {
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

// Policies lists the policies of the set, by name.
func (v *View) Policies() []api.Policy {
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

// endedLast orders workloads that run before those of which only sockets are left.
func endedLast(a, b api.Workload) int {
	switch ended := a.State == api.StateEnded; {
	case ended == (b.State == api.StateEnded):
		return 0
	case ended:
		return 1
	}
	return -1
}

// byName orders workloads as people look for them.
func byName(a, b api.Workload) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cgroup, b.Cgroup))
}

// Messages are a compiler's warnings as clients see them.
func Messages(warnings []compiler.Warning) []api.Message {
	out := make([]api.Message, 0, len(warnings))
	for _, w := range warnings {
		out = append(out, api.Message{Where: w.Position.String(), Text: w.Message})
	}
	return out
}

// Knows reports whether a cgroup is in the loaded table, by its id. Before the first table is loaded, none is.
func (e *Enforcer) Knows(cgroup uint64) bool {
	v := e.View()
	if v == nil {
		return false
	}
	_, known := v.roster.of(cgroup)
	return known
}

// Grants are those of the active set.
func (e *Enforcer) Grants() []policy.LabelGrant { return e.View().Grants() }

// Settings are those of the active set.
func (e *Enforcer) Settings() *policy.Settings { return &e.View().settings }

// Whose says which workload a cgroup belongs to, and why. As in the table, the deepest cgroup that says something
// counts. path is the cgroup's own, "" where it is gone.
func (v *View) Whose(root Namer, cgroup uint64) (path string, whose api.Ownership) {
	id, path := v.roster.above(root, cgroup)
	if path == "" {
		id = cgroup
	}
	if w, is := v.roster.listed(id); is {
		shown := v.apiWorkload(w)
		return path, api.Ownership{Workload: &shown, Why: explain.WhyOwned(path, &w.Workload)}
	}
	container := v.roster.isUnlabelled(id)
	for _, parent := range v.parents {
		if !container && strings.HasPrefix(path, parent.Path+"/") {
			return path, api.Ownership{Closed: true, Why: fmt.Sprintf("the cgroup %s is below %s, and its labels are "+
				"not known: it is closed, see `thole status`", path, parent.Path)}
		}
	}
	return path, api.Ownership{Why: explain.WhyUnlabelled(path, container)}
}
