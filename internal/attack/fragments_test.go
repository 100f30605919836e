package attack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest/wire"
)

// The kernel cuts IPv6 datagrams behind OUTPUT and puts them together behind INPUT. INPUT accepts all fragments over lo
// but the first, which alone has ports. Nothing of a datagram arrives when its first fragment is denied, whatever its
// other fragments say; and they are all that its sender has sent.
func TestDeniedFragments(t *testing.T) {
	for name, yaml := range map[string]string{"labels": sameLabels, "ports": onePort} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, yaml)
			s.Shell("ip link set lo mtu 1500")
			for _, at := range []string{"[::1]", "[" + ours6 + "]"} {
				victim := s.web.udp(at + ":5353")
				defer victim.close()
				// Each 8 bytes look like ports of datagrams that are allowed.
				data := strings.Repeat("\x14\xe9\x14\xe9\x00\x10\x00\x00", 1000)
				ok := s.web2.udp(at + ":6000")
				for _, c := range []*sock{s.db.udp(at + ":6001"), s.free.udp(at + ":6002")} {
					created, reassembled := s.fragments()
					c.sendTo(at+":5353", data)
					denied(t, "a fragmented datagram to "+at, victim.got() != "")
					nowCreated, nowReassembled := s.fragments()
					if nowCreated < created+6 || nowReassembled != reassembled {
						t.Errorf("%d fragments were sent, want at least 6; %d datagrams were put together, want none",
							nowCreated-created, nowReassembled-reassembled)
					}
					ok.sendTo(at+":5353", data)
					allowed(t, "a fragmented datagram to "+at, victim.got() == data)
				}
			}
		})
	}
}

// fragments counts the fragments of IPv6 that were sent, and the datagrams that were put together.
func (s *scene) fragments() (created, reassembled int) {
	s.t.Helper()
	out := s.Shell("awk '/Ip6FragCreates/ {c = $2} /Ip6ReasmOKs/ {r = $2} END {print c, r}' /proc/net/snmp6")
	if _, err := fmt.Sscan(out, &created, &reassembled); err != nil {
		s.t.Fatalf("the counters of fragments: %q: %v", out, err)
	}
	return created, reassembled
}

// CAP_NET_RAW: fragments that a process makes by itself reach no workload that the process may not call. Raw sockets
// send them, and packet sockets inject them on lo.
func TestForgedFragments(t *testing.T) {
	s := newScene(t, sameLabels)
	s.Shell("ip link set lo mtu 1500")
	victim, own := s.web.udp("[::]:80"), s.db.udp("[::]:81")
	s.db.only(unix.CAP_NET_RAW)
	const payload = "fragments from db"
	here := netip.IPv6Loopback()
	datagramTo := func(port uint16) []byte {
		from, to := netip.AddrPortFrom(here, 5000), netip.AddrPortFrom(here, port)
		return wire.Datagram{From: from, To: to, Data: []byte(payload)}.UDP()
	}
	type part struct {
		next   byte
		offset uint16
		more   bool
		data   []byte
	}
	denied80, allowed81 := datagramTo(80), datagramTo(81)
	options := []byte{unix.IPPROTO_UDP, 0, 1, 4, 0, 0, 0, 0} // destination options, padded to 8 bytes
	send := func(id int, parts []part, by func(packet []byte)) {
		for _, p := range parts {
			by(fragment6(here, here, p.next, p.offset, p.more, uint32(id), p.data))
		}
	}
	raw := s.db.raw(unix.AF_INET6)
	raw.set([3]int{unix.SOL_IPV6, unix.IPV6_HDRINCL, 1})
	byRaw := func(packet []byte) { raw.sendTo("[::1]:0", string(packet)) }
	for i, tt := range []struct {
		name  string
		parts []part
	}{
		{"the header first", []part{{unix.IPPROTO_UDP, 0, true, denied80[:16]},
			{unix.IPPROTO_UDP, 2, false, denied80[16:]}}},
		{"the header later", []part{{unix.IPPROTO_DSTOPTS, 0, true, options},
			{unix.IPPROTO_DSTOPTS, 1, false, denied80}}},
		{"the last one first", []part{{unix.IPPROTO_UDP, 2, false, denied80[16:]},
			{unix.IPPROTO_UDP, 0, true, denied80[:16]}}},
		{"two headers", []part{{unix.IPPROTO_UDP, 0, true, allowed81[:16]}, {unix.IPPROTO_UDP, 0, true, denied80[:16]},
			{unix.IPPROTO_UDP, 2, false, denied80[16:]}}},
		{"no first one", []part{{unix.IPPROTO_UDP, 1, false, denied80}}},
		{"alone", []part{{unix.IPPROTO_UDP, 0, false, denied80}}},
	} {
		send(2*i, tt.parts, byRaw)
		denied(t, "from a raw socket, "+tt.name, victim.got() != "")
		send(2*i+1, tt.parts, func(packet []byte) { s.db.inject("lo", packet) })
		denied(t, "injected, "+tt.name, victim.got() != "")
	}
	own.got()
	send(100, []part{{unix.IPPROTO_UDP, 0, true, allowed81[:16]}, {unix.IPPROTO_UDP, 2, false, allowed81[16:]}}, byRaw)
	allowed(t, "from a raw socket, to db's own port", own.got() == payload)
}

// fragment6 is an IPv6 packet with a fragment at an offset, in units of 8 bytes.
func fragment6(src, dst netip.Addr, next byte, offset uint16, more bool, id uint32, payload []byte) []byte {
	p := []byte{0x60, 0, 0, 0, 0, byte(8 + len(payload)), unix.IPPROTO_FRAGMENT, 64}
	p = append(append(p, src.AsSlice()...), dst.AsSlice()...)
	flags := offset << 3
	if more {
		flags |= 1
	}
	p = binary.BigEndian.AppendUint16(append(p, next, 0), flags)
	return append(binary.BigEndian.AppendUint32(p, id), payload...)
}
