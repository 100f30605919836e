package kernel

import (
	"fmt"
	"regexp"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// Marks of connections are changed where they are meant, bit by bit, in all families
// and zones, and no others.
func TestRemark(t *testing.T) {
	nstest.Need(t, "conntrack")
	h, c := open(t)
	h.Shell(`nft -f - <<X
table inet marks {
	chain pre { type filter hook output priority raw; udp dport 7000-7009 ct zone set 7; }
	chain out { type filter hook output priority 0;
		ct direction original ct mark set udp dport map { 4000 : 4000, 7001 : 7001, 4096 : 4096 }; }
}
X`)
	p := probe.Start(h.In("a"), "p")
	const n = 700 // more than a datagram's worth
	server := p.OpenUDP("udp4", "127.0.0.1:4000")
	for i := range n {
		u := p.OpenUDP("udp4", fmt.Sprintf("127.0.0.1:%d", 10000+i))
		u.Send("127.0.0.1:4000", "x")
	}
	p.OpenUDP("udp6", "[::1]:9000").Send("[::1]:4000", "x")
	p.OpenUDP("udp4", "127.0.0.1:9001").Send("127.0.0.1:7001", "x") // 0x1b59, in another zone
	p.OpenUDP("udp4", "127.0.0.1:9002").Send("127.0.0.1:4096", "x") // 0x1000, 4000 is 0xfa0
	h.Barrier()
	if got := len(server.Received()); got != n {
		t.Fatalf("%d of %d arrived", got, n)
	}
	count := func(mark uint32) int {
		list := h.Shell("conntrack -L 2>/dev/null")
		return len(regexp.MustCompile(fmt.Sprintf(`\bmark=%d\b`, mark)).FindAllString(list, -1))
	}
	if got := count(4000); got != n+1 {
		t.Fatalf("%d connections are marked; want %d", got, n+1)
	}
	made, err := c.Remark(0xfff, 4000, func(mark uint32) uint32 { return mark&^0xff | 0x80000000 })
	if err != nil || made != n+1 || count(4000) != 0 || count(0x80000f00) != n+1 {
		t.Errorf("%d changes, %v; %d are as before, %d as wanted; want %d", made, err, count(4000), count(0x80000f00),
			n+1)
	}
	made, err = c.Remark(0x1000, 0x1000, func(mark uint32) uint32 { return mark &^ 0x1000 })
	if err != nil || made != 2 || count(0xb59) != 1 || count(0) != 1 {
		t.Errorf("%d changes, %v; want 2", made, err)
	}
	if made, err := c.Remark(0, 0, func(mark uint32) uint32 { return mark }); err != nil || made != 0 {
		t.Errorf("%d changes, %v, where there are none", made, err)
	}
	if _, err := c.Remark(0, 0, func(mark uint32) uint32 { return mark + 1 }); err == nil {
		t.Error("a change without an end had one")
	}
}
