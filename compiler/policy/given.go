package policy

import (
	"maps"
	"slices"
	"strings"
)

// GivenLabels say which labels a container has from Workload documents that name it or a cgroup around it, and from the
// node's certificate. So it is known who gave a label, and what the container's own labels are while the engine is
// away. They are never changed, but replaced.
type GivenLabels struct {
	Keys     []string // ascending
	Replaced Labels   `json:",omitempty"` // the container's own labels of these keys
	Doubtful Labels   `json:",omitempty"` // likewise, that its image has too
}

// Has reports whether a label was given.
func (g *GivenLabels) Has(key string) bool {
	if g == nil {
		return false
	}
	_, has := slices.BinarySearch(g.Keys, key)
	return has
}

// NoteGiven notes that labels of these keys were given to w, which was before as it is told.
func (w *Workload) NoteGiven(before *Workload, keys ...string) {
	if len(keys) == 0 {
		return
	}
	var given GivenLabels
	if before.Given != nil {
		given = GivenLabels{Keys: slices.Clone(before.Given.Keys), Replaced: maps.Clone(before.Given.Replaced),
			Doubtful: maps.Clone(before.Given.Doubtful)}
	}
	for _, key := range keys {
		if before.Given.Has(key) {
			continue
		}
		given.Keys = append(given.Keys, key)
		value, has := before.Label(key)
		switch {
		case has && before.Doubts(key):
			given.Doubtful = merged(given.Doubtful, Labels{key: value})
		case has:
			given.Replaced = merged(given.Replaced, Labels{key: value})
		}
	}
	slices.Sort(given.Keys)
	given.Keys = slices.Compact(given.Keys)
	w.Given = &given
}

// keysGiven are the keys of a workload's labels, as it gives them to a container in its cgroup.
func (w *Workload) keysGiven() (keys []string) {
	for _, labels := range [...]Labels{w.Labels, w.Facts} {
		for key := range labels {
			if !strings.HasPrefix(key, daemonPrefix) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// WithoutGiven is a workload with a container's own labels alone. Which of them count is for Identify to say.
func (w *Workload) WithoutGiven() Workload {
	own := *w
	own.Given = nil
	if w.Given == nil {
		return own
	}
	for _, labels := range [...]*Labels{&own.Labels, &own.Facts, &own.Doubtful, &own.DoubtfulFacts} {
		*labels = maps.Clone(*labels)
		maps.DeleteFunc(*labels, func(key, _ string) bool { return w.Given.Has(key) })
	}
	own.Facts, own.Doubtful = merged(own.Facts, w.Given.Replaced), merged(own.Doubtful, w.Given.Doubtful)
	return own
}

// merged adds labels to others, which may be nil.
func merged(to, more Labels) Labels {
	if to == nil && len(more) > 0 {
		to = Labels{}
	}
	maps.Copy(to, more)
	return to
}
