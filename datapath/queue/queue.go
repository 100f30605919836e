package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	nfqueue "github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
)

// A Hook is where the kernel's path left a packet to us.
type Hook uint8

// The hooks of the families inet, ip and ip6.
const (
	Prerouting Hook = iota
	Input
	Forward
	Output
	Postrouting
)

// A Packet is what the kernel tells of a packet. The handler may keep it.
type Packet struct {
	Hook    Hook
	Mark    uint32
	Device  int    // index of the interface: incoming, or at Output and Postrouting outgoing
	Payload []byte // the IP packet, whole
}

// A Verdict is what becomes of a packet. The zero Verdict drops it.
type Verdict struct {
	accept  bool
	again   bool
	mark    uint32
	setMark bool
	payload []byte
}

// Accept lets the packet go on as it is.
func Accept() Verdict { return Verdict{accept: true} }

// Rewrite lets the packet go on with other bytes, complete with lengths and checksums.
// Without any it drops it.
func Rewrite(payload []byte) Verdict { return Verdict{accept: len(payload) > 0, payload: payload} }

// Again has the packet go through the chain that queued it once more, as it is. Without
// another mark, or something else that has changed, it comes back.
func Again() Verdict { return Verdict{accept: true, again: true} }

// Drop drops the packet.
func Drop() Verdict { return Verdict{} }

// Accepted returns what the packet goes on as, nil being as it is, and with what mark, if
// it gets one; ok is false where it is dropped.
func (v Verdict) Accepted() (payload []byte, mark uint32, marked, ok bool) {
	return v.payload, v.mark, v.setMark, v.accept
}

// WithMark is v with a mark for the packet.
func (v Verdict) WithMark(mark uint32) Verdict {
	v.mark, v.setMark = mark, true
	return v
}

// The bounds that hold if a Config says nothing else.
const (
	DefaultLength = 4096     // packets that wait for a verdict; more are dropped
	DefaultBuffer = 16 << 20 // bytes; a packet of Ethernet's size takes 2.5 KiB of the socket's buffer

	copyRange = 0xffff
)

// A Config says which queue.
type Config struct {
	Number    uint16
	Namespace int    // descriptor of a network namespace; 0: that of the calling thread
	Length    uint32 // 0: DefaultLength
	Buffer    int    // 0: DefaultBuffer
}

// A Queue is bound to its number and is being read.
type Queue struct {
	number uint16
	handle func(Packet) Verdict
	nf     *nfqueue.Nfqueue
	socket *socket // of nf
	stop   context.CancelFunc
	failed chan error // of one

	closing sync.Once

	packets, dropped, overruns, late, cut atomic.Uint64
}

// Stats count since the queue was opened. What the kernel dropped because the queue was
// full is in KernelStats.
type Stats struct {
	Packets  uint64 // that got a verdict
	Dropped  uint64 // of them, by the handler or because they were cut off
	Cut      uint64 // of those, cut off: the kernel copied less than the packet
	Overruns uint64 // times that the socket's buffer was full: packets were lost
	Late     uint64 // verdicts on packets that the kernel had given up
}

