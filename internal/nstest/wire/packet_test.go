package wire_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// inject sends a packet by a packet socket on lo.
func inject(t *testing.T, host *nstest.Host, packet []byte) {
	t.Helper()
	frame := wire.Ethernet(make(net.HardwareAddr, 6), make(net.HardwareAddr, 6), packet)
	var err error
	enterErr := host.Do(func() {
		fd, socketErr := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err = socketErr; err == nil {
			err = errors.Join(unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: 1, Halen: 6}), unix.Close(fd))
		}
	})
	if err := errors.Join(enterErr, err); err != nil {
		t.Fatal(err)
	}
}

// The kernel takes a datagram that was made by hand for a real one. It drops one whose checksum is wrong.
func TestDatagramsMadeByHandArrive(t *testing.T) {
	host := nstest.New(t)
	p := probe.Start(host.In("x"), "p")
	host.Shell("ip addr add 10.0.0.1/32 dev lo; ip addr add fd00::1/128 dev lo nodad")
	host.Shell("sysctl -qw net.ipv4.conf.lo.accept_local=1") // a packet with an address of the node as its source
	for _, ip := range []string{"10.0.0.1", "[fd00::1]"} {
		for _, data := range []string{"", "even", "odd"} {
			s := p.OpenUDP("udp", ip+":53")
			d := wire.Datagram{From: netip.MustParseAddrPort(ip + ":4000"), To: netip.MustParseAddrPort(ip + ":53"),
				Data: []byte(data)}
			wrong := d.Packet()
			wrong[len(wrong)-len(data)-1] ^= 1 // its checksum
			inject(t, host, wrong)
			inject(t, host, d.Packet())
			want := []probe.Datagram{{Data: data, From: ip + ":4000"}}
			if diff := cmp.Diff(want, s.Received()); diff != "" {
				t.Errorf("%q to %s (-want +got):\n%s", data, ip, diff)
			}
			s.Close()
		}
	}
}

// A segment that was made by hand is answered: the kernel refuses a SYN to a closed port, with the right number. To one
// whose checksum is wrong it does not answer.
func TestSegmentsMadeByHandAreAnswered(t *testing.T) {
	host := nstest.New(t)
	host.Shell("ip addr add 10.0.0.1/32 dev lo; ip addr add fd00::1/128 dev lo nodad")
	host.Shell("sysctl -qw net.ipv4.conf.lo.accept_local=1")
	for _, ip := range []string{"10.0.0.1", "[fd00::1]"} {
		o := wire.Observe(host)
		s := wire.Segment{From: netip.MustParseAddrPort(ip + ":4000"), To: netip.MustParseAddrPort(ip + ":80"), Seq: 7,
			Flags: wire.SYN, Window: 1024, Options: []byte{2, 4, 5, 180}, Data: []byte("odd")}
		wrong := s.Packet()
		wrong[len(wrong)-1] ^= 1
		for _, tt := range []struct {
			what    string
			packet  []byte
			answers int
		}{{"a wrong checksum", wrong, 0}, {"a right one", s.Packet(), 1}} {
			inject(t, host, tt.packet)
			got := o.Count(func(p wire.Packet) bool { return p.From == s.To && !p.SYN && p.ACK })
			if got != tt.answers {
				t.Errorf("%s, %s: %d answers, want %d", ip, tt.what, got, tt.answers)
			}
		}
	}
}

func ExampleEthernet() {
	d := wire.Datagram{From: netip.MustParseAddrPort("10.0.0.1:1"), To: netip.MustParseAddrPort("10.0.0.2:2")}
	to, from := net.HardwareAddr{2, 0, 0, 0, 0, 2}, net.HardwareAddr{2, 0, 0, 0, 0, 1}
	fmt.Printf("%x\n", wire.Ethernet(to, from, d.Packet(), 0x8100)[:20])
	// Output: 0200000000020200000000018100000008004500
}
