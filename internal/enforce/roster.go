package enforce

import (
	"maps"
	"path/filepath"
	"slices"
	"sync"

	"thole/compiler/policy"
	"thole/internal/state"
)

// A roster are the workloads in the loaded table. The enforcer changes it with the table; requests read it.
type roster struct {
	mu         sync.RWMutex               // the enforcer's goroutine needs it to write only
	workloads  map[uint64]policy.Workload // by their cgroup's id
	ended      map[uint64]bool            // those of them whose cgroup is gone
	order      map[uint64]uint64          // of these: which was noticed first
	ends       uint64                     // that were noticed
	paths      map[string]uint64          // cgroups that say something, by name: these, and unlabelled containers
	unlabelled map[uint64]string          // those, by id
	runs       int                        // of thole run, that have not ended
}

func newRoster(workloads []policy.Workload, free []policy.Unlabelled) *roster {
	r := &roster{workloads: map[uint64]policy.Workload{}, ended: map[uint64]bool{},
		order: map[uint64]uint64{}, paths: map[string]uint64{}}
	r.apply(&delta{began: workloads, containers: &state.Containers{Unlabelled: free}})
	return r
}

func (r *roster) add(w policy.Workload) {
	if before, known := r.workloads[w.Cgroup.ID]; known {
		r.count(before, -1)
	}
	r.count(w, 1)
	r.workloads[w.Cgroup.ID] = w
	r.paths[w.Cgroup.Path] = w.Cgroup.ID
}

// count counts a workload that has not ended.
func (r *roster) count(w policy.Workload, more int) {
	if w.Kind == policy.KindRun && !r.ended[w.Cgroup.ID] {
		r.runs += more
	}
}

// setFree notes which containers are unlabelled.
func (r *roster) setFree(unlabelled []policy.Unlabelled) {
	for id, path := range r.unlabelled {
		if _, bound := r.workloads[id]; !bound && r.paths[path] == id {
			delete(r.paths, path)
		}
	}
	r.unlabelled = make(map[uint64]string, len(unlabelled))
	for _, u := range unlabelled {
		r.unlabelled[u.Cgroup.ID] = u.Cgroup.Path
		if _, bound := r.paths[u.Cgroup.Path]; !bound {
			r.paths[u.Cgroup.Path] = u.Cgroup.ID
		}
	}
}

// end notes that the cgroup of a workload is gone. It stays, without its addresses, which
// may be another's by now.
func (r *roster) end(id uint64) {
	w := r.workloads[id]
	r.count(w, -1)
	w.Own, w.Sharing = nil, policy.Sharing{}
	r.workloads[id], r.ended[id] = w, true
	if r.order[id] == 0 {
		r.ends++
		r.order[id] = r.ends
	}
}

func (r *roster) remove(id uint64) {
	r.end(id)
	if path := r.workloads[id].Cgroup.Path; r.paths[path] == id {
		delete(r.paths, path)
	}
	delete(r.workloads, id)
	delete(r.ended, id)
	delete(r.order, id)
}

// apply makes a delta.
func (r *roster) apply(d *delta) { r.applyAnd(d, func(sizes) {}) }

// applyAnd makes a delta, and then does something before anybody sees it.
func (r *roster) applyAnd(d *delta, then func(sizes)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	order := map[uint64]uint64{} // of those that had ended before
	for _, w := range d.ended {
		order[w.Cgroup.ID] = r.order[w.Cgroup.ID]
		r.remove(w.Cgroup.ID)
	}
	for _, w := range slices.Concat(d.began, d.renamed) {
		r.add(w)
		if was := order[w.Cgroup.ID]; was != 0 {
			r.order[w.Cgroup.ID] = was
			r.end(w.Cgroup.ID)
		}
	}
	for _, id := range d.outlived {
		r.end(id)
	}
	if d.containers != nil {
		r.setFree(d.containers.Unlabelled)
	}
	then(sizes{len(r.workloads), len(r.ended), r.runs})
}

// after returns what the workloads become by a delta, also where it was taken.
func (r *roster) after(d *delta) []policy.Workload {
	all := maps.Clone(r.workloads)
	for _, w := range d.ended {
		delete(all, w.Cgroup.ID)
	}
	for _, w := range slices.Concat(d.began, d.renamed) {
		all[w.Cgroup.ID] = w
	}
	return slices.Collect(maps.Values(all))
}

// list returns the workloads.
func (r *roster) list() []policy.Workload {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.workloads))
}

// A listed workload is one of a listing.
type listed struct {
	policy.Workload
	ended bool
}

// all returns the workloads, also those that ended.
func (r *roster) all() []listed {
	r.mu.RLock()
	defer r.mu.RUnlock()
	list := make([]listed, 0, len(r.workloads))
	for id, w := range r.workloads {
		list = append(list, listed{w, r.ended[id]})
	}
	return list
}

// running returns the workloads that have not ended.
func (r *roster) running() (list []policy.Workload) {
	for _, w := range r.all() {
		if !w.ended {
			list = append(list, w.Workload)
		}
	}
	return list
}

// listed returns the workload of a cgroup, also one that ended.
func (r *roster) listed(id uint64) (listed, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	w, ok := r.workloads[id]
	return listed{w, r.ended[id]}, ok
}

// isUnlabelled reports whether a cgroup is that of a container that is no workload.
func (r *roster) isUnlabelled(id uint64) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, is := r.unlabelled[id]
	return is
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
func (r *roster) above(root Namer, cgroup uint64) (id uint64, path string) {
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

// sizes are how many workloads there are, how many of them ended, and how many are thole run's.
type sizes struct{ all, ended, runs int }

func (r *roster) sizes() sizes {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return sizes{len(r.workloads), len(r.ended), r.runs}
}

// endedCount returns how many of them ended.
func (r *roster) endedCount() int {
	return r.sizes().ended
}
