//go:build vm

package attack

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
)

// These tunnels are modules, which only the VM's kernels have.
func TestTunnelIPIP(t *testing.T) { s4(t, "ipip") }

func TestTunnelGRE(t *testing.T) { s4(t, "gre") }

// s4 tries a tunnel over IPv4 (only IPv4 goes through it) that is made by one command.
func s4(t *testing.T, kind string) {
	withBoth(t, innerOnly, func(t *testing.T, s *scene, old bool) {
		for _, end := range []struct {
			do                             func(string) string
			local, remote, inside, inside6 string
		}{{s.Shell, ours, theirs, inner, inner6}, {s.outside.Shell, theirs, ours, innerTheirs, innerTheirs6}} {
			end.do(fmt.Sprintf(`ip link add tunnel0 type %s local %s remote %s ttl 64
				ip addr add %s/24 dev tunnel0; ip link set tunnel0 up`, kind, end.local, end.remote, end.inside))
		}
		s.tunnelWorks(true)
		s.throughTunnel(t, old, true)
	})
}

// WireGuard's keys are made by its own program. One end is behind a port that it says itself.
func TestTunnelWireGuard(t *testing.T) {
	withBoth(t, innerOnly, func(t *testing.T, s *scene, old bool) {
		s.wireguard()
		s.throughTunnel(t, old, false)
	})
}

// wireguard makes a tunnel that Barriers pass. The function that is returned must be called before it is removed.
func (s *scene) wireguard() (undo func()) {
	s.t.Helper()
	keys := [2]string{strings.TrimSpace(s.Shell("wg genkey")), strings.TrimSpace(s.Shell("wg genkey"))}
	for i, end := range []struct {
		do                      func(string) string
		remote, inside, inside6 string
	}{{s.Shell, theirs, inner, inner6}, {s.outside.Shell, ours, innerTheirs, innerTheirs6}} {
		end.do(fmt.Sprintf(`ip link add tunnel0 type wireguard
			echo %s >/tmp/key; wg set tunnel0 listen-port 51820 private-key /tmp/key \
				peer $(echo %s | wg pubkey) endpoint %s:51820 allowed-ips 0.0.0.0/0,::/0; rm /tmp/key
			ip addr add %s/24 dev tunnel0; ip addr add %s/64 dev tunnel0 nodad; ip link set tunnel0 up`,
			keys[i], keys[1-i], end.remote, end.inside, end.inside6))
	}
	s.tunnelWorks(false)
	return nstest.Tunnel(s.Host, inner, s.outside, innerTheirs)
}

// A table that is loaded while WireGuard's keys are in use knows its packets from the next handshake on. There is one
// when nothing comes back for 15 s; where what is unlabelled gets answers through the tunnel, as Barriers do, when
// the key is two minutes old.
func TestTunnelWireGuardBeforeTheTable(t *testing.T) {
	for _, alone := range []bool{true, false} {
		t.Run(fmt.Sprintf("alone=%t", alone), func(t *testing.T) {
			s := newScene(t, innerOnly)
			s.Shell("nft delete table inet thole")
			s.loaded = nil
			undo := s.wireguard()
			if alone {
				undo()
			}
			s.enforce(innerOnly)
			l := s.stranger().listen("0.0.0.0:80")
			nstest.WaitFor(t, 3*time.Minute, "WireGuard's next handshake", func() bool {
				return reaches(s.db, "", innerTheirs+":80", l)
			})
		})
	}
}

// A process that takes the port of a removed WireGuard device may send to its peers, and to nobody else.
func TestTunnelWireGuardsPort(t *testing.T) {
	s := newScene(t, innerOnly)
	undo := s.wireguard()
	world := s.stranger()
	undo()
	s.Shell("ip link del tunnel0")
	s.outside.Shell("ip link del tunnel0")
	thief := s.db.udp("0.0.0.0:51820")
	peer, other := world.udp(theirs+":51820"), world.udp(theirs+":51821")
	thief.sendTo(theirs+":51820", "stolen")
	limit(t, "a datagram from WireGuard's port to its peer", peer.got() == "stolen")
	thief.sendTo(theirs+":51821", "stolen")
	denied(t, "a datagram from WireGuard's port", other.got() == "stolen")
}

// As many peers are remembered as the table has room for. What a workload sends through a tunnel to another one is
// judged by the outer address; what is unlabelled goes on.
func TestTunnelWireGuardFull(t *testing.T) {
	s := newScene(t, innerOnly)
	var all strings.Builder
	all.WriteString("add element inet thole wireguard4 { ")
	for i := range 65536 {
		fmt.Fprintf(&all, "198.51.100.1 . %d . 1, ", i)
	}
	must(t, s.Nft(all.String()+"}"))
	s.wireguard() // what is unlabelled gets through
	l := s.stranger().listen("0.0.0.0:80")
	limitDrops(t, "a workload's packet to a peer more", reaches(s.db, "", innerTheirs+":80", l))
	if out := s.Shell("nft list counter inet thole wireguard_full"); strings.Contains(out, "packets 0 ") {
		t.Errorf("it is not counted: %s", out)
	}
}
