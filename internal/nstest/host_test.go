package nstest_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }

func TestHostIsItsOwnMachine(t *testing.T) {
	host := nstest.New(t)
	got := host.In("thole.slice/web").Shell(`
		grep ^0: /proc/self/cgroup
		ls -d /sys/fs/cgroup/thole.slice/web
		ls /sys/class/net /run
		grep -c cgroup /proc/self/mountinfo
		cat /sys/class/net/lo/flags`)
	want := `0::/thole.slice/web
/sys/fs/cgroup/thole.slice/web
/run:
lock
netns

/sys/class/net:
lo
1
0x9
`
	if got != want {
		t.Errorf("in the host:\n%swant:\n%s", got, want)
	}
}

func TestDoRunsInTheHost(t *testing.T) {
	host := nstest.New(t)
	var (
		names  []string
		cgroup os.FileInfo
		err    error
	)
	host.In("only/here")
	inHost := host.Do(func() {
		devices, _ := net.Interfaces()
		for _, d := range devices {
			names = append(names, d.Name)
		}
		cgroup, err = os.Stat("/sys/fs/cgroup/only/here")
	})
	if inHost != nil || err != nil || !cgroup.IsDir() {
		t.Errorf("Do: %v; cgroup in the host: %v", inHost, err)
	}
	if !slices.Equal(names, []string{"lo"}) {
		t.Errorf("devices in the host: %v, want lo alone", names)
	}
	if _, err := os.Stat("/sys/fs/cgroup/only/here"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host's cgroup is seen outside: %v", err)
	}
}

func TestDoPassesGoexitOn(t *testing.T) {
	host := nstest.New(t)
	ended := make(chan bool)
	go func() {
		ok := false
		defer func() { ended <- ok }()
		_ = host.Do(func() {
			runtime.Goexit()
		})
		ok = true
	}()
	if <-ended {
		t.Error("Do returned although its function ended the goroutine, as t.Fatal does")
	}
}

func TestCommandIsBornInItsCgroup(t *testing.T) {
	host := nstest.New(t)
	web := host.In("thole.slice/web")
	out, err := web.Command("sh", "-c", "cat /proc/self/cgroup; exit 7").Output()
	if !strings.Contains(string(out), "\n0::/thole.slice/web\n") &&
		!strings.HasPrefix(string(out), "0::/thole.slice/web\n") {
		t.Errorf("cgroup of the command: %s", out)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit status: %v, want 7", err)
	}
	if err := web.Command("no-such-program").Run(); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("a program that does not exist: %v", err)
	}
}

func TestCommandKeepsDirectoryAndFiles(t *testing.T) {
	host := nstest.New(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	dir := t.TempDir()
	cmd := host.Command("sh", "-c", "pwd; ls -l /proc/self/fd | grep -E '(net|mnt|cgroup):'; echo through 3 >&3")
	cmd.Dir = dir
	cmd.ExtraFiles = []*os.File{w}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if want := dir + "\n"; string(out) != want {
		t.Errorf("got %q, want %q and no open namespace", out, want)
	}
	line := make([]byte, 100)
	if n, _ := r.Read(line); string(line[:n]) != "through 3\n" {
		t.Errorf("through the extra file: %q", line[:n])
	}
}

func TestAsHasNoPrivileges(t *testing.T) {
	host := nstest.New(t)
	got := host.In("user").As(4242).Shell("id -u; id -G; grep CapEff /proc/self/status; grep ^0: /proc/self/cgroup")
	if want := "4242\n4242\nCapEff:\t0000000000000000\n0::/user\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCgroups(t *testing.T) {
	host := nstest.New(t)
	id := host.MkCgroup("a/b")
	if id == 0 || host.CgroupID("a/b") != id || host.In("a/b").ID() != id {
		t.Errorf("ids of one cgroup: %d, %d, %d", id, host.CgroupID("a/b"), host.In("a/b").ID())
	}
	sleep := host.In("a/b").Start("sleep", "infinity")
	if got := host.In("a/b").Pids(); !slices.Equal(got, []int{sleep.Pid}) {
		t.Errorf("processes: %v, want %d", got, sleep.Pid)
	}
	host.In("c").Adopt(sleep.Pid)
	if got := host.In("c").Pids(); !slices.Equal(got, []int{sleep.Pid}) {
		t.Errorf("processes after the move: %v, want %d", got, sleep.Pid)
	}
	host.Rmdir("a/b")
	if got := host.CgroupID("a/b"); got != 0 {
		t.Errorf("id of a removed cgroup: %d", got)
	}
	if again := host.MkCgroup("a/b"); again == id {
		t.Errorf("a cgroup that was made again has the id of the old one, %d", id)
	}
	if out := host.In("a/b").Shell("grep ^0: /proc/self/cgroup"); out != "0::/a/b\n" {
		t.Errorf("a process in the cgroup that was made again: %q", out)
	}
	host.In("c").Kill()
	if err := sleep.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the process of a killed cgroup: %v", err)
	}
	if _, err := os.Stat(filepath.Dir(host.CgroupDir("c/x"))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a killed cgroup is still there: %v", err)
	}
}

