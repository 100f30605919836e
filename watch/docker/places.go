package docker

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
)

// places are the cgroups below which the engine puts containers.
//
//	docker/<id>                       the cgroupfs driver
//	system.slice/docker-<id>.scope    systemd's
//	<parent>/…                        --cgroup-parent, of dockerd or of the container
//
// All cgroups directly below the root are searched for such names, and those that the engine named. Only the engine
// says that a container is its own, never a name.
type places struct {
	root    cgroupfs.Root
	changed func()

	mu    sync.Mutex      // guards named
	named map[string]bool // cgroups that the engine named as a place of containers
}

func newPlaces(root cgroupfs.Root, changed func()) *places {
	return &places{root: root, changed: changed, named: map[string]bool{}}
}

// A place is a cgroup below which there may be containers.
type place struct {
	path      string
	named     bool              // the engine named it
	ids       map[string]string // container id → name of its cgroup
	confirmed map[string]bool   // the ids of which the engine has a container
	ambiguous bool              // a container has two cgroups there
	others    []string          // names of cgroups that are no container's
	claimed   claim             // at the last search
}

// add adds the cgroup of a container.
func (p *place) add(id, name string) {
	if before, ok := p.ids[id]; ok && before != name {
		p.ambiguous = true
	}
	p.ids[id] = name
}

// A claim is what the containers of a place say of the place itself.
type claim struct {
	containers bool // there are some, or there could be
	shared     bool // there are cgroups that are named like theirs, in a place that they share with all else
}

func (p *place) claim() claim {
	return claim{
		containers: p.named || len(p.confirmed) > 0 || p.path == defaultPlace,
		shared:     len(p.ids) > 0 && slices.Contains(sharedPlaces, p.path),
	}
}

// buildCgroup is where Docker builds images, beside the containers.
const buildCgroup = "buildkit"

// sharedPlaces are the places that containers share with all else, whatever is in them now.
var sharedPlaces = []string{"", "system.slice", "user.slice", "init.scope", cgroupfs.TholeSlice}

// defaultPlace is where the cgroupfs driver puts containers.
const defaultPlace = "docker"

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

// recall adds the parents of a snapshot, but for those that are a container's cgroup themselves.
func (p *places) recall(parents []policy.Cgroup) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, parent := range parents {
		if _, ok := containerID(path.Base(parent.Path)); !ok {
			p.named[parent.Path] = true
		}
	}
}

// learn adds and returns the places of a container that was inspected. cgroup is the id of the container's cgroup; 0:
// it was not found.
func (p *places) learn(c container, cgroup uint64) []string {
	found := placesOfParent(c.details.parent)
	if cgroup == 0 && c.details.pid != 0 { // it runs, and was not found
		if place, ok := placeOfProcess(c.details.pid, c.id); ok {
			found = append(found, place)
		}
	}
	p.mu.Lock()
	before := len(p.named)
	for _, place := range found {
		p.named[place] = true
	}
	changed := len(p.named) > before
	p.mu.Unlock()
	if changed {
		p.changed()
	}
	return found
}

// forget removes the places that are gone, unless they are in inUse.
func (p *places) forget(inUse map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.named, func(place string, _ bool) bool {
		_, err := p.root.ID(place)
		return cgroupfs.Gone(err) && !inUse[place]
	})
}

// read returns where containers are or could be. The function watch is called for each cgroup before it is read.
func (p *places) read(watch func(cgroup string)) ([]*place, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	watch("")
	top, err := p.root.Children("")
	if err != nil {
		return nil, err
	}
	found := []*place{p.place("", top)}
	for _, parent := range slices.Sorted(maps.Keys(p.named)) {
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
		_, isContainer := containerID(name)
		if isContainer || name == cgroupfs.TholeSlice || name == "user.slice" || name == "init.scope" {
			continue
		}
		watch(name)
		names, err := p.root.Children(name)
		if err != nil {
			return nil, err
		}
		found = append(found, p.place(name, names))
	}
	return found, nil
}

// place makes a place of the names of the cgroups in it. It needs the lock.
func (p *places) place(path string, names []string) *place {
	made := &place{path: path, named: p.named[path], ids: map[string]string{}, confirmed: map[string]bool{}}
	for _, name := range names {
		if id, ok := containerID(name); ok {
			made.add(id, name)
		} else if name != buildCgroup {
			made.others = append(made.others, name)
		}
	}
	return made
}

// placesOfParent returns the places that a --cgroup-parent can mean. The name of a slice says in which slices it is,
// if systemd makes it.
func placesOfParent(parent string) []string {
	parent = strings.Trim(path.Clean("/"+parent), "/")
	if parent == "" {
		return nil
	}
	found := []string{parent}
	name, ok := strings.CutSuffix(parent, ".slice")
	if ok && !strings.Contains(parent, "/") && strings.Contains(name, "-") {
		nested := ""
		for i, c := range name + "-" {
			if c == '-' {
				nested = cgroupfs.Join(nested, name[:i]+".slice")
			}
		}
		found = append(found, nested)
	}
	return found
}
