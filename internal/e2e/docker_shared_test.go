package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

const sharedPolicies = `
apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress:
  - {from: [{workloads: {matchLabels: {app: web}}}], ports: [5432/tcp]}
  - {from: [{workloads: {matchExpressions: [{key: app, operator: In, values: [web, logs]}]}}], ports: [514/tcp]}
  - {from: [{workloads: {matchLabels: {app: web}}}, {unlabelled: true}], ports: [53/tcp]}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: logs}
spec:
  selector: {matchLabels: {app: logs}}
  ingress: [{from: [{workloads: {matchLabels: {app: db}}}], ports: [80/tcp]}]
`

// TestContainersThatShareANetwork: "docker run --network container:web". Whatever one of them may not do, no other may
// do with the addresses of all.
func TestContainersThatShareANetwork(t *testing.T) {
	m, e := newDockerMachine(t)
	must(t, m.apply(sharedPolicies))
	image := e.Image("box", nil)
	db := m.labelledProbe("db", "app=db")
	for _, port := range []uint16{5432, 514, 53} {
		db.Listen("tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port).String())
	}
	web := e.Probe("web", "-l", "app=web", image)
	web.Listen("tcp", "0.0.0.0:80")
	web.Listen("tcp", "0.0.0.0:81")
	n := &sharedNetwork{machine: m, t: t, db: db, web: web}
	n.expect("web alone", "5432 514 53 80 81")
	n.wantNotice()

	t.Run("a sidecar with other labels", func(t *testing.T) {
		n.t, n.from = t, e.Probe("logs", "-l", "app=logs", "--network=container:web", image)
		n.expect("web and logs", "514 80")
		n.wantNotice("web (app=web)", "logs (app=logs)")
		n.reset()
		n.expect("web, while logs is there", "514 80")
	})
	t.Run("it is restarted", func(t *testing.T) {
		n.t = t
		e.Docker("restart", "-t", "0", "logs")
		e.ProbeAgain("logs")
		n.expect("web, and logs again", "514 80")
	})
	t.Run("it leaves", func(t *testing.T) {
		n.t = t
		e.Docker("rm", "-f", "logs")
		n.until("web alone again", "5432 514 53 80 81")
		n.wantNotice()
	})
	t.Run("a sidecar without labels", func(t *testing.T) {
		n.t, n.from = t, e.Probe("debug", "--network=container:web", image)
		n.expect("web and debug", "53 80 81")
		n.wantNotice("web (app=web)", "debug (no labels that count)")
		n.reset()
	})
	t.Run("the owner is restarted", func(t *testing.T) {
		n.t = t
		e.Docker("restart", "-t", "0", "web")
		n.web = e.ProbeAgain("web")
		n.web.Listen("tcp", "0.0.0.0:80")
		n.web.Listen("tcp", "0.0.0.0:81")
		n.reset()
		n.until("web has another network than debug", "5432 514 53 80 81")
		n.wantNotice()
	})
	t.Run("the same labels", func(t *testing.T) {
		n.t, n.from = t, e.Probe("web2", "-l", "app=web", "--network=container:web", image)
		n.expect("web and web2", "5432 514 53 80 81")
		n.wantNotice()
		n.reset()
	})
}

// A sharedNetwork is the network of the container web.
type sharedNetwork struct {
	*machine
	t       *testing.T
	db, web *probe.Process
	from    *probe.Process // the container that sends; nil: web
}

func (n *sharedNetwork) reset() { n.from = nil }

// reached returns the ports of db that the network reaches, and those of the network that db reaches.
func (n *sharedNetwork) reached() string {
	from := n.from
	if from == nil {
		from = n.web
	}
	var ports []string
	for _, port := range []string{"5432", "514", "53"} {
		if from.TCP("172.17.0.1:" + port).Allowed() {
			ports = append(ports, port)
		}
	}
	for _, port := range []string{"80", "81"} {
		if n.db.TCP(n.address() + ":" + port).Allowed() {
			ports = append(ports, port)
		}
	}
	return strings.Join(ports, " ")
}

// address is that of web, as soon as it is known.
func (n *sharedNetwork) address() (address string) {
	nstest.WaitFor(n.machine.t, 20*time.Second, "the address of web", func() bool {
		for _, network := range n.workloads("container")["web"].Networks {
			address = strings.Fields(network)[2]
		}
		return address != ""
	})
	return address
}

// expect wants it now.
func (n *sharedNetwork) expect(what, want string) {
	n.t.Helper()
	n.address()
	if got := n.reached(); got != want {
		n.t.Errorf("%s: connections to %q, want %q", what, got, want)
	}
}

// until waits for it: that a container ended, or was inspected, is known a little later.
func (n *sharedNetwork) until(what, want string) {
	n.t.Helper()
	nstest.WaitFor(n.t, 20*time.Second, what, func() bool { return n.reached() == want })
}

// wantNotice wants a notice with these parts, or none.
func (n *sharedNetwork) wantNotice(parts ...string) {
	n.t.Helper()
	var s api.Status
	n.ask(&s, "status")
	found := ""
	for _, c := range s.Notices {
		if c.Code == "network-shared" {
			found += c.String() + "\n"
		}
	}
	if (found != "") != (len(parts) > 0) {
		n.t.Errorf("notices about shared networks: %q, want %q", found, parts)
	}
	for _, part := range parts {
		if !strings.Contains(found, part) {
			n.t.Errorf("notice %q does not name %q", found, part)
		}
	}
}
