package reference

import (
	"maps"
	"regexp"
	"strings"

	"thole/compiler/policy"
)

// identifyAll replaces the workloads of ends by what the set says of them. What was one workload stays one.
func (s Set) identifyAll(ends ...*Endpoint) {
	identified := map[*policy.Workload]*policy.Workload{}
	for _, e := range ends {
		if e.Workload == nil {
			continue
		}
		w, done := identified[e.Workload]
		if !done {
			w = identify(s, e.Workload)
			identified[e.Workload] = w
		}
		if e.Workload = w; w == nil {
			*e = Endpoint{}
		}
	}
}

// identify is a workload with its labels divided by whether they count; nil: it is none.
//
// "A key counts if it matches include; else it does not if it matches exclude or the list of tools; else it does."
//
// "A container that has no label that counts is a workload if and only if a selector of an enforced policy names one of
// its other labels positively: any selector for a label that is not doubtful; for a doubtful label a selector that
// restricts, which is a policy's own, or a peer's in a deny rule. Otherwise it is unlabelled."
func identify(s Set, found *policy.Workload) *policy.Workload {
	w := *found
	w.Labels, w.Facts = policy.Labels{}, policy.Labels{}
	w.Doubtful, w.DoubtfulFacts, w.Named = policy.Labels{}, policy.Labels{}, false
	place := func(key, value string, doubtful bool) {
		counts := counts(s.Settings, key) && value != policy.UnusableValue
		switch {
		case doubtful && counts:
			w.Doubtful[key] = value
		case doubtful:
			w.DoubtfulFacts[key] = value
		case counts:
			w.Labels[key] = value
		default:
			w.Facts[key] = value
		}
	}
	trusted := matches(s.Settings.TrustImages, found.Facts["thole/image"])
	for _, labels := range []policy.Labels{found.Labels, found.Facts} {
		for key, value := range labels {
			place(key, value, false)
		}
	}
	for _, labels := range []policy.Labels{found.Doubtful, found.DoubtfulFacts} {
		for key, value := range labels {
			place(key, value, !trusted)
		}
	}
	container := w.Kind == policy.KindContainer || w.Kind == policy.KindAddress
	if !container || len(w.Labels) > 0 {
		return &w
	}
	for key := range w.Facts {
		if !strings.HasPrefix(key, "thole/") && names(s.Policies, key, false) {
			w.Named = true
		}
	}
	if w.Named {
		return &w
	}
	for _, labels := range []policy.Labels{w.Doubtful, w.DoubtfulFacts} {
		for key := range labels {
			if names(s.Policies, key, true) {
				return &w
			}
		}
	}
	return nil
}

func counts(s policy.Settings, key string) bool {
	if strings.HasPrefix(key, "thole/") {
		return false
	}
	if matches(s.Include, key) {
		return true
	}
	return !matches(s.Exclude, key) && policy.IsUserLabel(key)
}

// matches reports whether one of the patterns matches.
func matches(patterns []string, text string) bool {
	for _, pattern := range patterns {
		expression := regexp.QuoteMeta(pattern)
		expression = strings.ReplaceAll(expression, `\*`, ".*")
		expression = strings.ReplaceAll(expression, `\?`, ".")
		if regexp.MustCompile("(?s)^(" + expression + ")$").MatchString(text) {
			return true
		}
	}
	return false
}

// names reports whether a selector of an enforced policy names a key positively, and restricts, if that is asked for.
func names(policies []policy.Policy, key string, restricting bool) bool {
	for _, p := range enforced(policies) {
		if positive(p.Selector, key) {
			return true
		}
		lists := [][]policy.Rule{p.Ingress.Deny, p.Egress.Deny}
		if !restricting {
			lists = append(lists, p.Ingress.Allow, p.Egress.Allow)
		}
		for _, rules := range lists {
			for _, rule := range rules {
				for _, peer := range rule.Peers {
					if peer.Workloads != nil && positive(*peer.Workloads, key) {
						return true
					}
					if peer.SameLabels == nil {
						continue
					}
					for _, same := range peer.SameLabels.Keys {
						if same == key {
							return true
						}
					}
				}
			}
		}
	}
	return false
}

// positive reports whether a selector names a key with In or Exists.
func positive(s policy.Selector, key string) bool {
	for _, r := range s.Requirements {
		if r.Key == key && (r.Operator == policy.In || r.Operator == policy.Exists) {
			return true
		}
	}
	return false
}

// doubtful reports whether the label of w with the key is doubtful.
func doubtful(w *policy.Workload, key string) bool {
	_, one := w.Doubtful[key]
	_, other := w.DoubtfulFacts[key]
	return one || other
}

// onlyDoubtful reports whether w is a workload by doubtful labels alone.
func onlyDoubtful(w *policy.Workload) bool {
	return len(w.Labels) == 0 && !w.Named && len(w.Doubtful)+len(w.DoubtfulFacts) > 0
}

// readings returns the labels of w that count, with every choice of its doubtful ones.
func readings(w *policy.Workload) []policy.Labels {
	all := []policy.Labels{w.Labels}
	for key, value := range w.Doubtful {
		for _, without := range all[:len(all):len(all)] {
			with := maps.Clone(without)
			with[key] = value
			all = append(all, with)
		}
	}
	return all
}
