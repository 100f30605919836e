// SPDX-License-Identifier: Apache-2.0

// Package probe starts processes in the cgroups of an nstest.Host that open sockets and use them as a test says.
//
// What comes in: a cgroup, or a connection to a process that another program started. What goes out: sockets of that
// process as Go values, and a Verdict for each attempt: what the network did, without waiting for a time-out (see
// nstest.Host.Barrier). The package never decides whether a verdict is right.
//
//	func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }
//
//	srv, cli := probe.Start(web, "web"), probe.Start(host.In("cli"), "cli")
//	l := srv.Listen("tcp", "[::]:80", probe.ReusePort)      // dual-stack; "tcp6" is not. More: Greet, Manual, Device
//	cli.TCP("127.0.0.1:80")                                 // Verdict: connected (web) | refused | reset | silent | …
//	conn, _ := cli.Dial("[::1]:80")                         // kept: Send, Receive, Close; l.Accept is the other end
//	u := srv.OpenUDP("udp", "[::]:53")
//	cli.UDP("127.0.0.1:53", u)                              // arrived (web) | refused | prohibited | silent
//	u.Got("token"), u.Received(), u.Errors(), u.Join("224.0.0.251", "lo")
//	cli.Ping("127.0.0.1"), cli.ICMP("127.0.0.1", 13), cli.Fork("child"), cli.SetUID(1000)
//
// A package whose probes do more for it passes probe.NewMode(operations) to nstest.Main; Process.Call then has a probe
// do an operation.
//
// The files process.go and datagram.go are the test's side, worker*.go the side of the process, and protocol.go is what
// both say to each other. SenderProgram is a program of its own, for what the first instruction of a process may do.
package probe
