// SPDX-License-Identifier: Apache-2.0

// Package nstest makes throwaway machines for tests of the kernel: network namespaces with a cgroup tree of their own,
// the links between them, and processes that open sockets as the test says. It is for tests only; it never touches the
// machine's own network, mounts, rules or cgroups, and leaves nothing behind, however the test ends.
//
//	machine ── test binary ── janitor (removes what is left when the binary is killed)
//	  │
//	  ├── cgroup nstest-…-1 = "/" of Host a            cgroup nstest-…-2 = "/" of Host b
//	  │     ├── thole.slice/web   probe "web"            └── …
//	  │     ├── thole.slice/cli   probe "cli"
//	  │     └── (root)            unlabelled processes
//	  ├── netns a: lo, veth0 ───────── Link ────────── netns b: lo, veth0
//	  └── mntns a: /sys (its own network, cgroup2 alone), /run (empty); all else is the machine's
//
// # Use
//
//	func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }
//
//	host := nstest.New(t)                                   // ends with t; needs root and cgroup2
//	nstest.Need(t, "nft", "nginx")                          // skips loudly; in CI it fails
//	host.Nft(script), host.NftList(), host.Shell("ip -6 addr")
//	host.Do(func() { conn, err = nftables.New() })          // Go code inside the namespaces
//
//	web := host.In("thole.slice/web")                       // a cgroup, made if need be
//	web.ID(), web.Dir(), web.Pids(), web.Adopt(pid), web.Kill(), host.MkCgroup(p), host.CgroupID(p), host.Rmdir(p)
//	web.Command("curl", url).Output()                       // an exec.Cmd, born in that cgroup
//	web.As(1000).Start("nginx", "-g", "daemon off;")        // … as another user, collected and ended by the host
//
//	nstest.Link(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
//
// # Subpackages
//
// This package imports none of them. Each has a table of its calls in its doc.go.
//
//	probe     processes that open sockets and use them as a test says: connects, datagrams, pings, and their verdicts
//	engine    Docker and Podman in a host, and probes in containers
//	wire      packets: made by hand, seen, lost, repeated, held back, replaced
//	faults    netlink that fails
//	baseline  the program of an earlier commit, to compare with
//	leaktest  whether all that a test made is gone
//	tbtest    doubles of testing.TB
//
// # No sleeping
//
// A negative answer ("nothing arrived") needs no time-out, because Host.Barrier knows when all packets under way have
// reached their sockets. All verdicts rest on it. WaitFor is for what processes do.
//
// # How it works
//
// The test binary runs itself again, in modes that Main recognises by argv[0] (Mode). A process enters a host in three
// steps: it is born in its cgroup (clone3 with CLONE_INTO_CGROUP, which takes microseconds; a move costs 10 ms), enters
// the namespaces, and becomes the program by exec. Namespaces are held by open files of the test binary, so the kernel
// ends them with it. Processes are ended by cgroup.kill on the host's cgroup: by the host, else by the janitor, and if
// that was killed too, by the next test binary that finds a cgroup whose owner is gone.
package nstest