// Open binds a queue and has its packets handled until it is closed. The handler is
// called by one goroutine at a time.
func Open(config Config, handle func(Packet) Verdict) (*Queue, error) {
	if config.Length == 0 {
		config.Length = DefaultLength
	}
	if config.Buffer == 0 {
		config.Buffer = DefaultBuffer
	}
	// No flags: neither GSO, nor fail-open. The kernel's default for each is off.
	nf, err := nfqueue.Open(&nfqueue.Config{
		NetNS: config.Namespace, NfQueue: config.Number, AfFamily: unix.AF_UNSPEC,
		MaxQueueLen: config.Length, MaxPacketLen: copyRange, Copymode: nfqueue.NfQnlCopyPacket,
	})
	if err != nil {
		return nil, fmt.Errorf("opening queue %d: %v", config.Number, err)
	}
	q := &Queue{number: config.Number, handle: handle, nf: nf, failed: make(chan error, 1)}
	if err := nf.Con.SetReadBuffer(config.Buffer); err != nil {
		nf.Con.Close()
		return nil, fmt.Errorf("queue %d: a socket buffer of %d bytes: %v", config.Number, config.Buffer, err)
	}
	if q.socket, nf.Con, err = takeOver(nf.Con); err != nil {
		return nil, fmt.Errorf("queue %d: %v", config.Number, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	q.stop = stop
	if err := nf.RegisterWithErrorFunc(ctx, q.receive, q.receiveError); err != nil {
		stop()
		nf.Con.Close()
		return nil, fmt.Errorf("binding queue %d (is it read by another process?): %v", config.Number, err)
	}
	return q, nil
}

// Run waits until the context ends, and returns nil, or until the queue cannot be read
// any more. Then it closes the queue.
func (q *Queue) Run(ctx context.Context) error {
	defer q.Close()
	select {
	case <-ctx.Done():
		return nil
	case err := <-q.failed:
		return fmt.Errorf("queue %d: %v", q.number, err)
	}
}

// Close unbinds the queue. The packets in it are dropped. It returns when the handler
// has; it must not be called by the handler.
func (q *Queue) Close() {
	q.closing.Do(func() {
		// The kernel unbinds it with the socket; but a process that is just being started may
		// have a copy of that until it execs. An error means that it is closed already.
		_, _ = q.nf.Con.Send(unbind(q.number))
	})
	q.stop()
	q.nf.Close() // its error is that of the socket, which is gone anyway
}

// unbind is the request NFQNL_MSG_CONFIG with NFQNL_CFG_CMD_UNBIND. The library has it, but sends it too late.
func unbind(number uint16) netlink.Message {
	var a nlmsg.Attributes
	a.AddBytes(cfgCmd, []byte{cfgCmdUnbind, 0, 0, 0})
	typ := nlmsg.NetfilterType(unix.NFNL_SUBSYS_QUEUE, msgConfig)
	return nlmsg.Netfilter(typ, 0, nlmsg.NetfilterHeader{Family: unix.AF_UNSPEC, Resource: number}, a)
}

// Of linux/netfilter/nfnetlink_queue.h.
const (
	msgConfig    = 2
	cfgCmd       = 1
	cfgCmdUnbind = 2
)

// Stats returns the counters.
func (q *Queue) Stats() Stats {
	return Stats{
		Packets: q.packets.Load(), Dropped: q.dropped.Load(), Cut: q.cut.Load(),
		Overruns: q.overruns.Load(), Late: q.late.Load(),
	}
}

// receive handles a packet. It returns non-zero to stop reading.
func (q *Queue) receive(a nfqueue.Attribute) int {
	if a.PacketID == nil {
		return 0 // no packet
	}
	v := q.verdict(&a)
	q.packets.Add(1)
	if !v.accept {
		q.dropped.Add(1)
	}
	if err := q.answer(*a.PacketID, v); err != nil {
		q.fail(err)
		return 1
	}
	return 0
}

func (q *Queue) fail(err error) {
	select {
	case q.failed <- err:
	default: // the first one counts
	}
}

func (q *Queue) verdict(a *nfqueue.Attribute) Verdict {
	if a.Hook == nil || a.Payload == nil || a.CapLen != nil && int(*a.CapLen) != len(*a.Payload) {
		q.cut.Add(1)
		return Drop()
	}
	p := Packet{Hook: Hook(*a.Hook), Mark: value(a.Mark), Payload: *a.Payload, Device: int(value(a.InDev))}
	if p.Hook >= Output {
		p.Device = int(value(a.OutDev))
	}
	return q.handle(p)
}

// value is that of an attribute which is not there when it is zero.
func value(p *uint32) uint32 {
	if p == nil {
		return 0
	}
	return *p
}

// answer gives the kernel a verdict. A packet that got none would stay in the queue for
// ever; so where this one cannot be sent, the packet is dropped, and where that cannot
// be said twice, nothing can.
func (q *Queue) answer(id uint32, v Verdict) error {
	err := q.give(id, v)
	if err == nil {
		return nil
	}
	if again := q.give(id, Drop()); again != nil {
		return fmt.Errorf("sending a verdict: %v", err)
	}
	if v.accept {
		q.dropped.Add(1)
	}
	return nil
}

func (q *Queue) give(id uint32, v Verdict) error {
	if !v.accept {
		return q.nf.SetVerdict(id, nfqueue.NfDrop)
	}
	var options []nfqueue.VerdictOption
	if v.setMark {
		options = append(options, nfqueue.WithMark(v.mark))
	}
	if v.payload != nil {
		options = append(options, nfqueue.WithAlteredPacket(v.payload))
	}
	verdict := nfqueue.NfAccept
	if v.again {
		verdict = nfqueue.NfRepeat
	}
	return q.nf.SetVerdictWithOption(id, verdict, options...)
}

// receiveError is told of errors of the socket. It returns zero to go on reading. What
// it does not know ends the queue, as Close does: a closed socket gives the same error
// for ever.
func (q *Queue) receiveError(err error) int {
	switch {
	case errors.Is(err, unix.ENOBUFS):
		q.overruns.Add(1)
		return 0
	case errors.Is(err, unix.ENOENT): // the answer to a verdict
		q.late.Add(1)
		return 0
	}
	q.fail(err)
	return 1
}
