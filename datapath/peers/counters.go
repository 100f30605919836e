package peers

import (
	"errors"
	"maps"
	"sync"

	"thole/datapath/packet"
	"thole/datapath/pki"
	"thole/datapath/refusal"
	"thole/datapath/token"
)

// Counters count, by reason, what the datapath refused. The zero value is ready; it is
// safe for concurrent use.
type Counters struct {
	mu sync.Mutex
	n  map[string]uint64
}

// certificates are pki's reasons, as metrics name them.
var certificates = []struct {
	err  error
	name string
}{
	{pki.ErrMalformed, "malformed"}, {pki.ErrForeign, "foreign"}, {pki.ErrUsage, "usage"},
	{pki.ErrNotYetValid, "not-yet-valid"}, {pki.ErrExpired, "expired"}, {pki.ErrRevoked, "revoked"},
	{pki.ErrNotGranted, "not-granted"},
}

// Other is the name of what has no reason: a mistake, or the kernel's.
const Other = "other"

// Count counts an error under its reason, that of the deepest package that has one, and
// returns the reason's name.
func (c *Counters) Count(err error) string {
	if err == nil {
		return ""
	}
	name := nameOf(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]uint64)
	}
	c.n[name]++
	return name
}

func nameOf(err error) string {
	for _, c := range certificates {
		if errors.Is(err, c.err) {
			return "certificate/" + c.name
		}
	}
	if _, ok := errors.AsType[*packet.TooBigError](err); ok {
		return "packet/too-big"
	}
	if _, ok := errors.AsType[*token.TooBigError](err); ok {
		return "token/too-big"
	}
	if r, ok := errors.AsType[refusal.Reason](err); ok {
		return r.String()
	}
	return Other
}

// Map returns the counts. What never happened is not in it.
func (c *Counters) Map() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		return map[string]uint64{}
	}
	return maps.Clone(c.n)
}
