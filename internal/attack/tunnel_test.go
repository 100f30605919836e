package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

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
spec: {selector: {matchLabels: {app: web}}, ingress: [{from: [{cidr: 192.0.2.0/24}, {cidr: "2001:db8:2::/64"}]}], egress: []}
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
		end.do(script + fmt.Sprintf("\nip addr add %s/24 dev tunnel0; ip addr add %s/64 dev tunnel0 nodad; ip link set tunnel0 up", end.inside, end.inside6))
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
