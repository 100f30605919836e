package daemon

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"thole/compiler"
	"thole/datapath"
	"thole/ruleset/kernel"
	"thole/watch"
)

// A view is what requests are answered from: the state after the enforcer's last
// change. It is not written to after it was published.
type view struct {
	status    Status
	workloads []Workload
	policies  []Policy
	classes   []Class
	grants    []compiler.LabelGrant
	ids       map[uint64]bool // the cgroups that the loaded table knows

	// In a fleet: workloads by cgroup, the cgroups that say something by name, classes by
	// remoteKey, and Result.Allows.
	local   map[uint64]datapath.Workload
	paths   map[string]uint64
	remotes map[string]uint32
	allows  func(from, to uint32, port uint16) bool
}

// publish makes a view of the enforcer's state.
func (e *enforcer) publish() {
	v := &view{
		status: Status{
			Enforcing:  e.loaded != nil,
			Epoch:      e.epoch,
			Source:     e.set.source,
			Directory:  e.directory,
			Applied:    e.applied,
			Policies:   len(e.set.docs.Policies),
			Workloads:  len(e.enforced) - len(e.ended),
			Classes:    len(e.result.Classes),
			Ended:      len(e.ended),
			Mended:     e.mended,
			LastMended: e.lastMended,
			Problems:   e.problems,
			Warnings:   apiMessages(e.result.Warnings),
			LastError:  cmp.Or(e.badTable, e.badSet, e.unkept, e.unsaved),
		},
		policies: apiPolicies(e.set.docs.Policies, e.enforced),
		grants:   e.set.docs.Grants,
		ids:      map[uint64]bool{},
	}
	for _, c := range e.result.Classes {
		v.classes = append(v.classes, apiClass(c))
	}
	byNumber := map[uint32]compiler.Class{}
	for _, c := range e.result.Classes {
		byNumber[c.Number] = c
	}
	for _, w := range e.enforced {
		v.ids[w.Cgroup.ID] = true
		if _, ended := e.ended[w.Cgroup.ID]; !ended && w.Kind == compiler.KindRun {
			v.status.Runs++
		}
		class := byNumber[e.numbers.Workloads[w.Cgroup.Path]]
		v.workloads = append(v.workloads, apiWorkload(w, class))
	}
	slices.SortFunc(v.workloads, byName)
	e.publishFleet(v)
	e.view.Store(v)
}

// answer says what a plan changes.
func (p plan) answer(dryRun bool) ApplyResponse {
	a := ApplyResponse{
		Changed:   !p.change.Empty(),
		DryRun:    dryRun,
		Epoch:     p.epoch,
		Policies:  len(p.set.docs.Policies),
		Workloads: len(p.running),
		Classes:   len(p.result.Classes),
		Diff:      p.change.String(),
		Warnings:  apiMessages(p.result.Warnings),
		Problems:  apiProblems(p.problems),
	}
	if dryRun {
		a.Table = p.result.Table.Text()
	}
	return a
}

func apiProblems(problems []watch.Problem) []Message {
	var out []Message
	for _, p := range problems {
		out = append(out, Message{Where: p.Where, Text: p.Text})
	}
	return out
}

func apiWorkload(w compiler.Workload, class compiler.Class) Workload {
	return Workload{
		Name:      w.Name,
		Namespace: w.Namespace,
		Kind:      w.Kind.String(),
		Labels:    w.Labels,
		Facts:     w.Facts,
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
func networks(own []compiler.Network) []string {
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

func apiClass(c compiler.Class) Class {
	labels := make([]map[string]string, len(c.Labels))
	for i, l := range c.Labels {
		labels[i] = maps.Clone(map[string]string(l))
	}
	return Class{
		Number:    c.Number,
		Workloads: orEmpty(c.Workloads),
		Labels:    labels,
		Ingress:   orEmpty(c.Ingress),
		Egress:    orEmpty(c.Egress),
	}
}

func apiPolicies(policies []compiler.Policy, workloads []compiler.Workload) []Policy {
	var out []Policy
	for _, p := range policies {
		selected := 0
		for i := range workloads {
			if p.Selector.Matches(workloads[i].Label) {
				selected++
			}
		}
		out = append(out, Policy{
			Name:     p.Name,
			Audit:    p.Audit,
			Ingress:  p.Ingress.Isolates,
			Egress:   p.Egress.Isolates,
			Rules:    len(p.Ingress.Allow) + len(p.Egress.Allow),
			Denies:   len(p.Ingress.Deny) + len(p.Egress.Deny),
			Selected: selected,
			Position: p.Position.String(),
		})
	}
	return out
}

// orEmpty makes JSON's [] of no strings.
func orEmpty(list []string) []string { return append([]string{}, list...) }

// byName orders workloads as people look for them.
func byName(a, b Workload) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Cgroup, b.Cgroup))
}

// whole is the status with what only the server knows.
func (s Status) whole(version string, started time.Time, counters map[string]kernel.Counter) Status {
	s.Version, s.PID, s.Started = version, os.Getpid(), started
	s.Counters = map[string]Counter{}
	for name, c := range counters {
		s.Counters[name] = Counter(c)
	}
	return s
}
