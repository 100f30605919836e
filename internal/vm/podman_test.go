//go:build vm

package vm

import (
	"os"
	"strings"
	"testing"

	"thole/internal/nstest/probe"
)

// podman has the daemon follow Podman, and makes the image of the tests. The returned function says what the receivers
// got, as receivers does.
func podman(t *testing.T) (counts func() (db, web int)) {
	t.Helper()
	const options = "/etc/default/thole"
	before, err := os.ReadFile(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		try("podman pod rm -af -t 0; podman rm -af -t 0; systemctl stop podman.socket podman.service")
		must(os.WriteFile(options, before, 0o644))
		try("systemctl restart thole")
	})
	follow := strings.TrimSpace(string(before)) + " --docker unix:///run/podman/podman.sock\n"
	if err := os.WriteFile(options, []byte(follow), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl start podman.socket && systemctl restart thole")
	dir := t.TempDir()
	if err := os.WriteFile(dir+sender, probe.SenderProgram([4]byte{127, 0, 0, 1}, probe.AfterSend{}, 4001, 4002),
		0o755); err != nil {
		t.Fatal(err)
	}
	sh(t, "tar -C "+dir+" -c . | podman import - "+image)
	until(t, "the daemon to follow Podman", func() bool {
		s := status(t)
		return s.Docker != nil && s.Docker.Connected
	})
	return receivers(t)
}

// checkLabels checks that only a process with the label app=web reaches an address.
func checkLabels(t *testing.T, address string) {
	t.Helper()
	for labels, want := range map[string]bool{"app=web": true, "app=db": false, "": false} {
		if got := connects(t, labels, address); got != want {
			t.Errorf("%q → %s: connects %v, want %v", labels, address, got, want)
		}
	}
}

// Podman with systemd's cgroup manager, as Debian has it: a container, a pod, and containers that send at once.
func TestPodman(t *testing.T) {
	running(t)
	counts := podman(t)
	id := sh(t, "podman run -d --name web --net=host -l app=web "+ours+"serve 127.0.0.1:8010")
	listens(t, 8010)
	until(t, "the container to be known", func() bool {
		return workload(t, "web").Cgroup == "machine.slice/libpod-"+id+".scope"
	})
	checkLabels(t, "127.0.0.1:8010")
	for range 5 {
		sh(t, "podman run --rm --net=host -l app=web "+image+" "+sender)
	}
	if db, web := counts(); db != 0 {
		t.Errorf("%d forbidden datagrams and %d allowed ones", db, web)
	}

	pod := sh(t, "podman pod create --name shop --network host")
	id = sh(t, "podman run -d --name shop-web --pod shop -l app=web "+ours+"serve 127.0.0.1:8011")
	listens(t, 8011)
	until(t, "the pod's container to be known", func() bool {
		return workload(t, "shop-web").Cgroup == "machine.slice/machine-libpod_pod_"+pod+".slice/libpod-"+id+".scope"
	})
	checkLabels(t, "127.0.0.1:8011")
	if p := status(t).Problems; len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
}

// Containers in a unit's own cgroup, as Quadlet starts them.
func TestPodmanSplit(t *testing.T) {
	running(t)
	counts := podman(t)
	unit := func(name, command string) {
		t.Helper()
		text := "[Service]\nDelegate=yes\nType=notify\nNotifyAccess=all\n" +
			"ExecStart=/usr/bin/podman run -d --replace --rm --name " + name +
			" --sdnotify=conmon --cgroups=split --net=host -l app=web " + command + "\n" +
			"ExecStop=/usr/bin/podman rm -f -t 0 " + name + "\n"
		file := "/etc/systemd/system/" + name + ".service"
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { try("systemctl stop " + name + "; rm " + file + "; systemctl daemon-reload") })
		sh(t, "systemctl daemon-reload && systemctl start "+name)
	}
	unit("split", ours+"serve 127.0.0.1:8012")
	check := func() {
		t.Helper()
		listens(t, 8012)
		id := sh(t, "podman inspect --format '{{.Id}}' split")
		until(t, "the container to be known", func() bool {
			return workload(t, "split").Cgroup == "system.slice/split.service/libpod-payload-"+id
		})
		checkLabels(t, "127.0.0.1:8012")
	}
	check()
	if p := problem(t, "system.slice/split.service"); !strings.Contains(p, "--cgroups=split") {
		t.Errorf("status says of the unit: %q", p)
	}
	sh(t, "systemctl restart split")
	check()
	unit("sender", image+" "+sender)
	for range 4 {
		sh(t, "systemctl restart sender")
	}
	if db, web := counts(); db != 0 {
		t.Errorf("%d forbidden datagrams and %d allowed ones", db, web)
	}
}
