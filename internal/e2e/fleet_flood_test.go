package e2e

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"
	"time"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/datapath/queue"
	"thole/datapath/sockets"
	"thole/datapath/token"
	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// beginning is a SYN with our option, of T1 full, and no token.
func beginning(from, to netip.Addr, port uint16) []byte {
	b := make([]byte, 20+28)
	b[0], b[3], b[8], b[9] = 0x45, byte(len(b)), 64, 6
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	t := b[20:]
	binary.BigEndian.PutUint16(t, port)
	binary.BigEndian.PutUint16(t[2:], 80)
	t[12], t[13] = 7<<4, 2
	copy(t[20:], []byte{254, 6, 0x54, 0x48, 2, 1, 1, 1})
	return b
}

// A flood of packets that would begin a handshake is bounded before it comes to
// userspace: of one address, and of all that have not proven themselves. Who has, and
// what belongs to a handshake that goes on, is not touched by it.
func TestFleetFloodIsBounded(t *testing.T) {
	n := newNode(t)
	attacker := nstest.New(t)
	nstest.Link(n.Host, "10.0.0.1/16", "fd00:10::1/64", attacker, "10.0.0.2/16", "fd00:10::2/64")
	n.more.Fleet = &compiler.Fleet{Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}, Queue: 5448}
	n.label("thole.slice/web", policy.Labels{"app": "web"})
	docs, err := policy.Parse([]policy.File{{Name: "same-labels.yaml", Data: example(t, "same-labels.yaml")}})
	must(t, err)
	n.more.Policies, n.more.Workloads = docs.Policies, n.workloads
	result, err := compiler.Compile(n.more)
	must(t, err)
	must(t, n.Do(func() {
		conn, openErr := kernel.Open(kernel.Options{})
		must(t, openErr)
		defer conn.Close()
		err = conn.Apply(ruleset.Diff(nil, &result.Table))
	}))
	must(t, err)

	var mu sync.Mutex
	came := map[netip.Addr]int{}
	var q *queue.Queue
	must(t, n.Do(func() {
		q, err = queue.Open(queue.Config{Number: 5448}, func(p queue.Packet) queue.Verdict {
			mu.Lock()
			defer mu.Unlock()
			from, _ := netip.AddrFromSlice(p.Payload[12:16])
			came[from]++
			return queue.Drop()
		})
	}))
	must(t, err)
	t.Cleanup(q.Close)
	var sender *sockets.Sender
	must(t, attacker.Do(func() { sender, err = sockets.NewSender() }))
	must(t, err)
	t.Cleanup(func() { must(t, sender.Close()) })

	to := netip.MustParseAddr("10.0.0.1")
	sent := 0
	put := func(p []byte) {
		t.Helper()
		nstest.WaitFor(t, time.Second, "room in the device's queue", func() bool { return sender.Send(p, 0, 0) == nil })
		sent++
	}
	send := func(from netip.Addr, times int) {
		for i := range times {
			put(beginning(from, to, uint16(1024+i)))
		}
	}
	total := func() (all int) {
		mu.Lock()
		defer mu.Unlock()
		for _, times := range came {
			all += times
		}
		return all
	}
	// settled waits until each packet is in the queue or dropped by the table.
	settled := func() {
		t.Helper()
		nstest.WaitFor(t, 10*time.Second, "all packets to arrive", func() bool {
			return total()+n.counter("flooded") == sent
		})
	}
	most := func(burst, perSecond int, since time.Time) int {
		return burst + int(time.Since(since).Seconds()*float64(perSecond)) + 1
	}

	one, begin := netip.MustParseAddr("10.0.0.2"), time.Now()
	send(one, 5000)
	settled()
	if got, limit := total(), most(200, 100, begin); got < 200 || got > limit {
		t.Errorf("of 5,000 packets of one address %d came, at most %d should", got, limit)
	}

	known := netip.MustParseAddr("10.0.0.9")
	n.Shell("nft add element inet thole known4 '{ 10.0.0.9 }'")
	for i := range 20000 {
		send(netip.AddrFrom4([4]byte{10, 0, byte(1 + i>>8), byte(i)}), 1)
		if i%40 == 0 {
			send(known, 1)
		}
	}
	settled()
	if got := came[known]; got != 500 {
		t.Errorf("of 500 packets of a known address %d came", got)
	}
	if got, limit := total()-500, most(2000+200, 1000, begin); got > limit {
		t.Errorf("of 25,000 packets of strangers %d came, at most %d should", got, limit)
	}
	begin, full := time.Now(), came[known]
	send(known, 5000)
	settled()
	if got, limit := came[known]-full, most(2000, 1000, begin); got > limit {
		t.Errorf("of 5,000 full tokens of a known address %d came, at most %d should", got, limit)
	}
	short := came[known]
	for i := range 5000 {
		p := beginning(known, to, uint16(1024+i))
		p[44] = byte(token.TypeShortT1)
		put(p)
	}
	settled()
	if got := came[known] - short; got != 5000 {
		t.Errorf("of 5,000 short tokens of a known address %d came", got)
	}
	if out := n.Shell("nft list set inet thole stranger4 | grep -o '10\\.0\\.' | wc -l"); out == "" {
		t.Error("the set cannot be listed")
	}

	before := came[one]
	n.Shell("nft add element inet thole pending4 '{ 10.0.0.2 . 4444 . 10.0.0.1 . 80 }'")
	for range 500 {
		put(beginning(one, to, 4444))
	}
	settled()
	if got := came[one] - before; got != 500 {
		t.Errorf("of 500 packets of a handshake that goes on %d came", got)
	}
}
