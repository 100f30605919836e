package docker

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
)

// places are the cgroups below which the engine puts containers.
//
//	docker/<id>                          Docker with the cgroupfs driver
//	system.slice/docker-<id>.scope       with systemd's
//	libpod_parent/libpod-<id>            Podman with the cgroupfs manager; a pod's: libpod_parent/<pod>/libpod-<id>
//	machine.slice/libpod-<id>.scope      with systemd's; a pod's: machine.slice/machine-libpod_pod_<pod>.slice/…
//	<slice>/<unit>/libpod-payload-<id>   podman run --cgroups=split in a systemd unit
//	<parent>/…                           --cgroup-parent, of dockerd or of the container
//
// All cgroups directly below the root are searched for such names, and those that the engine named, pods, and the units
// of root below a slice. Only the engine says that a container is its own, never a name.
type places struct {
	root    cgroupfs.Root
	changed func()

	mu     sync.Mutex      // guards what follows
	named  map[string]bool // cgroups that the engine named as a place of containers
	podman bool            // the engine is Podman
}

func newPlaces(root cgroupfs.Root, changed func()) *places {
	return &places{root: root, changed: changed, named: map[string]bool{}}
}

// connected stores which engine it is.
func (p *places) connected(engine EngineInfo) {
	p.mu.Lock()
	changed := p.podman != engine.isPodman()
	p.podman = engine.isPodman()
	p.mu.Unlock()
	if changed {
		p.changed()
	}
}

// ofPodman reports whether the engine is Podman.
func (p *places) ofPodman() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.podman
}

// A place is a cgroup below which there may be containers.
type place struct {
	path      string
	named     bool              // the engine named it, or it is where this engine puts containers
	ids       map[string]string // container id → name of its cgroup
	confirmed map[string]bool   // the ids of which the engine has a container
	ambiguous bool              // a container has two cgroups there
	others    []string          // names of cgroups that are no container's
	claimed   claim             // at the last search
	closed    bool              // what is not known in it is closed since the last search
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
		containers: p.named || len(p.confirmed) > 0,
		shared:     len(p.ids) > 0 && p.sharedWithServices(),
	}
}

// sharedWithServices reports whether a place never belongs to containers alone.
func (p *place) sharedWithServices() bool {
	return slices.Contains(sharedPlaces, p.path) || isUnit(p.path)
}

// buildCgroup is where Docker builds images, beside the containers.
const buildCgroup = "buildkit"

// sharedPlaces are the places that containers share with all else, whatever is in them now.
var sharedPlaces = []string{"", "system.slice", "user.slice", "init.scope", cgroupfs.TholeSlice}

// dockerParent is where Docker's cgroupfs driver puts containers.
const dockerParent = "docker"

// containerID returns the id in the name of a container's cgroup.
func containerID(name string) (id string, ok bool) {
	if scoped, ok := strings.CutPrefix(name, "docker-"); ok {
		name, ok = strings.CutSuffix(scoped, ".scope")
		if !ok {
			return "", false
		}
	} else if payload, ok := strings.CutPrefix(name, "libpod-payload-"); ok {
		name = payload
	} else if isPodmanName(name) {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "libpod-"), ".scope")
	}
	if !isID(name) {
		return "", false
	}
	return name, true
}

// isID reports whether a text has the form of an id of a container or pod.
func isID(text string) bool {
	const digits = 64
	return len(text) == digits && strings.Trim(text, "0123456789abcdef") == ""
}

// anywhere reports whether any cgroup has the name of a container's, also where the engine has named no place yet, as
// in nested slices.
func (p *places) anywhere() bool {
	const deepest = 16
	var below func(cgroup string, depth int) bool
	below = func(cgroup string, depth int) bool {
		names, _ := p.root.Children(cgroup) // of what cannot be read, nothing is known
		return slices.ContainsFunc(names, func(name string) bool {
			_, is := containerID(name)
			return is || depth < deepest && below(cgroupfs.Join(cgroup, name), depth+1)
		})
	}
	return below("", 1)
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
	added := map[string]bool{}
	for i := 0; i < len(top); i++ {
		name := top[i]
		_, isContainer := containerID(name)
		if isContainer && !isPod(name) || name == cgroupfs.TholeSlice || name == "user.slice" || name == "init.scope" ||
			added[name] {
			continue
		}
		added[name] = true
		watch(name)
		names, err := p.root.Children(name)
		if err != nil {
			return nil, err
		}
		found = append(found, p.place(name, names))
		top = append(top, p.nested(name, names)...)
	}
	return found, nil
}

// nested returns the cgroups in a place that are places of Podman's containers themselves: pods, and units in a slice
// below the root. The units of other users than root are left out, because root's Podman runs in none of them.
func (p *places) nested(parent string, names []string) (found []string) {
	for _, name := range names {
		cgroup := cgroupfs.Join(parent, name)
		unit := isUnit(name) && strings.HasSuffix(parent, ".slice") && !strings.Contains(parent, "/")
		if isPod(cgroup) || unit && p.ofRoot(cgroup) {
			found = append(found, cgroup)
		}
	}
	return found
}

// ofRoot reports whether only root may create cgroups in a cgroup, for all that its owner says.
func (p *places) ofRoot(cgroup string) bool {
	var stat unix.Stat_t
	return unix.Stat(p.root.Path(cgroup), &stat) == nil && stat.Uid == 0
}

// place makes a place of the names of the cgroups in it. It needs the lock.
func (p *places) place(path string, names []string) *place {
	made := &place{path: path, ids: map[string]string{}, confirmed: map[string]bool{}}
	made.named = p.named[path] || path == p.parent()
	for _, name := range names {
		if isPod(cgroupfs.Join(path, name)) || isConmon(name) {
			continue
		}
		if id, ok := containerID(name); ok {
			made.add(id, name)
		} else if name != buildCgroup {
			made.others = append(made.others, name)
		}
	}
	return made
}

// parent returns where the engine's cgroupfs driver puts containers. It needs the lock.
func (p *places) parent() string {
	if p.podman {
		return podmanParent
	}
	return dockerParent
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
