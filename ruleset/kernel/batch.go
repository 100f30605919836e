package kernel

import (
	"fmt"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// A family is one of the two of our tables (linux/netfilter.h).
type family uint8

const (
	inet   family = unix.NFPROTO_INET
	bridge family = unix.NFPROTO_BRIDGE
)

// String returns the family's name in nft.
func (f family) String() string {
	if f == bridge {
		return "bridge"
	}
	return "inet"
}

// maxElements is how many bytes of elements go into one message: well below the 64
// KiB that a netlink attribute can say it is long.
const maxElements = 32 << 10

// A batch is a transaction being written.
type batch struct {
	table    string
	family   family // of what is written now
	compat   bool   // the kernel has no expression "queue"
	encoder  encoder
	messages []netlink.Message
	whats    []string // for each message, what it does
	nextSet  uint32   // the kernel wants a number for each new set
}

// newBatch writes a change.
func newBatch(c ruleset.Change, compat bool) (*batch, error) {
	b := &batch{table: c.Table, compat: compat}
	b.begin()
	err := b.steps(inet, c.Steps, setsOf(c))
	if err == nil && len(c.Bridge) > 0 {
		var sets []ruleset.Set
		if c.Want != nil && c.Want.Bridge != nil {
			sets = c.Want.Bridge.Sets
		}
		err = b.steps(bridge, c.Bridge, sets)
	}
	if err != nil {
		return nil, err
	}
	b.end()
	return b, nil
}

// setsOf returns the sets that rules of a change in family inet may look up.
func setsOf(c ruleset.Change) []ruleset.Set {
	if c.Want != nil {
		return c.Want.Sets
	}
	return c.Declared
}

// steps writes what is done in one family. The table will have these sets.
func (b *batch) steps(f family, steps []ruleset.Step, sets []ruleset.Set) error {
	b.family, b.encoder = f, encoder{sets: map[string]*ruleset.Set{}, compat: b.compat}
	for i := range sets {
		b.encoder.sets[sets[i].Name] = &sets[i]
	}
	for _, s := range steps {
		if err := b.step(s); err != nil {
			return err
		}
	}
	return nil
}

// batchHeader names the subsystem of a batch.
var batchHeader = nlmsg.NetfilterHeader{Resource: unix.NFNL_SUBSYS_NFTABLES}

// begin writes the head of the batch.
func (b *batch) begin() {
	b.append("the transaction", nlmsg.Netfilter(unix.NFNL_MSG_BATCH_BEGIN, 0, batchHeader, nil))
}

// end asks for an answer to the last message before it: when that is there, all are.
func (b *batch) end() {
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	b.append("the end", nlmsg.Netfilter(unix.NFNL_MSG_BATCH_END, 0, batchHeader, nil))
}

// append appends a message.
func (b *batch) append(what string, m netlink.Message) {
	b.messages = append(b.messages, m)
	b.whats = append(b.whats, what)
}

// What a message asks for: a new thing that must not be there yet, one more rule, or
// that something goes.
const (
	create  = netlink.Create | netlink.Excl
	oneMore = netlink.Create | netlink.Append
	remove  = netlink.HeaderFlags(0)
)

// command appends a message of nf_tables.
func (b *batch) command(what string, typ uint16, flags netlink.HeaderFlags, a nlmsg.Attributes) {
	b.append(what, request(typ, flags, b.family, a))
}

// named returns the attributes that name an object of the table.
func (b *batch) named(nameAttr uint16, name string) nlmsg.Attributes {
	a := ofTable(b.table)
	a.AddString(nameAttr, name)
	return a
}

func (b *batch) step(s ruleset.Step) error {
	switch s := s.(type) {
	case ruleset.AddTable:
		b.tableCommand("add table", unix.NFT_MSG_NEWTABLE, create)
	case ruleset.DeleteTable:
		b.tableCommand("delete table", unix.NFT_MSG_DELTABLE, remove)
	case ruleset.AddCounter:
		b.counter("add counter", unix.NFT_MSG_NEWOBJ, create, s.Name)
	case ruleset.DeleteCounter:
		b.counter("delete counter", unix.NFT_MSG_DELOBJ, remove, s.Name)
	case ruleset.AddSet:
		return b.addSet(&s.Set)
	case ruleset.DeleteSet:
		b.command("delete set "+s.Name, unix.NFT_MSG_DELSET, remove,
			b.named(unix.NFTA_SET_NAME, s.Name))
	case ruleset.AddElements:
		return b.elements("add elements of "+s.Set.Name, unix.NFT_MSG_NEWSETELEM, create, &s.Set)
	case ruleset.DeleteElements:
		return b.elements("delete elements of "+s.Set.Name, unix.NFT_MSG_DELSETELEM, remove, &s.Set)
	case ruleset.AddChain:
		return b.addChain(&s.Chain)
	case ruleset.DeleteChain:
		b.command("delete chain "+s.Name, unix.NFT_MSG_DELCHAIN, remove,
			b.named(unix.NFTA_CHAIN_NAME, s.Name))
	case ruleset.FlushChain:
		b.command("flush chain "+s.Name, unix.NFT_MSG_DELRULE, remove,
			b.named(unix.NFTA_RULE_CHAIN, s.Name))
	case ruleset.AddRules:
		return b.addRules(&s.Chain)
	default:
		return fmt.Errorf("unknown step %T", s)
	}
	return nil
}

func (b *batch) tableCommand(what string, typ uint16, flags netlink.HeaderFlags) {
	b.command(what, typ, flags, ofTable(b.table))
}

func (b *batch) counter(what string, typ uint16, flags netlink.HeaderFlags, name string) {
	a := b.named(unix.NFTA_OBJ_NAME, name)
	a.AddBE32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	if typ == unix.NFT_MSG_NEWOBJ {
		a.AddNested(unix.NFTA_OBJ_DATA, func(*nlmsg.Attributes) {})
	}
	b.command(what+" "+name, typ, flags, a)
}

func (b *batch) addSet(s *ruleset.Set) error {
	b.nextSet++
	var a nlmsg.Attributes
	if err := setAttrs(&a, b.table, s, b.nextSet); err != nil {
		return fmt.Errorf("set %s: %w", s.Name, err)
	}
	b.command("add set "+s.Name, unix.NFT_MSG_NEWSET, create, a)
	return nil
}

// elements writes the elements of s in as many messages as it takes.
func (b *batch) elements(what string, typ uint16, flags netlink.HeaderFlags, s *ruleset.Set) error {
	var list nlmsg.Attributes
	flush := func() {
		a := b.named(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		a.AddNested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(a *nlmsg.Attributes) { *a = append(*a, list...) })
		b.command(what, typ, flags, a)
		list = list[:0]
	}
	for i := range s.Elements {
		if err := elementAttrs(&list, s, &s.Elements[i], typ == unix.NFT_MSG_NEWSETELEM); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
		if len(list) >= maxElements {
			flush()
		}
	}
	if len(list) > 0 {
		flush()
	}
	return nil
}

func (b *batch) addChain(c *ruleset.Chain) error {
	if c.Foreign != "" {
		return fmt.Errorf("chain %s: cannot load what is foreign: %s", c.Name, c.Foreign)
	}
	a := b.named(unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook != ruleset.NoHook {
		a.AddNested(unix.NFTA_CHAIN_HOOK, func(a *nlmsg.Attributes) {
			a.AddBE32(unix.NFTA_HOOK_HOOKNUM, uint32(c.Hook-1))
			a.AddBE32(unix.NFTA_HOOK_PRIORITY, uint32(c.Priority))
		})
		a.AddBE32(unix.NFTA_CHAIN_POLICY, chainPolicy)
		a.AddString(unix.NFTA_CHAIN_TYPE, chainType)
	}
	b.command("add chain "+c.Name, unix.NFT_MSG_NEWCHAIN, create, a)
	return nil
}

// The type and policy of our base chains (linux/netfilter.h, NF_ACCEPT).
const (
	chainType   = "filter"
	chainPolicy = 1
)

func (b *batch) addRules(c *ruleset.Chain) error {
	for i, r := range c.Rules {
		what := fmt.Sprintf("chain %s, rule %d", c.Name, i+1)
		exprs, err := b.encoder.rule(r)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		a := b.named(unix.NFTA_RULE_CHAIN, c.Name)
		if err := exprAttrs(&a, b.family, exprs); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		b.command(what, unix.NFT_MSG_NEWRULE, oneMore, a)
	}
	return nil
}

// exprAttrs writes the list of a rule's expressions.
func exprAttrs(a *nlmsg.Attributes, f family, exprs []expr.Any) error {
	var err error
	a.AddNested(unix.NFTA_RULE_EXPRESSIONS, func(a *nlmsg.Attributes) {
		for _, e := range exprs {
			var data []byte
			if r, ours := e.(raw); ours {
				data = r.attributes()
			} else if data, err = expr.Marshal(byte(f), e); err != nil {
				return
			}
			a.AddBytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
		}
	})
	return err
}
