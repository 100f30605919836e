package e2e

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/mark"
	"thole/datapath/token"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/wire"
)

// The option where it does not belong: on a connection that is established, on its data,
// and with bytes that mean nothing. The connection goes on.
func TestFleetOptionElsewhere(t *testing.T) {
	s := newSiege(t)
	port := s.port()
	h := s.hold(port, false, 5)
	nstest.WaitFor(t, 5*time.Second, "the data to arrive", func() bool {
		return s.answerer.delivered().Bytes[port] == 100
	})
	before := s.answerer.delivered()
	syn := tokens(s.f.Passed(), port, token.TypeFullT1)[0]
	next := *syn.TCP // the client's next byte
	next.Seq += syn.TCP.Size() + token.T3Size + 100
	next.Ack, next.Flags = s.serverNext(h), wire.ACK|wire.PSH
	for _, tt := range []struct {
		name, reason string
		option, data []byte
		flags        byte
	}{
		{"T3's option, and no T3", "token/bad-version", optionOf(token.TypeT3), []byte("unproven, and long enough"),
			next.Flags},
		{"T1's option on data", "handshake/misplaced", optionOf(token.TypeShortT1), []byte("unproven"), next.Flags},
		{"T2's option on data", "handshake/misplaced", optionOf(token.TypeShortT2), []byte("unproven"), next.Flags},
		{"garbage with T1's option on a SYN", "token/bad-version", optionOf(token.TypeShortT1), []byte("unproven"),
			wire.SYN},
		{"the option twice", "packet/duplicate-option", append(optionOf(token.TypeT3), optionOf(token.TypeT3)...),
			[]byte("unproven"), next.Flags},
		{"another version", "packet/bad-option", []byte{254, 6, 0x54, 0x48, 5, 2, 1, 1}, []byte("unproven"),
			next.Flags},
		{"another type", "packet/bad-option", []byte{254, 6, 0x54, 0x48, 9, 1, 1, 1}, []byte("unproven"), next.Flags},
		{"another length", "packet/bad-option", []byte{254, 7, 0x54, 0x48, 5, 1, 1, 1}, []byte("unproven"), next.Flags},
	} {
		segment := next
		segment.Options, segment.Data, segment.Flags = tt.option, tt.data, tt.flags
		counts := s.b.counts()
		s.f.Send(syn.With(segment))
		s.b.counted(tt.name, counts, 1, tt.reason)
		if d := s.answerer.delivered(); d.Bytes[port] != before.Bytes[port] {
			t.Errorf("%s: %d bytes more were delivered", tt.name, d.Bytes[port]-before.Bytes[port])
		}
	}
	h.goesOn("the connection")
}

// serverNext is the server's next number on a call that waits.
func (s *siege) serverNext(h *heldCall) uint32 {
	if h.frame.FromA {
		return h.frame.TCP.Ack
	}
	return h.frame.TCP.Seq
}

