package nstest_test

import (
	"slices"
	"testing"

	"thole/internal/nstest"
)

// moment is a test that ends when end is called.
type moment struct {
	testing.TB
	cleanups []func()
}

func (m *moment) Cleanup(fn func()) { m.cleanups = append(m.cleanups, fn) }

func (m *moment) end() {
	for _, fn := range slices.Backward(m.cleanups) {
		fn()
	}
}

func BenchmarkHost(b *testing.B) {
	for b.Loop() {
		m := &moment{TB: b}
		nstest.New(m)
		m.end()
	}
}

func BenchmarkProbe(b *testing.B) {
	cg := nstest.New(b).In("a")
	for b.Loop() {
		cg.Probe("p").Stop()
	}
}

func BenchmarkTCP(b *testing.B) {
	host := nstest.New(b)
	server, client := host.In("a").Probe("server"), host.In("b").Probe("client")
	to := server.Listen("tcp", "127.0.0.1:0").Addr
	for b.Loop() {
		if v := client.TCP(to); !v.Allowed() {
			b.Fatal(v)
		}
	}
}

func BenchmarkUDP(b *testing.B) {
	host := nstest.New(b)
	server, client := host.In("a").Probe("server"), host.In("b").Probe("client")
	s := server.OpenUDP("udp", "127.0.0.1:0")
	for b.Loop() {
		if v := client.UDP(s.Addr, s); !v.Allowed() {
			b.Fatal(v)
		}
	}
}

func BenchmarkBarrier(b *testing.B) {
	host := nstest.New(b)
	for b.Loop() {
		host.Barrier()
	}
}
