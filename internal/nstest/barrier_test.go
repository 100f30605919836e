package nstest_test

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// TestBarrierUnderLoad asks for datagrams right after they were sent, and only once, while floods of others keep the
// queues of all CPUs busy. (Kernels since 6.4 mostly deliver before sendto returns, so there it passes without a
// barrier; older ones leave the work to ksoftirqd while that is busy.)
func TestBarrierUnderLoad(t *testing.T) {
	a, router, b := nstest.New(t), nstest.New(t), nstest.New(t)
	nstest.Link(a, "10.0.0.1/24", "fd00::1/64", router, "10.0.0.2/24", "fd00::2/64")
	nstest.Link(router, "10.0.1.2/24", "fd01::2/64", b, "10.0.1.1/24", "fd01::1/64")
	router.Shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	a.Shell("ip route add default via 10.0.0.2; ip -6 route add default via fd00::2")
	b.Shell("ip route add default via 10.0.1.2; ip -6 route add default via fd01::2")
	near, far, sender := probe.Start(a.In(""), "near"), probe.Start(b.In(""), "far"), probe.Start(a.In(""), "sender")
	for range runtime.NumCPU() {
		flood(t, a, "127.0.0.1:9")
	}
	for _, path := range []struct {
		ip       string
		receiver *probe.Process
	}{
		{"127.0.0.1", near},
		{"[::1]", near},
		{"10.0.1.1", far}, // over two links and a router
		{"[fd01::1]", far},
	} {
		in, out := path.receiver.OpenUDP("udp", path.ip+":0"), sender.OpenUDP("udp", "[::]:0")
		for i := range 100 {
			out.Send(in.Addr, fmt.Sprint(i))
			if got := len(in.Received()); got != i+1 {
				t.Fatalf("to %s: %d of %d datagrams had arrived", path.ip, got, i+1)
			}
		}
		in.Close()
		if v := out.Try(in.Addr); v.Outcome != probe.Refused {
			t.Errorf("the answer to a datagram to a closed port of %s: %v", path.ip, v)
		}
	}
}

// flood sends datagrams as fast as it can, until the test ends.
func flood(t *testing.T, host *nstest.Host, to string) {
	var (
		conn net.Conn
		err  error
	)
	if inHost := host.Do(func() { conn, err = net.Dial("udp", to) }); inHost != nil || err != nil {
		t.Fatal(inHost, err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		payload := []byte(strings.Repeat("x", 1000))
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = conn.Write(payload) // refused every other time
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		conn.Close()
	})
}
