package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler"
	"thole/datapath/queue"
)

const (
	// HoldQueue is the NFQUEUE in which packets of containers wait that are not known yet.
	HoldQueue = 5449

	holdPatience = 2 * time.Second       // that a packet waits for; then it is dropped
	holdEach     = 16                    // packets of one address that wait; more are dropped
	holdLength   = 1024                  // packets that wait in all; the kernel drops more
	holdInterval = 20 * time.Millisecond // between two looks while something waits
)

// A hold lets wait what containers on bridges send before the table knows who they are.
// What it does with a packet is to have INPUT decide it once more (queue.Again), when the
// table has changed and knows its sender, or to drop it. So nothing passes here that the
// table does not accept.
//
// Docker connects a container and has its first process begin, and tells nobody in
// between: without this it would depend on who gets a processor first.
type hold struct {
	queue *queue.Queue
	links linkNames
	now   func() time.Time
	woken chan struct{} // size 1: something waits

	mu      sync.Mutex // guards what follows
	known   map[origin]bool
	waiting map[origin]*held
	counts  HoldCounts
}

// An origin is where a packet comes from.
type origin struct {
	bridge  string
	address netip.Addr
}

// held are the packets of one origin, in their order.
type held struct {
	ids   []uint32
	until time.Time
}

// newHold opens a hold, if the kernel can hand packets to userspace. On error it is nil.
func newHold(host *host) (*hold, error) {
	if err := host.queues(); err != nil {
		return nil, err
	}
	return openHold(host.now)
}

// openHold binds the queue in this thread's network namespace.
func openHold(now func() time.Time) (*hold, error) {
	h := &hold{now: now, woken: make(chan struct{}, 1), known: map[origin]bool{}, waiting: map[origin]*held{}}
	h.mu.Lock() // until there is the queue
	defer h.mu.Unlock()
	var err error
	if h.links, err = openLinkNames(); err != nil {
		return nil, err
	}
	if h.queue, err = queue.Open(queue.Config{Number: HoldQueue, Length: holdLength}, h.take); err != nil {
		return nil, errors.Join(err, h.links.close())
	}
	return h, nil
}

// close drops what waits.
func (h *hold) close() error {
	h.queue.Close()
	return h.links.close()
}

// Run looks after what waits until the context ends. Then it is dropped.
func (h *hold) Run(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- h.queue.Run(ctx) }()
	var again <-chan time.Time
	for {
		select {
		case err := <-ended:
			return err
		case <-h.woken: // not at once: see take
			if again == nil {
				again = time.After(holdInterval)
			}
		case <-again:
			again = nil
			if h.look() {
				again = time.After(holdInterval)
			}
		}
	}
}

// take takes a packet in. Where its sender is known, the table changed while it was on its
// way; it waits as the others do, so that what the table goes on not to know can not keep
// us busy.
func (h *hold) take(p queue.Packet) queue.Verdict {
	from, err := h.originOf(p)
	if err != nil {
		return queue.Drop() // the bridge is gone
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	w := h.waiting[from]
	if w == nil {
		w = &held{until: h.now().Add(holdPatience)}
		h.waiting[from] = w
	}
	if len(w.ids) == holdEach {
		h.counts.Refused++
		return queue.Drop()
	}
	w.ids = append(w.ids, p.ID)
	select {
	case h.woken <- struct{}{}:
	default: // it is awake
	}
	return queue.Later()
}

// learn says whom the loaded table knows.
func (h *hold) learn(workloads []compiler.Workload, unlabelled []compiler.Unlabelled) {
	known := map[origin]bool{}
	enter := func(own []compiler.Network) {
		for _, n := range own {
			for _, a := range n.Addresses {
				known[origin{n.Bridge, a}] = true
			}
		}
	}
	for _, w := range workloads {
		enter(w.Own)
	}
	for _, u := range unlabelled {
		enter(u.Own)
	}
	h.mu.Lock()
	h.known = known
	h.mu.Unlock()
	h.look()
}

// look gives the verdicts that are due, and returns whether more are to come.
func (h *hold) look() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	for from, w := range h.waiting {
		v := queue.Again()
		switch {
		case h.known[from]:
			h.counts.Known += uint64(len(w.ids))
		case now.After(w.until):
			v = queue.Drop()
			h.counts.Expired += uint64(len(w.ids))
		default:
			continue
		}
		for _, id := range w.ids {
			_ = h.queue.Answer(id, v) // it fails where the queue was closed, and the packet is gone
		}
		delete(h.waiting, from)
	}
	return len(h.waiting) > 0
}

// number is the queue's for the compiler; 0: there is none.
func (h *hold) number() uint16 {
	if h == nil {
		return 0
	}
	return HoldQueue
}

// status returns the counts; nil if nothing can wait.
func (h *hold) status() *HoldCounts {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.counts
	return &c
}

// originOf returns where a packet comes from, as it says itself.
func (h *hold) originOf(p queue.Packet) (from origin, err error) {
	if from.bridge, err = h.links.name(p.Device); err != nil {
		return from, err
	}
	const v4, v6 = 12, 8 // where the source address is
	switch b := p.Payload; {
	case len(b) >= v4+4 && b[0]>>4 == 4:
		from.address = netip.AddrFrom4([4]byte(b[v4:]))
	case len(b) >= v6+16 && b[0]>>4 == 6:
		from.address = netip.AddrFrom16([16]byte(b[v6:]))
	default:
		return from, errors.New("no IP packet")
	}
	return from, nil
}

// linkNames tells the names of network interfaces: a socket, which belongs to their
// network namespace.
type linkNames int

func openLinkNames() (linkNames, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("asking for network interfaces: %v", err)
	}
	return linkNames(fd), nil
}

// name returns the name of an interface (netdevice(7), SIOCGIFNAME).
func (l linkNames) name(index int) (string, error) {
	r, err := unix.NewIfreq("")
	if err != nil {
		return "", err
	}
	r.SetUint32(uint32(index))
	if err := unix.IoctlIfreq(int(l), unix.SIOCGIFNAME, r); err != nil {
		return "", fmt.Errorf("asking for the name of network interface %d: %v", index, err)
	}
	return r.Name(), nil
}

func (l linkNames) close() error { return unix.Close(int(l)) }
