package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// A Docker is a Docker engine of the machine's own packages (containerd, dockerd, runc) that runs in a host: what it
// makes, docker0, firewall rules, mounts and cgroups, is the host's. There is no registry; images come from Image. It
// ends with the host, and its containers with it. A host has room for one.
//
//	/                                  the host's cgroups
//	├── system.slice/containerd.service    containerd, one shim for each container
//	├── system.slice/docker.service        dockerd, docker-proxy
//	├── docker/<id>                        a container
//	└── (root)                             the docker command
//
// Its state is in the host's own /run, so it is in memory and gone with the host's last process. Only its socket, and
// those of the probes in its containers, lie in a directory of the machine, where every namespace finds them. In the
// host it also answers at /run/docker.sock, Docker's usual place.
type Docker struct {
	Socket string // a path, good in the host and on the machine; DOCKER_HOST is "unix://" + Socket

	probes
	flags      []string
	containerd *nstest.Process
	dockerd    *nstest.Process
}

const (
	// dockerCLI is the one that belongs to the distribution's engine: another may come before it in PATH.
	dockerCLI = "/usr/bin/docker"

	containerdSocket = "/run/containerd/containerd.sock" // this and all below /run is the host's own
	containerdLog    = "/run/containerd.log"
)

// StartDocker starts a Docker engine in the host, with more flags for dockerd ("--iptables=false", "--live-restore").
// The cgroup driver is cgroupfs. It returns when the engine answers.
func StartDocker(t testing.TB, h *nstest.Host, flags ...string) *Docker {
	t.Helper()
	nstest.Need(t, "root", "cgroup2", "containerd", "dockerd", "runc", dockerCLI, "iptables", "busybox")
	e := &Docker{probes: probes{t: t, host: h}, flags: flags}
	e.commandBy = e.dockerBy
	for _, step := range []func() error{e.makeDirs, e.startContainerd, e.startDockerd} {
		if err := step(); err != nil {
			t.Fatalf("nstest: starting a Docker engine: %v\n%s", err, e.containerdOutput())
		}
	}
	return e
}

// makeDirs makes the directory of the sockets, and hides the machine's /etc/docker: an engine reads its configuration
// there, and some write a key.
func (e *Docker) makeDirs() (err error) {
	if e.dir, err = e.host.SocketDir(); err != nil {
		return err
	}
	e.Socket = filepath.Join(e.dir, "docker.sock")
	enterErr := e.host.Do(func() {
		if err = unix.Mount("tmpfs", "/etc/docker", "tmpfs", 0, "mode=755"); err != nil {
			err = fmt.Errorf("hiding /etc/docker: %w", err)
		}
	})
	return errors.Join(enterErr, err)
}

// containerdConfig leaves out what no test needs and what would look for devices and programs of the machine.
const containerdConfig = `
version = 2
root = "/run/containerd-data"
state = "/run/containerd"
disabled_plugins = [
	"io.containerd.grpc.v1.cri",
	"io.containerd.snapshotter.v1.aufs",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "` + containerdSocket + `"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/containerd-opt"
`

func (e *Docker) startContainerd() error {
	config := filepath.Join(e.dir, "containerd.toml")
	if err := os.WriteFile(config, []byte(containerdConfig), 0o644); err != nil {
		return err
	}
	// Not where a failing test tells all that its processes wrote: each container's shim writes a page.
	script := "exec containerd --config " + config + " >" + containerdLog + " 2>&1"
	e.containerd = e.host.In("system.slice/containerd.service").Start("sh", "-c", script)
	return nil // dockerd waits for it
}

func (e *Docker) containerdOutput() string {
	var out []byte
	_ = e.host.Do(func() { out, _ = os.ReadFile(containerdLog) })
	return string(out)
}

