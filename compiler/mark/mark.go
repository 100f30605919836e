package mark

// The conntrack mark is ours, whole:
//
//	 31  30   29   28  27       16 15            0
//	┌───┬────┬────┬────┬──────────┬──────────────┐
//	│out│pend│dead│open│  epoch   │    class     │
//	└───┴────┴────┴────┴──────────┴──────────────┘
//
//	class  of who opened the connection; 0: unlabelled, on this node. Written only
//	       after a judgement allowed its packet, with the rest at once
//	epoch  in which it was allowed; 0: never. Raised by every change that takes
//	       an allowance away, so that what was allowed before is decided again
//	open   its first packet was allowed, and it is not known yet which socket has it:
//	       the kernel may deliver it to another one than was found for it. Two must
//	       say the same, in either order: who is found for what comes behind the
//	       handshake (then open and out), and who answers (then open and dead)
//	dead   it was denied after it had been allowed
//	out    it was allowed at OUTPUT, as one that leaves; that says nothing to INPUT
//	pend   between nodes: the handshake goes on, and nothing but it passes
const (
	ClassMask  = 0x0000ffff
	EpochMask  = 0x0fff0000
	OpenBit    = 1 << 28
	DeadBit    = 1 << 29
	PendingBit = 1 << 30
	OutBit     = 1 << 31
	epochShift = 16
	AllBits    = 0xffffffff

	// The classes of other nodes' workloads: firstRemoteClass to lastRemoteClass.
	RemoteMask  = 0xc000
	RemoteClass = 0x4000

	// The class of addresses that no CIDR matches. All classes of addresses have this bit.
	AddressClass = 0x8000
)

// What OUTPUT writes into the mark of a packet that stays on this node, where INPUT has to
// judge it: Sender with the number of who sent it, 0 of what is unlabelled. (In
// conntrack's mark, where it stands for a moment, it says "stale".) Where the connection was
// answered, and who sends is who asked, it is Asker. What no socket sent has Injected, a
// number that nobody has.
const (
	SenderMask = 0xfffe0000
	Sender     = StaleEpoch << epochShift
	Asker      = Sender &^ (1 << epochShift)
	Injected   = Sender | 0xffff
)

// What a packet's mark says besides, while it is judged, of the address that its sender called
// and NAT changed: the egress of the sender allows it, and does so too with the audit policies.
const (
	CalledAllowed = 1 << 31
	CalledAudited = 1 << 30
)

// WrappedPriority is the priority of a workload's packet that was judged, and that a device made
// by software may put into another packet, with the same socket: that one is not the workload's.
const WrappedPriority = 0x54480000

// AroundPriority is the priority of the packet around it, where it goes to many: CAP_NET_RAW is enough to pretend to be
// one, and the kernel delivers a copy to the members of the group on this node.
const AroundPriority = WrappedPriority | 0x10

// UnlabelledListener is what the packet's priority says of a listener that was looked for
// and is unlabelled.
const UnlabelledListener = 0xffff

// What the packet's mark says between the kernel and the datapath, which decides what
// comes to the queue. Ungated is on what comes to it behind conntrack; Unproven on a
// verdict that asks whether its connection was proven meanwhile, and on what comes to the
// queue once more, because it was not; Sent on what the datapath sends by itself, SentOut
// on a reset that takes back a connect of this node. The others are on verdicts: Plain, or
// what Pending, Introduced and Proven return.
const (
	Ungated  uint32 = PendingBit
	Sent     uint32 = 0x54480000
	SentOut  uint32 = 0x54480001
	Plain    uint32 = OutBit
	Unproven uint32 = DeadBit
)

// Pending is for a connection that another node's workload of this class wants to open.
func Pending(class uint32) uint32 { return class | PendingBit }

// Introduced is for a connection of this node to a workload of this class.
func Introduced(class uint32) uint32 { return class | PendingBit | OutBit }

// Proven is for a connection whose other end proved to be of this class.
func Proven(class uint32) uint32 { return class }

// IsRemote reports whether a mark has the class of another node's workload, and which.
func IsRemote(mark uint32) (class uint32, ok bool) {
	return mark & ClassMask, mark&RemoteMask == RemoteClass
}

// RemoteMarks are the bits, under a mask, of all marks that IsRemote.
func RemoteMarks() (mask, bits uint32) { return RemoteMask, RemoteClass }

// The epochs go from 1 to MaxEpoch, and then round. StaleEpoch is none of them: it is what
// a Sweep writes. It is not 0, since the connection was allowed once.
//
// The place of the epoch in the mark must never change, nor that 0 is none: a new
// version of the program, which gives other bits another meaning, begins with a new
// epoch, and so asks again whatever the marks of the old one say.
const (
	StaleEpoch = EpochMask >> epochShift
	MaxEpoch   = StaleEpoch - 1
	halfEpoch  = 1 << 11
)

// OfEpoch returns an epoch in its place in the mark.
func OfEpoch(e uint16) uint32 { return uint32(e) << epochShift }

// EpochIn returns the epoch that a mark says.
func EpochIn(mark uint32) uint16 { return uint16(mark & EpochMask >> epochShift) }

// NextEpoch returns the epoch after e.
func NextEpoch(e uint16) uint16 { return e%MaxEpoch + 1 }

// A Sweep is what must be done to the marks of all connections that have Bits under
// Mask, before a table of some epochs is loaded. The zero Sweep is for any epoch.
type Sweep struct{ Mask, Bits uint32 }

// SweepBefore returns the sweep that must be done before an epoch is used; there is none
// to do if ok is false. Epochs are used again by halves: when the first of one half is
// next, only the other half is in use.
func SweepBefore(epoch uint16) (s Sweep, ok bool) {
	const half = halfEpoch << epochShift
	return Sweep{Mask: half, Bits: OfEpoch(epoch) & half}, epoch == 1 || epoch == halfEpoch
}

// Of returns what a mark must be. In no epoch it stays, as one that must be decided; it
// may be another program's, too.
func (s Sweep) Of(mark uint32) uint32 {
	if mark&s.Mask != s.Bits || mark&EpochMask == 0 {
		return mark
	}
	return mark | EpochMask
}
