package policy

const (
	apiVersion = "thole/v1"

	kindPolicy   = "Policy"
	kindGrant    = "LabelGrant"
	kindWorkload = "Workload"
	kindSettings = "Settings"
)

// The shapes of what all kinds have.
var (
	documentShape = shape{
		keys: []string{"apiVersion", "kind", "metadata", "spec"},
		instead: map[string]string{
			"name": "it belongs in metadata", "labels": "they belong in metadata",
			"namespace": "it belongs in metadata",
			"selector":  "it belongs in spec", "ingress": "it belongs in spec", "egress": "it belongs in spec",
			"deny": "it belongs in spec", "enforcement": "it belongs in spec",
		},
	}
	metadataShape = shape{
		keys: []string{"name"},
		instead: map[string]string{
			"namespace": "a document applies to the whole node",
			"labels":    "only a Workload has labels",
		},
	}
)

// document reads one document.
func (d *decoder) document(n rawNode, into *documentSet) {
	m := d.mapping(n, documentShape)
	kind, known := d.header(m)
	if !known {
		return
	}
	meta, named := d.need(m, "metadata", "metadata: {name: …}")
	spec, specified := d.need(m, "spec", "spec: {…}")
	if !named || !specified {
		return
	}
	switch kind {
	case kindPolicy:
		d.addPolicy(into, d.policy(d.mapping(meta, metadataShape), spec))
	case kindGrant:
		d.addGrant(into, d.grant(d.mapping(meta, metadataShape), spec))
	case kindWorkload:
		d.addBinding(into, d.binding(d.mapping(meta, workloadMetadataShape), spec))
	case kindSettings:
		d.addSettings(into, d.settings(d.mapping(meta, metadataShape), spec))
	}
}

// header reads the keys that say what the rest is; without both, nothing can be
// said about it.
func (d *decoder) header(m mapping) (kind string, known bool) {
	if n, ok := d.need(m, "apiVersion", "apiVersion: "+apiVersion); ok {
		_, known = d.oneOf(n, apiVersion)
	}
	if n, ok := d.need(m, "kind", "kind: Policy, LabelGrant, Workload or Settings"); ok {
		kind, ok = d.oneOf(n, kindPolicy, kindGrant, kindWorkload, kindSettings)
		return kind, known && ok
	}
	return "", false
}

// name reads a document's name, and where it stands.
func (d *decoder) name(meta mapping) (string, Position) {
	n, ok := d.need(meta, "name", "name: …")
	if !ok {
		return "", meta.pos
	}
	return d.checked(n, "a name", CheckName), n.pos
}