func (e *Docker) startDockerd() error {
	args := append([]string{
		"--host", "unix://" + e.Socket,
		"--host", "unix:///run/docker.sock",
		"--containerd", containerdSocket,
		"--data-root", "/run/docker-data",
		"--exec-opt", "native.cgroupdriver=cgroupfs",
		"--log-level", "warn",
	}, e.flags...)
	e.dockerd = e.host.In("system.slice/docker.service").Start("dockerd", args...)
	var err error
	ready := func() bool {
		if err = e.ended(); err != nil {
			return true
		}
		return pings(e.Socket)
	}
	if !nstest.Poll(patience, ready) {
		return fmt.Errorf("dockerd does not answer after %v", patience)
	}
	return err
}

// ended says which of the engine's processes is gone.
func (e *Docker) ended() error {
	for name, p := range map[string]*nstest.Process{"containerd": e.containerd, "dockerd": e.dockerd} {
		select {
		case <-p.Done():
			return fmt.Errorf("%s ended: %v", name, p.Wait())
		default:
		}
	}
	return nil
}

// Stop has dockerd end in good order (SIGTERM). It takes its containers with it, unless it runs with --live-restore; a
// container that does not listen to SIGTERM takes ten seconds. Its sockets are gone.
func (e *Docker) Stop() {
	e.t.Helper()
	e.signal(unix.SIGTERM)
}

// Kill ends dockerd with SIGKILL. Its containers live on; a new dockerd ends them, unless it runs with --live-restore.
// Its sockets stay, and refuse connections.
func (e *Docker) Kill() {
	e.t.Helper()
	e.signal(unix.SIGKILL)
}

func (e *Docker) signal(s unix.Signal) {
	e.t.Helper()
	if err := e.dockerd.Signal(s); err != nil {
		e.t.Fatalf("nstest: ending dockerd: %v", err)
	}
	select {
	case <-e.dockerd.Done():
	case <-time.After(nstest.Patience(patience)):
		e.t.Fatalf("nstest: dockerd does not end within %v", patience)
	}
}

// Start starts dockerd again, after Stop or Kill, with what it had kept. It returns when the engine answers.
func (e *Docker) Start() {
	e.t.Helper()
	if err := e.startDockerd(); err != nil {
		e.t.Fatalf("nstest: starting dockerd again: %v", err)
	}
}

// Restart is Stop and Start.
func (e *Docker) Restart() {
	e.t.Helper()
	e.Stop()
	e.Start()
}

// Docker runs the docker command in the host ("run", "-d", image) and returns what it wrote to stdout, without the
// spaces around it. It must succeed.
func (e *Docker) Docker(args ...string) string {
	e.t.Helper()
	out, err := e.TryDocker(args...)
	if err != nil {
		e.t.Fatalf("nstest: docker %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// TryDocker is Docker for what may fail. What was written to stderr is in the error.
func (e *Docker) TryDocker(args ...string) (string, error) {
	e.t.Helper()
	out, err := nstest.Output("docker", e.Command(args...))
	return strings.TrimSpace(out), err
}

// Command is the docker command with these arguments, for who wants to do more with it than Docker does.
func (e *Docker) Command(args ...string) *exec.Cmd {
	e.t.Helper()
	return e.commandBy(e.host.In(""), args...)
}

func (e *Docker) dockerBy(c *nstest.Cgroup, args ...string) *exec.Cmd {
	cmd := c.Command(dockerCLI, args...)
	// Not the configuration of who runs the test.
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+e.Socket, "DOCKER_CONFIG=/run/docker-config")
	return cmd
}

// ID is the container's full id.
func (e *Docker) ID(container string) string {
	e.t.Helper()
	return e.Docker("inspect", "--type=container", "--format={{.Id}}", container)
}

// Cgroup is where the container runs: docker/<id>, unless it or the engine was given a --cgroup-parent.
func (e *Docker) Cgroup(container string) *nstest.Cgroup {
	e.t.Helper()
	pid := e.Docker("inspect", "--type=container", "--format={{.State.Pid}}", container)
	line := e.host.Shell("grep ^0:: /proc/" + pid + "/cgroup")
	return e.host.In(strings.TrimPrefix(strings.TrimSpace(line), "0::"))
}
