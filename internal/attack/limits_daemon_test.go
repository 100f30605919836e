package attack

import (
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
)

// What begins while no daemon runs is unlabelled until it does. What was opened meanwhile is decided again.
func TestLimitCgroupThatStartsWithoutTheDaemon(t *testing.T) {
	m := newMachine(t)
	m.apply(`apiVersion: thole/v1
kind: Workload
metadata: {name: late, labels: {app: db}}
spec: {cgroup: late.service}
---
` + closedDB)
	free := newAgent(t, m.Host, m.In("elsewhere"))
	l := free.listen("127.0.0.1:80")
	must(t, m.process.Signal(syscall.SIGTERM))
	must(t, m.process.Wait())
	late := newAgent(t, m.Host, m.In("late.service"))
	limit(t, "without a daemon", reaches(late, "", "127.0.0.1:80", l))
	c := late.tcp("0.0.0.0:0")
	if errno := c.connect("127.0.0.1:80"); errno != 0 {
		t.Fatal(errno)
	}
	conn := l.accept()
	c.send("before")
	limit(t, "a connection without a daemon", conn.got() == "before")
	m.start()
	nstest.WaitFor(t, 10*time.Second, "the labels", func() bool { return !reaches(late, "", "127.0.0.1:80", l) })
	c.send("after")
	denied(t, "the connection, with the daemon", conn.got() != "")
}
