//go:build vm

package vm

import (
	"os"
	"strings"
	"testing"

	"thole/policies"
)

// earlier is the program of an earlier commit (internal/nstest/baseline), which test.sh builds.
const earlier = "/usr/local/lib/thole-earlier"

// earlierDaemon runs the daemon of the earlier program instead of the service, with one more document, until the
// returned function ends it.
func earlierDaemon(t *testing.T, document string) (stop func()) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"same-labels.yaml": string(policies.Default), "more.yaml": document} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	sh(t, "systemctl stop thole; nft delete table inet thole 2>/dev/null || true")
	t.Cleanup(func() { try("systemctl start thole") })
	socket := dir + "/sock"
	daemon := start(t, earlier, "daemon", "--policies", dir, "--state", dir+"/state", "--socket", socket)
	until(t, "the earlier program to enforce", func() bool {
		out, _ := try(earlier + " get workloads --socket " + socket)
		return strings.Contains(out, "rpcbind")
	})
	return func() {
		end(daemon)
		sh(t, "nft delete table inet thole")
	}
}

// A client without labels calls a service that systemd's socket unit starts, and that a document labels as a unit. The
// listener stays in the cgroup of the socket unit: the earlier program left it open.
func TestSocketOfAService(t *testing.T) {
	const document = `
apiVersion: thole/v1
kind: Workload
metadata: {name: rpcbind, labels: {app: rpcbind}}
spec: {unit: rpcbind.service}
`
	const address = "127.0.0.1:111"
	activated := func() {
		t.Helper()
		sh(t, "systemctl stop rpcbind.service rpcbind.socket; systemctl start rpcbind.socket && "+
			"systemctl start rpcbind.service")
	}
	t.Cleanup(func() { try("systemctl stop rpcbind.service rpcbind.socket") })
	activated()
	stop := earlierDaemon(t, document)
	if !connects(t, "", address) {
		t.Error("the attack does not succeed with the earlier program: it shows nothing")
	}
	stop()
	running(t)
	documents(t, document)
	activated()
	until(t, "the socket unit to be labelled", func() bool {
		return workload(t, "rpcbind:system.slice/rpcbind.socket").ID != 0
	})
	if connects(t, "", address) {
		t.Error("a client without labels reaches the service")
	}
	if !connects(t, "app=rpcbind", address) {
		t.Error("equal labels do not reach it")
	}
}
