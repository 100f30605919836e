package explain

import (
	"cmp"
	"fmt"
	"slices"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/workload"
)

// Named says of which containers the documents speak in vain:
//
//   - no container runs that a Workload document binds: a misspelt name protects nothing (a notice, because the
//     container may start later);
//   - a policy that is enforced selects a container by its name, and that container has no label that counts: it is
//     no workload, so the policy does not protect it (a problem);
//   - a container of a Swarm service has no label that counts: the service's own labels do not (a notice).
//
// It leaves out Workload documents of which something was found already: as that no engine is followed.
func Named(docs *policy.Documents, running []policy.Workload, unlabelled []policy.Unlabelled,
	found []condition.Condition) []condition.Condition {
	var list []condition.Condition
	for i := range docs.Bindings {
		b := &docs.Bindings[i]
		is := func(c condition.Condition) bool { return c.Where == b.Position.String() }
		if (b.Container != "" || b.Compose != policy.Compose{}) && !isThere(b, running, unlabelled) &&
			!slices.ContainsFunc(found, is) {
			list = append(list, absent(b))
		}
	}
	without := map[string]bool{} // names of containers
	for i := range unlabelled {
		without[unlabelled[i].Name] = true
	}
	for i := range docs.Policies {
		p := &docs.Policies[i]
		for _, name := range selectedNames(p) {
			if without[name] {
				list = append(list, unprotected(p, name))
			}
		}
	}
	for i := range unlabelled {
		if service, is := unlabelled[i].Facts[swarmService]; is {
			list = append(list, ofSwarm(service))
		}
	}
	slices.SortFunc(list, func(a, b condition.Condition) int {
		return cmp.Or(cmp.Compare(a.Where, b.Where), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(list)
}

// isThere reports whether a container runs that b binds.
func isThere(b *policy.Binding, running []policy.Workload, unlabelled []policy.Unlabelled) bool {
	binds := func(name string, facts policy.Labels) bool {
		return b.BindsContainer(name, func(key string) (string, bool) {
			value, ok := facts[key]
			return value, ok
		})
	}
	return slices.ContainsFunc(running, func(w policy.Workload) bool {
		return w.Kind == policy.KindContainer && binds(w.Name, w.Facts)
	}) || slices.ContainsFunc(unlabelled, func(u policy.Unlabelled) bool { return binds(u.Name, u.Facts) })
}

func absent(b *policy.Binding) condition.Condition {
	what := fmt.Sprintf("container %q", b.Container)
	if b.Container == "" {
		what = fmt.Sprintf("container of the service %q of the Compose project %q", b.Compose.Service,
			b.Compose.Project)
	}
	return condition.Condition{Code: condition.ContainerAbsent, Where: b.Position.String(),
		Text: fmt.Sprintf("workload %q: no %s runs: the labels have no effect yet", b.Name, what)}
}

func unprotected(p *policy.Policy, container string) condition.Condition {
	return condition.Condition{Code: condition.ContainerUnprotected, Where: p.Position.String(),
		Text: fmt.Sprintf("policy %q selects the container %q by its name, but this container has no label that "+
			"counts: it is no workload, and the policy does not protect it. Give it a label, or bind labels to "+
			"it with a Workload document (container: %s)", p.Name, container, container)}
}

// swarmService is the label by which Swarm names the service of a container.
const swarmService = "com.docker.swarm.service.name"

func ofSwarm(service string) condition.Condition {
	return condition.Condition{Code: condition.SwarmService, Where: "service " + service,
		Text: "containers of this Swarm service have no label that counts. The engine does not show a service's own " +
			"labels (docker service create --label) on its containers: use --container-label"}
}

// selectedNames are the names of containers that an enforced policy selects as those that it protects.
func selectedNames(p *policy.Policy) (names []string) {
	if p.Audit {
		return nil
	}
	for _, r := range p.Selector.Requirements {
		if r.Key == workload.FactContainer && r.Operator == policy.In {
			names = append(names, r.Values...)
		}
	}
	return names
}
