//go:build vm

package nstest_test

import (
	"fmt"
	"strings"
	"testing"

	"thole/internal/nstest"
)

// WireGuard is a module, which only the VM's kernels have.
func TestBarrierPassesWireGuard(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	nstest.Link(a, "10.0.0.1/24", "", b, "10.0.0.2/24", "")
	keys := [2]string{strings.TrimSpace(a.Shell("wg genkey")), strings.TrimSpace(a.Shell("wg genkey"))}
	for i, h := range []*nstest.Host{a, b} {
		h.Shell(fmt.Sprintf(`ip link add tunnel0 type wireguard
			echo %s >/run/key; wg set tunnel0 listen-port 51820 private-key /run/key \
				peer $(echo %s | wg pubkey) endpoint 10.0.0.%d:51820 allowed-ips 0.0.0.0/0,::/0
			ip addr add 192.0.2.%d/24 dev tunnel0; ip addr add fd01::%[4]d/64 dev tunnel0 nodad
			ip link set tunnel0 up`,
			keys[i], keys[1-i], 2-i, 1+i))
	}
	for _, path := range []struct{ a, b string }{{"192.0.2.1", "192.0.2.2"}, {"fd01::1", "fd01::2"}} {
		t.Run(path.a, func(t *testing.T) {
			undo := nstest.Tunnel(a, path.a, b, path.b)
			defer undo()
			passesAll(t, a, b, path.b)
		})
	}
}
