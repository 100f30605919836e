package nstest

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// runSetup furnishes the new namespaces in which it was started, says so, and stays until it was seen.
func runSetup([]string) error {
	for _, step := range []func() error{mountAll, setSysctls, loopbackUp} {
		if err := step(); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// mountAll gives the host a /sys that shows its own network and nothing but cgroup v2, and an empty /run. What was
// below /sys is taken away, not covered: mountinfo must not show cgroup v1 to who reads it.
func mountAll() error {
	if err := unix.Unmount("/sys", unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("taking /sys away: %w", err)
	}
	for _, m := range []struct{ fstype, dir, data string }{
		{"sysfs", "/sys", ""},
		{"cgroup2", "/sys/fs/cgroup", ""},
		{"tmpfs", "/run", "mode=755"},
	} {
		if err := unix.Mount(m.fstype, m.dir, m.fstype, 0, m.data); err != nil {
			return fmt.Errorf("mounting %s on %s: %w", m.fstype, m.dir, err)
		}
	}
	for _, dir := range []string{"/run/lock", "/run/netns"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// setSysctls makes the network answer at once and always: no waiting for duplicate addresses, no limit on ICMP errors
// (by which a rejected datagram may go unanswered), ping sockets for everyone.
func setSysctls() error {
	for _, s := range []struct{ name, value string }{
		{"ipv6/conf/all/accept_dad", "0"},
		{"ipv6/conf/default/accept_dad", "0"},
		{"ipv4/icmp_ratelimit", "0"},
		{"ipv6/icmp/ratelimit", "0"},
		{"ipv4/ping_group_range", "0 2147483647"},
	} {
		if err := os.WriteFile("/proc/sys/net/"+s.name, []byte(s.value), 0); err != nil {
			return err
		}
	}
	return nil
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
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
