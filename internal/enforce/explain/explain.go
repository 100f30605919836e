package explain

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/watch/workload"
)

// State says how much of what the policies say of a workload is enforced, and because of which problems not all is.
func State(
	w *policy.Workload, ended, selected bool, problems []condition.Condition,
) (state api.WorkloadState, missing []condition.Code) {
	switch {
	case ended:
		return api.StateEnded, nil
	case !selected:
		return api.StateOpen, nil
	}
	for _, p := range problems {
		if weakens(p, w) && !slices.Contains(missing, p.Code) {
			missing = append(missing, p.Code)
		}
	}
	if missing != nil {
		return api.StatePartial, missing
	}
	return api.StateIsolated, nil
}

// weakens reports whether something is not enforced for a workload because of a problem. A problem whose place is the
// workload does so, unless it is known that it does not.
func weakens(p condition.Condition, w *policy.Workload) bool {
	switch p.Code {
	case condition.Disarmed:
		return true
	case condition.BridgeShared:
		return slices.ContainsFunc(w.Own, func(n policy.Network) bool { return n.Bridge == p.Where })
	case condition.BindingOverlap, condition.CertificateContradicts: // the labels that it has are enforced
		return false
	case condition.CgroupsUnreadable, condition.DockerAway, condition.FleetDegraded, condition.PKIUnwatched:
		return false // the place is none of a workload
	}
	switch p.Where {
	case "":
		return false
	case w.Name, "container " + w.Name, w.Cgroup.Path:
		return true
	}
	return w.Position != policy.Position{} && p.Where == w.Position.String()
}

// WhyOwned says by what a workload is one, and what a cgroup has to do with it.
func WhyOwned(path string, w *policy.Workload) string {
	by := "the container " + strconv.Quote(w.Name)
	switch w.Kind {
	case policy.KindContainer:
	case policy.KindRun:
		by = "`thole run` " + strconv.Quote(w.Name) + ", started by uid " + w.Facts[workload.FactUID]
	default:
		by = fmt.Sprintf("the Workload document of %q (%s)", w.Name, w.Position)
	}
	switch path {
	case "":
		return fmt.Sprintf("its cgroup %s is gone; the labels were those of %s", w.Cgroup.Path, by)
	case w.Cgroup.Path:
		return fmt.Sprintf("its cgroup %s has the labels of %s", path, by)
	}
	return fmt.Sprintf("its cgroup %s is inside %s, which has the labels of %s", path, w.Cgroup.Path, by)
}

// WhyUnlabelled says why a cgroup belongs to no workload; path is "" where it is gone.
func WhyUnlabelled(path string, container bool) string {
	switch {
	case path == "":
		return "its cgroup is gone, and was none of a workload"
	case container:
		return fmt.Sprintf("its cgroup %s is that of a container without a label that counts or that an enforced "+
			"policy names", path)
	case path == ".":
		return "it is in the root of the cgroups, which nothing can label"
	}
	return fmt.Sprintf("no container, `thole run` or Workload document labels its cgroup %s or one above it", path)
}

// Sources says who gave each label of a workload. Labels of an image that the Settings trust count as a person's.
func Sources(w *policy.Workload) map[string]policy.Source {
	sources := map[string]policy.Source{}
	for _, labels := range [...]policy.Labels{w.Labels, w.Facts} {
		for key := range labels {
			sources[key] = sourceOf(w, key)
		}
	}
	for key := range w.AllDoubtful() {
		sources[key] = policy.SourceImage
	}
	return sources
}

// sourceOf says who gave a label that is not doubtful.
func sourceOf(w *policy.Workload, key string) policy.Source {
	switch {
	case strings.HasPrefix(key, workload.FactPrefix):
		return policy.SourceDaemon
	case !policy.IsUserLabel(key):
		return policy.SourceTool
	case w.Given.Has(key):
		return policy.SourceDocument
	case w.Kind == policy.KindRun && w.Facts[workload.FactUID] != "0":
		return policy.SourceGrant
	case w.Kind == policy.KindRun, w.Kind == policy.KindContainer, w.Facts[workload.FactContainer] != "":
		return policy.SourcePerson
	}
	return policy.SourceDocument
}

// Networks says where a container with networks of its own is known:
// "docker0 veth1a2b3c 172.17.0.2".
func Networks(own []policy.Network) []string {
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
