package docker

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"thole/compiler"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// A place is a cgroup below which there are containers.
//
//	docker/<id>                       the cgroupfs driver
//	system.slice/docker-<id>.scope    systemd's
//	<parent>/…                        --cgroup-parent, of dockerd or of the container
//
// All cgroups directly below the root are looked at for such names, and those that
// Docker names. That a container is Docker's is said by Docker, never by a name.
type place struct {
	path   string
	ids    map[string]string // container id → name of its cgroup
	others []string          // names of cgroups that are no container's
}

// containerID returns the id in the name of a container's cgroup.
func containerID(name string) (id string, ok bool) {
	if scoped, ok := strings.CutPrefix(name, "docker-"); ok {
		name, ok = strings.CutSuffix(scoped, ".scope")
		if !ok {
			return "", false
		}
	}
	const digits = 64
	if len(name) != digits || strings.Trim(name, "0123456789abcdef") != "" {
		return "", false
	}
	return name, true
}

// buildGroup is where Docker builds images, beside the containers.
const buildGroup = "buildkit"

// shared are the places that containers share with all else, whatever is in them now.
var shared = []string{"", "system.slice", "user.slice", "init.scope", cgroupfs.TholeSlice}

// dockerPlace is where the cgroupfs driver puts containers.
const dockerPlace = "docker"

// places returns where containers are or could be. watch is called for each cgroup
// before it is read.
func (d *Docker) places(watch func(cgroup string)) ([]place, error) {
	watch("")
	top, err := d.root.Children("")
	if err != nil {
		return nil, err
	}
	found := []place{newPlace("", top)}
	for _, parent := range slices.Sorted(maps.Keys(d.parents)) {
		for i, c := range parent { // as far as it exists
			if c == '/' {
				watch(parent[:i])
			}
		}
		if !slices.Contains(top, parent) {
			top = append(top, parent)
		}
	}
	for _, name := range top {
		if _, container := containerID(name); container || name == cgroupfs.TholeSlice || name == "user.slice" || name == "init.scope" {
			continue
		}
		watch(name)
		names, err := d.root.Children(name)
		if err != nil {
			return nil, err
		}
		found = append(found, newPlace(name, names))
	}
	return found, nil
}

func newPlace(path string, names []string) place {
	p := place{path: path, ids: map[string]string{}}
	for _, name := range names {
		if id, ok := containerID(name); ok {
			p.ids[id] = name
		} else if name != buildGroup {
			p.others = append(p.others, name)
		}
	}
	return p
}

// Find returns the containers that run: those that have a cgroup. Those about which
// something is not known yet are asked about.
func (d *Docker) Find(watch func(cgroup string)) workload.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := workload.Snapshot{Bridges: d.alike}
	places, err := d.places(watch)
	if err != nil {
		s.Conditions = append(s.Conditions, condition.Condition{Code: condition.CgroupsUnreadable, Text: err.Error()})
	}
	d.living = map[string]compiler.Cgroup{}
	for _, p := range places {
		d.listPlace(&s, p)
	}
	s.Conditions = append(s.Conditions, d.away()...)
	if err == nil {
		s.Conditions = append(s.Conditions, d.notJudged()...)
	}
	return s
}

func (d *Docker) listPlace(s *workload.Snapshot, p place) {
	ours := d.parents[p.path]
	var strangers []string
	for _, id := range slices.Sorted(maps.Keys(p.ids)) {
		name := p.ids[id]
		cg := compiler.Cgroup{Path: cgroupfs.Join(p.path, name)}
		var err error
		if cg.ID, err = d.root.ID(cg.Path); err != nil {
			continue // it disappeared
		}
		if !d.listContainer(s, id, cg) {
			strangers = append(strangers, cg.Path)
			continue
		}
		ours = true
	}
	if !ours && p.path != dockerPlace {
		return
	}
	if d.alone(s, p) {
		d.listAlone(s, p, strangers)
	}
}

