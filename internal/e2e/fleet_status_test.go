package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest/probe"
)

// status and doctor tell of peers, certificates, the queue, and why something was
// refused; apply keeps the fleet's chains also where no daemon runs.
func TestFleetStatus(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	web := a.labelledProbe("web", "app=web")
	b.labelledProbe("web", "app=web").Listen("tcp", "[::]:80")
	probe.Start(b.In("free"), "free").Listen("tcp", "[::]:81")
	conn := dial(t, web, "10.0.0.2:80")
	if !reached(a.labelledProbe("other", "app=other"), "10.0.0.2:81", handshakes) {
		t.Error("not connected to what has no labels")
	}
	f := a.status().Fleet
	if f == nil || f.Node != "node-a" || time.Until(f.Until) < 30*time.Minute || f.Error != "" || !f.Queue.Running ||
		f.Queue.Packets == 0 {
		t.Fatalf("fleet: %+v", f)
	}
	if f.Classes != 1 || f.MaxClasses != 16384 || f.Known["statements"] == 0 || f.Known["plain-places"] != 1 ||
		f.Refused["handshake/no-thole"] != 1 {
		t.Errorf("fleet: %+v", f)
	}
	if f := b.status().Fleet; f.Events["proven"] != 1 || f.Refused["handshake/not-wanted"] == 0 {
		t.Errorf("fleet of the server: %+v", f)
	}
	text := a.Shell(a.thole + " status")
	for _, want := range []string{"node node-a, certificate until ", "1 of 16384 classes", "1 places without Thole",
		"handshake/no-thole: 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("status lacks %q:\n%s", want, text)
		}
	}
	findings := a.Shell(a.thole + " doctor || true")
	for _, want := range []string{"of node node-a, valid until ", "packets to userspace", "certificate"} {
		if !strings.Contains(findings, want) {
			t.Errorf("doctor lacks %q:\n%s", want, findings)
		}
	}
	dryRun := func() {
		t.Helper()
		cmd := a.Command(a.thole, "apply", "--state", "/run/state", "-f", "-", "--dry-run")
		cmd.Stdin = strings.NewReader(cidrAndLabels)
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), "chain fleet_in") ||
			!strings.Contains(string(out), "10.0.0.0/23") {
			t.Errorf("dry run: %v: %s%s", err, out, stderrOf(err))
		}
	}
	dryRun()
	must(t, a.daemon.Kill())
	_ = a.daemon.Wait() // it was killed
	dryRun()
	cmd := a.Command(a.thole, "apply", "--state", "/run/state", "-f", "-")
	cmd.Stdin = strings.NewReader(cidrAndLabels)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apply without a daemon: %v: %s", err, out)
	}
	talk(t, conn)
	talk(t, conn)
	a.start(a.args...)
	talk(t, conn)
	if !reached(web, "10.0.0.2:80", handshakes) {
		t.Error("not connected after the daemon was started again")
	}
}

func stderrOf(err error) string {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return string(e.Stderr)
	}
	return ""
}
