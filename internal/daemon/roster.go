package daemon

import (
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"thole/compiler/policy"
)

// A roster are the workloads in the loaded table. The enforcer changes it where few of
// them begin or end, and makes a new one where anything else changes; requests read it.
type roster struct {
	mu        sync.RWMutex               // the enforcer's goroutine needs it to write only
	workloads map[uint64]policy.Workload // by their cgroup's id
	ended     map[uint64]bool            // those of them whose cgroup is gone
	paths     map[string]uint64          // cgroups that say something, by name: these, and unlabelled containers
	free      map[uint64]bool            // ids of those
	runs      int                        // of thole run, that have not ended
}

func newRoster(running []policy.Workload, ended map[uint64]policy.Workload, free []policy.Unlabelled) *roster {
	r := &roster{workloads: map[uint64]policy.Workload{}, ended: map[uint64]bool{}, paths: map[string]uint64{},
		free: map[uint64]bool{}}
	for _, u := range free {
		r.free[u.Cgroup.ID] = true
		r.paths[u.Cgroup.Path] = u.Cgroup.ID
	}
	for _, w := range withEnded(running, ended) {
		r.enter(w)
	}
	for id := range ended {
		r.end(id)
	}
	return r
}

func (r *roster) enter(w policy.Workload) {
	r.workloads[w.Cgroup.ID] = w
	r.paths[w.Cgroup.Path] = w.Cgroup.ID
	if w.Kind == policy.KindRun {
		r.runs++
	}
}

// end notes that the cgroup of a workload is gone. It stays, without its addresses, which
// may be another's by now.
func (r *roster) end(id uint64) {
	w := r.workloads[id]
	if w.Kind == policy.KindRun && !r.ended[id] {
		r.runs--
	}
	w.Own = nil
	r.workloads[id], r.ended[id] = w, true
}

func (r *roster) remove(id uint64) {
	r.end(id)
	delete(r.paths, r.workloads[id].Cgroup.Path)
	delete(r.workloads, id)
	delete(r.ended, id)
}

// take makes a change of few.
func (r *roster) take(t turnover) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range t.outlived {
		r.end(w.Cgroup.ID)
	}
	for _, w := range t.ended {
		r.remove(w.Cgroup.ID)
	}
	for _, w := range t.began {
		r.enter(w)
	}
}

// list returns the workloads.
func (r *roster) list() []policy.Workload {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.workloads))
}

// of returns the workload of a cgroup.
func (r *roster) of(id uint64) (policy.Workload, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	w, ok := r.workloads[id]
	return w, ok
}

// named returns the id of the cgroup of that name, if it says something.
func (r *roster) named(path string) (id uint64, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	id, ok = r.paths[path]
	return id, ok
}

// above returns the id of the deepest cgroup that says something, among a cgroup and those above it; 0 if there is
// none. path is the cgroup's own, "" where it is gone.
func (r *roster) above(root namer, cgroup uint64) (id uint64, path string) {
	path, err := root.Named(cgroup)
	if err != nil {
		return 0, ""
	}
	for name := path; name != "." && name != "/"; name = filepath.Dir(name) {
		if id, known := r.named(name); known {
			return id, path
		}
	}
	return 0, path
}

// A namer knows cgroups by their ids.
type namer interface {
	Named(id uint64) (cgroup string, err error)
}

// count returns how many there are, how many of them ended, and how many are thole run's.
func (r *roster) count() (all, ended, runs int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.workloads), len(r.ended), r.runs
}

// gone returns how many of them ended.
func (r *roster) gone() int {
	_, ended, _ := r.count()
	return ended
}
