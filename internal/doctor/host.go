package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"thole/ruleset/kernel"
)

// privileges checks for the capabilities that the daemon needs: NET_ADMIN for the
// table, SYS_ADMIN for trusted attributes of cgroups, DAC_READ_SEARCH to look for a
// cgroup by its id.
func privileges() Finding {
	f := Finding{Check: "privileges", Status: OK}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return f.unknown(err, "the other checks are not reliable", "sudo thole doctor")
	}
	needed := []struct {
		name string
		bit  int
	}{
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN},
		{"CAP_SYS_ADMIN", unix.CAP_SYS_ADMIN},
		{"CAP_DAC_READ_SEARCH", unix.CAP_DAC_READ_SEARCH},
	}
	var have, lacking []string
	for _, c := range needed {
		if data[0].Effective&(1<<c.bit) != 0 {
			have = append(have, c.name)
		} else {
			lacking = append(lacking, c.name)
		}
	}
	f.Found = strings.Join(have, ", ")
	if len(lacking) == 0 {
		return f
	}
	return f.missing(fmt.Sprintf("uid %d, without %s", os.Geteuid(), strings.Join(lacking, ", ")),
		"tables cannot be loaded, and most of what follows cannot be checked", "sudo thole doctor")
}

// kernelVersion only warns: the probes tell what the kernel really has.
func kernelVersion() Finding {
	f := Finding{Check: "kernel", Status: OK}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return f.unknown(err, "the checks below say what the kernel has", "")
	}
	f.Found = unix.ByteSliceToString(name.Release[:])
	if major, minor := parseRelease(f.Found); major < 6 || major == 6 && minor < 1 {
		return f.warning(f.Found+" is older than 6.1", "Thole is not tested on this kernel",
			"boot the distribution's kernel 6.1 or newer")
	}
	return f
}

func parseRelease(release string) (major, minor int) {
	fields := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(fields) < 2 {
		return 0, 0
	}
	major, _ = strconv.Atoi(fields[0])
	minor, _ = strconv.Atoi(fields[1])
	return major, minor
}

// peerPidfd checks for SO_PEERPIDFD (Linux 6.5), by which the daemon knows the
// caller of "thole run" without the race of a process id that is used again.
func peerPidfd() Finding {
	f := Finding{Check: "peer pidfd", Status: OK, Found: "SO_PEERPIDFD"}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return f.unknown(err, "thole run may not work", "")
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	if fd, err := unix.GetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
		unix.Close(fd)
		return f
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return f.missing(err.Error(), "thole run cannot make sure that it labels the right process",
			"boot kernel 5.3 or newer")
	}
	unix.Close(fd)
	f.Found = "pidfd_open (SO_PEERPIDFD needs kernel 6.5; the daemon checks its caller twice instead)"
	return f
}

// conntrackTable compares the connections that are tracked with their limit:
// Thole tracks what is unlabelled, too.
func conntrackTable() Finding {
	f := Finding{Check: "conntrack table", Status: OK}
	const dir = "/proc/sys/net/netfilter/"
	limit, err := readNumber(dir + "nf_conntrack_max")
	if err != nil {
		// The module is loaded with the first rule that needs it.
		f.Found = "not in use yet"
		return f
	}
	count, err := readNumber(dir + "nf_conntrack_count")
	if err != nil {
		return f.unknown(err, "a full table drops new connections, labelled or not", "")
	}
	f.Found = fmt.Sprintf("%d of %d connections", count, limit)
	if limit > 0 && count*5 >= limit*4 {
		return f.warning(f.Found, "when it is full, new connections are dropped, labelled or not",
			fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", limit*4))
	}
	return f
}

// conntrackMarks checks that marks of connections can be listed, and so changed: the
// daemon must, when epochs come round.
func conntrackMarks() Finding {
	f := Finding{Check: "conntrack marks", Status: OK, Found: "can be changed through ctnetlink"}
	conn, err := kernel.Open(kernel.Options{})
	if err == nil {
		defer conn.Close() //nolint:errcheck // nothing was written
		_, err = conn.Remark(^uint32(0), ^uint32(0), func(mark uint32) uint32 { return mark })
	}
	if err != nil {
		return f.missing(err.Error(), "the daemon does not start if it cannot find out what was allowed before",
			"load module nf_conntrack_netlink (CONFIG_NF_CT_NETLINK), as root")
	}
	return f
}

func readNumber(file string) (int, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// bridges checks that what one bridge port sends to another passes the forward hook.
func bridges() Finding {
	f := Finding{Check: "bridge netfilter", Status: OK, Found: "no bridges"}
	names, err := filepath.Glob("/sys/class/net/*/bridge")
	if err != nil || len(names) == 0 {
		return f
	}
	for i, name := range names {
		names[i] = filepath.Base(filepath.Dir(name))
	}
	f.Found = "enabled, for " + strings.Join(names, ", ")
	for _, family := range []string{"iptables", "ip6tables"} {
		on, err := readNumber("/proc/sys/net/bridge/bridge-nf-call-" + family)
		if err != nil || on == 0 {
			return f.warning("disabled, for "+strings.Join(names, ", "),
				"containers on one bridge reach each other, whatever their labels",
				"modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 "+
					"net.bridge.bridge-nf-call-ip6tables=1")
		}
	}
	return f
}

// nftProgram looks for nft(8), which Thole itself does not need.
func nftProgram() Finding {
	f := Finding{Check: "nft program", Status: OK}
	path, err := exec.LookPath("nft")
	if err != nil {
		return f.warning("not found", "you cannot list the loaded table; enforcement does not need nft",
			"apt-get install nftables")
	}
	f.Found = path
	return f
}
