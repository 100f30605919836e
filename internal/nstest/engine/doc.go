// SPDX-License-Identifier: Apache-2.0

// Package engine runs a container engine, Docker or Podman, in an nstest.Host.
//
// What comes in: a host, flags, labels, programs of the machine. What goes out: a running engine at a socket, images
// made of these programs, and containers whose first process is a probe. The package never uses a registry or the
// machine's own engine, and leaves nothing on the machine.
//
//	func TestMain(m *testing.M) { nstest.Main(m, probe.Mode, engine.Mode) }
//
//	e := engine.StartDocker(t, host, "--live-restore")      // Stop, Kill, Start, Restart
//	image := e.Image("box", labels, "nginx", "curl")        // busybox and these programs
//	e.Docker("run", "-d", image, "sleep", "100")            // e.TryDocker, e.Command; e.ID(name), e.Cgroup(name)
//	e.Probe("web", "--net=host", "-l", "app=web", image)    // a probe as a container's first process
//	e.Docker("restart", "web"); e.ProbeAgain("web")
//	p := engine.StartPodman(t, host)                        // at Docker's socket
//	p.Podman("run", "-d", p.Image("box", labels), "sleep", "100")
//	p.Probe("web", "--net=host", p.Image("box", nil))
package engine
