package policy

import (
	"maps"
	"slices"
	"strings"
)

// Identify decides which containers are workloads, and which of a workload's labels count. The input is as it was
// found: labels are divided by who gave them, and a container without any that a person gave is Unlabelled.
//
// A container is a workload if it has a label that counts. Without one it is a workload if a selector of an enforced
// policy names one of its labels positively (In, Exists, a key of sameLabels): any selector for a label that is not
// doubtful, and for a doubtful one a selector in restricting use (Use). All other containers are unlabelled, so that
// the label of a tool or of an image isolates nobody whom no policy means. What is not a container is a workload
// always: a person made it one.
//
// An unlabelled container in the cgroup of another workload belongs to that one. A container that a policy makes a
// workload there has the labels and facts of that one beside its own, so that no label of a tool or an image takes a
// container out of what restricts it.
func (d *Documents) Identify(workloads []Workload, unlabelled []Unlabelled) ([]Workload, []Unlabelled) {
	counts := d.Settings.divider()
	var found []Workload
	var containers []Unlabelled
	for i := range workloads {
		w := workloads[i]
		document := w.Document
		w.Document = nil
		counts.divide(&w)
		switch {
		case w.Kind != KindContainer || len(w.Labels) > 0:
			found = append(found, w)
		case document != nil:
			bound := document.With(w.asUnlabelled())
			counts.divide(&bound)
			found = append(found, bound)
		default:
			containers = append(containers, w.asUnlabelled())
		}
	}
	for i := range unlabelled {
		w := unlabelled[i].Workload()
		counts.divide(&w)
		if len(w.Labels) == 0 {
			containers = append(containers, w.asUnlabelled())
		} else {
			found = append(found, w)
		}
	}
	if !slices.ContainsFunc(containers, func(u Unlabelled) bool { return u.Selectable() }) {
		return found, containers
	}
	return d.admit(found, containers)
}

// A divider divides the labels of workloads by whether they count.
type divider struct {
	settings *Settings
	counts   map[string]bool // by key: most workloads have the same
}

func (s *Settings) divider() *divider { return &divider{settings: s, counts: map[string]bool{}} }

// count reports whether a label that is not doubtful counts. A value that no policy can name does not.
func (d *divider) count(key, value string) bool {
	counts, known := d.counts[key]
	if !known {
		counts = d.settings.Counts(key)
		d.counts[key] = counts
	}
	return counts && value != UnusableValue
}

// divided reports whether the labels of a workload are divided already, as those of most are found.
func (d *divider) divided(w *Workload) bool {
	if len(w.Doubtful)+len(w.DoubtfulFacts) > 0 {
		return false
	}
	for key, value := range w.Labels {
		if !d.count(key, value) {
			return false
		}
	}
	for key, value := range w.Facts {
		if d.count(key, value) {
			return false
		}
	}
	return true
}

// divide divides the labels of one. Its maps are not changed, but replaced.
func (d *divider) divide(w *Workload) {
	if d.divided(w) {
		return
	}
	trusted := d.settings.trusts(w.Facts[imageFact])
	var divided Workload
	add := func(from Labels, doubtful bool) {
		for key, value := range from {
			into := &divided.Facts
			switch counts := d.count(key, value); {
			case doubtful && counts:
				into = &divided.Doubtful
			case doubtful:
				into = &divided.DoubtfulFacts
			case counts:
				into = &divided.Labels
			}
			if *into == nil {
				*into = Labels{}
			}
			(*into)[key] = value
		}
	}
	add(w.Labels, false)
	add(w.Facts, false)
	add(w.Doubtful, !trusted)
	add(w.DoubtfulFacts, !trusted)
	w.Labels, w.Facts = divided.Labels, divided.Facts
	w.Doubtful, w.DoubtfulFacts = divided.Doubtful, divided.DoubtfulFacts
	if w.Labels == nil {
		w.Labels = Labels{}
	}
}

// imageFact is the key of the fact of which image a container is.
const imageFact = "thole/image"

// Workload is the container, as if it were one.
func (u *Unlabelled) Workload() Workload {
	return Workload{
		Name: u.Name, Kind: KindContainer, Labels: Labels{}, Facts: u.Facts, Doubtful: u.Doubtful, Cgroup: u.Cgroup,
		Own: u.Own, Sharing: u.Sharing, Given: u.Given,
	}
}

// asUnlabelled is a container without a label that counts.
func (w *Workload) asUnlabelled() Unlabelled {
	u := Unlabelled{
		Name: w.Name, Facts: w.Facts, Doubtful: w.AllDoubtful(), Cgroup: w.Cgroup, Own: w.Own, Sharing: w.Sharing,
		Given: w.Given,
	}
	return u.Reduced()
}

// Reduced is the container without what matters to nobody: the less there is, the less changes. Its name remains: a
// Workload document may name it later, while the engine is away.
func (u Unlabelled) Reduced() Unlabelled {
	if u.Selectable() {
		return u
	}
	u.Facts, u.Doubtful, u.Given = nil, nil, nil
	return u
}

