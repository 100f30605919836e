//go:build vm

package vm

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"thole/internal/nstest/probe"
)

const (
	image  = "thole-test"                                // in it is sender
	sender = "/sender"                                   // its first instructions send to the ports 4001 and 4002
	ours   = "-v " + self + ":/vm:ro " + image + " /vm " // this program in a container
)

// docker starts Docker with a configuration, and makes the image of the tests.
func docker(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile("/etc/docker/daemon.json", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl restart docker")
	if out := sh(t, "docker info -f '{{.CgroupDriver}} {{.CgroupVersion}}'"); out != "systemd 2" {
		t.Fatalf("Docker's cgroup driver is %s", out)
	}
	if _, err := try("docker image inspect " + image); err != nil {
		dir := t.TempDir()
		if err := os.WriteFile(dir+sender, probe.SenderProgram([4]byte{127, 0, 0, 1}, probe.AfterSend{}, 4001, 4002),
			0o755); err != nil {
			t.Fatal(err)
		}
		sh(t, "tar -C "+dir+" -c . | docker import - "+image)
	}
	until(t, "the daemon to follow Docker", func() bool {
		s := status(t)
		return s.Docker != nil && s.Docker.Connected
	})
}

// receivers are an app=db at port 4001 and an app=web at 4002. counts says what each got.
func receivers(t *testing.T) (counts func() (db, web int)) {
	t.Helper()
	dir := t.TempDir()
	for labels, port := range map[string]string{"app=db": "4001", "app=web": "4002"} {
		start(t, labelled(labels, "receiver-"+port, self, "record", "127.0.0.1:"+port, dir+"/"+port)...)
		until(t, "the receiver at "+port, func() bool { _, err := os.Stat(dir + "/" + port); return err == nil })
	}
	return func() (int, int) { return lines(dir + "/4001"), lines(dir + "/4002") }
}

// stopDocker ends what docker started when the test ends.
func stopDocker(t *testing.T) {
	t.Cleanup(func() { try("docker rm -f $(docker ps -aq); systemctl stop docker.socket docker containerd") })
}

func problem(t *testing.T, where string) string {
	t.Helper()
	for _, p := range status(t).Problems {
		if p.Where == where {
			return p.Text
		}
	}
	return ""
}

// Docker with systemd's cgroup driver, as Debian has it.
func TestDocker(t *testing.T) {
	running(t)
	stopDocker(t)
	docker(t, "{}")
	counts := receivers(t)
	id := sh(t, "docker run -d --name web --net=host -l app=web "+ours+"serve 127.0.0.1:8004")
	listens(t, 8004)
	w := workload(t, "web")
	if w.Cgroup != "system.slice/docker-"+id+".scope" || w.Labels["app"] != "web" {
		t.Errorf("the container is known as %+v", w)
	}
	for labels, want := range map[string]bool{"app=web": true, "app=db": false, "": false} {
		if got := connects(t, labels, "127.0.0.1:8004"); got != want {
			t.Errorf("%q connects: %v, want %v", labels, got, want)
		}
		l := ""
		if labels != "" {
			l = "-l " + labels
		}
		_, err := try("docker run --rm --net=host " + l + " " + ours + "dial 127.0.0.1:8004")
		if got := exitCode(err); got != map[bool]int{true: 0, false: 1}[want] {
			t.Errorf("a container with %q dials: %d", labels, got)
		}
	}
	const starts = 5
	for i := range starts {
		sh(t, "docker run --rm --name s"+strconv.Itoa(i)+" --net=host -l app=web "+image+" "+sender)
	}
	until(t, "the allowed datagrams", func() bool { _, web := counts(); return web >= starts })
	if db, web := counts(); db != 0 || web != starts {
		t.Errorf("%d forbidden datagrams and %d allowed ones of %d starts", db, web, starts)
	}
	if p := problem(t, "system.slice"); !strings.Contains(p, "docker.slice") {
		t.Errorf("status says of system.slice: %q", p)
	}
	if out, _ := try("thole doctor"); !strings.Contains(out, "containers share this cgroup") {
		t.Errorf("doctor does not say that containers share system.slice:\n%s", out)
	}
	sh(t, "docker rm -f web")
	until(t, "the container to be forgotten", func() bool { return workload(t, "web").ID == 0 })
}

// The whole tree is mounted into a container for writing, as some do for systemd in
// containers. systemd mounts it with nsdelegate: from its own cgroup namespace a
// container's root gets nowhere, also with CAP_SYS_ADMIN. Without nsdelegate it does, as
// SECURITY.md says: so the attack is one. (internal/attack has it without systemd.)
func TestWholeTree(t *testing.T) {
	running(t)
	stopDocker(t)
	docker(t, "{}")
	start(t, labelled("app=db", "db", self, "serve", "127.0.0.1:8006")...)
	listens(t, 8006)
	options := func() string { return sh(t, "findmnt -n -o FS-OPTIONS /sys/fs/cgroup") }
	usual := options()
	if !strings.Contains(usual, "nsdelegate") {
		t.Fatalf("systemd mounted the tree with %s", usual)
	}
	attack := func(more string) (out string, reached bool) {
		out, err := try("docker run --rm --net=host -l app=web -v /sys/fs/cgroup:/all:rw " + more + " " + ours +
			"escape 127.0.0.1:8006 /all thole.slice/thole-db.scope")
		t.Logf("%s %s", more, out)
		return out, err == nil
	}
	for _, more := range []string{"", "--cap-add=SYS_ADMIN"} {
		out, reached := attack(more)
		if !strings.Contains(out, "no such file or directory") || !strings.Contains(out, "refused") || reached {
			t.Errorf("a container %s left its cgroup in spite of nsdelegate, or tried in vain for another reason:\n%s",
				more, out)
		}
		if now := options(); now != usual {
			t.Errorf("a container %s had the tree mounted with %s, it was %s", more, now, usual)
		}
	}

	t.Cleanup(func() { try("mount -t cgroup2 -o remount," + usual + " cgroup2 /sys/fs/cgroup") })
	sh(t, "mount -t cgroup2 -o remount,rw cgroup2 /sys/fs/cgroup")
	if out, reached := attack(""); !strings.Contains(out, "move: <nil>") || !reached {
		t.Errorf("without nsdelegate a container does not leave its cgroup:\n%s", out)
	}
	if out, _ := try("thole doctor"); !strings.Contains(out, "nsdelegate") {
		t.Errorf("doctor does not say that it is missing:\n%s", out)
	}
}

// Docker with a slice of its own: what is not known in it is closed.
func TestDockerSlice(t *testing.T) {
	running(t)
	stopDocker(t)
	sh(t, "systemctl enable --now docker.slice")
	docker(t, `{"cgroup-parent": "docker.slice"}`)
	counts := receivers(t)
	id := sh(t, "docker run -d --name web --net=host -l app=web "+ours+"serve 127.0.0.1:8005")
	listens(t, 8005)
	until(t, "the container to be known", func() bool {
		return workload(t, "web").Cgroup == "docker.slice/docker-"+id+".scope"
	})
	if p := status(t).Problems; len(p) != 0 {
		t.Errorf("problems: %v", p)
	}
	if out, err := try("thole doctor"); err != nil || strings.Contains(out, "containers share") {
		t.Errorf("doctor: %v\n%s", err, out)
	}
	sh(t, "docker run --rm --net=host -l app=web "+image+" "+sender)
	until(t, "the allowed datagram", func() bool { _, web := counts(); return web == 1 })

	sh(t, "systemctl stop thole")
	for range 3 {
		sh(t, "docker run --rm --net=host -l app=web "+image+" "+sender)
	}
	dialler := sh(t, "docker run -d --name dialler --net=host -l app=web "+ours+"dial 127.0.0.1:8005")
	until(t, "the container's first SYN", func() bool {
		out, _ := try("ss -Htn state syn-sent dport = :8005")
		return out != ""
	})
	if db, web := counts(); db != 0 || web != 1 {
		t.Errorf("without a daemon %d and %d more datagrams arrived", db, web-1)
	}
	sh(t, "systemctl start thole") // the container's SYN is sent again
	if out := sh(t, "docker wait "+dialler); out != "0" {
		t.Errorf("the container that waited: %s: %s", out, sh(t, "docker logs dialler"))
	}
	if db, _ := counts(); db != 0 {
		t.Errorf("%d forbidden datagrams", db)
	}
	if !connects(t, "app=web", "127.0.0.1:8005") || connects(t, "app=db", "127.0.0.1:8005") {
		t.Error("the container that lived through it is not decided as before")
	}
}
