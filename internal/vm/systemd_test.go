//go:build vm

package vm

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"thole/internal/condition"
	"thole/internal/nstest"
)

// The daemon as a service: it is ready when the table is loaded, it reads policies again, and it leaves the table.
func TestService(t *testing.T) {
	out := sh(t, "systemctl start thole && systemctl is-active thole && nft list table inet thole | head -n 3")
	if !strings.Contains(out, "table inet thole") {
		t.Fatalf("the service is started, and this is loaded: %s", out)
	}
	doctor, err := try("thole doctor")
	t.Log(doctor)
	if err != nil {
		t.Errorf("thole doctor: %v", err)
	}
	out, _ = try("systemd-analyze --no-pager --man=no verify /usr/local/lib/systemd/system/thole.service " +
		"/usr/local/lib/systemd/system/*.slice")
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "notify-reload") { // systemd 252 says that it does not know it
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	t.Log(sh(t, "systemd-analyze --no-pager security thole.service | tail -n 1"))

	before := len(status(t).Problems)
	sh(t, "mv "+policy+"same-labels.yaml /tmp/ && cp /tmp/same-labels.yaml "+policy+
		"other.yaml && systemctl reload thole")
	until(t, "the service to have read its policies again", func() bool {
		out, _ := try("journalctl -u thole --no-pager -o cat")
		return strings.Count(out, "policy set") > 1 &&
			strings.TrimSpace(sh(t, "systemctl is-active thole || true")) == "active"
	})
	if s := status(t); !s.Enforcing || len(s.Problems) != before {
		t.Errorf("after a reload: %+v", s)
	}
	sh(t, "mv /tmp/same-labels.yaml "+policy+" && rm "+policy+"other.yaml")

	pid := status(t).PID
	sh(t, "systemctl restart thole")
	if now := status(t).PID; now == pid {
		t.Error("it was not restarted")
	}
	sh(t, "kill -9 $(systemctl show -P MainPID thole)")
	until(t, "systemd to start it again", func() bool { _, err := try("thole status"); return err == nil })
	sh(t, "systemctl stop thole && nft list table inet thole >/dev/null")
	if out := sh(t, "systemctl show -P Result thole"); out != "success" {
		t.Errorf("stopped: %s", out)
	}
	// The way out leaves systemd as able to make scopes as before.
	sh(t, "thole cleanup && ! nft list table inet thole 2>/dev/null && systemctl start thole && thole arm")
	sh(t, "thole run -l app=web -- grep -q thole.slice /proc/self/cgroup")
}

