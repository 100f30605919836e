package policy

import "thole/compiler/policy/strict"

// labels reads a mapping of labels that is not empty.
func (d *decoder) labels(
	n strict.Node, allowed string, checkKey func(string) error, checkValue func(key, value string) error,
) Labels {
	if n.Kind != strict.KindMapping {
		d.Wrong(n, allowed)
		return nil
	}
	if len(n.Fields) == 0 && !n.Partial {
		d.Fail(n.Pos, "%s is an empty mapping; allowed: %s", n.Path, allowed)
	}
	labels := make(Labels)
	for _, f := range n.Fields {
		if err := checkKey(f.Key); err != nil {
			d.Fail(f.Pos, "%s: %s", n.Path, err)
		}
		labels[f.Key] = d.Checked(f.Value, "a label value", func(value string) error {
			return checkValue(f.Key, value)
		})
	}
	return labels
}