// listContainer enters one container. It returns false if Docker has none of that
// id, or has not said so yet.
func (d *Docker) listContainer(s *workload.Snapshot, id string, cg compiler.Cgroup) bool {
	d.living[id] = cg
	r := d.records[id]
	if r == nil {
		if !d.strangers[id] {
			d.births.add(id)
		}
		return false
	}
	if !r.complete(cg) {
		d.inspects.add(id)
		if !r.hosted() {
			d.joins.add(id)
		}
	}
	switch {
	case r.refused != "":
		s.Parents = append(s.Parents, cg) // it holds one container alone, and that is not known
		s.Conditions = append(s.Conditions, condition.Condition{Code: condition.ContainerRefused, Where: "container " + r.name, Text: r.refused + "; it is closed"})
	case len(r.labels) > 0:
		s.Workloads = append(s.Workloads, r.workload(cg))
	default:
		s.Unlabelled = append(s.Unlabelled, r.unlabelled(cg))
	}
	return true
}

// alone reports whether a place belongs to containers alone.
func (d *Docker) alone(s *workload.Snapshot, p place) bool {
	const mend = `: a container that starts while the daemon is down is free until it is back. ` +
		`Give Docker a slice of its own, "cgroup-parent": "docker.slice" in /etc/docker/daemon.json; see "systemd" in the README`
	switch {
	case slices.Contains(shared, p.path):
		if len(p.ids) > 0 {
			s.Conditions = append(s.Conditions, condition.Condition{Code: condition.ContainerParentShared, Where: p.path, Text: "containers share this cgroup with services" + mend})
		}
		return false
	case len(p.others) > 0:
		s.Conditions = append(s.Conditions, condition.Condition{Code: condition.ContainerParentShared, Where: p.path, Text: fmt.Sprintf(
			"containers share this cgroup with %s%s", strings.Join(p.others, ", "), mend)})
		return false
	}
	return true
}

// listAlone enters a place that belongs to containers alone: what is not known
// below it is closed. Builds are known.
func (d *Docker) listAlone(s *workload.Snapshot, p place, strangers []string) {
	id, err := d.root.ID(p.path)
	if err != nil {
		return
	}
	s.Parents = append(s.Parents, compiler.Cgroup{Path: p.path, ID: id})
	build := compiler.Cgroup{Path: cgroupfs.Join(p.path, buildGroup)}
	if build.ID, err = d.root.ID(build.Path); err == nil {
		s.Unlabelled = append(s.Unlabelled, compiler.Unlabelled{Cgroup: build})
	}
	for _, cgroup := range strangers {
		if id, _ := containerID(path.Base(cgroup)); d.strangers[id] {
			s.Conditions = append(s.Conditions, condition.Condition{Code: condition.ContainerUnknown, Where: cgroup,
				Text: "Docker at " + d.status.Host + " has no such container: what runs in it is closed"})
		}
	}
}

// parentsOf returns the places that a --cgroup-parent can mean. The name of a slice
// says in which slices it is, if systemd makes it.
func parentsOf(parent string) []string {
	parent = strings.Trim(path.Clean("/"+parent), "/")
	if parent == "" {
		return nil
	}
	places := []string{parent}
	if name, ok := strings.CutSuffix(parent, ".slice"); ok && !strings.Contains(parent, "/") && strings.Contains(name, "-") {
		nested := ""
		for i, c := range name + "-" {
			if c == '-' {
				nested = cgroupfs.Join(nested, name[:i]+".slice")
			}
		}
		places = append(places, nested)
	}
	return places
}

// placeOfProcess returns the place of the container to which a process belongs,
// which the kernel knows for sure.
func (d *Docker) placeOfProcess(pid int, id string) (string, bool) {
	cgroup, ok := strings.CutPrefix(cgroupOf(pid), "/")
	if !ok {
		return "", false
	}
	for p := cgroup; p != "."; p = path.Dir(p) {
		if found, ok := containerID(path.Base(p)); ok && found == id {
			return path.Dir(p), true
		}
	}
	return "", false
}
