//go:build vm

package vm

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"thole/internal/condition"
)

// notice waits until thole status has a notice about a cgroup or a document, and returns its text.
func notice(t *testing.T, code condition.Code, where string) (text string) {
	t.Helper()
	until(t, string(code)+" about "+where, func() bool {
		s := status(t)
		all := slices.Concat(s.Notices, s.Problems)
		i := slices.IndexFunc(all, func(c condition.Condition) bool {
			return c.Code == code && strings.Contains(c.Where, where)
		})
		if i >= 0 {
			text = all[i].Text
		}
		return i >= 0
	})
	return text
}

// pidOf waits for a process with this command line, and returns its number.
func pidOf(t *testing.T, command string) (pid string) {
	t.Helper()
	until(t, command, func() bool {
		out, _ := try("pgrep -fx '" + command + "'")
		pid = strings.TrimSpace(out)
		return pid != "" && !strings.Contains(pid, "\n")
	})
	return pid
}

// What opens a session by PAM leaves the scope of thole run, and so does what systemd is asked to attach elsewhere. The
// status says so.
func TestMovedCommands(t *testing.T) {
	running(t)
	for name, command := range map[string]string{
		"su":        "su alice -c 'exec sleep 1001'",
		"su-l":      "su -l alice -c 'exec sleep 1001'",
		"runuser-l": "runuser -l alice -c 'exec sleep 1001'",
		"sudo-i":    "sudo -i -u alice sh -c 'exec sleep 1001'",
	} {
		p := start(t, labelled("app=web", name, "sh", "-c", "exec "+command)...)
		text := notice(t, condition.RunMoved, "thole.slice/thole-"+name+".scope")
		if !strings.Contains(text, "into the cgroup user.slice/user-") || !strings.Contains(text, "app=web") {
			t.Errorf("%s: %s", command, text)
		}
		pid := pidOf(t, "sleep 1001")
		if in := sh(t, "cat /proc/"+pid+"/cgroup"); !strings.HasPrefix(in, "0::/user.slice/") {
			t.Errorf("%s starts a program in %s", command, in)
		}
		sh(t, "kill "+pid)
		_ = p.Wait()
	}
	// These do not open a session of their own.
	for _, command := range []string{"runuser -u alice --", "setpriv --reuid=1000 --clear-groups"} {
		out := sh(t, "thole run -l app=web -- "+command+" cat /proc/self/cgroup")
		if !strings.HasPrefix(out, "0::/thole.slice/") {
			t.Errorf("%s starts a program in %s", command, out)
		}
	}
	sh(t, "systemd-run -q --unit=box -p Delegate=yes sleep infinity")
	t.Cleanup(func() { try("systemctl stop box") })
	p := start(t, labelled("app=web", "attached", "sleep", "1002")...)
	pidOf(t, "sleep 1002")
	sh(t, "busctl --no-pager call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager "+
		`AttachProcessesToUnit ssau box.service "" 1 `+fmt.Sprint(p.Process.Pid))
	if text := notice(t, condition.RunMoved, "thole.slice/thole-attached.scope"); !strings.Contains(text,
		"system.slice/box.service") {
		t.Error(text)
	}
}

func TestKillOnMove(t *testing.T) {
	running(t)
	for name, command := range map[string][]string{
		"su-l":   {"su", "-l", "alice", "-c", "exec sleep 1003"},
		"sudo-i": {"sudo", "-i", "-u", "alice", "sh", "-c", "exec sleep 1003"},
	} {
		run := append([]string{"run", "--kill-on-move", "-l", "app=web", "--name", "kept-" + name, "--"}, command...)
		out, err := exec.Command("thole", run...).CombinedOutput()
		if err == nil || err.Error() != "signal: killed" {
			t.Errorf("%s: %v: %s", name, err, out)
		}
		notice(t, condition.RunMoved, "thole.slice/thole-kept-"+name+".scope")
	}
	until(t, "no process to be left", func() bool { _, err := try("pgrep -fx 'sleep 1003'"); return err != nil })
}

// unit writes a unit file, and removes it when the test has ended.
func unit(t *testing.T, name, text string) {
	t.Helper()
	file := "/etc/systemd/system/" + name
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl daemon-reload")
	t.Cleanup(func() { try("systemctl stop '" + strings.Replace(name, "@.", "@*.", 1) + "'; rm " + file) })
}

// The process of a unit cannot leave it by thole run.
func TestRunInAUnit(t *testing.T) {
	running(t)
	unit(t, "leaver.service", "[Service]\nMemoryMax=50M\nExecStart=/usr/local/bin/thole run -l app=web -- sleep 1004\n")
	sh(t, "systemctl start leaver")
	until(t, "the unit to fail", func() bool {
		return sh(t, "systemctl show -P Result leaver") == "exit-code"
	})
	log := sh(t, "journalctl -u leaver --no-pager -o cat")
	if !strings.Contains(log, "Workload document: spec: {unit: leaver.service}") {
		t.Errorf("the unit says: %s", log)
	}
	if out, err := try("pgrep -fx 'sleep 1004'"); err == nil {
		t.Errorf("the command runs as process %s", out)
	}
	// A shell in a session of the unit's kind inherits the variable, and is another process.
	sh(t, "SYSTEMD_EXEC_PID=1 thole run -l app=web -- true")
}

