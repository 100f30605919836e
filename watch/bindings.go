package watch

import (
	"cmp"
	"fmt"
	"maps"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A resolver finds the cgroups of bindings. watch is called for every directory
// before it is read, so that nothing that happens after the reading is missed.
type resolver struct {
	root       cgroupfs.Root
	lookupUser func(name string) (*user.User, error)
	watch      func(cgroup string)
	patterns   *patternLook
	known      *knownUnits
	bindings   []policy.Binding // all of them

	withoutEngine bool // there are no containers

	units map[string][]string // unit → its cgroups; nil until a binding asks
	ran   map[string]bool     // the bindings of units that have a cgroup now
}

// resolve returns the workloads of one binding. A binding whose cgroup does not
// exist has none, which is no problem: it may come.
func (r *resolver) resolve(b policy.Binding) ([]policy.Workload, error) {
	w := policy.Workload{Name: b.Name, Namespace: b.Namespace, Labels: b.Labels, Position: b.Position}
	var paths []string
	var err error
	switch {
	case b.Unit != "":
		w.Kind = policy.KindUnit
		return r.unitAndSockets(w, b)
	case b.User != "":
		w.Kind = policy.KindUser
		var u *user.User
		if u, err = r.user(b.User); err == nil {
			w.Facts = policy.Labels{workload.FactUID: u.Uid}
			if u.Username != "" {
				w.Facts[workload.FactUser] = u.Username
			}
			r.watch("")
			r.watch("user.slice")
			paths = []string{"user.slice/user-" + u.Uid + ".slice"}
		}
	case b.Cgroup != "":
		w.Kind = policy.KindCgroup
		paths, err = r.glob(b)
	case b.Address.IsValid():
		return nil, fmt.Errorf(
			"workload %q names an address, which only an inventory can: it has no effect here", b.Name)
	case r.withoutEngine:
		return nil, fmt.Errorf(
			"workload %q names containers, and no container engine is followed: it has no effect, see --docker", b.Name)
	default:
		return nil, nil // see bindContainers
	}
	if err != nil {
		return nil, err
	}
	return r.existing(w, paths, policy.IsPattern(b.Cgroup)), nil
}

// unitAndSockets returns the workloads of a binding of a unit: the unit itself, or several of a template, and the
// socket units that start it.
func (r *resolver) unitAndSockets(w policy.Workload, b policy.Binding) ([]policy.Workload, error) {
	paths, err := r.unit(b.Unit)
	if err != nil {
		return nil, err
	}
	found := r.existing(w, paths, policy.IsPattern(b.Unit))
	r.ran[b.Name] = len(found) > 0
	for _, socket := range r.known.socketsOf(b, r.bindings) {
		found = append(found, r.existing(w, r.units[socket], true)...)
	}
	return found, nil
}

// existing returns a copy of w for each path that exists. Where a pattern names
// several, each is told by its path.
func (r *resolver) existing(w policy.Workload, paths []string, several bool) []policy.Workload {
	var found []policy.Workload
	for _, path := range paths {
		id, err := r.root.ID(path)
		if err != nil {
			continue // it disappeared, or was never there
		}
		one := w
		one.Cgroup = policy.Cgroup{Path: path, ID: id}
		one.Facts = policy.Labels{workload.FactKind: w.Kind.String()}
		for k, v := range w.Facts {
			one.Facts[k] = v
		}
		if several {
			one.Name = w.Name + ":" + path
		}
		found = append(found, one)
	}
	return found
}

// unit returns the cgroups of a system unit, or of the units that a pattern matches: the directories of that name in
// the tree of slices. (systemd keeps system units directly in slices; the units of a
// user's own manager are below a service, user@UID.service, and are not looked at:
// that user could name them as he likes.)
func (r *resolver) unit(name string) ([]string, error) {
	if r.units == nil {
		r.units = map[string][]string{}
		if err := r.readSlices(""); err != nil {
			return nil, err
		}
	}
	if !policy.IsPattern(name) {
		return r.units[name], nil
	}
	var paths []string
	for unit, of := range r.units {
		if policy.Glob(name, unit) {
			paths = append(paths, of...)
		}
	}
	return paths, nil
}

func (r *resolver) readSlices(parent string) error {
	r.watch(parent)
	names, err := r.root.Children(parent)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := cgroupfs.Join(parent, name)
		if parent != "" || strings.HasSuffix(name, ".slice") {
			r.units[name] = append(r.units[name], path)
		}
		if strings.HasSuffix(name, ".slice") && path != cgroupfs.TholeSlice {
			if err := r.readSlices(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// user returns the user with this name or uid. A uid need not have a name.
func (r *resolver) user(name string) (*user.User, error) {
	if _, err := strconv.ParseUint(name, 10, 32); err == nil {
		if u, err := user.LookupId(name); err == nil {
			return u, nil
		}
		return &user.User{Uid: name}, nil
	}
	u, err := r.lookupUser(name)
	if err != nil {
		return nil, fmt.Errorf("there is no user %q: make it with `useradd`, or write its uid", name)
	}
	return u, nil
}

// glob returns the existing cgroups that match a binding's pattern, component by component.
func (r *resolver) glob(b policy.Binding) ([]string, error) {
	paths := []string{""}
	number := 0
	for component := range strings.SplitSeq(strings.Trim(b.Cgroup, "/"), "/") {
		if component == "" || component == "." || component == ".." {
			return nil, fmt.Errorf(
				"the cgroup pattern %q has the component %q: write a path below the cgroup root", b.Cgroup, component)
		}
		var next []string
		bounded := map[uint32][]candidate{} // by who may make them
		for _, parent := range paths {
			who, user, watched := r.patterns.enter(b, parent)
			if watched {
				r.watch(parent)
			}
			var matching []string
			var err error
			if user {
				matching, err = r.childrenOfUser(b, parent, component, who)
			} else {
				matching, err = r.childrenLike(parent, component)
			}
			if err != nil {
				return nil, err
			}
			if !user {
				next = append(next, matching...)
				continue
			}
			for _, path := range matching {
				if id, err := r.root.ID(path); err == nil {
					bounded[who] = append(bounded[who], candidate{path, id})
				}
			}
		}
		for _, who := range slices.Sorted(maps.Keys(bounded)) {
			next = append(next, r.patterns.fit(b, number, who, bounded[who])...)
		}
		paths = next
		number++
	}
	return paths, nil
}

// childrenLike returns the cgroups in one whose names match.
func (r *resolver) childrenLike(parent, component string) ([]string, error) {
	names, err := r.root.Children(parent)
	return matching(parent, names, component), err
}

// childrenOfUser is childrenLike where a user may make cgroups. Of too many it returns none: those in the table keep
// their labels (enforce), and the others are closed.
func (r *resolver) childrenOfUser(b policy.Binding, parent, component string, who uint32) ([]string, error) {
	names, complete, err := r.root.ChildrenUpTo(parent, maxPatternEntries)
	if err == nil && !complete {
		r.patterns.exceed(b, parent, who)
	}
	return matching(parent, names, component), err
}

// matching returns the paths of those names that match.
func matching(parent string, names []string, component string) (paths []string) {
	for _, name := range names {
		if policy.Glob(component, name) {
			paths = append(paths, cgroupfs.Join(parent, name))
		}
	}
	return paths
}

// dependsOn reports whether the cgroups of a binding can become others when this cgroup is created or removed, which is
// no slice: whether the binding names it, or one below it.
func dependsOn(b policy.Binding, cgroup string) bool {
	if b.Unit != "" {
		return policy.Glob(b.Unit, path.Base(cgroup))
	}
	if b.Cgroup == "" {
		return false // the slice of a user
	}
	pattern := strings.Trim(b.Cgroup, "/")
	for name := range strings.SplitSeq(cgroup, "/") {
		var component string
		if component, pattern, _ = strings.Cut(pattern, "/"); !policy.Glob(component, name) {
			return false
		}
	}
	return true
}

// settle leaves one workload a cgroup: the one with the smallest kind, then the
// first by name. The others are reported.
func settle(workloads []policy.Workload) workload.Snapshot {
	slices.SortStableFunc(workloads, func(a, b policy.Workload) int {
		return cmp.Or(
			cmp.Compare(a.Cgroup.Path, b.Cgroup.Path),
			cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name),
		)
	})
	var s workload.Snapshot
	for _, w := range workloads {
		if n := len(s.Workloads); n > 0 && s.Workloads[n-1].Cgroup.Path == w.Cgroup.Path {
			winner := &s.Workloads[n-1]
			if winner.Kind == policy.KindContainer && winner.Document == nil {
				winner.Document = &w
			}
			code := condition.BindingOverlap
			if winner.Kind == policy.KindRun || w.Kind == policy.KindRun {
				code = condition.BindingOverlapRun // a user's thole run suffices
			}
			s.Conditions = append(s.Conditions, condition.Condition{
				Code:  code,
				Where: w.Position.String(),
				Text: fmt.Sprintf("workload %q (%s) has no effect on the cgroup %s: it has the labels of %q (%s)",
					w.Name, w.Kind, w.Cgroup.Path, winner.Name, winner.Kind),
			})
			continue
		}
		s.Workloads = append(s.Workloads, w)
	}
	return s
}
