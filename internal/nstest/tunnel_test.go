package nstest_test

import (
	"fmt"
	"net"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// A forwarder is no tunnel, but it keeps packets elsewhere than in the queues of the CPUs, and in their order, as one
// does.
func TestBarrierPassesTunnel(t *testing.T) {
	for _, path := range []struct{ a, b string }{{"10.0.0.1", "10.0.0.2"}, {"fd00::1", "fd00::2"}} {
		t.Run(path.a, func(t *testing.T) {
			a, b := nstest.New(t), nstest.New(t)
			wire.Forward(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
			undo := nstest.Tunnel(a, path.a, b, path.b)
			defer undo()
			passesAll(t, a, b, path.b)
		})
	}
}

// passesAll asks for datagrams and for answers right after they were sent, and only once.
func passesAll(t *testing.T, a, b *nstest.Host, addr string) {
	t.Helper()
	far, near := probe.Start(b.In(""), "far"), probe.Start(a.In(""), "near")
	in, out := far.OpenUDP("udp", net.JoinHostPort(addr, "0")), near.OpenUDP("udp", "[::]:0")
	for i := range 100 {
		out.Send(in.Addr, fmt.Sprint(i))
		if got := len(in.Received()); got != i+1 {
			t.Fatalf("to %s: %d of %d datagrams had arrived", addr, got, i+1)
		}
	}
	in.Close()
	if v := out.Try(in.Addr); v.Outcome != probe.Refused {
		t.Errorf("the answer to a datagram to a closed port of %s: %v", addr, v)
	}
}

// Behind its undo a Barrier does not need the tunnel any more.
func TestTunnelIsUndone(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	device, _ := nstest.Link(a, "10.0.0.1/24", "", b, "10.0.0.2/24", "")
	undo := nstest.Tunnel(a, "10.0.0.1", b, "10.0.0.2")
	a.Barrier()
	undo()
	a.Shell("ip link del " + device)
	a.Barrier()
	b.Barrier()
}
