package nstest_test

import (
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// TestExample is what a test with this package looks like: two workloads on one machine, a table that lets nobody in
// but the one, and what follows from it.
func TestExample(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	db := probe.Start(host.In("thole.slice/db"), "db")
	web := probe.Start(host.In("thole.slice/web"), "web")
	dev := probe.Start(host.In("thole.slice/dev"), "dev")

	db.Listen("tcp", "[::]:5432")
	if err := host.Nft(`
		table inet example {
			chain output {
				type filter hook output priority 0
				ct direction original socket cgroupv2 level 2 "thole.slice/web" ct mark set 1
			}
			chain input {
				type filter hook input priority 0
				ct mark != 1 socket cgroupv2 level 2 "thole.slice/db" tcp dport 5432 reject with tcp reset
			}
		}`); err != nil {
		t.Fatal(err)
	}

	for _, addr := range []string{"127.0.0.1:5432", "[::1]:5432"} {
		if v := web.TCP(addr); v.Server != "db" {
			t.Errorf("web → %s: %v, want an answer of db", addr, v)
		}
		if v := dev.TCP(addr); v.Outcome != probe.Refused {
			t.Errorf("dev → %s: %v, want %s", addr, v, probe.Refused)
		}
	}
}
