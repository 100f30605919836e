package e2e

import (
	"encoding/json"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// hasTable reports whether Thole's table is loaded.
func (m *machine) hasTable() bool { return strings.Contains(m.NftList(), "table inet thole") }

// After cleanup the table stays away: the daemon that runs does not load it, nor does one that starts after a crash or
// in good order, until "thole arm". (internal/vm has the reboot.)
func TestCleanupDisarms(t *testing.T) {
	withBoth(t, func(t *testing.T, m *machine, old bool) {
		m.start()
		m.labelledProbe("web", "app=web").Listen("tcp", "127.0.0.1:80")
		free := probe.Start(m.In("elsewhere"), "free")
		denied(t, "before", free.TCP("127.0.0.1:80"))
		m.Shell(m.thole + " cleanup --force")
		if old {
			nstest.WaitFor(t, 10*time.Second, "the daemon to load the table again", m.hasTable)
			return
		}
		m.staysDisarmed(free, "beside the daemon")
		for _, end := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			must(t, m.daemon.Signal(end))
			_ = m.daemon.Wait() // it was killed
			m.startDisarmed()
			m.staysDisarmed(free, "after "+end.String())
		}

		if out := m.Shell(m.thole + " arm"); !strings.Contains(out, "armed: 1 policy, 1 workload") {
			t.Errorf("arm says %q", out)
		}
		denied(t, "armed again", free.TCP("127.0.0.1:80"))
		same := m.labelledProbe("same", "app=web")
		allowed(t, "equal labels, armed again", same.TCP("127.0.0.1:80"))
		if code, out := m.exitStatus("", "status"); code != 0 {
			t.Errorf("armed again, thole status exits %d: %s", code, out)
		}
	})
}

// startDisarmed starts a daemon that enforces nothing, and waits until it answers.
func (m *machine) startDisarmed() {
	m.t.Helper()
	m.daemon = m.In("daemon").Start(m.thole, "daemon", "--state", "/run/state")
	nstest.WaitFor(m.t, 10*time.Second, "the disarmed daemon", func() bool {
		_, out := m.exitStatus("", "status", "-o", "json")
		var s api.Status
		return json.Unmarshal([]byte(out), &s) == nil && s.Disarmed != nil
	})
}

// staysDisarmed checks all that holds while Thole is disarmed, also after what makes a daemon look at its table.
func (m *machine) staysDisarmed(free *probe.Process, when string) {
	m.t.Helper()
	// The daemon looks at each of its own writes, at others', and once a second in any case.
	must(m.t, m.Nft("add table inet other; delete table inet other"))
	must(m.t, m.daemon.Signal(syscall.SIGHUP))
	code, out := m.exitStatus("", "status")
	if code != 1 || !strings.Contains(out, "disarmed since") || !strings.Contains(out, "thole arm") {
		m.t.Errorf("%s, thole status exits %d: %s", when, code, out)
	}
	code, out = m.exitStatus(policyFrom("web"), "apply", "-f", "-")
	if code != 1 || !strings.Contains(out, "stored: 1 policy") || !strings.Contains(out, "nothing is enforced") {
		m.t.Errorf("%s, thole apply exits %d: %s", when, code, out)
	}
	if code, out = m.exitStatus("", "run", "-l", "app=web", "--", "true"); code == 0 ||
		!strings.Contains(out, "disarmed") {
		m.t.Errorf("%s, thole run exits %d: %s", when, code, out)
	}
	code, out = m.exitStatus(sameLabelsAgain, "apply", "-f", "-")
	if code != 1 {
		m.t.Errorf("%s, thole apply exits %d: %s", when, code, out)
	}
	if m.hasTable() {
		m.t.Errorf("%s, the table is loaded", when)
	}
	allowed(m.t, when, free.TCP("127.0.0.1:80"))
}

// sameLabelsAgain is a policy as the built-in default.
const sameLabelsAgain = `
apiVersion: thole/v1
kind: Policy
metadata: {name: same}
spec: {selector: {}, ingress: [{from: [{sameLabels: all}]}]}
`

// Cleanup without a daemon disarms the next one, and a daemon that did not answer then.
func TestCleanupWithoutDaemon(t *testing.T) {
	m := newMachine(t)
	m.labelledProbe("web", "app=web").Listen("tcp", "127.0.0.1:80")
	free := probe.Start(m.In("elsewhere"), "free")
	must(t, m.daemon.Kill())
	_ = m.daemon.Wait() // it was killed
	out := m.Shell(m.thole + " cleanup --state /run/state")
	if !strings.Contains(out, "thole arm") {
		t.Errorf("cleanup says %q", out)
	}
	m.startDisarmed()
	m.staysDisarmed(free, "started after cleanup")

	// A daemon whose socket is not the one that cleanup asks finds the file.
	m.Shell(m.thole + " arm")
	denied(t, "armed", free.TCP("127.0.0.1:80"))
	m.Shell(m.thole + " cleanup --state /run/state --socket /run/nobody.sock")
	nstest.WaitFor(t, 10*time.Second, "the daemon to find that it is disarmed", func() bool {
		code, out := m.exitStatus("", "status")
		return code == 1 && strings.Contains(out, "disarmed since") && !m.hasTable()
	})
	m.Shell(m.thole + " arm --state /run/state --socket /run/nobody.sock")
	nstest.WaitFor(t, 10*time.Second, "the daemon to find that it is armed", func() bool {
		return !free.TCP("127.0.0.1:80").Allowed()
	})
}

// Without a daemon, cleanup and arm use the state directory that the last daemon had, and status says disarmed.
func TestCleanupFindsTheStateDirectory(t *testing.T) {
	m := newMachine(t)
	must(t, m.daemon.Kill())
	_ = m.daemon.Wait() // it was killed
	if out := m.Shell(m.thole + " cleanup"); !strings.Contains(out, "/run/state") {
		t.Errorf("cleanup says %q", out)
	}
	if code, out := m.exitStatus("", "status"); code != 1 || !strings.Contains(out, "disarmed") {
		t.Errorf("status without a daemon: exit status %d: %s", code, out)
	}
	m.startDisarmed()
	must(t, m.daemon.Kill())
	_ = m.daemon.Wait() // it was killed
	m.Shell(m.thole + " arm")
	m.start()
}

// A full disk does not keep anybody from turning Thole off.
func TestCleanupWithFullDisk(t *testing.T) {
	m := bareMachine(t)
	m.Shell("mkdir /run/state && mount -t tmpfs -o size=256k none /run/state")
	m.start()
	m.Shell("dd if=/dev/zero of=/run/state/fill bs=4k 2>/dev/null || true")
	m.Shell(m.thole + " cleanup")
	if m.hasTable() {
		t.Error("the table is loaded")
	}
	must(t, m.daemon.Kill())
	_ = m.daemon.Wait() // it was killed
	m.startDisarmed()
}

// An apply without a daemon stores the set while Thole is disarmed, and loads nothing.
func TestApplyOnceWhileDisarmed(t *testing.T) {
	m := bareMachine(t)
	m.Shell(m.thole + " cleanup --state /run/state")
	code, out := m.exitStatus(policyFrom("web"), "apply", "--state", "/run/state", "-f", "-")
	if code != 1 || !strings.Contains(out, "stored: 1 policy") || m.hasTable() {
		t.Errorf("exit status %d, table %v: %s", code, m.hasTable(), out)
	}
	m.Shell(m.thole + " arm --state /run/state")
	m.start()
	m.until("the stored set", func(s api.Status) bool { return s.Source == api.SourceApplied && s.Policies == 1 })
}