// With is a workload that a document made of the cgroup of an unlabelled container: it has the document's labels, and
// the container's own that do not count or are doubtful.
func (w *Workload) With(u Unlabelled) Workload {
	with := *w
	with.Own, with.Sharing = u.Own, u.Sharing
	with.Facts, with.Doubtful = maps.Clone(u.Facts), Labels{}
	if with.Facts == nil {
		with.Facts = Labels{}
	}
	maps.DeleteFunc(with.Facts, func(key, _ string) bool { _, has := w.Labels[key]; return has })
	maps.Copy(with.Facts, w.Facts)
	for key, value := range u.Doubtful {
		_, label := with.Labels[key]
		if _, fact := with.Facts[key]; !label && !fact {
			with.Doubtful[key] = value
		}
	}
	if len(with.Doubtful) == 0 {
		with.Doubtful = nil
	}
	container := u.Workload()
	with.NoteGiven(&container, w.keysGiven()...)
	return with
}

// admit makes workloads of those containers of which a policy names a label.
func (d *Documents) admit(workloads []Workload, containers []Unlabelled) ([]Workload, []Unlabelled) {
	named := namedKeys(d.Policies)
	counts := d.Settings.divider()
	byPath := make(map[string]*Workload, len(workloads))
	for i := range workloads {
		if w := &workloads[i]; w.Cgroup.Path != "" && byPath[w.Cgroup.Path] == nil {
			byPath[w.Cgroup.Path] = w
		}
	}
	var admitted []Workload
	var rest []Unlabelled
	for _, u := range containers {
		certain, doubtful := named.anyOf(u.Facts, false), named.anyOf(u.Doubtful, true)
		if !certain && !doubtful {
			rest = append(rest, u)
			continue
		}
		w := u.Workload()
		counts.divide(&w)
		w.joinLabels(around(u.Cgroup.Path, byPath))
		w.Named = certain && len(w.Labels) == 0
		admitted = append(admitted, w)
	}
	return append(workloads, admitted...), rest
}

// around returns the deepest of the workloads around a cgroup, which are given by the path of theirs, or nil.
func around(path string, all map[string]*Workload) *Workload {
	for at := strings.LastIndexByte(path, '/'); at >= 0; at = strings.LastIndexByte(path[:at], '/') {
		if w := all[path[:at]]; w != nil {
			return w
		}
	}
	return nil
}

// joinLabels gives w the labels of the workload around it, which may be nil. They win over doubtful ones.
func (w *Workload) joinLabels(other *Workload) {
	if other == nil {
		return
	}
	before := *w
	w.Labels, w.Facts = other.Labels, maps.Clone(w.Facts)
	if w.Facts == nil {
		w.Facts = Labels{}
	}
	for key := range other.Labels {
		delete(w.Facts, key)
	}
	maps.Copy(w.Facts, other.Facts)
	w.Doubtful = joinDoubtful(w, w.Doubtful, other.Doubtful)
	w.DoubtfulFacts = joinDoubtful(w, w.DoubtfulFacts, other.DoubtfulFacts)
	if other.Kind >= KindUnit { // a document gave it the labels
		w.NoteGiven(&before, other.keysGiven()...)
	}
}

// joinDoubtful returns doubtful labels of a workload and of the one around it, but for those of which it has one that
// is not doubtful.
func joinDoubtful(w *Workload, own, others Labels) Labels {
	var all Labels
	for _, labels := range [...]Labels{own, others} {
		for key, value := range labels {
			_, counts := w.Labels[key]
			_, fact := w.Facts[key]
			if counts || fact {
				continue
			}
			if all == nil {
				all = Labels{}
			}
			all[key] = value
		}
	}
	return all
}

// keysNamed are the keys that the selectors of enforced policies name positively. The value is true if one of them
// restricts: a policy's own selector, and peers of deny rules.
type keysNamed map[string]bool

// anyOf reports whether one of the labels is named: of doubtful ones, where a match restricts.
func (n keysNamed) anyOf(labels Labels, doubtful bool) bool {
	for key := range labels {
		if restricts, ok := n[key]; ok && !strings.HasPrefix(key, daemonPrefix) && (restricts || !doubtful) {
			return true
		}
	}
	return false
}

func namedKeys(policies []Policy) keysNamed {
	named := keysNamed{}
	add := func(s *Selector, restricts bool) {
		for _, r := range s.Requirements {
			if r.Operator == In || r.Operator == Exists {
				named[r.Key] = named[r.Key] || restricts
			}
		}
	}
	addPeers := func(rules []Rule, restricts bool) {
		for _, r := range rules {
			for _, peer := range r.Peers {
				switch {
				case peer.Workloads != nil:
					add(peer.Workloads, restricts)
				case peer.SameLabels != nil:
					for _, key := range peer.SameLabels.Keys {
						named[key] = named[key] || restricts
					}
				}
			}
		}
	}
	for i := range policies {
		p := &policies[i]
		if p.Audit {
			continue
		}
		add(&p.Selector, true)
		for _, side := range [...]Side{p.Ingress, p.Egress} {
			addPeers(side.Allow, false)
			addPeers(side.Deny, true)
		}
	}
	return named
}
