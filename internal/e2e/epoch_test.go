package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

func (m *machine) status() (status api.Status) {
	out, _ := m.Command(m.thole, "status", "-o", "json").Output() // it fails where there is a problem to tell of
	_ = json.Unmarshal(out, &status)
	return status
}

// kill ends the daemon as the kernel would, without a word.
func (m *machine) kill() {
	m.t.Helper()
	m.daemon.Kill()
	m.daemon.Wait()
}

// Connections are allowed; then epochs come round, while they are idle, and in the very
// epoch in which they were allowed the policy forbids them. One that is allowed lives.
func TestEpochComesRound(t *testing.T) {
	m := newMachine(t)
	must(t, m.apply(policyFrom("web")+webClosed))
	web, db := m.labelledProbe("a", "app=web"), m.labelledProbe("b", "app=db") // numbered in this order, also anew
	l := db.Listen("tcp", "127.0.0.1:80", probe.Manual)
	allowed := m.labelledProbe("c", "app=other").Listen("tcp", "127.0.0.1:81", probe.Manual)
	revoked := dialed(t, web, l)
	lives := dialed(t, web, allowed)
	udp, push := web.OpenUDP("udp", "127.0.0.1:5000"), db.OpenUDP("udp", "127.0.0.1:5001")
	udp.Send("127.0.0.1:5001", "subscribe")
	push.Send("127.0.0.1:5000", "one")
	nstest.WaitFor(t, 5*time.Second, "the first datagram", func() bool { return udp.Got("one") })
	epoch := m.status().Epoch

	m.kill()
	m.Shell("nft delete table inet thole")
	m.Shell(`sed -i 's/"epoch":[0-9]*/"epoch":4093/g' /run/state/table.json`)
	m.start()
	if got := m.status().Epoch; got != 4094 {
		t.Fatalf("epoch %d; want the last one", got)
	}
	for n := range 8 {
		must(t, m.apply(policyFrom([]string{"dev", "other"}[n%2])+webClosed))
		if m.status().Epoch == epoch {
			break
		}
	}
	if got := m.status().Epoch; got != epoch {
		t.Fatalf("epoch %d; want %d again", got, epoch)
	}
	revoked.client.Send("secret")
	if data, o := revoked.server.Receive(0); data != "" {
		t.Errorf("on a connection of the same epoch, one round ago: %q, %s", data, o)
	}
	push.Send("127.0.0.1:5000", "two")
	m.Barrier()
	if udp.Got("two") {
		t.Error("on a flow of the same epoch, one round ago: an answer arrived")
	}
	lives.client.Send("still here")
	if data, o := lives.server.Receive(5 * time.Second); data != "still here" {
		t.Errorf("the allowed connection: %q, %s", data, o)
	}
}

// webClosed lets nobody call web, so that a datagram to it is an answer or nothing.
const webClosed = `
---
apiVersion: thole/v1
kind: Policy
metadata: {name: web-closed}
spec: {selector: {matchLabels: {app: web}}, ingress: []}
`

// A pair is a connection from both sides.
type pair struct{ client, server *probe.Conn }

func dialed(t *testing.T, p *probe.Process, l *probe.Listener) pair {
	t.Helper()
	c, v := p.Dial(l.Addr)
	if c == nil {
		t.Fatalf("connecting to %s: %s", l.Addr, v)
	}
	s := l.Accept(5 * time.Second)
	if s == nil {
		t.Fatal("nothing to accept")
	}
	return pair{c, s}
}
