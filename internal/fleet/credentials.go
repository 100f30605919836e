package fleet

import (
	"fmt"
	"time"

	"thole/datapath/pki"
)

// credentials are this node's certificate, key and trust that are in force: the last ones that could be used. They are
// read from the directory --pki, as often as somebody likes; what is there and cannot be used changes nothing.
type credentials struct {
	dir   string
	node  *pki.Node  // nil: no certificate could be used yet
	trust *pki.Trust // nil: none could be read yet; else that of node, or a newer one
	err   error      // why these are not what the directory holds, or nil
}

// read reads the directory. It reports whether something else is in force now. Where only the certificate or the key
// cannot be used, whom the directory says to trust is in force all the same: a node may have been revoked.
func (c *credentials) read(now time.Time) (changed bool) {
	node, trust, err := pki.LoadPart(c.dir, now)
	if trust != nil && c.trust != nil {
		if older := trust.Follows(c.trust); older != nil {
			node, trust, err = nil, nil, older
		}
	}
	before := *c
	if trust != nil {
		c.trust = trust
	}
	switch {
	case node != nil:
		c.node = node
	case c.node != nil && trust != nil:
		kept := *c.node
		kept.Trust = trust
		c.node = &kept
	}
	c.err = c.explain(err)
	return !c.equal(before)
}

func (c *credentials) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case c.node == nil:
		return fmt.Errorf("no certificate can be used, so labelled connections to and from other nodes do not open: "+
			"reading %s: %w: see `thole pki show`", c.dir, err)
	default:
		return fmt.Errorf("the previous certificate stays in force, because the installed files cannot be used: "+
			"reading %s: %w: see `thole pki show`", c.dir, err)
	}
}

// equal reports whether the same is in force by both.
func (c *credentials) equal(d credentials) bool {
	if (c.trust == nil) != (d.trust == nil) || (c.node == nil) != (d.node == nil) {
		return false
	}
	return (c.trust == nil || c.trust.Generation() == d.trust.Generation()) &&
		(c.node == nil || c.node.Identity.Reference == d.node.Identity.Reference && c.node.Key.Equal(d.node.Key))
}
