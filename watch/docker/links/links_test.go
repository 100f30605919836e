package links

import (
	"maps"
	"os"
	"slices"
	"testing"

	"thole/internal/nstest"
)

// A bridge of this host, one port of which is another host, and one a device of its own.
func TestPortsOfBridges(t *testing.T) {
	here, other := nstest.New(t), nstest.New(t)
	port, _ := nstest.Link(here, "10.0.0.1/24", "fd00::1/64", other, "10.0.0.2/24", "fd00::2/64")
	here.Shell(`ip link add br0 type bridge && ip link add br1 type bridge &&
		ip link set ` + port + ` master br0 &&
		ip tuntap add own mode tap && ip link set own master br1`)
	there := other.In("p").Start("sleep", "infinity")
	alone := here.In("p").Start("sleep", "infinity")
	do := func(f func() error) {
		t.Helper()
		var failure error
		if err := here.Do(func() { failure = f() }); err != nil || failure != nil {
			t.Fatal(err, failure)
		}
	}
	nstest.WaitFor(t, patience, "a process of the other host to be behind br0", func() bool {
		var ports map[string]string
		do(func() (err error) { ports, err = Host{}.Ports(there.Pid); return err })
		return maps.Equal(ports, map[string]string{"br0": port}) // it enters the host's namespaces first
	})
	for _, pid := range []int{alone.Pid, os.Getpid(), 1 << 30} {
		var ports map[string]string
		do(func() (err error) { ports, err = Host{}.Ports(pid); return err })
		if len(ports) > 0 {
			t.Errorf("ports of process %d, which is not behind one: %v", pid, ports)
		}
	}
	foreign := map[string][]string{}
	for _, bridge := range []string{"br0", "br1", "br2"} {
		do(func() error {
			ports, ok, err := Host{}.Foreign(bridge)
			if ok {
				foreign[bridge] = ports
			}
			return err
		})
	}
	if want := map[string][]string{"br0": nil, "br1": {"own"}}; !maps.EqualFunc(foreign, want, slices.Equal) {
		t.Errorf("foreign ports: %v, want %v", foreign, want)
	}
}
