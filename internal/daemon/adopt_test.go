package daemon

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"thole/compiler/mark"
	"thole/internal/api"
	"thole/internal/nstest/probe"
)

// An older version's table is loaded: other chains, sets of the same name and another
// shape, another priority, and marks that mean something else. It is replaced in one
// transaction. What lives and is allowed goes on; what is forbidden is not taken for
// allowed, though its mark happens to say so in the new table's words.
func TestTakesOverOlderLayout(t *testing.T) {
	m := newMachine(t)
	m.apply(allowWeb)
	web := m.run(map[string]string{"app": "web"})
	dev := m.run(map[string]string{"app": "dev"})
	server := probe.Start(m.host.In(web.Answer.Cgroup), "server")
	l := server.Listen("tcp", "127.0.0.1:80", probe.Manual)
	friend, v := probe.Start(m.host.In(m.run(map[string]string{"app": "web"}).Answer.Cgroup), "friend").Dial(l.Addr)
	if friend == nil {
		t.Fatal(v)
	}
	lives := l.Accept(patience)
	s := m.status()
	running, err := m.client.Workloads(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	class := running[slices.IndexFunc(running, func(w api.Workload) bool { return w.ID == dev.Answer.ID })].Class
	m.stop()

	// The mark that the next table would take for an allowance.
	allowance := mark.OfEpoch(s.Epoch+1) | class
	w := m.witness()
	if err := m.host.Nft(fmt.Sprintf(`delete table inet thole
table inet thole {
	counter allowed { }
	set pair { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
	map class2 { type inet_service : mark; elements = { 80 : 1 }; }
	chain old { ct mark set %#x accept; }
	chain older { ct mark set 0x00770000 accept; }
	chain output { type filter hook output priority 0; ip saddr @pair drop; tcp dport 80 jump old; }
	chain input { type filter hook input priority -5; policy accept; ct mark %#x accept; }
}`, allowance, allowance)); err != nil {
		t.Fatal(err)
	}
	enemy, v := probe.Start(m.host.In(dev.Answer.Cgroup), "enemy").Dial(l.Addr)
	if enemy == nil {
		t.Fatalf("in the old layout all is allowed: %s", v)
	}
	victim := l.Accept(patience)
	enemy.Send("before")
	if data, o := victim.Receive(patience); data != "before" {
		t.Fatalf("in the old layout all is allowed: %q, %s", data, o)
	}

	m.start()
	if unlike := m.unlike(allowWeb); unlike != "" {
		t.Errorf("the table differs from a fresh compile:\n%s", unlike)
	}
	w.mu.Lock()
	ours := 0
	for _, write := range w.writes {
		if write.Program != "nft" {
			ours++
		}
		if write.Removed {
			t.Errorf("a moment without the table: %+v", write)
		}
	}
	w.mu.Unlock()
	if ours != 1 {
		t.Errorf("the table was replaced in %d transactions; want 1", ours)
	}
	if now := m.status().Epoch; now != s.Epoch+1 {
		t.Errorf("epoch %d; want %d, which the old marks say", now, s.Epoch+1)
	}
	enemy.Send("after")
	if data, o := victim.Receive(0); data != "" {
		t.Errorf("what is forbidden, on a connection of the old layout: %q, %s", data, o)
	}
	friend.Send("still here")
	if data, o := lives.Receive(patience); data != "still here" {
		t.Errorf("what is allowed and lives: %q, %s", data, o)
	}
}