// What thole run starts is a transient scope that belongs to root.
func TestScopes(t *testing.T) {
	running(t)
	server := start(t, labelled("app=web", "server", self, "serve", "127.0.0.1:8001")...)
	listens(t, 8001)
	for labels, want := range map[string]bool{"app=web": true, "app=db": false, "": false} {
		if got := connects(t, labels, "127.0.0.1:8001"); got != want {
			t.Errorf("%q connects: %v, want %v", labels, got, want)
		}
	}
	if out := sh(t, "cat /proc/"+fmt.Sprint(server.Process.Pid)+
		"/cgroup"); out != "0::/thole.slice/thole-server.scope" {
		t.Errorf("the server is in %s", out)
	}
	procs := sh(t, "cat "+cgroup("thole.slice/thole-server.scope/cgroup.procs"))
	if procs != fmt.Sprint(server.Process.Pid) {
		t.Errorf("in its scope are %q, want %d alone", procs, server.Process.Pid)
	}
	for property, want := range map[string]string{
		"Slice": "thole.slice", "User": "", "Delegate": "no", "ActiveState": "active", "Transient": "yes",
		"CollectMode": "inactive-or-failed", "ControlGroup": "/thole.slice/thole-server.scope",
	} {
		if got := sh(t, "systemctl show -P "+property+" thole-server.scope"); got != want {
			t.Errorf("%s=%s, want %s", property, got, want)
		}
	}
	if out := sh(t, "find "+cgroup("thole.slice")+" ! -uid 0"); out != "" {
		t.Errorf("these do not belong to root: %s", out)
	}
	if out, err := try("thole run -l app=web --name server -- true"); err == nil ||
		!strings.Contains(out, "runs already") {
		t.Errorf("a second one of the name: %v: %s", err, out)
	}
	// Names of other units are not taken.
	named := sh(t, "thole run -l app=web --name session-1 -- cat /proc/self/cgroup")
	if named != "0::/thole.slice/thole-session-1.scope" {
		t.Errorf("a run named session-1 is in %s", named)
	}

	slice, known := inode(t, "thole.slice"), workload(t, "server")
	sh(t, "systemctl daemon-reload && systemctl restart thole")
	if now := workload(t, "server"); now.ID != known.ID || now.Class == 0 {
		t.Errorf("after a restart of the daemon: %+v, before: %+v", now, known)
	}
	if !connects(t, "app=web", "127.0.0.1:8001") || connects(t, "app=db", "127.0.0.1:8001") {
		t.Error("after a restart of the daemon it decides otherwise")
	}

	end(server)
	var left string
	defer func() { t.Logf("left of the scopes: %q", left) }()
	until(t, "the scopes to vanish", func() bool {
		left, _ = try("systemctl list-units --all --no-legend 'thole-*.scope'; ls -d " + cgroup("thole.slice/*.scope") +
			" 2>/dev/null")
		return left == "" && workload(t, "server").ID == 0 && status(t).Runs == 0
	})
	s := status(t)
	about := func(p condition.Condition) bool { return strings.HasPrefix(p.Where, "thole.slice") }
	if slices.ContainsFunc(s.Problems, about) {
		t.Errorf("after the last run: %+v", s)
	}
	if now := inode(t, "thole.slice"); now != slice {
		t.Errorf("thole.slice is another one: %s, was %s", now, slice)
	}
}

// A user may start what is granted, and can neither join a scope nor leave it.
func TestScopesBelongToNobodyElse(t *testing.T) {
	running(t)
	if out, err := try("runuser -u alice -- thole run -l app=db -- true"); err == nil {
		t.Errorf("alice runs app=db: %s", out)
	}
	if out := sh(t, "ls "+cgroup("thole.slice")+" | grep scope || true"); out != "" {
		t.Errorf("after a refused run there are %s", out)
	}
	job := start(t, "runuser", "-u", "alice", "--", "thole", "run", "-l", "app=web", "--name", "alice", "--", "sleep",
		"infinity")
	t.Cleanup(func() { try("systemctl stop thole-alice.scope") })
	_ = job
	scope := cgroup("thole.slice/thole-alice.scope")
	var pid string
	until(t, "alice's scope", func() bool {
		out, _ := try("pgrep -u alice -x sleep")
		pid = strings.TrimSpace(out)
		in, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		return pid != "" && strings.Contains(string(in), "thole-alice.scope")
	})
	manager := "busctl --no-pager call org.freedesktop.systemd1 /org/freedesktop/systemd1 " +
		"org.freedesktop.systemd1.Manager "
	for _, attempt := range []string{
		"echo $$ >" + scope + "/cgroup.procs",
		"mkdir " + scope + "/inner",
		"mkdir " + cgroup("thole.slice/thole-evil.scope"),
		"echo " + pid + " >" + cgroup("cgroup.procs"),
		"echo " + pid + " >" + cgroup("user.slice/cgroup.procs"),
		manager + "AttachProcessesToUnit ssau thole-alice.scope / 1 $$",
		manager + "AttachProcessesToUnit ssau thole-alice.scope / 1 " + pid,
		manager + "StopUnit ss thole.slice replace",
		manager + `StartTransientUnit 'ssa(sv)a(sa(sv))' thole-evil.scope fail 2 Slice s thole.slice PIDs au 1 $$ 0`,
		"systemd-run --user --scope --slice=thole.slice -- cat /proc/self/cgroup | grep ^0::/thole.slice",
	} {
		if out, err := try("runuser -u alice -- sh -c '" + strings.ReplaceAll(attempt, "'", `'\''`) + "'"); err == nil {
			t.Errorf("alice may: %s: %s", attempt, out)
		}
	}
	// Not even root's systemd moves processes into a scope without Delegate=.
	if out, err := try(manager + "AttachProcessesToUnit ssau thole-alice.scope / 1 " +
		fmt.Sprint(os.Getpid())); err == nil {
		t.Errorf("systemd attached a process: %s", out)
	}
	if out := sh(t, "cat "+scope+"/cgroup.procs"); out != pid {
		t.Errorf("in the scope are %q, want %s alone", out, pid)
	}
}

