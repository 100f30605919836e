package attack

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/internal/nstest/baseline"
)

// jailedService lets a service do nothing but connect to port 7000.
const jailedService = `apiVersion: thole/v1
kind: Policy
metadata: {name: jail}
spec:
  selector: {matchLabels: {app: jail}}
  ingress: []
  egress: [{to: [{unlabelled: true}], ports: [7000/tcp, 7000/udp]}]
---
apiVersion: thole/v1
kind: Policy
metadata: {name: other}
spec: {selector: {matchLabels: {app: other}}, egress: []}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: service, labels: {app: jail}}
spec: {cgroup: system.slice/service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: jobs, labels: {app: other}}
spec: {cgroup: batch.slice/*}
`

const service = "system.slice/service"

// A kept is a place with sockets that somebody else holds now, as systemd's file descriptor store does.
type kept struct {
	*machine
	holder   *agent
	tcp, udp []*sock // neither bound nor connected
	open     *agent  // listens on the ports 6000 and 7000
	listen   map[string]*sock
	receive  map[string]*sock
}

// keepSockets has a process of a service pass sockets on. The process still runs.
func keepSockets(m *machine, each int) (k *kept, passer *agent) {
	k = &kept{machine: m, open: newAgent(m.t, m.Host, m.In("open")), holder: newAgent(m.t, m.Host, m.In("holder")),
		listen: map[string]*sock{}, receive: map[string]*sock{}}
	for _, port := range []string{"6000", "7000"} {
		k.listen[port], k.receive[port] = k.open.listen("127.0.0.1:"+port), k.open.udp("127.0.0.1:"+port)
	}
	before := m.status().Workloads
	passer = newAgent(m.t, m.Host, m.In(service))
	nstest.WaitFor(m.t, 10*time.Second, "the service's labels", func() bool { return m.status().Workloads == before+1 })
	for range each {
		k.tcp = append(k.tcp, passer.socket("0.0.0.0:0", unix.SOCK_STREAM).pass(k.holder))
		k.udp = append(k.udp, passer.socket("0.0.0.0:0", unix.SOCK_DGRAM).pass(k.holder))
	}
	return k, passer
}

// end ends a process of the service, and removes the service's cgroup.
func (k *kept) end(of *agent) {
	k.t.Helper()
	before := k.status().Workloads
	of.end()
	nstest.WaitFor(k.t, 10*time.Second, "the removal of the cgroup", func() bool {
		err := os.Remove(k.CgroupDir(service))
		return err == nil || os.IsNotExist(err)
	})
	nstest.WaitFor(k.t, 10*time.Second, "the daemon to notice", func() bool { return k.status().Workloads == before-1 })
}

// reach says what a socket of TCP and one of UDP reach that nobody used before.
func (k *kept) reach(port string) (tcp, udp bool) {
	k.t.Helper()
	s, u := k.tcp[0], k.udp[0]
	k.tcp, k.udp = k.tcp[1:], k.udp[1:]
	if s.connect("127.0.0.1:"+port) == 0 {
		conn := k.listen[port].accept()
		tcp = conn != nil
	}
	u.sendTo("127.0.0.1:"+port, "secret")
	udp = k.receive[port].got() != ""
	s.abort()
	u.close()
	return tcp, udp
}

// A service hands over sockets that are neither bound nor connected, which no list of the kernel has, and ends. The
// sockets keep the service's labels: they reach what it may reach, and nothing else, also after a restart of the
// daemon, and whatever is in a new cgroup of the same path.
func TestUnboundSocketsOutliveTheirService(t *testing.T) {
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		m.apply(jailedService)
		k, passer := keepSockets(m, 6)
		allowed(t, "the holder's own socket", reaches(k.holder, "", "127.0.0.1:6000", k.listen["6000"]))
		check := func(when string, port string, tcp, udp bool) {
			t.Helper()
			gotTCP, gotUDP := k.reach(port)
			if gotTCP != tcp || gotUDP != udp {
				t.Errorf("%s, port %s: reached by TCP %t, by UDP %t; want %t, %t", when, port, gotTCP, gotUDP, tcp, udp)
			}
		}
		check("as long as the service runs", "6000", false, false)
		k.end(passer)
		check("after its end", "6000", old, old)
		if old {
			return
		}
		check("after its end", "7000", true, true)
		must(t, m.process.Signal(unix.SIGTERM))
		must(t, m.process.Wait())
		m.start()
		check("after a restart of the daemon", "6000", false, false)

		next := newAgent(t, m.Host, m.In(service))
		nstest.WaitFor(t, 10*time.Second, "the next service", func() bool {
			s := m.status()
			return s.Workloads == 1 && s.Ended == 1
		})
		check("beside the next service", "6000", false, false)
		denied(t, "the next service", reaches(next, "", "127.0.0.1:6000", k.listen["6000"]))
		check("beside the next service", "7000", true, true)
		k.holder.end()
		nstest.WaitFor(t, 10*time.Second, "the proof that nothing is left",
			func() bool { return m.status().Ended == 0 })
	})
}

