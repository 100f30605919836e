package engine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// A Podman is the Podman of the machine's own packages (podman, conmon, runc), running in a host. Its API service
// listens at Docker's usual place, /run/docker.sock of the host. There is no registry; images come from Image. It ends
// with the host, and its containers with it.
//
//	/                                  the host's cgroups
//	├── system.slice/podman.service    podman system service
//	├── libpod_parent/libpod-<id>      a container
//	└── (root)                         the podman command, conmon
//
// Its state is in /run, /var/lib and /dev/shm, which are all the host's own: in memory, and gone with the host's last
// process.
type Podman struct {
	Socket string // of the API service, in the host

	probes
	service *nstest.Process
}

// PodmanSocket is where StartPodman has a Podman listen in its host.
const PodmanSocket = "/run/docker.sock"

const (
	podmanDir    = "/run/nstest-podman"
	podmanConfig = podmanDir + "/containers.conf"
)

// podmanSettings are for a host whose cgroups have no controllers, for an ordinary limit of open files, and for keeping
// out of the machine's /etc/cni and /var/tmp.
const podmanSettings = `
[containers]
pids_limit = 0
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
events_logger = "file"
image_copy_tmp_dir = "` + podmanDir + `"
[network]
network_config_dir = "` + podmanDir + `/networks"
`

// StartPodman starts Podman's API service in the host. It returns when the service answers.
func StartPodman(t testing.TB, h *nstest.Host) *Podman {
	t.Helper()
	return StartPodmanAt(t, h, PodmanSocket)
}

// StartPodmanAt is StartPodman with another socket, so that a Docker has room in the host, too.
func StartPodmanAt(t testing.TB, h *nstest.Host, socket string) *Podman {
	t.Helper()
	nstest.Need(t, "root", "cgroup2", "podman", "conmon", "runc", "busybox")
	p := &Podman{Socket: socket, probes: probes{t: t, host: h}}
	p.commandBy = p.podmanBy
	for _, step := range []func() error{p.makeDirs, p.start} {
		if err := step(); err != nil {
			t.Fatalf("nstest: starting Podman: %v", err)
		}
	}
	return p
}

// makeDirs gives the host a /var/lib and a /dev/shm of its own: Podman and its network plugins write there, whatever
// the configuration says.
func (p *Podman) makeDirs() (err error) {
	if p.dir, err = p.host.SocketDir(); err != nil {
		return err
	}
	enterErr := p.host.Do(func() {
		for dir, mode := range map[string]string{"/var/lib": "mode=755", "/dev/shm": "mode=1777"} {
			if err = unix.Mount("tmpfs", dir, "tmpfs", 0, mode); err != nil {
				err = fmt.Errorf("hiding %s: %w", dir, err)
				return
			}
		}
		if err = os.Mkdir(podmanDir, 0o755); err == nil {
			err = os.WriteFile(podmanConfig, []byte(podmanSettings), 0o644)
		}
	})
	return errors.Join(enterErr, err)
}

func (p *Podman) start() error {
	service := p.host.In("system.slice/podman.service")
	p.service = p.host.StartCommand(p.podmanBy(service, "system", "service", "--time=0", "unix://"+p.Socket))
	ended := false
	ready := func() (answers bool) {
		select {
		case <-p.service.Done():
			ended = true
			return true
		default:
		}
		err := p.host.Do(func() { answers = pings(p.Socket) })
		return err == nil && answers
	}
	switch {
	case !nstest.Poll(patience, ready):
		return fmt.Errorf("podman system service does not answer after %v", patience)
	case ended:
		return fmt.Errorf("podman system service ended: %v: %s", p.service.Wait(), p.service.Output())
	}
	return nil
}

// Restart ends the API service and starts it again. Containers live on.
func (p *Podman) Restart() {
	p.t.Helper()
	p.Stop()
	if err := p.start(); err != nil {
		p.t.Fatalf("nstest: starting Podman's service again: %v", err)
	}
}

// Stop ends the API service with SIGKILL. Containers live on; the socket stays, and refuses connections.
func (p *Podman) Stop() {
	p.t.Helper()
	if err := p.service.Signal(unix.SIGKILL); err != nil {
		p.t.Fatalf("nstest: ending Podman's service: %v", err)
	}
	<-p.service.Done()
}

// Podman runs the podman command in the host ("run", "-d", image) and returns what it wrote to stdout, without the
// spaces around it. It must succeed.
func (p *Podman) Podman(args ...string) string {
	p.t.Helper()
	out, err := p.TryPodman(args...)
	if err != nil {
		p.t.Fatalf("nstest: podman %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// TryPodman is Podman for what may fail. What was written to stderr is in the error.
func (p *Podman) TryPodman(args ...string) (string, error) {
	p.t.Helper()
	out, err := nstest.Output("podman", p.Command(args...))
	return strings.TrimSpace(out), err
}

// Command is the podman command with these arguments, in the host.
func (p *Podman) Command(args ...string) *exec.Cmd {
	p.t.Helper()
	return p.podmanBy(p.host.In(""), args...)
}

func (p *Podman) podmanBy(in *nstest.Cgroup, args ...string) *exec.Cmd {
	flags := []string{"--runtime=runc", "--storage-driver=vfs", "--cgroup-manager=cgroupfs"}
	cmd := in.Command("podman", append(flags, args...)...)
	// Not the configuration of the user that runs the test.
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+podmanConfig, "TMPDIR="+podmanDir, "HOME="+podmanDir)
	return cmd
}

// Image makes an image and returns its name. Its content is that of Docker.Image.
func (p *Podman) Image(name string, labels map[string]string, programs ...string) string {
	p.t.Helper()
	name = "localhost/" + name
	if err := importImage(p.Command, name, labels, programs); err != nil {
		p.t.Fatalf("nstest: image %s: %v", name, err)
	}
	return name
}