// A unit is a workload as long as a policy file says so, also when it is started again.
func TestUnit(t *testing.T) {
	running(t)
	t.Cleanup(func() { try("systemctl stop nginx") })
	for range 2 {
		sh(t, "systemctl restart nginx")
		until(t, "nginx to be labelled", func() bool {
			return workload(t, "nginx").Cgroup == "system.slice/nginx.service"
		})
		if connects(t, "", "127.0.0.1:80") || connects(t, "app=web", "127.0.0.1:80") {
			t.Error("others reach nginx")
		}
		code := sh(t, "thole run -l app=nginx curl -- -sS -o /dev/null -w '%{http_code}' http://127.0.0.1")
		if code != "200" {
			t.Errorf("curl with nginx's labels: %s", code)
		}
	}
}

// All that a user runs is one workload: sessions, and the units of the user's own service manager.
func TestUser(t *testing.T) {
	running(t)
	sh(t, "loginctl enable-linger alice && loginctl enable-linger bob")
	t.Cleanup(func() { try("loginctl disable-linger alice; loginctl disable-linger bob") })
	as := func(user string) string {
		uid := sh(t, "id -u "+user)
		return "runuser -u " + user + " -- env XDG_RUNTIME_DIR=/run/user/" + uid + " systemd-run -q --user "
	}
	for _, user := range []string{"alice", "bob"} {
		until(t, "the service manager of "+user, func() bool {
			_, err := try(as(user) + "true")
			return err == nil
		})
	}
	until(t, "alice to be labelled", func() bool { return workload(t, "alice").Cgroup == "user.slice/user-1000.slice" })
	sh(t, as("alice")+"--unit=server "+self+" serve 127.0.0.1:8003")
	listens(t, 8003)
	pid := sh(t, "pgrep -u alice -f 'serve 127.0.0.1:8003'")
	if in := sh(t, "cat /proc/"+pid+"/cgroup"); !strings.HasPrefix(in,
		"0::/user.slice/user-1000.slice/user@1000.service/") {
		t.Errorf("alice's server is in %s", in)
	}
	if connects(t, "", "127.0.0.1:8003") || connects(t, "app=web", "127.0.0.1:8003") {
		t.Error("others reach alice's server")
	}
	for user, want := range map[string]string{"alice": "connected", "bob": "refused"} {
		file := "/tmp/dialled-" + user
		sh(t, as(user)+"sh -c '"+self+" dial 127.0.0.1:8003 >"+file+" 2>&1'")
		until(t, user+"'s call", func() bool { return lines(file) > 0 })
		if out := sh(t, "cat "+file); !strings.Contains(out, want) {
			t.Errorf("%s: %s, want %s", user, out, want)
		}
	}
}

const receiverUnit = `[Unit]
Before=docker.service
[Service]
ExecStart=` + self + ` record 127.0.0.1:%[1]s /var/lib/received-%[1]s
[Install]
WantedBy=multi-user.target
`

