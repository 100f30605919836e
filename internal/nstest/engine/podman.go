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
// with the host, and its containers with it. A host has room for one engine: a Podman or a Docker.
//
//	/                                  the host's cgroups
//	├── system.slice/podman.service    podman system service
//	├── libpod_parent/libpod-<id>      a container
//	└── (root)                         the podman command, conmon
//
// Its state is in /run, /var/lib and /dev/shm, which are all the host's own: in memory, and gone with the host's last
// process.
type Podman struct {
	t       testing.TB
	host    *nstest.Host
	service *nstest.Process
}

// PodmanSocket is where a Podman listens in its host.
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
	nstest.Need(t, "root", "cgroup2", "podman", "conmon", "runc", "busybox")
	p := &Podman{t: t, host: h}
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
	p.service = p.host.StartCommand(p.command(service, "system", "service", "--time=0", "unix://"+PodmanSocket))
	ended := false
	ready := func() (answers bool) {
		select {
		case <-p.service.Done():
			ended = true
			return true
		default:
		}
		err := p.host.Do(func() { answers = pings(PodmanSocket) })
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

// Podman runs the podman command in the host ("run", "-d", image) and returns what it wrote to stdout, without the
// spaces around it. It must succeed.
func (p *Podman) Podman(args ...string) string {
	p.t.Helper()
	out, err := nstest.Output("podman", p.Command(args...))
	if err != nil {
		p.t.Fatalf("nstest: podman %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

// Command is the podman command with these arguments, in the host.
func (p *Podman) Command(args ...string) *exec.Cmd {
	p.t.Helper()
	return p.command(p.host.In(""), args...)
}

func (p *Podman) command(in *nstest.Cgroup, args ...string) *exec.Cmd {
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
