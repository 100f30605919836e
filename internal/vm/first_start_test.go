//go:build vm

package vm

import (
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"thole/internal/condition"
	"thole/internal/nstest"
)

// These two tests have a VM of their own (test.sh, part start): a host that has never seen Thole, and its next boot.
const (
	firstStart = "VM_FIRST_START" // the variable that chooses them
	caller     = "/usr/local/bin/vm-program"
	firstCalls = 5000 // of each boot
)

// A service that calls the containers from the earliest moment of a boot on.
const trafficUnit = `[Unit]
Description=calls to the containers of this host
[Service]
ExecStart=` + caller + ` call /var/lib/traffic 127.0.0.1:8101 127.0.0.1:8102 127.0.0.1:8103
[Install]
WantedBy=multi-user.target
`

// bootFile is FILE-BOOT, where BOOT is this boot's id.
func bootFile(file string) string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	must(err)
	return file + "-" + strings.TrimSpace(string(id))
}

// call calls servers in turn, firstCalls times, as soon as each has answered once. What fails, the number of calls so
// far, and the end are lines of FILE-BOOT.
func call(file string, servers []string) {
	out, err := os.OpenFile(bootFile(file), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(err)
	for _, s := range servers {
		for end := time.Now().Add(20 * time.Minute); echo(s) != nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				fmt.Fprintln(out, "failed: no answer of", s)
				os.Exit(1)
			}
		}
	}
	for n := range firstCalls {
		if err := echo(servers[n%len(servers)]); err != nil {
			fmt.Fprintln(out, "failed:", err)
		}
		if n%100 == 0 {
			fmt.Fprintln(out, n, "calls")
		}
	}
	fmt.Fprintln(out, "end")
}

// echo connects, sends a line, and waits until it comes back.
func echo(server string) error {
	conn, err := net.DialTimeout("tcp", server, time.Minute)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, len("hello\n")))
	return err
}

// traffic is what call has written in this boot.
func traffic() string {
	data, _ := os.ReadFile(bootFile("/var/lib/traffic"))
	return string(data)
}

// allCalled waits until all calls were made, and holds that none failed. Before a server answers for the first time,
// the kernel refuses calls; what Thole refuses then is in its counter.
func allCalled(t *testing.T) {
	t.Helper()
	nstest.WaitFor(t, 5*patience, "all calls", func() bool { return strings.HasSuffix(traffic(), "end\n") })
	if n := strings.Count(traffic(), "failed"); n > 0 {
		t.Errorf("%d of %d calls failed:\n%s", n, firstCalls, traffic())
	}
	if n := status(t).Counters["denied"].Packets; n > 0 {
		t.Errorf("Thole denied %d packets", n)
	}
}

// records holds that the built-in policy records only, and that the status says so.
func records(t *testing.T, when string) {
	t.Helper()
	until(t, when+": the built-in policy to record", func() bool {
		_, err := try("thole status")
		isAudited := func(c condition.Condition) bool { return c.Code == condition.DefaultAudited }
		return exitCode(err) == 1 && slices.ContainsFunc(status(t).Problems, isAudited)
	})
}

// On a host whose containers serve already, the first start of Thole refuses nothing: neither what only Traefik's
// labels name, nor what has labels of its own.
func TestFirstStart(t *testing.T) {
	sh(t, "cp "+self+" "+caller+" && systemctl restart docker")
	sh(t, "tar -C "+t.TempDir()+" -c . | docker import - "+image)
	for port, labels := range map[string]string{
		"8101": "-l traefik.enable=true -l 'traefik.http.routers.shop.rule=Host(`shop.example`)'",
		"8102": "-l traefik.enable=true -l app=web",
		"8103": "-l app=db",
	} {
		sh(t, "docker run -d --restart=always --name on-"+port+" --net=host "+labels+" -v "+caller+":/vm:ro "+image+
			" /vm serve 127.0.0.1:"+port)
	}
	must(os.WriteFile("/etc/systemd/system/traffic.service", []byte(trafficUnit), 0o644))
	sh(t, "systemctl daemon-reload && systemctl enable --now traffic")
	until(t, "some calls", func() bool { return strings.Contains(traffic(), "300 calls") })
	sh(t, "systemctl enable --now thole docker")
	if strings.HasSuffix(traffic(), "end\n") {
		t.Error("all calls were made before the start: nothing is shown")
	}
	records(t, "after the first start")
	allCalled(t)
	records(t, "after all calls")
	sh(t, "sync")
}

// At the next boot, Thole starts before any container runs, and refuses nothing, too. The built-in policy is enforced
// when somebody says so.
func TestAfterFirstStart(t *testing.T) {
	allCalled(t)
	records(t, "after a boot")
	if began, docker := sh(t, "systemctl show -P ActiveEnterTimestampMonotonic thole"),
		sh(t, "systemctl show -P ExecMainStartTimestampMonotonic docker"); len(began) > len(docker) ||
		len(began) == len(docker) && began > docker {
		t.Errorf("thole was ready at %s, after Docker began at %s", began, docker)
	}
	sh(t, "thole apply --default")
	until(t, "the built-in policy to be enforced", func() bool { return echo("127.0.0.1:8102") != nil })
	if err := echo("127.0.0.1:8101"); err != nil {
		t.Errorf("a container with Traefik's labels alone: %v", err)
	}
}