// TestBoot is the last test of the first boot. It prepares what TestAfterBoot looks at: a container that starts with
// the machine and sends by its first instructions, before Docker answers who it is.
func TestBoot(t *testing.T) {
	running(t)
	sh(t, "systemctl enable --now docker.slice")
	docker(t, `{"cgroup-parent": "docker.slice"}`)
	for name, port := range map[string]string{"db": "4001", "web": "4002"} {
		unit := fmt.Sprintf(receiverUnit, port)
		if err := os.WriteFile("/etc/systemd/system/"+name+"-receiver.service", []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		sh(t, "systemctl daemon-reload && systemctl enable --now "+name+"-receiver")
		until(t, "the receiver to be known", func() bool { return workload(t, name+"-receiver").ID != 0 })
	}
	sh(t, "docker run -d --restart=always --name boot --net=host -l app=web "+image+" "+sender)
	until(t, "the container's datagrams", func() bool { return lines("/var/lib/received-4002") > 0 })
	if n := lines("/var/lib/received-4001"); n != 0 {
		t.Errorf("%d forbidden datagrams arrived", n)
	}
	sh(t, "systemctl enable thole docker && systemctl stop db-receiver web-receiver && rm /var/lib/received-* && sync")
}

func TestAfterBoot(t *testing.T) {
	nstest.WaitFor(t, 3*patience, "the machine to be up", func() bool {
		out, _ := try("systemctl is-active docker thole")
		return strings.TrimSpace(out) == "active\nactive"
	})
	until(t, "the container to have run again", func() bool {
		out, _ := try("docker inspect -f '{{.RestartCount}}' boot")
		n, _ := strconv.Atoi(strings.TrimSpace(out))
		return n > 1 && lines("/var/lib/received-4002") > 0
	})
	if n := lines("/var/lib/received-4001"); n != 0 {
		t.Errorf("%d forbidden datagrams arrived", n)
	}
	at := func(unit, property string) int {
		t.Helper()
		n, err := strconv.Atoi(sh(t, "systemctl show -P "+property+" "+unit))
		if err != nil || n == 0 {
			t.Errorf("%s of %s: %d, %v", property, unit, n, err)
		}
		return n
	}
	ready := at("thole", "ActiveEnterTimestampMonotonic")
	for unit, property := range map[string]string{
		"network-pre.target": "ActiveEnterTimestampMonotonic",
		"docker":             "ExecMainStartTimestampMonotonic",
		"containerd":         "ExecMainStartTimestampMonotonic",
	} {
		if began := at(unit, property); began < ready {
			t.Errorf("%s began %d µs after the kernel, thole was ready at %d", unit, began, ready)
		}
	}
	if parents := status(t); !parents.Enforcing {
		t.Errorf("%+v", parents)
	}
	if out, err := try("thole doctor"); err != nil {
		t.Errorf("doctor: %v\n%s", err, out)
	}
}

// TestAfterBootCleanup is the last test of the second boot: after thole cleanup no daemon loads the table, neither the
// one that runs, nor one that systemd starts. TestAfterCleanup goes on after the next boot.
func TestAfterBootCleanup(t *testing.T) {
	running(t)
	disarmed := func(when string) {
		t.Helper()
		var out string
		until(t, "the disarmed daemon, "+when, func() bool {
			var err error
			out, err = try("thole status")
			return err != nil && strings.Contains(out, "disarmed since")
		})
		if out, err := try("nft list table inet thole"); err == nil {
			t.Errorf("%s, the table is loaded: %s", when, out)
		}
	}
	t.Log(sh(t, "thole cleanup"))
	disarmed("after cleanup")
	sh(t, "systemctl reload thole")
	disarmed("after a reload")
	sh(t, "systemctl restart thole")
	disarmed("after a restart")
	pid := sh(t, "systemctl show -P MainPID thole")
	sh(t, "kill -9 "+pid)
	until(t, "systemd to start it again", func() bool {
		now, _ := try("systemctl show -P MainPID thole")
		return strings.TrimSpace(now) != pid && strings.TrimSpace(now) != "0"
	})
	disarmed("after kill -9")
	sh(t, "sync")
}

// TestAfterCleanup is the third boot: Thole is still disarmed, until thole arm.
func TestAfterCleanup(t *testing.T) {
	nstest.WaitFor(t, 3*patience, "the machine to be up", func() bool {
		out, _ := try("systemctl is-active docker thole")
		return strings.TrimSpace(out) == "active\nactive"
	})
	out, err := try("thole status")
	if err == nil || !strings.Contains(out, "disarmed since") {
		t.Errorf("after a reboot, thole status: %v: %s", err, out)
	}
	if out, err := try("nft list table inet thole"); err == nil {
		t.Errorf("after a reboot, the table is loaded: %s", out)
	}
	if out := sh(t, "thole arm"); !strings.HasPrefix(out, "armed:") {
		t.Errorf("thole arm: %s", out)
	}
	sh(t, "nft list table inet thole")
	if s := status(t); !s.Enforcing || s.Disarmed != nil {
		t.Errorf("after thole arm: %+v", s)
	}
}
