package engine_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/leaktest"
	"thole/internal/nstest/probe"
	"thole/internal/nstest/tbtest"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode, engine.Mode) }

func TestVictim(t *testing.T) {
	leaktest.Victim(t, map[string]func(testing.TB, *leaktest.Remains){"docker": furnishDocker, "podman": furnishPodman})
}

func TestDockerHostNetwork(t *testing.T) {
	host := nstest.New(t)
	server := probe.Start(host.In("thole.slice/db"), "server")
	server.Listen("tcp", "[::]:5432")

	e := engine.StartDocker(t, host)
	web := e.Probe("web", "--net=host", "-l", "app=web", e.Image("box", nil))

	if got := e.Docker("inspect", "--format={{.HostConfig.NetworkMode}}", "web"); got != "host" {
		t.Errorf("NetworkMode: %q, want host", got)
	}
	cgroup := e.Cgroup("web")
	if want := "/docker/" + e.ID("web"); cgroup.Path() != want {
		t.Errorf("cgroup: %s, want %s", cgroup.Path(), want)
	}
	if got, want := cgroup.Pids(), []int{web.PID()}; !slices.Equal(got, want) {
		t.Errorf("processes in the container's cgroup: %v, want the probe %v", got, want)
	}
	if got := host.Shell("find /sys/fs/cgroup/docker/* -type d"); got != "/sys/fs/cgroup/docker/"+e.ID("web")+"\n" {
		t.Errorf("the host sees in /docker %q, want %s alone", got, e.ID("web"))
	}

	web.Listen("tcp", "[::]:80")
	for _, addr := range []string{"127.0.0.1:5432", "[::1]:5432"} {
		if v := web.TCP(addr); v.Server != "server" {
			t.Errorf("container → process %s: %v, want an answer of server", addr, v)
		}
	}
	if v := server.TCP("[::1]:80"); v.Server != "web" {
		t.Errorf("process → container: %v, want an answer of web", v)
	}
}

func TestDockerBridge(t *testing.T) {
	host := nstest.New(t)
	probe.Start(host.In("thole.slice/db"), "server").Listen("tcp", "[::]:5432")
	client := probe.Start(host.In("thole.slice/cli"), "client")

	e := engine.StartDocker(t, host)
	image := e.Image("box", nil)
	web := e.Probe("web", "--publish=8080:80", image)
	web.Listen("tcp", "[::]:80")
	child := e.Probe("other", "--user=1000", image).Fork("child")

	for _, tt := range []struct {
		from         *probe.Process
		to, want, is string
	}{
		{client, "172.17.0.2:80", "web", "the container's address"},
		{client, "172.17.0.1:8080", "web", "the published port"},
		{client, "127.0.0.1:8080", "web", "the published port through docker-proxy"},
		{client, "[::1]:8080", "web", "the published port through docker-proxy, IPv6"},
		{web, "172.17.0.1:5432", "server", "a process of the host at docker0"},
		{child, "172.17.0.2:80", "web", "another container"},
		{child, "172.17.0.1:8080", "web", "another container's published port"},
	} {
		if v := tt.from.TCP(tt.to); v.Server != tt.want {
			t.Errorf("%s → %s, %s: %v, want an answer of %s", tt.from.Name, tt.to, tt.is, v, tt.want)
		}
	}
	for _, chain := range []string{"chain DOCKER-USER", "chain DOCKER-ISOLATION-STAGE-1", "dnat to 172.17.0.2:80"} {
		if !strings.Contains(host.NftList(), chain) {
			t.Errorf("Docker's own rules lack %q", chain)
		}
	}
}

func TestDockerUserNetwork(t *testing.T) {
	host := nstest.New(t)
	e := engine.StartDocker(t, host)
	image := e.Image("box", nil)
	e.Docker("network", "create", "--ipv6", "--subnet=fd00:18::/64", "shop")
	e.Probe("web", "--network=shop", image).Listen("tcp", "[::]:80")
	e.Docker("run", "-d", "--name=cli", "--network=shop", image, "sleep", "1000")

	answer := e.Docker("exec", "cli", "nslookup", "web")
	if !strings.Contains(answer, "172.18.0.2") || !strings.Contains(answer, "fd00:18::2") {
		t.Errorf("Docker's DNS says of web:\n%s", answer)
	}
	for _, addr := range []string{"172.18.0.2", "fd00:18::2"} {
		if got := e.Docker("exec", "cli", "sh", "-c", "echo | nc "+addr+" 80"); got != "web" {
			t.Errorf("%s answers %q, want web", addr, got)
		}
	}
	e.Probe("alone", image)
	if got, err := e.TryDocker("exec", "alone", "sh", "-c", "echo | nc -w 1 172.18.0.2 80"); err == nil {
		t.Errorf("from another network web is reached: %q", got)
	}
}

