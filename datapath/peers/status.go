package peers

// Status returns how much is known, each with its bound, and what made room for other
// things while it still held, by name.
func (p *Peers) Status() map[string]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := make(map[string]uint64)
	size := func(name string, n, limit int) { m[name], m[name+"/limit"] = uint64(n), uint64(limit) }
	evicted := func(name string, e evictions) {
		m[name+"/evicted/unproven"], m[name+"/evicted/node"], m[name+"/evicted/share"] = e.unproven, e.owner, e.share
	}
	size("own-label-sets", len(p.own.entries), p.own.limit)
	size("certificates", len(p.certs.entries), p.certs.limit)
	size("remembered", len(p.remembered.entries), p.remembered.limit)
	size("plain-places", len(p.plain.entries), p.plain.limit)
	size("answering-places", len(p.answering.entries), p.answering.limit)
	size("statements", len(p.statements.entries), MaxStatements)
	size("pairs", len(p.pairs.entries), MaxPairs)
	size("proven-addresses", len(p.addresses.entries), MaxAddresses)
	m["own-label-sets/evicted"] = p.own.evicted
	m["certificates/evicted"] = p.certs.evicted
	m["remembered/evicted"] = p.remembered.evicted
	m["plain-places/evicted"] = p.plain.evicted
	m["answering-places/evicted"] = p.answering.evicted
	evicted("statements", p.statements.evicted)
	evicted("pairs", p.pairs.evicted)
	evicted("proven-addresses", p.addresses.evicted)
	return m
}
