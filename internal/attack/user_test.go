package attack

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest"
)

// The tests of this file try what one user can take from all users: classes of the table, epochs, places of ended
// workloads.

// jobsPolicy lets a user, and a group, choose labels freely.
const jobsPolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: jobs}
spec:
  selector: {matchExpressions: [{key: job, operator: Exists}]}
  egress: [{to: [{unlabelled: true}], ports: [7000/udp]}]
---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: jobs}
spec: {users: ["1234"], groups: ["4300"], labels: {job: ["*"]}}
---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: other}
spec: {users: ["1235"], labels: {app: [web]}}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: jobs, labels: {job: pattern}}
spec: {cgroup: "jobs/*/*"}
`

// job asks for one more label set, and returns the refusal. A user who asks too often is told to wait.
func (a *agent) job(n int) (refused string) {
	a.t.Helper()
	for {
		answer := a.askRun(fmt.Sprint("job-", n), policy.Labels{"job": fmt.Sprint(n)})
		switch {
		case strings.Contains(answer, " 200 "):
			return ""
		case !strings.Contains(answer, "a second"):
			return answer
		}
	}
}

// A user starts programs with ever other labels: each may be a class of the table, which costs all others. What the
// user may not have, no subordinate uid of the user may have.
func TestLabelSetsOfOneUser(t *testing.T) {
	const limit = 256
	withEachProgram(t, func(t *testing.T, m *machine, old bool) {
		m.Shell("echo 1234:500000:65536 >/run/subuid && mount --bind /run/subuid /etc/subuid")
		m.Shell("install -m 755 " + m.thole + " /run/program")
		m.start()
		m.apply(jobsPolicy)
		greedy := newAgent(t, m.Host, m.In("users").As(1234))
		for i := range limit {
			if refused := greedy.job(i); refused != "" {
				t.Fatalf("label set %d: %s", i, refused)
			}
			greedy.ok(call{Op: "leave"}) // so that the workload lives
		}
		run := func(as string) (admitted bool) {
			out, err := m.In("users").Command("sh", "-c", "exec setpriv "+as+
				" /run/program run --label job=another true").CombinedOutput()
			if err != nil && !strings.Contains(string(out), "256 different sets of labels") {
				t.Fatalf("%s: %v: %s", as, err, out)
			}
			return err == nil
		}
		closed(t, old, "one more label set", run("--reuid=1234 --clear-groups"))
		closed(t, old, "by a subordinate uid, in a group that may", run("--reuid=500007 --regid=4300 --clear-groups"))
		other := newAgent(t, m.Host, m.In("users").As(1235))
		if answer := other.askRun("other", policy.Labels{"app": "web"}); !strings.Contains(answer, " 200 ") {
			t.Errorf("another user: %s", answer)
		}
	})
}

// A user changes labels again and again and keeps a socket of each: the workloads ended, and each stayed in the table.
// Now the oldest of one user become unknown: their sockets reach nothing, and those of the newest what their labels
// allow.
func TestEndedWorkloadsOfOneUser(t *testing.T) {
	const limit, jobs = 128, 140
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		m.apply(jobsPolicy)
		free := newAgent(t, m.Host, m.In("elsewhere"))
		may, mayNot := free.udp("127.0.0.1:7000"), free.udp("127.0.0.1:6000")
		greedy := newAgent(t, m.Host, m.In("users").As(1234))
		var sockets []*sock
		for i := range jobs {
			if refused := greedy.job(i); refused != "" {
				t.Fatalf("job %d: %s", i, refused)
			}
			sockets = append(sockets, greedy.udp("127.0.0.1:0"))
		}
		var most int
		nstest.WaitFor(t, 20*time.Second, "the daemon to notice all ends", func() bool {
			s := m.status()
			most = max(most, s.Ended)
			return s.Workloads == 1 && (s.Ended == jobs-1 || !old && s.Ended < limit)
		})
		closed(t, old, "more ended workloads than a user may have", most > limit)
		reach := func(s *sock) bool {
			s.sendTo("127.0.0.1:6000", "secret")
			denied(t, "what no job may reach", mayNot.got() != "")
			s.sendTo("127.0.0.1:7000", "hello")
			return strings.Contains(may.got(), "hello")
		}
		closed(t, old, "by a socket of the oldest", reach(sockets[0]))
		allowed(t, "by a socket of the last that ended", reach(sockets[jobs-2]))
		allowed(t, "by a socket of the one that lives", reach(sockets[jobs-1]))
		other := newAgent(t, m.Host, m.In("users").As(1235))
		if answer := other.askRun("other", policy.Labels{"app": "web"}); !strings.Contains(answer, " 200 ") {
			t.Errorf("another user: %s", answer)
		}
	})
}

// A user makes and removes cgroups where a pattern of the policies looks for workloads: with each, the epoch was
// raised, and all connections of the node were decided again.
func TestChurnBelowAPattern(t *testing.T) {
	const jobs, most = "jobs/greedy", 5
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		m.apply(jobsPolicy)
		m.In(jobs).ID()
		must(t, os.Chown(m.CgroupDir(jobs), 1234, 1234))
		greedy := newAgent(t, m.Host, m.In("users").As(1234))
		churn := func(seconds int) float64 {
			before, began := m.status().Epoch, time.Now()
			greedy.ok(call{Op: "churn", To: "/sys/fs/cgroup/" + jobs + "/a", A: 100, B: seconds})
			return float64(m.status().Epoch-before) / time.Since(began).Seconds()
		}
		if old { // as soon as its daemon has the processors
			nstest.WaitFor(t, 20*time.Second, "many epochs a second", func() bool { return churn(1) > most })
			return
		}
		if raised := churn(3); raised > most {
			t.Errorf("the epoch was raised %.1f times a second, want at most %d", raised, most)
		}
	})
}

// A user makes more cgroups than a pattern may match: each was one more workload, without a bound. Now what is beyond
// the bound is closed, and the status says so.
func TestCgroupsOfAPattern(t *testing.T) {
	const jobs, limit = "jobs/greedy", 256
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		m.apply(jobsPolicy)
		m.In(jobs).ID()
		must(t, os.Chown(m.CgroupDir(jobs), 1234, 1234))
		for i := range limit + 10 {
			must(t, unix.Mkdir(m.CgroupDir(fmt.Sprintf("%s/%d", jobs, i)), 0o755))
		}
		var most int
		nstest.WaitFor(t, 20*time.Second, "the daemon to look at all", func() bool {
			s := m.status()
			most = max(most, s.Workloads)
			return most > limit || !old && len(s.Problems) > 0
		})
		closed(t, old, "more workloads than a pattern may match", most > limit)
		beyond := newAgent(t, m.Host, m.In(fmt.Sprintf("%s/%d", jobs, limit+9)))
		u := newAgent(t, m.Host, m.In("elsewhere")).udp("127.0.0.1:7000")
		closed(t, old, "a datagram from beyond the bound", reachesUDP(beyond, "", "127.0.0.1:7000", u))
	})
}