// A node that is a router passes on what nodes at both its sides say to each other.
func TestFleetThroughANode(t *testing.T) {
	a, r, b := bareMachine(t), bareMachine(t), bareMachine(t)
	nstest.Link(a.Host, "10.0.0.1/24", "fd00:10::1/64", r.Host, "10.0.0.254/24", "fd00:10::254/64")
	nstest.Link(r.Host, "10.0.1.254/24", "fd00:11::254/64", b.Host, "10.0.1.1/24", "fd00:11::1/64")
	r.Shell("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	a.Shell("ip route add 10.0.1.0/24 via 10.0.0.254; ip route add fd00:11::/64 via fd00:10::254")
	b.Shell("ip route add 10.0.0.0/24 via 10.0.1.254; ip route add fd00:10::/64 via fd00:11::254")
	startMembers(t, newFleetCA(t), []fleetMember{
		{a, "node-a", []string{"10.0.0.1", "fd00:10::1"}}, {b, "node-b", []string{"10.0.1.1", "fd00:11::1"}},
		{r, "node-r", []string{"10.0.0.254", "fd00:10::254", "10.0.1.254", "fd00:11::254"}},
	}, "10.0.0.0/23,fd00:10::/31")
	tell(t, a, r, b)
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	r.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	for _, to := range []string{"10.0.1.1:80", "[fd00:11::1]:80", "10.0.0.254:80"} {
		for range 2 {
			if v := web.TCPTo(probe.Target{To: to, Patience: handshakes}); !v.Allowed() {
				t.Errorf("to %s: %v", to, v)
			}
		}
	}
}

// leftOut lets in who is not of the environment dev, or is of none; and denies who is.
const leftOut = `
apiVersion: thole/v1
kind: Policy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  ingress:
  - from: [{workloads: {matchExpressions: [{key: env, operator: NotIn, values: [dev]}]}}]
    ports: [80/tcp]
  - from: [{workloads: {matchExpressions: [{key: env, operator: DoesNotExist}]}}]
    ports: [81/tcp]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
    ports: [82/tcp]
  deny:
    ingress:
    - from: [{workloads: {matchLabels: {env: dev}}}]
`

// A node that may assert a label and does not say it gains nothing where policies ask for
// its absence: it is not known to be absent.
func TestFleetLabelLeftOut(t *testing.T) {
	a, b, ca := newFleetOf(t)
	tell(t, a, b)
	scope := scopeOf(fleetEnds[0], nil)
	scope.Grants["env"] = []string{"*"}
	ca.renew(a, "node-a", scope, ca)
	must(t, b.apply(leftOut))
	said, unsaid := probe.Start(a.labelled("said", "app=web,env=prod"), "said"), a.labelledProbe("unsaid", "app=web")
	dev := probe.Start(a.labelled("dev", "app=web,env=dev"), "dev")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	b.labelledProbe("web2", "app=web").Listen("tcp", "[::]:81")
	b.labelledProbe("db", "app=db").Listen("tcp", "[::]:82")
	for _, tt := range []struct {
		name string
		from *probe.Process
		port int
		want bool
	}{
		{"NotIn, another is said", said, 80, true},
		{"NotIn, it is said", dev, 80, false},
		{"NotIn, nothing is said", unsaid, 80, false},
		{"DoesNotExist, another is said", said, 81, false},
		{"DoesNotExist, nothing is said", unsaid, 81, false},
		{"deny, it is said", dev, 82, false},
		{"deny, another is said", said, 82, true},
	} {
		wait := handshakes
		if !tt.want {
			wait = 300 * time.Millisecond
		}
		if got := reached(tt.from, at(false, tt.port), wait); got != tt.want {
			t.Errorf("%s: connected: %t", tt.name, got)
		}
	}
}

const roleMarker = "marker"

// markBits are the bits beside a class that a mark may have.
var markBits = []uint32{
	0, mark.Ungated, mark.Plain, mark.Unproven, mark.Introduced(0), mark.OfEpoch(1), mark.OfEpoch(2),
	mark.OfEpoch(1) | mark.Plain,
}

// markedPorts are those that marked packets go to: of this node, and of the other.
var markedPorts = []unix.Sockaddr{
	&unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}},
	&unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 0, 1}},
	&unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 0, 2}},
}

// sendMarked connects with one class in the mark, and each of the bits, and returns how
// many connects succeeded at once.
func sendMarked(class int) ([]float64, error) {
	connected := 0.0
	marks := []uint32{mark.Sent, mark.SentOut}
	for _, bits := range markBits {
		marks = append(marks, bits|uint32(class))
	}
	for _, packetMark := range marks {
		for _, to := range markedPorts {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return nil, err
			}
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(int32(packetMark)))
			if err == nil {
				_ = unix.Connect(fd, to) // in progress, or refused
				ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
				if n, _ := unix.Poll(ready, 0); n == 1 && ready[0].Revents&(unix.POLLERR|unix.POLLHUP) == 0 {
					connected++
				}
			}
			unix.Close(fd)
			if err != nil {
				return nil, err
			}
		}
	}
	return []float64{connected}, nil
}

// Marks that a process with CAP_NET_RAW sets on its packets make it nobody: not on this
// node, and not on the other.
func TestFleetMarks(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	here, there := a.labelledProbe("web", "app=web"), b.labelledProbe("web", "app=web")
	listeners := []*probe.Listener{here.Listen("tcp", "[::]:80", probe.Manual),
		there.Listen("tcp", "[::]:80", probe.Manual)}
	if conn, v := a.labelledProbe("friend", "app=web").DialTo(probe.Target{To: "10.0.0.2:80",
		Patience: handshakes}); conn == nil {
		t.Fatal(v)
	}
	if listeners[1].Accept(handshakes) == nil {
		t.Fatal("a friend was not accepted")
	}
	for _, cg := range []*nstest.Cgroup{a.In("free"), a.labelled("db", "app=db")} {
		marker := startParty(t, cg, roleMarker)
		var classes []int
		for class := range mark.ClassMask + 1 {
			if *every || class < 8 || class >= mark.RemoteClass && class < mark.RemoteClass+8 || class%4999 == 0 {
				classes = append(classes, class)
			}
		}
		for _, class := range classes {
			var connected []float64
			must(t, marker.out.Encode(class))
			must(t, marker.in.Decode(&connected))
			if connected[0] != 0 {
				t.Errorf("with the class %#x in marks: %v connects succeeded", class, connected[0])
			}
		}
		t.Logf("%d classes, %d marks each, to %d places", len(classes), len(markBits)+2, len(markedPorts))
	}
	a.Barrier()
	b.Barrier()
	for i, l := range listeners {
		if conn := l.Accept(100 * time.Millisecond); conn != nil {
			t.Errorf("node %d accepted a connection of %s", i, conn.Remote)
		}
	}
}
