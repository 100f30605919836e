package nstest_test

import (
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/tbtest"
)

func BenchmarkHost(b *testing.B) {
	for b.Loop() {
		m := &tbtest.Scope{TB: b}
		nstest.New(m)
		m.End()
	}
}

func BenchmarkProbe(b *testing.B) {
	cg := nstest.New(b).In("a")
	for b.Loop() {
		probe.Start(cg, "p").Stop()
	}
}

func BenchmarkTCP(b *testing.B) {
	host := nstest.New(b)
	server, client := probe.Start(host.In("a"), "server"), probe.Start(host.In("b"), "client")
	to := server.Listen("tcp", "127.0.0.1:0").Addr
	for b.Loop() {
		if v := client.TCP(to); !v.Allowed() {
			b.Fatal(v)
		}
	}
}

func BenchmarkUDP(b *testing.B) {
	host := nstest.New(b)
	server, client := probe.Start(host.In("a"), "server"), probe.Start(host.In("b"), "client")
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
