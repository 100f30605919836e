package sockets

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	diff "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// bound opens a socket of the calling thread's namespace, and says what a dump should say of it.
func bound(t *testing.T, network, address, device string) {
	t.Helper()
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
		e := raw.Control(func(fd uintptr) {
			if device != "" {
				err = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device)
			}
		})
		return cmp.Or(err, e)
	}}
	var c interface{ Close() error }
	var err error
	if network[:3] == "udp" {
		c, err = config.ListenPacket(t.Context(), network, address)
	} else {
		c, err = config.Listen(t.Context(), network, address)
	}
	if err != nil {
		t.Errorf("%s %s: %v", network, address, err)
		return
	}
	t.Cleanup(func() { c.Close() })
}

func TestBound(t *testing.T) {
	host := nstest.New(t)
	var got []Socket
	var err error
	if e := host.Do(func() {
		bound(t, "tcp4", "127.0.0.1:80", "")
		bound(t, "tcp", "[::]:81", "")
		bound(t, "udp6", "[::]:82", "lo")
		bound(t, "udp4", "0.0.0.0:83", "lo")
		client, e := net.Dial("udp4", "127.0.0.1:83") // connected: not listed
		if e != nil {
			t.Error(e)
			return
		}
		defer client.Close()
		err = Bound(func(s Socket) bool {
			if p := s.Local.Port(); p >= 80 && p <= 83 { // the rest is nstest's
				got = append(got, s)
			}
			return true
		})
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	slices.SortFunc(got, func(a, b Socket) int { return cmp.Compare(a.Local.Port(), b.Local.Port()) })
	for i := range got {
		if got[i].Cgroup == 0 {
			t.Errorf("%+v: without its cgroup", got[i])
		}
		if got[i].Inode == 0 || !got[i].Bound || got[i].Remote.Port() != 0 {
			t.Errorf("%+v: want an inode, and that it is bound and not connected", got[i])
		}
		got[i].Cgroup, got[i].Inode, got[i].Bound, got[i].Remote = 0, 0, false, netip.AddrPort{}
	}
	want := []Socket{
		{Family: unix.AF_INET, Protocol: unix.IPPROTO_TCP, Local: netip.MustParseAddrPort("127.0.0.1:80")},
		{Family: unix.AF_INET6, Protocol: unix.IPPROTO_TCP, Local: netip.MustParseAddrPort("[::]:81")},
		{Family: unix.AF_INET6, Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort("[::]:82"), OnlyV6: true,
			Device: lo},
		{Family: unix.AF_INET, Protocol: unix.IPPROTO_UDP, Local: netip.MustParseAddrPort("0.0.0.0:83"), Device: lo},
	}
	if d := diff.Diff(want, got, diff.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// A dump that takes several answers is complete, and one that ends early does not go on.
func TestDumpOfMany(t *testing.T) {
	host := nstest.New(t)
	const sockets = 1500
	count, early := 0, 0
	var err, errEarly error
	if e := host.Do(func() {
		for range sockets {
			c, e := net.ListenPacket("udp4", "127.0.0.2:0")
			if e != nil {
				t.Error(e)
				return
			}
			defer c.Close()
		}
		err = Dump(unix.IPPROTO_UDP, func(s Socket) bool {
			if s.Local.Addr() == netip.MustParseAddr("127.0.0.2") {
				count++
			}
			return true
		})
		errEarly = Bound(func(Socket) bool { early++; return early < 10 })
	}); e != nil || err != nil || errEarly != nil {
		t.Fatal(e, err, errEarly)
	}
	if count != sockets || early != 10 {
		t.Errorf("%d of %d sockets; %d before the end", count, sockets, early)
	}
}
