package inventory

import (
	"fmt"
	"strings"

	"thole/compiler/policy"
)

// Workloads turns Workload documents into workloads without looking at a node. Units, users and containers are placed
// where systemd and Docker (with the cgroupfs driver) place them by default. The error is a *policy.SyntaxError: two
// documents meet in one cgroup.
func Workloads(bindings []policy.Binding) ([]policy.Workload, error) {
	workloads := make([]policy.Workload, len(bindings))
	first := make(map[string]*policy.Workload)
	for i := range bindings {
		b := &bindings[i]
		w := workload(b)
		workloads[i] = w
		if w.Kind == policy.KindAddress {
			continue
		}
		if other, ok := first[w.Cgroup.Path]; ok {
			return nil, &policy.SyntaxError{Position: b.Position, Message: fmt.Sprintf(
				"%s is the cgroup of %s, at %s; allowed: one Workload for each", w.Cgroup.Path, other.Name,
				other.Position)}
		}
		first[w.Cgroup.Path] = &workloads[i]
	}
	return workloads, nil
}

// workload is what a document binds, as it would be by default, with the labels as a node finds them.
func workload(b *policy.Binding) policy.Workload {
	w := policy.Workload{Name: b.Name, Namespace: b.Namespace, Labels: b.Labels, Address: b.Address,
		Position: b.Position}
	if b.Sources != nil {
		w.Labels, w.Facts, w.Doubtful = divide(b)
	}
	switch {
	case b.Unit != "":
		w.Kind, w.Cgroup.Path = policy.KindUnit, unitPath(b.Unit)
	case b.User != "":
		w.Kind, w.Cgroup.Path = policy.KindUser, "user.slice/user-"+b.User+".slice"
	case b.Cgroup != "":
		w.Kind, w.Cgroup.Path = policy.KindCgroup, b.Cgroup
	case b.Container != "":
		w.Kind, w.Cgroup.Path = policy.KindContainer, "docker/"+b.Container
	case b.Compose != policy.Compose{}:
		w.Kind, w.Cgroup.Path = policy.KindContainer, "docker/"+b.Compose.Project+"-"+b.Compose.Service+"-1"
		if b.Sources == nil {
			w.Facts = b.Compose.Facts()
		}
	default:
		w.Kind = policy.KindAddress
	}
	return w
}

// divide divides labels as a node finds them.
func divide(b *policy.Binding) (labels, facts, doubtful policy.Labels) {
	labels, facts, doubtful = policy.Labels{}, policy.Labels{}, policy.Labels{}
	for key, value := range b.Labels {
		switch b.Sources[key] {
		case policy.SourceImage:
			doubtful[key] = value
		case policy.SourceDaemon:
			facts[key] = value
		default: // Identify knows whether it counts
			labels[key] = value
		}
	}
	return labels, facts, doubtful
}

// unitPath is the cgroup of a system unit that sets no Slice= of its own
// (systemd.slice(5), systemd.unit(5)): a-b.slice lies in a.slice, instances of a
// template in a slice of their own, all else in system.slice.
func unitPath(unit string) string {
	if name, ok := strings.CutSuffix(unit, ".slice"); ok {
		return slicePath(name)
	}
	template, _, instance := strings.Cut(unit, "@")
	if !instance {
		return "system.slice/" + unit
	}
	return slicePath("system-"+strings.ReplaceAll(template, "-", `\x2d`)) + "/" + unit
}

func slicePath(name string) string {
	var path []string
	for i, c := range name + "-" {
		if c == '-' {
			path = append(path, name[:i]+".slice")
		}
	}
	return strings.Join(path, "/")
}
