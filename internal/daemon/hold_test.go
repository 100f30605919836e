package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"thole/compiler"
	"thole/datapath/queue"
	"thole/internal/nstest"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// A holding is a host whose datagrams to port 4000 wait in a hold, unless the set
// "known" has their source. They come by lo, which stands for a bridge.
type holding struct {
	*nstest.Host
	t        *testing.T
	hold     *hold
	sender   *nstest.Probe
	receiver *nstest.UDPSocket
	later    atomic.Int64 // how much later it is for the hold; its time stands still otherwise
}

func newHolding(t *testing.T) *holding {
	t.Helper()
	s := &holding{Host: nstest.New(t), t: t}
	key := []ruleset.Expr{{Field: ruleset.IPSaddr}}
	table := &ruleset.Table{
		Name: "t",
		Sets: []ruleset.Set{{Name: "known", Key: []ruleset.Type{ruleset.IPv4Addr}, Elements: []ruleset.Element{{Key: []ruleset.Value{ruleset.Address(netip.MustParseAddr("127.9.9.9"))}}}}},
		Chains: []ruleset.Chain{{Name: "input", Hook: ruleset.Input, Rules: []ruleset.Rule{
			{Statements: []ruleset.Statement{ruleset.InSet{Key: key, Set: "known"}, ruleset.Verdict{Kind: ruleset.Accept}}},
			{Statements: []ruleset.Statement{
				ruleset.Match{Left: ruleset.Expr{Field: ruleset.MetaL4Proto}, Op: ruleset.Equal, Value: ruleset.ProtoUDP},
				ruleset.Match{Left: ruleset.Expr{Field: ruleset.THDport}, Op: ruleset.Equal, Value: 4000},
				ruleset.Queue{Number: HoldQueue},
			}},
		}}},
	}
	table.Normalise()
	began := time.Now()
	var err error
	if e := s.Do(func() {
		var conn *kernel.Conn
		if conn, err = kernel.Open(kernel.Options{}); err != nil {
			return
		}
		defer conn.Close()
		if err = conn.Apply(ruleset.Diff(nil, table)); err == nil {
			s.hold, err = openHold(func() time.Time { return began.Add(time.Duration(s.later.Load())) })
		}
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.hold.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = s.hold.close()
	})
	s.sender = s.In("sender").Probe("sender")
	s.receiver = s.In("receiver").Probe("receiver").OpenUDP("udp", "0.0.0.0:4000")
	return s
}

// send sends datagrams from an address.
func (s *holding) send(from string, n int) {
	s.t.Helper()
	socket := s.sender.OpenUDP("udp", from+":0")
	defer socket.Close()
	for i := range n {
		socket.Send("127.0.0.1:4000", fmt.Sprint(i))
	}
}

// know has the table know an address, and then the hold.
func (s *holding) know(address string) {
	s.t.Helper()
	if err := s.Nft("add element inet t known { " + address + " }"); err != nil {
		s.t.Fatal(err)
	}
	s.learn("lo", address)
}

func (s *holding) learn(bridge, address string) {
	s.hold.learn([]compiler.Workload{{Own: []compiler.Network{{Bridge: bridge, Addresses: []netip.Addr{netip.MustParseAddr(address)}}}}}, nil)
}

func (s *holding) until(want HoldCounts) {
	s.t.Helper()
	var got HoldCounts
	defer func() {
		if s.t.Failed() {
			s.t.Logf("counts: %+v, want %+v", got, want)
		}
	}()
	nstest.WaitFor(s.t, patience, "the counts", func() bool { got = *s.hold.status(); return got == want })
}

func (s *holding) waiting() (packets int) {
	s.hold.mu.Lock()
	defer s.hold.mu.Unlock()
	for _, w := range s.hold.waiting {
		packets += len(w.ids)
	}
	return packets
}

// What waits is decided when its sender is known, in its order; of one address not more
// than a few packets wait.
func TestHoldWaits(t *testing.T) {
	s := newHolding(t)
	s.send("127.0.0.2", holdEach+4)
	s.until(HoldCounts{Refused: 4})
	s.learn("lo", "127.0.0.3")
	s.learn("docker0", "127.0.0.2") // on another bridge
	if n := len(s.receiver.Received()); n != 0 || s.waiting() != holdEach {
		t.Errorf("%d packets arrived, %d wait, want none and %d", n, s.waiting(), holdEach)
	}
	s.know("127.0.0.2")
	s.until(HoldCounts{Known: holdEach, Refused: 4})
	var got []string
	nstest.WaitFor(t, patience, "the packets", func() bool { return len(s.receiver.Received()) == holdEach })
	for i, d := range s.receiver.Received() {
		if got = append(got, d.Data); d.Data != fmt.Sprint(i) {
			t.Fatalf("they arrived as %q", got)
		}
	}
}

// What nobody comes to know is dropped after a while.
func TestHoldExpires(t *testing.T) {
	s := newHolding(t)
	s.send("127.0.0.2", 3)
	nstest.WaitFor(t, patience, "the packets to wait", func() bool { return s.waiting() == 3 })
	s.later.Store(int64(holdPatience) + 1)
	s.until(HoldCounts{Expired: 3})
	s.know("127.0.0.2")
	if n := len(s.receiver.Received()); n != 0 {
		t.Errorf("%d packets arrived after their time", n)
	}
}

// What the hold knows and the table does not is asked for again, but not at once, and
// never accepted.
func TestHoldDoesNotDecide(t *testing.T) {
	s := newHolding(t)
	s.learn("lo", "127.0.0.2")
	began := time.Now()
	s.send("127.0.0.2", 1)
	nstest.WaitFor(t, patience, "the packet to be asked for again", func() bool { return s.hold.status().Known >= 5 })
	if took := time.Since(began); took < 4*holdInterval {
		t.Errorf("it was asked for 5 times in %v", took)
	}
	if n := len(s.receiver.Received()); n != 0 {
		t.Errorf("%d packets arrived", n)
	}
	s.know("127.0.0.2")
	nstest.WaitFor(t, patience, "the packet", func() bool { return len(s.receiver.Received()) == 1 })
}

// In all not more than holdLength packets wait: the kernel drops more.
func TestHoldIsBounded(t *testing.T) {
	s := newHolding(t)
	const more = 2
	for i := range holdLength/holdEach + more {
		s.send(fmt.Sprintf("127.0.1.%d", i+1), holdEach)
	}
	var k queue.KernelStats
	nstest.WaitFor(t, patience, "the kernel to drop", func() bool {
		var err error
		if e := s.Do(func() { k, err = queue.ReadKernelStats(HoldQueue) }); e != nil || err != nil {
			t.Fatal(e, err)
		}
		return k.Waiting+k.QueueDropped >= holdLength && k.Waiting == uint64(s.waiting())
	})
	t.Logf("%+v, %+v", k, *s.hold.status())
	if k.Waiting > holdLength {
		t.Errorf("%d packets wait, want %d at most", k.Waiting, holdLength)
	}
}
