package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
	"thole/datapath/token"
	"thole/internal/nstest"
)

var floodedCalls = flag.Int("flooded", 100, "calls that are made during each flood")

// A flood is what a flooder sends, over and over, as fast as it can: the packet with a
// random port and address of a network in the place of its own.
type flood struct {
	Packet []byte // IPv4 with TCP
	Token  int    // where in it 16 random bytes go, 0: nowhere
	From   netip.Prefix
}

const roleFlooder = "flooder"

// sendFlood sends, until stdin ends. It tells 1 after the first packet, and at the end how many.
func sendFlood() error {
	in := json.NewDecoder(os.Stdin)
	var f flood
	if err := in.Decode(&f); err != nil {
		return nil // the test has ended
	}
	sender, err := sockets.NewSender()
	if err != nil {
		return err
	}
	defer sender.Close()
	var ended atomic.Bool
	go func() {
		_ = in.Decode(&flood{}) // the next line, or the end
		ended.Store(true)
	}()
	sent, random := 0, uint64(time.Now().UnixNano())
	next := func() uint64 { // xorshift: what the kernel does is to be measured
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		return random
	}
	bits := 32 - f.From.Bits()
	for !ended.Load() {
		network := binary.BigEndian.Uint32(f.From.Addr().AsSlice())
		binary.BigEndian.PutUint32(f.Packet[12:], network|uint32(next()&(1<<bits-1)))
		binary.BigEndian.PutUint16(f.Packet[20:], uint16(1024+next()%60000))
		if f.Token != 0 {
			binary.BigEndian.PutUint64(f.Packet[f.Token:], next())
			binary.BigEndian.PutUint64(f.Packet[f.Token+8:], next())
		}
		sum := f.Packet[36:38]
		sum[0], sum[1] = 0, 0
		binary.BigEndian.PutUint16(sum, tcpSum(f.Packet))
		err := sender.Send(f.Packet, 0, 0)
		switch {
		case err == nil:
			if sent++; sent == 1 {
				if err := json.NewEncoder(os.Stdout).Encode(sent); err != nil {
					return err
				}
			}
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS):
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(sent)
}

// tcpSum is the checksum of TCP in a packet of IPv4 without options.
func tcpSum(p []byte) uint16 {
	sum := uint32(6) + uint32(len(p)-20)
	for _, b := range [][]byte{p[12:20], p[20:]} {
		for i := range b {
			sum += uint32(b[i]) << (8 * (1 - i&1))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// syn is a packet from nobody to an address, with the token.
func syn(to netip.Addr, typ token.Type, data []byte) []byte {
	p := beginning(netip.IPv4Unspecified(), to, 0)
	copy(p[40:], optionOf(typ))
	p = append(p, data...)
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	return p
}

// flooder sends a flood from a host, from its return until stop, which returns how many packets were sent.
func flooder(t testing.TB, h *nstest.Host, f flood) (stop func() int) {
	t.Helper()
	p := startParty(t, h.In("flooder"), roleFlooder)
	must(t, p.out.Encode(f))
	var first int
	must(t, p.in.Decode(&first))
	return func() (sent int) {
		t.Helper()
		must(t, p.out.Encode(flood{}))
		if err := p.in.Decode(&sent); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return sent
	}
}

// During each kind of flood, from strangers' addresses and from its own node's, who
// has the key goes on to connect.
func TestFleetFlooded(t *testing.T) {
	s := newSiege(t, "--log-level", "warn")
	s.f.SetRule(nil)
	attacker := nstest.New(t)
	nstest.Link(s.b.Host, "10.0.1.1/24", "fd00:11::1/64", attacker, "10.0.1.2/24", "fd00:11::2/64")
	s.b.Shell("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
	port := s.port()
	one := []call{{To: at(false, port), Bytes: 100, Wait: handshakes}}
	if r := s.caller.calls(one)[0]; !r.Whole {
		t.Fatalf("at first: %+v", r)
	}
	to := netip.MustParseAddr("10.0.1.1")
	t1 := tokens(s.f.Passed(), port, token.TypeFullT1)[0].TCP.Data
	if r := s.caller.calls(one)[0]; !r.Whole {
		t.Fatalf("once more: %+v", r)
	}
	short := tokens(s.f.Passed(), port, token.TypeShortT1)[0].TCP.Data
	forged := append([]byte(nil), t1...)
	forged[len(forged)-1] ^= 1 // its signature
	strangers, node := netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("10.0.0.1/32")
	delivered := s.answerer.delivered()
	calls := *floodedCalls
	if nstest.Slow() {
		calls /= 10
	}
	for _, tt := range []struct {
		name    string
		flood   flood
		reasons []string
	}{
		{"garbage", flood{syn(to, token.TypeFullT1, make([]byte, 400)), 0, strangers},
			[]string{"token/bad-version", "handshake/not-wanted"}},
		{"random short tokens", flood{syn(to, token.TypeShortT1, append([]byte{1, 1, 0, 0}, make([]byte, 64)...)), 52,
			strangers}, []string{"peers/unknown"}},
		{"statements that nobody signed", flood{syn(to, token.TypeFullT1, forged), 0, strangers},
			[]string{"token/bad-signature", "peers/over-budget"}},
		{"a statement of another, and random nonces", flood{syn(to, token.TypeFullT1, t1), 52, strangers},
			[]string{"token/wrong-address"}},
		{"the node's own statement, address, and random nonces", flood{syn(to, token.TypeFullT1, t1), 52, node},
			[]string{"handshake/over-quota", "handshake/full"}},
		{"the node's own address and fingerprints, and random nonces",
			flood{syn(to, token.TypeShortT1, short), 84, node}, []string{"token/bad-m1"}},
	} {
		for i := range tt.flood.Packet[22:24] {
			tt.flood.Packet[22+i] = byte(port >> (8 * (1 - i)))
		}
		before := s.b.counts()
		refused := func() (n uint64) {
			after := s.b.counts()
			for _, reason := range tt.reasons {
				n += after[reason] - before[reason]
			}
			return n
		}
		began := time.Now()
		stop := flooder(t, attacker, tt.flood)
		made, good, slowest := 0, 0, time.Duration(0)
		connect := func() {
			r := s.caller.calls(one)[0]
			made++
			slowest = max(slowest, r.Elapsed)
			if r.Whole && r.Elapsed <= nstest.Patience(3*time.Second) {
				good++
			}
			delivered.Bytes[port] += 100
		}
		for range calls {
			connect()
		}
		nstest.WaitFor(t, 10*time.Second, "the flood to be refused", func() bool { // a slow flooder begins late
			if refused() > 0 {
				return true
			}
			connect()
			return false
		})
		took := time.Since(began)
		sent := stop()
		t.Logf("%s: %d packets a second; %d of %d calls within 3 s, the slowest %v; %d refused", tt.name,
			int(float64(sent)/took.Seconds()), good, made, slowest, refused())
		if good*100 < 99*made {
			t.Errorf("%s: %d of %d calls came about within 3 s", tt.name, good, made)
		}
	}
	if d := s.answerer.delivered(); d.Bytes[port] > delivered.Bytes[port] {
		t.Errorf("%d bytes were delivered, of %d that were sent by who may", d.Bytes[port], delivered.Bytes[port])
	}
}
