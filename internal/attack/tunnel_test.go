package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// The packet that a tunnel puts around a workload's has the workload's socket, and is not the workload's.

const (
	inner, innerTheirs   = "192.0.2.1", "192.0.2.2"
	inner6, innerTheirs6 = "2001:db8:2::1", "2001:db8:2::2"
)

// innerOnly lets db call addresses inside the tunnel and nothing else; web is called from there.
var innerOnly = egress(`egress: [{to: [{cidr: 192.0.2.0/24}, {cidr: "2001:db8:2::/64"}]}]`) + `---
apiVersion: thole/v1
kind: Policy
metadata: {name: jail}
spec: {selector: {matchLabels: {app: web}}, egress: [],
  ingress: [{from: [{cidr: 192.0.2.0/24}, {cidr: "2001:db8:2::/64"}]}]}
`

// vxlan makes a tunnel to the machine outside, over IPv4 or IPv6, whose end is the device tunnel0.
func (s *scene) vxlan(v6, bridged bool) {
	s.t.Helper()
	for _, end := range []struct {
		do                      func(string) string
		local, local6           string
		remote, remote6         string
		inside, inside6, number string
	}{
		{s.Shell, ours, ours6, theirs, theirs6, inner, inner6, "1"},
		{s.outside.Shell, theirs, theirs6, ours, ours6, innerTheirs, innerTheirs6, "2"},
	} {
		local, remote := end.local, end.remote
		if v6 {
			local, remote = end.local6, end.remote6
		}
		script := fmt.Sprintf("ip link add vx0 type vxlan id 7 dstport 4789 local %s remote %s", local, remote)
		if bridged {
			script += "\nip link add tunnel0 type bridge; ip link set vx0 master tunnel0 up"
		} else {
			script += "\nip link set vx0 name tunnel0"
		}
		end.do(script + fmt.Sprintf("\nip addr add %s/24 dev tunnel0; ip addr add %s/64 dev tunnel0 nodad; ip link "+
			"set tunnel0 up", end.inside, end.inside6))
	}
	s.tunnelWorks(false)
}

// tunnelWorks waits until something unlabelled gets through.
func (s *scene) tunnelWorks(only4 bool) {
	s.t.Helper()
	other := s.stranger()
	for _, to := range []string{innerTheirs + ":7", "[" + innerTheirs6 + "]:7"} {
		if only4 && to[0] == '[' {
			continue
		}
		u := other.udp(strings.Replace(to, innerTheirs, "0.0.0.0", 1))
		nstest.WaitFor(s.t, 10*time.Second, "the tunnel to "+to, func() bool { return reachesUDP(s.free, "", to, u) })
		u.close()
	}
}

func TestTunnelVXLAN(t *testing.T) {
	for _, c := range []struct {
		name        string
		v6, bridged bool
	}{{"over IPv4", false, false}, {"over IPv6", true, false}, {"behind a bridge", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			withBoth(t, innerOnly, func(t *testing.T, s *scene, old bool) {
				s.vxlan(c.v6, c.bridged)
				s.throughTunnel(t, old, false)
			})
		})
	}
}

// throughTunnel tries what may go through a tunnel, both ways, and what may not.
func (s *scene) throughTunnel(t *testing.T, old, only4 bool) {
	t.Helper()
	other := s.stranger()
	for _, f := range []struct{ here, there, any, outer string }{
		{inner, innerTheirs, "0.0.0.0", theirs},
		{"[" + inner6 + "]", "[" + innerTheirs6 + "]", "[::]", "[" + theirs6 + "]"},
	} {
		if only4 && f.any == "[::]" {
			continue
		}
		l := other.listen(f.any + ":80")
		data, answer := dialogue(s.db, f.any+":0", f.there+":80", l)
		closed(t, !old, "TCP to "+f.there, data && answer)
		data, _ = dialogue(s.db, f.any+":0", f.outer+":80", l)
		denied(t, "TCP past the tunnel", data)
		l.close()
		u := other.udp(f.any + ":80")
		question, answer := asksUDP(s.db, f.any+":0", f.there+":80", u)
		closed(t, !old, "UDP to "+f.there, question && answer)
		u.close()
		l = s.web.listen(f.any + ":80")
		data, answer = dialogue(other, f.any+":0", f.here+":80", l)
		closed(t, !old, "TCP from "+f.there, data && answer)
		l.close()
		u = s.web.udp(f.any + ":80")
		question, answer = asksUDP(other, f.any+":0", f.here+":80", u)
		closed(t, !old, "UDP from "+f.there, question && answer)
		u.close()
	}
	forged := s.db.udp("0.0.0.0:50000")
	received := other.udp("0.0.0.0:4790")
	forged.sendTo(theirs+":4790", "past the tunnel")
	denied(t, "a datagram past the tunnel", strings.Contains(received.got(), "past"))
	forged.close()
	received.close()
}

// WireGuard's handshakes are datagrams without a socket. What a process sends with their first bytes is not remembered,
// whoever it is: from a socket of UDP, or from a raw one.
func TestWireGuardsFirstBytes(t *testing.T) {
	s := newScene(t, innerOnly)
	world := s.stranger()
	for _, f := range families {
		there := map[string]string{"IPv4": theirs, "IPv6": "[" + theirs6 + "]"}[f.name] + ":51820"
		other := world.udp(there)
		for name, a := range map[string]*agent{"labelled": s.db, "unlabelled": s.free} {
			for message := range 4 {
				first := string([]byte{byte(message + 1), 0, 0, 0}) + name
				u := a.udp(f.node + ":51820")
				u.sendTo(there, first)
				u.close()
				family := unix.AF_INET
				if f.name == "IPv6" {
					family = unix.AF_INET6
				}
				raw := a.raw(family)
				raw.sendTo(there[:strings.LastIndex(there, ":")]+":0", string(udpPacket(f.node+":51820", there, first)))
				raw.close()
			}
			arrived := strings.Contains(other.got(), name)
			closed(t, name == "unlabelled", "a "+name+" datagram", arrived)
		}
		other.close()
	}
	for _, set := range []string{"wireguard4", "wireguard6"} {
		if out := s.Shell("nft list set inet thole " + set); strings.Contains(out, "expires") {
			t.Errorf("a handshake of a process is remembered:\n%s", out)
		}
	}
}

// A process that takes the port of a removed WireGuard device may send to its peers for five minutes, and to nobody
// else.
func TestLimitWireGuardsPort(t *testing.T) {
	s := newScene(t, innerOnly)
	world := s.stranger()
	set := s.Shell("nft list set inet thole wireguard4")
	if !strings.Contains(set, "timeout 5m") || !strings.Contains(set, "size 65536") {
		t.Errorf("the set is not bounded as the page says:\n%s", set)
	}
	s.Shell("nft add element inet thole wireguard4 '{ " + theirs + " . 51820 . 51821 }'")
	for _, c := range []struct {
		from, to string
		arrives  bool
	}{
		{ours + ":51821", theirs + ":51820", true},
		{ours + ":51822", theirs + ":51820", false},
		{ours + ":51821", theirs + ":51821", false},
	} {
		u := world.udp(c.to)
		closed(t, c.arrives, "from "+c.from+" to "+c.to, reachesUDP(s.db, c.from, c.to, u))
		l := world.listen(c.to)
		denied(t, "TCP from "+c.from+" to "+c.to, reaches(s.db, c.from, c.to, l))
		l.close()
		u.close()
	}
}
