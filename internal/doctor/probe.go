package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	nft "thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch/cgroupfs"
)

// Probe tries out the kernel. It loads and deletes tables in the network namespace
// of this process, which must be one that was made for it, and expects the process
// to be in a cgroup of its own.
func Probe(ctx context.Context) ([]Finding, error) {
	if err := ownNamespace(); err != nil {
		return nil, err
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	cgroup, level, err := ownCgroup()
	if err != nil {
		return nil, err
	}
	conn, err := kernel.Open(kernel.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var findings []Finding
	for _, f := range features(cgroup, level) {
		findings = append(findings, tryFeature(conn, f))
	}
	findings = append(findings, queueing(conn))
	if !Complete(findings) {
		return findings, nil // no use in packets
	}
	return append(findings, tryPackets(ctx, conn, cgroup, level)...), nil
}

// queueing says how packets between nodes get to userspace.
func queueing(conn *kernel.Conn) Finding {
	f := Finding{Check: "packets to userspace", Status: OK, Found: "by nft's expression queue"}
	native, err := conn.NativeQueue()
	if err == nil && !native {
		f.Found = "by NFQUEUE of nft_compat: nft lists such rules but cannot load them from a file"
		toQueue := []nft.Rule{{Statements: []nft.Statement{nft.Queue{}}}}
		table := nft.Table{Name: tableName, Chains: []nft.Chain{{Name: "never", Rules: toQueue}}}
		err = with(conn, table, func() error { return nil })
	}
	if err != nil {
		return f.warning(err.Error(), "thole daemon --fleet cannot be used",
			"boot the distribution's kernel (6.1 or newer), or one with CONFIG_NFT_QUEUE")
	}
	return f
}

func tryFeature(conn *kernel.Conn, f feature) Finding {
	finding := Finding{Check: f.name, Status: OK, Found: f.found}
	err := with(conn, f.table(), func() error { return nil })
	if err != nil {
		return finding.missing(err.Error(), f.follows,
			"boot the distribution's kernel (6.1 or newer), or one with "+f.needs)
	}
	return finding
}

// patience is how long the loopback interface may take.
const patience = 2 * time.Second

// tryPackets checks that the kernel does with packets what the table says.
func tryPackets(ctx context.Context, conn *kernel.Conn, cgroup nft.Value, level uint8) []Finding {
	known := Finding{Check: "packets have cgroups", Status: OK, Found: "sender's and listener's, TCP and UDP"}
	if err := with(conn, recognition(cgroup, level), func() error { return recognised(ctx, conn) }); err != nil {
		known = known.missing(err.Error(), "processes cannot be distinguished: nothing is enforced",
			"boot the distribution's kernel (6.1 or newer)")
	}
	denied := Finding{Check: "denial is at once", Status: OK, Found: "connections are reset"}
	if err := with(conn, refusal(), func() error { return refused(ctx) }); err != nil {
		denied = denied.missing(err.Error(), "denied connections end by time-out or not at all",
			"boot the distribution's kernel (6.1 or newer)")
	}
	return []Finding{known, denied}
}

// recognition counts packets by the cgroup of their socket.
func recognition(cgroup nft.Value, level uint8) nft.Table {
	own := nft.InSet{Key: []nft.Expr{{Field: nft.SocketCgroup, Level: level}}, Set: "own"}
	return nft.Table{
		Name:     tableName,
		Counters: []string{"received", "sent"},
		Sets: []nft.Set{{
			Name: "own", Key: []nft.Type{nft.CgroupV2}, Elements: []nft.Element{{Key: []nft.Value{cgroup}}},
		}},
		Chains: []nft.Chain{
			{Name: "input", Hook: nft.Input, Rules: rules(own, nft.Count{Counter: "received"})},
			{Name: "output", Hook: nft.Output, Rules: rules(own, nft.Count{Counter: "sent"})},
		},
	}
}

func recognised(ctx context.Context, conn *kernel.Conn) error {
	for _, address := range loopbacks(ctx) {
		for _, exchange := range []func(context.Context, string) error{overTCP, overUDP} {
			before, err := conn.Counters(tableName)
			if err != nil {
				return err
			}
			if err := exchange(ctx, address); err != nil {
				return err
			}
			after, err := conn.Counters(tableName)
			if err != nil {
				return err
			}
			for _, name := range []string{"sent", "received"} {
				if after[name].Packets == before[name].Packets {
					return fmt.Errorf("a packet %s over %s was not recognised", name, strings.TrimSuffix(address, ":0"))
				}
			}
		}
	}
	return nil
}

// refusal resets every connection.
func refusal() nft.Table {
	return nft.Table{
		Name: tableName,
		Chains: []nft.Chain{{Name: "input", Hook: nft.Input, Rules: rules(
			nft.Match{Left: nft.Expr{Field: nft.MetaL4Proto}, Value: nft.ProtoTCP},
			nft.Match{Left: nft.Expr{Field: nft.CtDirection}, Value: nft.DirOriginal},
			nft.Reject{With: nft.TCPReset},
		)}},
	}
}

func refused(ctx context.Context) error {
	for _, address := range loopbacks(ctx) {
		if err := overTCP(ctx, address); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("a denied connect to %s: got %v, want connection refused",
				strings.TrimSuffix(address, ":0"), err)
		}
	}
	return nil
}

// loopbacks are the addresses of lo: without IPv6, where that is disabled.
func loopbacks(ctx context.Context) []string {
	const v4, v6 = "127.0.0.1:0", "[::1]:0"
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", v6)
	if err != nil {
		return []string{v4}
	}
	listener.Close()
	return []string{v4, v6}
}

// overTCP connects to a listener of its own.
func overTCP(ctx context.Context, address string) error {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer listener.Close()
	dialer := net.Dialer{Timeout: patience}
	conn, err := dialer.DialContext(ctx, "tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// overUDP sends a datagram to a socket of its own and receives it.
func overUDP(ctx context.Context, address string) error {
	var config net.ListenConfig
	receiver, err := config.ListenPacket(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer receiver.Close()
	if _, err := receiver.WriteTo([]byte("thole"), receiver.LocalAddr()); err != nil {
		return err
	}
	if err := receiver.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, _, err = receiver.ReadFrom(make([]byte, 8))
	return err
}

// ownNamespace fails if this process is in the network namespace of its parent: one
// of the tables resets every connection.
func ownNamespace() error {
	const what = "trying out the kernel"
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return fmt.Errorf("%s: %v", what, err)
	}
	parents, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", os.Getppid()))
	if err != nil {
		return fmt.Errorf("%s: %v", what, err)
	}
	if own == parents {
		return fmt.Errorf("%s: it is done in a network namespace of its own only, which thole doctor makes", what)
	}
	return nil
}

// ownCgroup returns the cgroup of this process and how deep it lies.
func ownCgroup() (nft.Value, uint8, error) {
	root, err := cgroupfs.OpenRoot()
	if err != nil {
		return nft.Value{}, 0, err
	}
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nft.Value{}, 0, err
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::/"); ok {
			id, err := root.ID(path)
			return nft.CgroupValue(path, id), uint8(strings.Count(path, "/") + 1), err
		}
	}
	return nft.Value{}, 0, errors.New("reading /proc/self/cgroup: no line of cgroup v2")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		return fmt.Errorf("setting lo up: %v", err)
	}
	return nil
}
