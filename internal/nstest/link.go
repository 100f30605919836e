package nstest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
)

// end is one end of a link.
type end struct {
	host   *Host
	number int
	device string
	mac    string
	addrs  []netip.Prefix
}

// Link joins two hosts by a veth pair and returns the devices' names, "veth0" for a host's first link. Addresses have a
// prefix length ("10.0.0.1/24"); "" stands for none. It is ready when Link returns: there is no duplicate address
// detection, and each end knows the other's hardware address for ever, so that no packet waits for ARP or neighbour
// discovery. Who tests just that runs "ip neigh flush dev veth0 nud permanent".
func Link(a *Host, a4, a6 string, b *Host, b4, b6 string) (deviceA, deviceB string) {
	a.t.Helper()
	Need(a.t, "ip")
	endA, endB := a.newEnd(a4, a6), b.newEnd(b4, b6)
	// Even and odd indexes: if both ends had the same, the kernel would take up to a second to notice the carrier
	// (linkwatch_urgent_event tells a veth by its peer's index).
	endA.ip(fmt.Sprintf("link add %s index %d address %s type veth peer name %s index %d address %s netns %s",
		endA.device, 100+2*endA.number, endA.mac, endB.device, 101+2*endB.number, endB.mac, fdPath(b.net)))
	for _, e := range []*end{endA, endB} {
		e.ip("link set " + e.device + " up")
	}
	// The end that came up first has no queue until the kernel has noticed its carrier.
	endA.waitUp()
	endB.waitUp()
	endA.address(endB)
	endB.address(endA)
	return endA.device, endB.device
}

func (h *Host) newEnd(addrs ...string) *end {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	r := rand.Uint32()
	e := &end{
		host:   h,
		number: h.links,
		device: fmt.Sprintf("veth%d", h.links),
		mac:    fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", byte(r>>24), byte(r>>16), byte(r>>8), byte(r)),
	}
	h.links++
	for _, s := range addrs {
		if s == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			h.t.Fatalf("nstest: link: %v", err)
		}
		e.addrs = append(e.addrs, prefix)
	}
	return e
}

// ip runs commands of ip.
func (e *end) ip(commands ...string) {
	e.host.t.Helper()
	if len(commands) == 0 {
		return
	}
	if _, err := e.host.root.run(strings.Join(commands, "\n"), "ip", "-batch", "-"); err != nil {
		e.host.t.Fatalf("nstest: link: %v", err)
	}
}

func (e *end) waitUp() {
	e.host.t.Helper()
	WaitFor(e.host.t, endPatience, e.device+" to be up", func() bool {
		var state []byte
		err := e.host.Do(func() { state, _ = os.ReadFile("/sys/class/net/" + e.device + "/operstate") })
		return err == nil && string(state) == "up\n"
	})
}

// address gives this end its addresses, and tells it the other's hardware address.
func (e *end) address(other *end) {
	e.host.t.Helper()
	var commands []string
	for _, prefix := range e.addrs {
		nodad := ""
		if prefix.Addr().Is6() {
			nodad = "nodad"
		}
		commands = append(commands, fmt.Sprintf("addr add %s dev %s %s", prefix, e.device, nodad))
	}
	for _, prefix := range other.addrs {
		commands = append(commands, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent",
			prefix.Addr(), other.mac, e.device))
	}
	e.ip(commands...)
}
