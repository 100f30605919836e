package attack

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/nstest"
)

// session is where PAM has systemd put what `su -l` and the like start.
const session = "user.slice/user-1000.slice/session-1.scope"

// A jailed command opens a session: another program moves it out of its scope. There it connects as it likes, and
// nobody was told. (TestMovedCommands of internal/vm does it by su, runuser and systemd.)
func TestMovedCommandIsNamed(t *testing.T) {
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		m.apply(jailPolicy)
		l := newAgent(t, m.Host, m.In("elsewhere")).listen("127.0.0.1:80")
		jail := m.run(1234, "jail", policy.Labels{"app": "jail"})
		denied(t, "in its scope", reaches(jail, "", "127.0.0.1:80", l))
		m.In(session).Adopt(jail.PID())
		allowed(t, "in a session", reaches(jail, "", "127.0.0.1:80", l))
		m.ended("jail")
		named := func() bool {
			return slices.ContainsFunc(m.status().Notices, func(c condition.Condition) bool {
				return c.Code == condition.RunMoved && strings.Contains(c.Text, session)
			})
		}
		if old {
			if out, err := m.Command(m.thole, "status").CombinedOutput(); err != nil ||
				strings.Contains(string(out), session) {
				t.Errorf("the status tells of it: %v: %s", err, out)
			}
			return
		}
		nstest.WaitFor(t, 10*time.Second, "the status to name the command", named)
	})
}

// The same with --kill-on-move: the command ends before it is of use outside. The earlier program has no such flag.
func TestMovedCommandIsEnded(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	jail := newAgent(t, m.Host, m.In("users").As(1234))
	body, err := json.Marshal(api.RunRequest{Name: "jail", Labels: policy.Labels{"app": "jail"}, Command: "agent",
		KillOnMove: true})
	must(t, err)
	if answer := jail.request("POST /v1/run", string(body)); !strings.Contains(answer, " 200 ") {
		t.Fatalf("run: %s", answer)
	}
	m.In(session).Adopt(jail.PID())
	nstest.WaitFor(t, 10*time.Second, "the command's end", func() bool { return !lives(jail.PID()) })
}

// lives says whether a process is there and no zombie.
func lives(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}

// A unit's own process is `thole run`: it left the unit's cgroup, its limits and `systemctl stop`, with all that it
// starts. What a script of the unit starts may go (docs/SYSTEMD.md). TestRunInAUnit of internal/vm does it by systemd.
func TestProcessOfAUnitStaysInIt(t *testing.T) {
	withBothPrograms(t, func(t *testing.T, m *machine, old bool) {
		unit := m.In("system.slice/shop.service")
		execute := func(variable string) (string, error) {
			out, err := unit.Command("sh", "-c", "SYSTEMD_EXEC_PID="+variable+" exec "+m.thole+
				" run --label app=web -- cat /proc/self/cgroup").CombinedOutput()
			return string(out), err
		}
		out, err := execute("$$")
		closed(t, old, "out of the unit", strings.Contains(out, "/thole.slice/"))
		if !old && (err == nil || !strings.Contains(out, "spec: {unit: shop.service}")) {
			t.Errorf("the refusal: %v: %s", err, out)
		}
		out, err = execute("1")
		if err != nil || !strings.Contains(out, "/thole.slice/") {
			t.Errorf("a process that a script started: %v: %s", err, out)
		}
	})
}
