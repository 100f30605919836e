package kernel

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"thole/ruleset"
)

// A queueing is how packets get to userspace on a kernel.
type queueing uint8

const (
	untried   queueing = iota
	native             // the expression "queue" (CONFIG_NFT_QUEUE)
	viaCompat          // the target NFQUEUE of xtables (CONFIG_NFT_COMPAT): nft can list it, and not load it
)

// NativeQueue says whether the kernel has the expression "queue". If not, Apply writes
// the target of xtables instead.
func (c *Conn) NativeQueue() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.tryQueue()
	return c.queueing == native, err
}

// compat says whether a change has to be written with the target. c.mu is held.
func (c *Conn) compat(change ruleset.Change) (bool, error) {
	if change.Want == nil || !queues(change.Want.Chains) {
		return false, nil
	}
	err := c.tryQueue()
	return c.queueing == viaCompat, err
}

func queues(chains []ruleset.Chain) bool {
	for _, c := range chains {
		for _, r := range c.Rules {
			for _, s := range r.Statements {
				if _, ok := s.(ruleset.Queue); ok {
					return true
				}
			}
		}
	}
	return false
}

// tryQueue loads a rule that queues, in a chain that nothing calls, and removes it in
// the same transaction.
func (c *Conn) tryQueue() error {
	if c.queueing != untried {
		return nil
	}
	rules := []ruleset.Rule{{Statements: []ruleset.Statement{ruleset.Queue{}}}}
	table := &ruleset.Table{Name: "thole_queue_probe", Chains: []ruleset.Chain{{Name: "never", Rules: rules}}}
	probe := ruleset.Diff(nil, table)
	probe.Steps = append(probe.Steps, ruleset.DeleteTable{Name: table.Name})
	b, err := newBatch(probe, 0, false)
	if err != nil {
		return err
	}
	switch err := c.send(b); {
	case err == nil:
		c.queueing = native
	case errors.Is(err, unix.ENOENT): // no such expression
		c.queueing = viaCompat
	default:
		return fmt.Errorf("trying the expression queue: %w", err)
	}
	return nil
}
