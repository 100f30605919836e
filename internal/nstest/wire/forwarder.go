package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// A Forwarder is a link between two hosts whose every frame the test sees, and lets pass, loses, repeats, holds back or
// puts in another order. Between the hosts is one more, of which they know nothing:
//
//	a: veth ═══ veth ─ packet socket ─► Forwarder ─► packet socket ─ veth ═══ veth :b
//
// What the hosts leave to their devices (segments of 64 KiB, checksums) passes as on a veth pair: each frame has its
// struct virtio_net_hdr with it.
type Forwarder struct {
	t    testing.TB
	ends [2]*os.File // packet sockets; 0 leads to a

	mu     sync.Mutex // guards what follows
	rule   Rule
	passed []Passage
	err    error
}

// A Rule says what becomes of a frame: it returns what is sent on in its place, in this order. It is asked by one
// goroutine at a time, and must not call the Forwarder.
type Rule func(*Frame) []*Frame

// A Frame is one on its way. FromA says whether it goes from a to b. Of a TCP segment over IP without extensions, TCP
// is not nil.
type Frame struct {
	FromA bool
	Data  []byte // Ethernet
	TCP   *Segment

	offload [virtioNetHeader]byte
}

// A Passage is a frame that was sent on.
type Passage struct {
	*Frame
	At time.Time
}

const virtioNetHeader = 10 // linux/virtio_net.h, struct virtio_net_hdr

// Forward joins two hosts, as nstest.Link does, by a Forwarder, which ends with the first host's test. Without a rule
// everything passes.
func Forward(a *nstest.Host, a4, a6 string, b *nstest.Host, b4, b6 string) *Forwarder {
	t := a.T()
	t.Helper()
	between := nstest.New(t)
	f := &Forwarder{t: t}
	deviceA, nearA := nstest.Link(a, a4, a6, between, "", "")
	deviceB, nearB := nstest.Link(b, b4, b6, between, "", "")
	setNeighbours(a, deviceA, hardwareAddress(b, deviceB), b4, b6)
	setNeighbours(b, deviceB, hardwareAddress(a, deviceA), a4, a6)
	for i, near := range []string{nearA, nearB} {
		between.Shell(fmt.Sprintf("ip link set %[1]s addrgenmode none; ip addr flush dev %[1]s", near))
		var err error
		if enterErr := between.Do(func() {
			f.ends[i], err = packetSocket(near)
		}); enterErr != nil || err != nil {
			t.Fatalf("nstest: forwarder: %v, %v", enterErr, err)
		}
	}
	var done sync.WaitGroup
	done.Go(func() { f.run(true) })
	done.Go(func() { f.run(false) })
	t.Cleanup(func() {
		err := errors.Join(f.ends[0].Close(), f.ends[1].Close())
		done.Wait()
		if err = errors.Join(err, f.err); err != nil {
			t.Errorf("nstest: forwarder: %v", err)
		}
	})
	return f
}

func hardwareAddress(h *nstest.Host, device string) string {
	h.T().Helper()
	return strings.TrimSpace(h.Shell("cat /sys/class/net/" + device + "/address"))
}

// setNeighbours tells the host the hardware address of the other host's addresses, which have a prefix length.
func setNeighbours(h *nstest.Host, device, mac string, addrs ...string) {
	h.T().Helper()
	for _, addr := range addrs {
		if ip, _, ok := strings.Cut(addr, "/"); ok {
			h.Shell(fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", ip, mac, device))
		}
	}
}

// SetRule says what becomes of frames from now on; nil: all pass.
func (f *Forwarder) SetRule(rule Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule = rule
}

// Send sends frames on that a rule kept.
func (f *Forwarder) Send(frames ...*Frame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send(frames)
}

// Passed returns what was sent on since the last call.
func (f *Forwarder) Passed() []Passage {
	f.mu.Lock()
	defer f.mu.Unlock()
	passed := f.passed
	f.passed = nil
	return passed
}

// WritePCAP writes frames to a file for tcpdump and tshark.
func WritePCAP(path string, passed []Passage) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(file)
	le := binary.LittleEndian
	head := le.AppendUint32(nil, 0xa1b23c4d) // nanoseconds
	head = le.AppendUint16(head, 2)
	head = le.AppendUint16(head, 4)
	head = append(head, make([]byte, 8)...) // time zone, accuracy
	head = le.AppendUint32(head, 1<<18)     // bytes of a frame at most
	head = le.AppendUint32(head, 1)         // LINKTYPE_ETHERNET
	_, err = w.Write(head)
	for _, p := range passed {
		b := le.AppendUint32(nil, uint32(p.At.Unix()))
		b = le.AppendUint32(b, uint32(p.At.Nanosecond()))
		b = le.AppendUint32(b, uint32(len(p.Data)))
		b = le.AppendUint32(b, uint32(len(p.Data)))
		_, frameErr := w.Write(append(b, p.Data...))
		err = errors.Join(err, frameErr)
	}
	return errors.Join(err, w.Flush(), file.Close())
}

// packetSocket opens a packet(7) socket that has a device's frames as they come in, and sends by it.
func packetSocket(device string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "packets of "+device)
	for _, option := range []struct{ level, name, value int }{
		{unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1},
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16 << 20},
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16 << 20},
	} {
		if err := unix.SetsockoptInt(fd, option.level, option.name, option.value); err != nil {
			return nil, errors.Join(fmt.Errorf("packet socket: option %d: %w", option.name, err), file.Close())
		}
	}
	ifreq, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifreq)
	}
	if err == nil {
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifreq.Uint32())})
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// run forwards one direction, until the sockets are closed.
func (f *Forwarder) run(fromA bool) {
	from := f.ends[1]
	if fromA {
		from = f.ends[0]
	}
	buf := make([]byte, 1<<17)
	for {
		n, err := from.Read(buf)
		switch {
		case errors.Is(err, unix.ENETDOWN): // the device is not up yet, or not any more
			continue
		case err != nil || n < virtioNetHeader:
			return
		}
		frame := &Frame{FromA: fromA, Data: append([]byte(nil), buf[virtioNetHeader:n]...)}
		copy(frame.offload[:], buf)
		frame.TCP = parseSegment(frame.Data)
		f.pass(frame)
	}
}

func (f *Forwarder) pass(frame *Frame) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rule == nil {
		f.send([]*Frame{frame})
		return
	}
	f.send(f.rule(frame))
}

func (f *Forwarder) send(frames []*Frame) {
	for _, frame := range frames {
		to := f.ends[0]
		if frame.FromA {
			to = f.ends[1]
		}
		f.passed = append(f.passed, Passage{frame, time.Now()})
		if _, err := to.Write(append(frame.offload[:], frame.Data...)); err != nil && !gone(err) {
			f.err = errors.Join(f.err, err)
		}
	}
}

// gone says that the test, or the other host, has ended.
func gone(err error) bool {
	return errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENETDOWN) || errors.Is(err, unix.ENXIO) ||
		errors.Is(err, unix.ENODEV)
}