const unitDocuments = `
apiVersion: thole/v1
kind: Workload
metadata: {name: rpcbind, labels: {app: rpcbind}}
spec: {unit: rpcbind.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: workers, labels: {app: worker}}
spec: {unit: worker@*.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: nfs, labels: {app: nfs-server}}
spec: {unit: nfs-server.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: misspelt, labels: {app: misspelt}}
spec: {unit: ngnix.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: alias, labels: {app: alias}}
spec: {unit: httpd.service}
`

// documents has the daemon follow more documents until the test ends.
func documents(t *testing.T, text string) {
	t.Helper()
	file := policy + "more.yaml"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	sh(t, "systemctl reload thole")
	t.Cleanup(func() { try("rm " + file + "; systemctl reload thole") })
}

// A unit of a document has the labels also on the sockets on which systemd listens for it, before it was ever started.
// If a person names a unit that nothing can cover, that is a problem.
func TestUnits(t *testing.T) {
	running(t)
	unit(t, "worker@.service", "[Service]\nExecStart="+self+" serve 127.0.0.1:%i\n")
	sh(t, "ln -s /lib/systemd/system/nginx.service /etc/systemd/system/httpd.service && systemctl daemon-reload")
	t.Cleanup(func() { try("rm /etc/systemd/system/httpd.service; systemctl daemon-reload") })
	documents(t, unitDocuments)
	t.Run("socket activation", socketActivation)
	t.Run("templates", templates)
	for where, want := range map[condition.Code]string{
		condition.UnitNotCovered: "nfs-server.service", condition.UnitAbsent: "ngnix.service",
	} {
		if text := notice(t, where, "more.yaml"); text == "" {
			t.Errorf("%s: no condition about %s", where, want)
		}
	}
	all := sh(t, "thole status || true")
	for _, want := range []string{
		`workload "nfs": the processes of nfs-server.service end when it has started`,
		`workload "misspelt": there is no unit ngnix.service`,
		`workload "alias": httpd.service is another name of the unit nginx.service`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the status lacks %q:\n%s", want, all)
		}
	}
}

func socketActivation(t *testing.T) {
	sh(t, "systemctl stop rpcbind.service rpcbind.socket; systemctl start rpcbind.socket")
	t.Cleanup(func() { try("systemctl stop rpcbind.service rpcbind.socket") })
	socket := "rpcbind:system.slice/rpcbind.socket"
	until(t, "the socket unit to be labelled", func() bool { return workload(t, socket).ID != 0 })
	others := func(when string, labels ...string) {
		t.Helper()
		for _, labels := range append(labels, "") {
			if connects(t, labels, "127.0.0.1:111") {
				t.Errorf("%s, %q reaches it", when, labels)
			}
		}
	}
	others("before rpcbind was started", "app=web")
	if out := sh(t, "systemctl is-active rpcbind.service || true"); out != "inactive" {
		t.Errorf("a refused connection started rpcbind: %s", out)
	}
	if !connects(t, "app=rpcbind", "127.0.0.1:111") {
		t.Error("equal labels do not reach it")
	}
	until(t, "rpcbind to be started", func() bool { return workload(t, "rpcbind").ID != 0 })
	others("with rpcbind started", "app=web")

	// Without systemd's answer the labels stay, and the status says what may lack.
	sh(t, "mv /run/systemd/private /run/systemd/away")
	defer try("mv /run/systemd/away /run/systemd/private")
	pid := status(t).PID
	sh(t, fmt.Sprintf("kill -9 %d", pid))
	until(t, "systemd to start the daemon again", func() bool {
		out, _ := exec.Command("thole", "status", "-o", "json").Output()
		return len(out) > 0 && status(t).PID != pid
	})
	notice(t, condition.UnitsUnknown, "")
	others("without systemd's answer") // thole run starts nothing meanwhile
	sh(t, "mv /run/systemd/away /run/systemd/private")
	until(t, "the answer", func() bool {
		return !slices.ContainsFunc(status(t).Problems, func(c condition.Condition) bool {
			return c.Code == condition.UnitsUnknown
		})
	})
	others("with systemd's answer again", "app=web")
}

func templates(t *testing.T) {
	sh(t, "systemctl start worker@8101 worker@8102")
	for _, port := range []string{"8101", "8102"} {
		name := "workers:system.slice/system-worker.slice/worker@" + port + ".service"
		until(t, name, func() bool { return workload(t, name).ID != 0 })
		if connects(t, "", "127.0.0.1:"+port) || !connects(t, "app=worker", "127.0.0.1:"+port) {
			t.Errorf("port %s: others reach it, or equal labels do not", port)
		}
	}
}