// A new cgroup of the same path has labels of its own, and nothing of those of the old one.
func TestNewServiceInheritsNothing(t *testing.T) {
	m := newMachine(t)
	m.apply(jailedService)
	k, passer := keepSockets(m, 1)
	k.end(passer)
	m.apply(otherService)
	next := newAgent(t, m.Host, m.In(service))
	nstest.WaitFor(t, 10*time.Second, "the next service", func() bool { return m.status().Workloads == 1 })
	allowed(t, "the next service", reaches(next, "", "127.0.0.1:6000", k.listen["6000"]))
	tcp, udp := k.reach("6000")
	denied(t, "a socket of the last service, by TCP", tcp)
	denied(t, "a socket of the last service, by UDP", udp)
}

// otherService gives the cgroup labels that may reach everything.
const otherService = `apiVersion: thole/v1
kind: Policy
metadata: {name: jail}
spec: {selector: {matchLabels: {app: jail}}, egress: []}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: service, labels: {app: free}}
spec: {cgroup: system.slice/service}
`

// Beyond 1,024 workloads that ended, the oldest become unknown: their sockets reach nothing, not even what their labels
// allowed, also after a restart of the daemon.
func TestOldestEndedReachNothing(t *testing.T) {
	const limit = 1024
	m := newMachine(t)
	m.apply(jailedService)
	k, passer := keepSockets(m, 3)
	k.end(passer)
	tcp, udp := k.reach("7000")
	allowed(t, "a socket of a workload that ended, by TCP", tcp)
	allowed(t, "a socket of a workload that ended, by UDP", udp)

	for i := range limit {
		m.MkCgroup(fmt.Sprintf("batch.slice/job-%d", i))
	}
	nstest.WaitFor(t, 30*time.Second, "the jobs' labels", func() bool { return m.status().Workloads == limit })
	for i := range limit {
		m.Rmdir(fmt.Sprintf("batch.slice/job-%d", i))
	}
	nstest.WaitFor(t, 30*time.Second, "the jobs' end", func() bool {
		s := m.status()
		return s.Workloads == 0 && s.EndedUnknown > 0 && s.Ended <= limit
	})
	check := func(when string) {
		t.Helper()
		tcp, udp := k.reach("7000")
		denied(t, when+", a socket of the oldest, by TCP", tcp)
		denied(t, when+", a socket of the oldest, by UDP", udp)
	}
	check("beyond the limit")
	must(t, m.process.Signal(unix.SIGTERM))
	must(t, m.process.Wait())
	m.start()
	check("after a restart of the daemon")
	k.holder.end()
	nstest.WaitFor(t, 90*time.Second, "the proof that nothing is left", func() bool {
		s := m.status()
		if s.Ended == 0 && s.EndedUnknown > 0 {
			must(t, m.process.Signal(unix.SIGHUP)) // all is looked at, as once a minute
		}
		return s.Ended+s.EndedUnknown == 0
	})
}

// withBothPrograms runs a test with a daemon of baseline.Commit, through which the attack goes, and with the present
// one.
func withBothPrograms(t *testing.T, test func(t *testing.T, m *machine, old bool)) {
	t.Helper()
	withEachProgram(t, func(t *testing.T, m *machine, old bool) {
		m.start()
		test(t, m, old)
	})
}

// withEachProgram is withBothPrograms on machines without a daemon yet.
func withEachProgram(t *testing.T, test func(t *testing.T, m *machine, old bool)) {
	t.Helper()
	if !nstest.Slow() {
		t.Run(baseline.Commit[:7], func(t *testing.T) {
			test(t, &machine{Host: nstest.New(t), t: t, thole: baseline.Program(t)}, true)
		})
	}
	now, err := tholeBinary()
	must(t, err)
	t.Run("now", func(t *testing.T) { test(t, &machine{Host: nstest.New(t), t: t, thole: now}, false) })
}