func TestDockerFlags(t *testing.T) {
	host := nstest.New(t)
	e := engine.StartDocker(t, host, "--iptables=false", "--cgroup-parent=/containers.slice", "--bridge=none")
	e.Probe("web", "--net=host", e.Image("box", nil))
	if got, want := e.Cgroup("web").Path(), "/containers.slice/"+e.ID("web"); got != want {
		t.Errorf("cgroup: %s, want %s", got, want)
	}
	if got := host.NftList(); got != "" {
		t.Errorf("rules of an engine without iptables:\n%s", got)
	}
	if got := host.Shell("ls /sys/class/net"); got != "lo\n" {
		t.Errorf("devices of an engine without a bridge: %s", got)
	}
}

func TestDockerThatDoesNotStart(t *testing.T) {
	nstest.Need(t, "root", "cgroup2")
	host := nstest.New(t)
	got := tbtest.Record(t, func(t testing.TB) { engine.StartDocker(t, host, "--bip=nonsense") })
	if want := "fatal: nstest: starting a Docker engine: dockerd ended: exit status 1"; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDockerEndsAndComesBack(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
		end   func(*engine.Docker)
		lives bool // the container, when the engine is back
	}{
		{"stop", nil, (*engine.Docker).Stop, false},
		{"stop, live restore", []string{"--live-restore"}, (*engine.Docker).Stop, true},
		{"kill", nil, (*engine.Docker).Kill, false},
		{"kill, live restore", []string{"--live-restore"}, (*engine.Docker).Kill, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := nstest.New(t)
			e := engine.StartDocker(t, host, tt.flags...)
			web := e.Probe("web", "--net=host", e.Image("box", nil))
			web.Listen("tcp", "[::]:80")
			client := probe.Start(host.In("cli"), "client")
			id := e.ID("web")

			tt.end(e)
			if out, err := e.TryDocker("ps"); err == nil {
				t.Errorf("the engine that has ended says %q", out)
			}
			if tt.lives && client.TCP("127.0.0.1:80").Server != "web" {
				t.Error("the container does not answer while the engine is away")
			}
			e.Start()
			if got := client.TCP("127.0.0.1:80").Server == "web"; got != tt.lives {
				t.Errorf("the container answers when the engine is back: %t, want %t", got, tt.lives)
			}

			e.Docker("restart", "web")
			e.ProbeAgain("web").Listen("tcp", "[::]:80")
			if v := client.TCP("127.0.0.1:80"); v.Server != "web" || e.ID("web") != id {
				t.Errorf("the restarted container: %v", v)
			}
		})
	}
}

func TestDockerImage(t *testing.T) {
	host := nstest.New(t)
	e := engine.StartDocker(t, host)
	labels := map[string]string{"app": "nginx", "odd": `a b $HOME "c" \d`, "empty": ""}
	e.Image("nginx", labels, "nginx", "curl")
	for key, want := range labels {
		format := `{{index .Config.Labels "` + key + `"}}`
		if got := e.Docker("inspect", "--format="+format, "nginx"); got != want {
			t.Errorf("label %s of the image: %q, want %q", key, got, want)
		}
	}

	config := filepath.Join(t.TempDir(), "nginx.conf")
	if err := os.WriteFile(config, []byte(`
		daemon off;
		events {}
		http { server { listen [::]:80 ipv6only=off; return 200 "hello\n"; } }`), 0o644); err != nil {
		t.Fatal(err)
	}
	e.Docker("run", "-d", "--net=host", "--name=web", "-v", config+":/nginx.conf", "nginx", "nginx", "-c",
		"/nginx.conf")
	nstest.WaitFor(t, 10*time.Second, "nginx to answer curl", func() bool {
		out, err := e.TryDocker("run", "--rm", "--net=host", "nginx", "curl", "-s", "http://[::1]/")
		return err == nil && out == "hello"
	})
}

// On this rests that a container's labels are known before its first packet: its cgroup is made long before it runs,
// and the list of containers (unlike inspect, which waits until the container was started) answers at once.
func TestDockerMakesTheCgroupBeforeTheContainerRuns(t *testing.T) {
	host := nstest.New(t)
	host.MkCgroup("docker")
	births := watchBirths(t, host.CgroupDir("docker"))
	listener := listenInHost(t, host, "127.0.0.1:9999")

	e := engine.StartDocker(t, host)
	image := e.Image("box", map[string]string{"from": "image"})
	for range 5 {
		started := e.Command("run", "--rm", "--net=host", "-l", "app=web", image, "nc", "127.0.0.1", "9999")
		if err := started.Start(); err != nil {
			t.Fatal(err)
		}
		id := <-births
		born := time.Now()
		labels := listedLabels(t, e.Socket, id)
		listed := time.Since(born)
		if err := accept(listener); err != nil {
			t.Fatal(err)
		}
		t.Logf("after the cgroup: labels %v, first packet %v", listed, time.Since(born))
		if want := map[string]string{"app": "web", "from": "image"}; !maps.Equal(labels, want) {
			t.Errorf("labels when the cgroup was made: %v, want %v", labels, want)
		}
		if err := started.Wait(); err != nil {
			t.Errorf("docker run: %v", err)
		}
	}
}
