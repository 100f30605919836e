package policy

import "thole/compiler/policy/strict"

const (
	apiVersion = "thole/v1"

	kindPolicy   = "Policy"
	kindGrant    = "LabelGrant"
	kindWorkload = "Workload"
	kindSettings = "Settings"
)

// The shapes of what all kinds have.
var (
	documentShape = strict.Shape{
		Keys: []string{"apiVersion", "kind", "metadata", "spec"},
		Instead: map[string]string{
			"name": "it belongs in metadata", "labels": "they belong in metadata",
			"namespace": "it belongs in metadata",
			"selector":  "it belongs in spec", "ingress": "it belongs in spec", "egress": "it belongs in spec",
			"deny": "it belongs in spec", "enforcement": "it belongs in spec",
		},
	}
	metadataShape = strict.Shape{
		Keys: []string{"name"},
		Instead: map[string]string{
			"namespace": "a document applies to the whole node",
			"labels":    "only a Workload has labels",
		},
	}
)

// document reads one document.
func (d *decoder) document(n strict.Node, into *documentSet) {
	m := d.Mapping(n, documentShape)
	kind, known := d.header(m)
	if !known {
		return
	}
	meta, named := d.Need(m, "metadata", "metadata: {name: …}")
	spec, specified := d.Need(m, "spec", "spec: {…}")
	if !named || !specified {
		return
	}
	switch kind {
	case kindPolicy:
		d.addPolicy(into, d.policy(d.Mapping(meta, metadataShape), spec))
	case kindGrant:
		d.addGrant(into, d.grant(d.Mapping(meta, metadataShape), spec))
	case kindWorkload:
		d.addBinding(into, d.binding(d.Mapping(meta, workloadMetadataShape), spec))
	case kindSettings:
		d.addSettings(into, d.settings(d.Mapping(meta, metadataShape), spec))
	}
}

// header reads the keys that say what the rest is; without both, nothing can be
// said about it.
func (d *decoder) header(m strict.Mapping) (kind string, known bool) {
	if n, ok := d.Need(m, "apiVersion", "apiVersion: "+apiVersion); ok {
		_, known = d.OneOf(n, apiVersion)
	}
	if n, ok := d.Need(m, "kind", "kind: Policy, LabelGrant, Workload or Settings"); ok {
		kind, ok = d.OneOf(n, kindPolicy, kindGrant, kindWorkload, kindSettings)
		return kind, known && ok
	}
	return "", false
}

// name reads a document's name, and where it stands.
func (d *decoder) name(meta strict.Mapping) (string, Position) {
	n, ok := d.Need(meta, "name", "name: …")
	if !ok {
		return "", meta.Pos
	}
	return d.Checked(n, "a name", CheckName), n.Pos
}
