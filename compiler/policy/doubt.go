package policy

import (
	"maps"
	"slices"
	"strings"
)

// A label of a container that its image has too, with the same value, is doubtful: nobody can tell whether the person
// who started the container gave it, or whoever built the image. So each requirement on such a label is evaluated
// twice, as if the label were there and as if it were not, and what is to be decided says which reading counts
// (docs/POLICY.md, "Labels of images").

// A Use is what a match decides.
type Use uint8

// The uses of a match.
const (
	Permitting  Use = iota // a match allows a connection: both readings must match
	Restricting            // a match isolates a workload or denies a connection: either reading suffices
)

// UseOf returns the use of a rule's peers.
func UseOf(deny bool) Use {
	if deny {
		return Restricting
	}
	return Permitting
}

// Selects reports whether w meets every requirement, in the given use.
func (s Selector) Selects(w *Workload, u Use) bool {
	for _, r := range s.Requirements {
		met := r.met(w.Label(r.Key))
		if _, doubtful := w.Doubtful[r.Key]; doubtful && met == (u == Permitting) {
			met = r.met("", false)
		}
		if !met {
			return false
		}
	}
	return true
}

// OnlyDoubtful reports whether w is a workload only because of doubtful labels.
func (w *Workload) OnlyDoubtful() bool { return len(w.Labels) == 0 && len(w.Doubtful) > 0 }

// Certain returns a label whose origin is known.
func (w *Workload) Certain(key string) (string, bool) {
	if v, ok := w.Labels[key]; ok {
		return v, true
	}
	v, ok := w.Facts[key]
	return v, ok
}

// Match reports whether two workloads have the labels with equal values. An absent label equals nothing, and who has
// no label that counts equals nobody.
func (s *SameLabels) Match(a, b *Workload, u Use) bool {
	switch {
	case s.All && u == Permitting:
		return len(a.Labels) > 0 && maps.Equal(a.Labels, b.Labels)
	case s.All:
		return mayEqual(a, b)
	}
	value := (*Workload).Certain
	if u == Restricting {
		value = (*Workload).Label
	}
	for _, k := range s.Keys {
		v, ok := value(a, k)
		if w, has := value(b, k); !ok || !has || v != w {
			return false
		}
	}
	return true
}

// mayEqual reports whether some reading of both workloads' doubtful labels gives them equal user labels, at least one.
func mayEqual(a, b *Workload) bool {
	common := false
	for _, side := range [2]*Workload{a, b} {
		for _, labels := range [2]Labels{side.Labels, side.Doubtful} {
			for k := range labels {
				if !IsUserLabel(k) {
					continue
				}
				v, inA := a.userLabel(k)
				w, inB := b.userLabel(k)
				_, certainA := a.Labels[k]
				_, certainB := b.Labels[k]
				switch {
				case inA && inB && v == w:
					common = true
				case certainA || certainB:
					return false // it is there in every reading, and the other has not the same
				}
			}
		}
	}
	return common
}

// userLabel returns a label of a person, or one that may be.
func (w *Workload) userLabel(key string) (string, bool) {
	if v, ok := w.Labels[key]; ok {
		return v, true
	}
	v, ok := w.Doubtful[key]
	return v, ok
}

// Admit decides which containers are workloads through doubtful labels alone: those of which a selector of an enforced
// policy, in restricting use, names a doubtful label positively (In, Exists, a key of sameLabels). All other containers
// without labels stay unlabelled, so that the label of an image isolates nobody whom no policy means.
//
// An unlabelled container in the cgroup of another workload belongs to that one. A container that is admitted there has
// the labels and facts of that one beside its own, so that no image takes its containers out of what restricts them.
func Admit(policies []Policy, workloads []Workload, unlabelled []Unlabelled) ([]Workload, []Unlabelled) {
	if !slices.ContainsFunc(unlabelled, func(u Unlabelled) bool { return len(u.Doubtful) > 0 }) {
		return workloads, unlabelled
	}
	named := restrictedKeys(policies)
	workloads = slices.Clone(workloads)
	byPath := make(map[string]*Workload, len(workloads))
	for i := range workloads {
		if w := &workloads[i]; w.Cgroup.Path != "" && byPath[w.Cgroup.Path] == nil {
			byPath[w.Cgroup.Path] = w
		}
	}
	var admitted []Workload
	var rest []Unlabelled
	for _, u := range unlabelled {
		if !u.hasAny(named) {
			rest = append(rest, u)
			continue
		}
		admitted = append(admitted, u.workload(byPath))
	}
	return append(workloads, admitted...), rest
}

// workload is the container as one, with what the deepest of the workloads around it says. Those are given by the path
// of their cgroup.
func (u *Unlabelled) workload(all map[string]*Workload) Workload {
	w := Workload{
		Name: u.Name, Kind: KindContainer, Labels: Labels{}, Facts: maps.Clone(u.Facts), Doubtful: u.Doubtful,
		Cgroup: u.Cgroup, Own: u.Own,
	}
	var around *Workload
	path := u.Cgroup.Path
	for at := strings.LastIndexByte(path, '/'); at >= 0 && around == nil; at = strings.LastIndexByte(path[:at], '/') {
		around = all[path[:at]]
	}
	if around == nil {
		return w
	}
	w.Labels = around.Labels
	maps.Copy(w.Facts, around.Facts)
	w.Doubtful = maps.Clone(w.Doubtful)
	for _, labels := range [...]Labels{around.Labels, around.Facts, around.Doubtful} {
		for k := range labels {
			delete(w.Doubtful, k)
		}
	}
	for k, v := range around.Doubtful {
		if w.Doubtful == nil {
			w.Doubtful = Labels{}
		}
		w.Doubtful[k] = v
	}
	return w
}

func (u *Unlabelled) hasAny(keys map[string]bool) bool {
	for k := range u.Doubtful {
		if keys[k] {
			return true
		}
	}
	return false
}

// restrictedKeys returns the keys that the enforced policies name positively where a match restricts: in their own
// selectors and in the peers of their deny rules.
func restrictedKeys(policies []Policy) map[string]bool {
	named := map[string]bool{}
	add := func(s *Selector) {
		for _, r := range s.Requirements {
			if r.Operator == In || r.Operator == Exists {
				named[r.Key] = true
			}
		}
	}
	for i := range policies {
		p := &policies[i]
		if p.Audit {
			continue
		}
		add(&p.Selector)
		for _, r := range slices.Concat(p.Ingress.Deny, p.Egress.Deny) {
			for _, peer := range r.Peers {
				switch {
				case peer.Workloads != nil:
					add(peer.Workloads)
				case peer.SameLabels != nil:
					for _, k := range peer.SameLabels.Keys {
						named[k] = true
					}
				}
			}
		}
	}
	return named
}