func TestStartCollectsOutput(t *testing.T) {
	host := nstest.New(t)
	// The child in the background keeps stdout open, which must not keep Wait.
	p := host.In("x").Start("sh", "-c", "sleep infinity & echo out; echo err >&2; exit 3")
	if err := p.Wait(); err == nil || err.Error() != "exit status 3" {
		t.Errorf("Wait: %v", err)
	}
	if got := p.Output(); got != "out\nerr\n" {
		t.Errorf("output: %q", got)
	}
}

func TestNft(t *testing.T) {
	nstest.Need(t, "nft")
	host := nstest.New(t)
	if err := host.Nft("table inet x { chain c { }; }"); err != nil {
		t.Error(err)
	}
	if got := host.NftList(); !strings.Contains(got, "table inet x") {
		t.Errorf("ruleset: %s", got)
	}
	if err := host.Nft("table inet y { chain c { nonsense } }"); err == nil ||
		!strings.Contains(err.Error(), "syntax error") {
		t.Errorf("a bad script: %v", err)
	}
}

func TestLink(t *testing.T) {
	a, b := nstest.New(t), nstest.New(t)
	deviceA, deviceB := nstest.Link(a, "10.0.0.1/24", "fd00::1/64", b, "10.0.0.2/24", "fd00::2/64")
	if deviceA != "veth0" || deviceB != "veth0" {
		t.Errorf("devices: %s, %s", deviceA, deviceB)
	}
	server, client := probe.Start(b.In("s"), "server"), probe.Start(a.In("c"), "client")
	server.Listen("tcp", "[::]:80")
	udp := server.OpenUDP("udp", "[::]:53")
	for _, ip := range []string{"10.0.0.2", "[fd00::2]"} { // the first packets that ever cross it
		if v := client.TCP(ip + ":80"); v.Outcome != probe.Connected || v.Server != "server" {
			t.Errorf("tcp to %s: %v", ip, v)
		}
		if v := client.UDP(ip+":53", udp); v.Outcome != probe.Arrived {
			t.Errorf("udp to %s: %v", ip, v)
		}
		if v := client.UDP(ip+":54", udp); v.Outcome != probe.Refused {
			t.Errorf("udp to a closed port of %s: %v", ip, v)
		}
		if v := client.Ping(strings.Trim(ip, "[]")); v.Outcome != probe.Arrived {
			t.Errorf("ping %s: %v", ip, v)
		}
	}
	nstest.Link(a, "10.0.1.1/24", "", b, "10.0.1.2/24", "")
	if v := client.TCP("10.0.1.2:80"); v.Outcome != probe.Connected {
		t.Errorf("tcp over a second link: %v", v)
	}
}
