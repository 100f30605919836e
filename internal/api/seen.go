package api

import (
	"maps"

	"thole/compiler/inventory"
	"thole/compiler/policy"
)

// StateText is the state, with the conditions because of which a workload is partial: "partial:bridge-shared".
func (w *Workload) StateText() string {
	text, separator := string(w.State), ":"
	for _, code := range w.Missing {
		text += separator + string(code)
		separator = ","
	}
	return text
}

// AllLabels returns all labels, and what is to be remarked about those that do not count.
func (w *Workload) AllLabels() (labels policy.Labels, remarks map[string]string) {
	labels, remarks = policy.Labels{}, map[string]string{}
	maps.Copy(labels, w.Labels)
	for key, value := range w.Facts {
		labels[key], remarks[key] = value, "does not count"
	}
	for key, value := range w.Doubtful {
		labels[key], remarks[key] = value, "doubtful"
	}
	return labels, remarks
}

// Inventory returns what an inventory of these workloads has. Those that ended are not in it: a new cgroup may have
// their path.
func Inventory(workloads []Workload) (entries []inventory.Entry) {
	for i := range workloads {
		w := &workloads[i]
		if w.State == StateEnded {
			continue
		}
		labels, remarks := w.AllLabels()
		entries = append(entries, inventory.Entry{Name: w.Name, Namespace: w.Namespace, Kind: w.Kind, Cgroup: w.Cgroup,
			Labels: labels, Sources: w.Sources, Remarks: remarks})
	}
	return entries
}
