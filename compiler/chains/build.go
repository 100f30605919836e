package chains

import (
	"slices"

	"thole/compiler/mark"
	nft "thole/ruleset"
)

// priority puts our chains behind other programs' filter chains: those see the
// packet as it came, while ours use its mark and its priority (docs/ARCHITECTURE.md,
// "Marks").
const priority = 10

// Input is what the chains depend on besides the elements of maps and sets.
type Input struct {
	Levels []Level // deepest first
	Epoch  uint16  // from 1 on
	Deny   DenyMode
	Audits []Audit     // that elements of maps lead to
	Ports  []nft.Chain // that elements of maps lead to: from PortChain

	Bridges       bool // there are bridges of containers
	MemberNumbers bool // there are classes whose members have numbers of their own

	Fleet bool   // there are other nodes
	Queue uint16 // NFQUEUE, by which their packets reach the datapath
}

// A Level is a depth in the cgroup tree, and which sets there are of it.
type Level struct {
	Depth   uint8
	Bound   bool // cgroups of workloads
	Free    bool // cgroups that are known to be unlabelled
	Unknown bool // parents of containers
}

// A DenyMode says how a denied connection is answered.
type DenyMode uint8

// The modes. DenyDefault resets or answers sources on this node and is silent to all others.
const (
	DenyDefault DenyMode = iota
	DenyDrop
	DenyReject
)

// A builder writes the chains.
type builder struct {
	Input
	epochBits uint32 // the epoch in its place in the mark
}

// Build returns all chains of the table. docs/ARCHITECTURE.md draws them.
func Build(in Input) []nft.Chain {
	b := &builder{in, mark.OfEpoch(in.Epoch)}
	list := slices.Concat(b.outputChains(), b.outsideChains(), b.replyChains(), b.inputChains(), b.askChains(),
		b.natChains(), b.settleChains(), b.refuseChains(), b.tunnelChains())
	if b.Bridges {
		list = append(list, b.toContainer(), askContainerAgain())
	}
	if b.Fleet {
		list = append(list, b.fleetChains()...)
	}
	for _, a := range withPlain(b.Audits) {
		list = append(list, a.chain(b.Fleet))
	}
	return append(list, b.Ports...)
}
