package e2e

import (
	"testing"

	"thole/compiler"
	"thole/internal/nstest/probe"
	"thole/policies"
)

// Denied means: for a source on this node an answer at once, for one elsewhere
// silence. --deny changes it.
func TestHowDeniedIsAnswered(t *testing.T) {
	for _, c := range []struct {
		name            string
		mode            compiler.DenyMode
		local, stranger probe.Outcome
	}{
		{"default", compiler.DenyDefault, probe.Refused, probe.Silent},
		{"drop", compiler.DenyDrop, probe.Silent, probe.Silent},
		{"reject", compiler.DenyReject, probe.Refused, probe.Refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			n.more.Options.Deny = c.mode
			web := probe.Start(n.label("thole.slice/web", app("web")), "web")
			db := probe.Start(n.label("thole.slice/db", app("db")), "db")
			free := probe.Start(n.In("elsewhere"), "free")
			world := probe.Start(everywhereElse(t, n.Host).In("world"), "world")
			n.enforce(policies.Default)
			web.Listen("tcp", "[::]:80")
			for _, to := range []string{"10.0.0.1:80", "[fd00:10::1]:80"} {
				for what, p := range map[string]*probe.Process{"unlabelled": free, "other labels": db} {
					if v := p.TCP(to); v.Outcome != c.local {
						t.Errorf("%s to %s: %s, want %s", what, to, v, c.local)
					}
				}
				if v := world.TCP(to); v.Outcome != c.stranger {
					t.Errorf("a stranger to %s: %s, want %s", to, v, c.stranger)
				}
			}
		})
	}
}

// ICMP errors that belong to a connection pass, whatever the policies say: a
// workload that may call out hears that the port is closed.
func TestErrorsAboutAConnectionPass(t *testing.T) {
	n := newNode(t)
	web := probe.Start(n.label("thole.slice/web", app("web")), "web")
	everywhereElse(t, n.Host)
	n.enforce(policies.Default)
	for _, to := range []string{"192.0.2.7:9", "[2001:db8::7]:9"} {
		u := web.OpenUDP("udp", "[::]:0")
		u.Send(to, "anybody?")
		n.Barrier()
		if errs := u.Errors(); len(errs) == 0 {
			t.Errorf("no error came back from %s, want port unreachable", to)
		}
		if v := web.TCP(to); v.Outcome != probe.Refused {
			t.Errorf("tcp to %s: %s, want the reset of the other end", to, v)
		}
	}
}
