package nstest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Barrier returns when every packet that was sent before has gone all its way through the kernel: it is in the
// receiving socket or was thrown away, and so are the kernel's answers to it (SYN-ACK, RST, ICMP). So what has not
// arrived after a Barrier never will, and "nothing arrives" needs no waiting.
//
// Why this holds. Loopback and veth do not deliver a packet but put it into the backlog of the CPU on which the sender
// runs. There is one such queue for each CPU, shared by all devices and namespaces; it is emptied first in, first out,
// by a softirq of that CPU, mostly before sendto returns, but later when there is much to do. What a packet causes, an
// answer or its way through a router's second veth, is put at the end of the same CPU's queue. Barrier sends frames
// over lo from each CPU, one after the other, waiting for each. When the n-th has come back, all that was in the queue
// before, and n-1 more crossings of whatever followed from it, are done. The frames are of a protocol of their own and
// seen by no rule of inet, ip, ip6 or bridge.
//
// It does not hold for what waits outside these queues: for an answer of a process (NFQUEUE, a proxy), a neighbour's
// address (Link makes them permanent), or a traffic shaper; nor with RPS or a veth with GRO, which both are off unless
// switched on. A tunnel with queues of its own, as WireGuard's, is passed as well if Tunnel names it.
func (h *Host) Barrier() {
	h.t.Helper()
	h.mu.Lock()
	tunnels := h.tunnels
	h.mu.Unlock()
	err := h.beacon.drain()
	for _, t := range tunnels {
		if err == nil {
			err = t.drain(h.beacon)
		}
	}
	if err != nil {
		h.t.Fatalf("nstest: barrier: %v", err)
	}
}

// crossings is how many queues a packet and its answer may pass: over two routers and back.
const crossings = 8

// A beacon sends numbers by one socket and receives them by another: on the host's lo by a packet socket, which is
// both; in a tunnel by sockets of UDP.
type beacon struct {
	mu      sync.Mutex // guards what follows
	out, in int
	to      unix.Sockaddr
	seq     uint64
}

const (
	beaconProto   = 0x88b5 // ETH_P_802_EX1: local experimental
	loopbackIndex = 1      // LOOPBACK_IFINDEX in every network namespace

	beaconTimeout  = 100 * time.Millisecond // after which a frame is lost
	beaconPatience = 10 * time.Second
)

func (h *Host) makeBeacon() error {
	var err error
	if enterErr := h.Do(func() { h.beacon, err = newBeacon() }); enterErr != nil {
		return enterErr
	}
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	h.OnEnd(func() error { return unix.Close(h.beacon.in) })
	return nil
}

func newBeacon() (*beacon, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(beaconProto)))
	if err != nil {
		return nil, err
	}
	if err := receiveTimeout(fd); err != nil {
		return nil, err
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(beaconProto), Ifindex: loopbackIndex, Halen: 6}
	at := &unix.SockaddrLinklayer{Protocol: htons(beaconProto), Ifindex: loopbackIndex}
	return &beacon{out: fd, in: fd, to: to}, unix.Bind(fd, at)
}

func receiveTimeout(fd int) error {
	timeout := unix.NsecToTimeval(beaconTimeout.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
}

// drain passes the barrier on every CPU that the test's processes may run on.
func (b *beacon) drain() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	runtime.LockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu, left := 0, all.Count(); left > 0; cpu++ {
		if !all.IsSet(cpu) {
			continue
		}
		left--
		if err := b.drainCPU(cpu); err != nil {
			return err
		}
	}
	if err := unix.SchedSetaffinity(0, &all); err != nil {
		return err
	}
	runtime.UnlockOSThread() // not on errors: a thread with the wrong affinity ends with its goroutine
	return nil
}

func (b *beacon) drainCPU(cpu int) error {
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return err
	}
	for range crossings {
		if err := b.bounce(); err != nil {
			return fmt.Errorf("a frame on lo did not come back on CPU %d: %w", cpu, err)
		}
	}
	return nil
}

// cross is bounce for who does not drain.
func (b *beacon) cross() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bounce()
}

// bounce sends a number and waits for it. It can be lost when the queue is full: then another is sent.
func (b *beacon) bounce() error {
	deadline := time.Now().Add(beaconPatience)
	for {
		b.seq++
		if err := unix.Sendto(b.out, binary.NativeEndian.AppendUint64(nil, b.seq), 0, b.to); err != nil {
			return err
		}
		err := b.await(b.seq)
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline) {
			return err
		}
	}
}

// await receives numbers until the one with this number comes, or none for beaconTimeout (EAGAIN).
func (b *beacon) await(seq uint64) error {
	for {
		var frame [8]byte
		_, _, err := unix.Recvfrom(b.in, frame[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || nativeUint64(frame[:]) == seq {
			return err
		}
	}
}

func nativeUint64(b []byte) uint64 { return binary.NativeEndian.Uint64(b) }

func htons(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
