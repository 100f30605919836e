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
// the target of xtables instead. It fails where the kernel has neither.
func (c *Conn) NativeQueue() (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.tryQueue()
	return c.queueing == native, err
}

// compat says whether a change has to be written with the target. c.mu is held.
func (c *Conn) compat(change ruleset.Change) (bool, error) {
	if !queues(change.Steps) {
		return false, nil
	}
	err := c.tryQueue()
	return c.queueing == viaCompat, err
}

// queues reports whether rules that are added queue packets. Those of family bridge do not.
func queues(steps []ruleset.Step) bool {
	for _, step := range steps {
		added, _ := step.(ruleset.AddRules)
		for _, r := range added.Chain.Rules {
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
// the same transaction. It fails where the kernel has neither way.
func (c *Conn) tryQueue() error {
	if c.queueing != untried {
		return nil
	}
	is, err := native, c.probeQueue(false)
	if errors.Is(err, unix.ENOENT) { // no such expression
		is, err = viaCompat, c.probeQueue(true)
	}
	if err != nil {
		return fmt.Errorf("trying to hand packets to userspace (nft_queue, or nft_compat and xt_NFQUEUE): %w", err)
	}
	c.queueing = is
	return nil
}

func (c *Conn) probeQueue(compat bool) error {
	rules := []ruleset.Rule{{Statements: []ruleset.Statement{ruleset.Queue{}}}}
	table := &ruleset.Table{Name: "thole_queue_probe", Chains: []ruleset.Chain{{Name: "never", Rules: rules}}}
	probe := ruleset.Diff(nil, table)
	probe.Steps = append(probe.Steps, ruleset.DeleteTable{Name: table.Name})
	b, err := newBatch(probe, compat)
	if err != nil {
		return err
	}
	return c.send(b)
}
