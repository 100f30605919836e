package enforcetest

import (
	"fmt"
	"slices"
	"sync"

	"thole/compiler/mark"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/ruleset/rulesettest"
)

// A Kernel has one table as the kernel would: a change applies to what is there, as a whole, or fails. It is an
// enforce.Kernel and an enforce.Conntrack. Its fields are read and written in Locked and Change.
type Kernel struct {
	mu        sync.Mutex
	Table     *ruleset.Table
	Seen      uint32 // the generation
	Applied   []ruleset.Change
	Fail      error        // of the next changes
	Sweeps    []mark.Sweep // that were asked for
	FailSweep error
	Before    func(ruleset.Change) // called, unlocked, before a change
}

// Read returns the table.
func (k *Kernel) Read(string) (*ruleset.Table, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Table, nil
}

// Apply changes the table.
func (k *Kernel) Apply(c ruleset.Change) error {
	k.mu.Lock()
	before := k.Before
	k.mu.Unlock()
	if before != nil {
		before(c)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.Fail != nil {
		return k.Fail
	}
	want, err := rulesettest.Apply(k.Table, c)
	if err != nil {
		return fmt.Errorf("no such file or directory: %w", err)
	}
	k.Table = want
	k.Seen++
	k.Applied = append(k.Applied, c)
	return nil
}

// Remark notes that it was asked; there are no connections.
func (k *Kernel) Remark(mask, bits uint32, _ func(uint32) uint32) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.Sweeps = append(k.Sweeps, mark.Sweep{Mask: mask, Bits: bits})
	return 0, k.FailSweep
}

// Counters returns those of one counter.
func (k *Kernel) Counters(string) (map[string]kernel.Counter, error) {
	return map[string]kernel.Counter{"denied": {Packets: 3, Bytes: 180}}, nil
}

// Generation returns how many transactions there were.
func (k *Kernel) Generation() (uint32, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.Seen, nil
}

// Locked reads or changes the fields.
func (k *Kernel) Locked(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f()
}

// Change is Locked, as a transaction of another program.
func (k *Kernel) Change(f func()) {
	k.Locked(func() {
		k.Seen++
		f()
	})
}

// Loaded returns the table.
func (k *Kernel) Loaded() *ruleset.Table {
	t, _ := k.Read("")
	return t
}

// Swept returns which marks were asked for.
func (k *Kernel) Swept() []mark.Sweep {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.Sweeps)
}

// Changes returns how many changes were made.
func (k *Kernel) Changes() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.Applied)
}

// Steps returns how many of the changes from the n-th on were made without a compile of all.
func (k *Kernel) Steps(n int) (count int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, c := range k.Applied[n:] {
		if c.Have == nil && c.Want == nil {
			count++
		}
	}
	return count
}
