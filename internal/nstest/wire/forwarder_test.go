package wire_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }

// twoHosts are joined by a forwarder, and b listens.
func twoHosts(t *testing.T) (f *wire.Forwarder, client *probe.Process) {
	t.Helper()
	a, b := nstest.New(t), nstest.New(t)
	f = wire.Forward(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
	probe.Start(b.In("web"), "web").Listen("tcp", "[::]:80")
	return f, probe.Start(a.In("cli"), "cli")
}

const forwarded = 5 * time.Second

func connects(t *testing.T, p *probe.Process, addr string) {
	t.Helper()
	if v := p.TCPTo(probe.Target{To: addr, Patience: forwarded}); v.Server != "web" {
		t.Errorf("%s: %v, want an answer", addr, v)
	}
}

// Without a rule a forwarder is a link.
func TestForwarderPasses(t *testing.T) {
	f, client := twoHosts(t)
	for _, addr := range []string{"10.0.0.2:80", "[fd00::2]:80"} {
		connects(t, client, addr)
		var segments []*wire.Segment
		for _, p := range f.Passed() {
			// not what is left of the other's end
			if s := p.TCP; s != nil && slices.Contains([]string{s.From.String(), s.To.String()}, addr) {
				segments = append(segments, p.TCP)
			}
		}
		if len(segments) < 5 {
			t.Fatalf("%s: the forwarder has seen %v", addr, segments)
		}
		syn, answer := segments[0], segments[1]
		if !syn.Has(wire.SYN) || syn.Has(wire.ACK) || syn.To.String() != addr || syn.Size() != 1 {
			t.Errorf("the first: %v", syn)
		}
		if !answer.Has(wire.SYN|wire.ACK) || answer.Ack != syn.Seq+1 || answer.From != syn.To {
			t.Errorf("the second: %v", answer)
		}
		if mss, ok := syn.Option(2); !ok || len(mss) != 2 {
			t.Errorf("its MSS: %x, %t", mss, ok)
		}
		if !slices.ContainsFunc(segments, func(s *wire.Segment) bool { return string(s.Data) == "who?\n" }) {
			t.Errorf("the data was not seen: %v", segments)
		}
	}
}

// A rule loses, repeats and holds back what it says, and nothing else.
func TestForwarderFollowsTheRule(t *testing.T) {
	f, client := twoHosts(t)
	var lost, kept *wire.Frame
	repeated := false
	f.SetRule(func(frame *wire.Frame) []*wire.Frame {
		switch s := frame.TCP; {
		case s == nil:
		case s.Has(wire.SYN|wire.ACK) && kept == nil: // held back until the next one
			kept = frame
			return nil
		case s.Has(wire.SYN|wire.ACK) && !repeated:
			repeated = true
			return []*wire.Frame{frame, kept, kept}
		case s.Flags == wire.SYN && lost == nil:
			lost = frame
			return nil
		}
		return []*wire.Frame{frame}
	})
	connects(t, client, "10.0.0.2:80")
	f.SetRule(nil)
	count := map[*wire.Frame]int{}
	for _, p := range f.Passed() {
		count[p.Frame]++
	}
	if lost == nil || count[lost] != 0 || kept == nil || count[kept] != 2 {
		t.Errorf("the first SYN passed %d times, the first SYN-ACK %d times; want 0 and 2", count[lost], count[kept])
	}
	for frame, n := range count {
		if frame != kept && n != 1 {
			t.Errorf("%v passed %d times", frame.TCP, n)
		}
	}
}

// What a rule kept goes on when the test says so.
func TestForwarderSends(t *testing.T) {
	f, client := twoHosts(t)
	held := make(chan *wire.Frame, 8)
	f.SetRule(func(frame *wire.Frame) []*wire.Frame {
		if frame.TCP != nil && frame.TCP.Has(wire.SYN) && frame.FromA {
			held <- frame
			return nil
		}
		return []*wire.Frame{frame}
	})
	if v := client.TCP("10.0.0.2:80"); v.Outcome != probe.Silent {
		t.Fatalf("while it is held: %v", v)
	}
	done := make(chan struct{})
	go func() { defer close(done); connects(t, client, "10.0.0.2:80") }()
	f.Send(<-held)
	second := <-held
	f.Send(second)
	<-done
}

// Bulk data passes in segments as large as the hosts make them.
func TestForwarderCarriesBulk(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	f := wire.Forward(a, "10.0.0.1/24", "", b, "10.0.0.2/24", "")
	data := bytes.Repeat([]byte("0123456789"), 200_000)
	var listener net.Listener
	var err error
	if e := b.Do(func() { listener, err = net.Listen("tcp", "10.0.0.2:80") }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.Copy(conn, bytes.NewReader(data)) //nolint:errcheck // the client tells
			conn.Close()
		}
	}()
	var conn net.Conn
	if e := a.Do(func() { conn, err = net.DialTimeout("tcp", "10.0.0.2:80", forwarded) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d of %d bytes came: %v", len(got), len(data), err)
	}
	passed := f.Passed()
	largest := 0
	for _, p := range passed {
		largest = max(largest, len(p.Data))
	}
	if largest < 10_000 {
		t.Errorf("the largest frame has %d bytes: what the device does for the host was not left to it", largest)
	}
	path := filepath.Join(t.TempDir(), "bulk.pcap")
	if err := wire.WritePCAP(path, passed); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < int64(len(data)) {
		t.Errorf("the capture: %v, %v", info, err)
	}
}
