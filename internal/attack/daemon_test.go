package attack

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest"
)

// What a user may ask for, twisted: names that climb, labels that leave their line or
// their string, keys that only the daemon sets, JSON that says a thing twice.
func TestTwistedRequests(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	alice := newAgent(t, m.Host, m.In("users").As(1234))
	before := m.Shell("nft -s list table inet thole; find /sys/fs/cgroup -type d")
	for _, body := range []string{
		`{"name":"../../evil","labels":{"app":"jail"}}`,
		`{"name":"a/b","labels":{"app":"jail"}}`,
		`{"name":"..","labels":{"app":"jail"}}`,
		`{"name":".hidden","labels":{"app":"jail"}}`,
		`{"name":"a\u0000b","labels":{"app":"jail"}}`,
		`{"name":"a\nb","labels":{"app":"jail"}}`,
		`{"name":"-x","labels":{"app":"jail"}}`,
		`{"name":"` + strings.Repeat("a", 300) + `","labels":{"app":"jail"}}`,
		`{"labels":{"app":"db"}}`,
		`{"labels":{"app":"jail","app":"db"}}`,
		`{"labels":{"app":"jail"},"Labels":{"app":"db"}}`,
		`{"labels":{"app":"jail"},"LABELS":{"team":"root"}}`,
		`{"labels":{"App":"jail"}}`,
		`{"labels":{"app":"Jail"}}`,
		`{"labels":{"app":"jail "}}`,
		`{"labels":{"app":"jail\n"}}`,
		`{"labels":{"app":"jail\" : accept, \""}}`,
		`{"labels":{"app\n}\ndelete table inet thole\n#":"jail"}}`,
		`{"labels":{"app":"$(id)"}}`,
		`{"labels":{"app":"*"}}`,
		`{"labels":{"":"jail"}}`,
		`{"labels":{"app":""}}`,
		`{"labels":{"thole/user":"root"}}`,
		`{"labels":{"thole/uid":"0","app":"jail"}}`,
		`{"labels":{"io.kubernetes.pod":"x","app":"jail"}}`,
		`{"labels":{"app":"jail\ud800"}}`,
		`{"labels":{"app":["jail"]}}`,
		`{"labels":null}`, `{}`, `[]`, `null`, ``,
		`{"labels":{"app":"jail"},"uid":0}`,
		`{"labels":{"app":"jail"}}{"labels":{"app":"db"}}`,
		`{"labels":{` + strings.Repeat(`"k":"v",`, 10_000) + `"app":"jail"}}`,
		strings.Repeat("[", 60_000),
	} {
		if answer := alice.request("POST /v1/run", body); !strings.Contains(answer, " 400 ") &&
			!strings.Contains(answer, " 403 ") && !strings.Contains(answer, " 413 ") {
			t.Errorf("%.80q: %.200s", body, answer)
		}
	}
	for _, line := range []string{"POST /v1/apply", "POST /v1/reload", "POST //v1/apply", "POST /v1/./apply",
		"POST /v1/run/../apply", "GET /v1/apply", "DELETE /v1/policies", "CONNECT /v1/apply",
		"POST http://x/v1/apply"} {
		if answer := alice.request(line, `{"files":[]}`); strings.Contains(answer, " 200 ") {
			t.Errorf("%s: %.200s", line, answer)
		}
	}
	if after := m.Shell("nft -s list table inet thole; find /sys/fs/cgroup -type d"); after != before {
		t.Errorf("something changed:\n%s\nwas\n%s", after, before)
	}
}

// The command's name is decided by nobody, and becomes part of a path.
func TestTwistedCommands(t *testing.T) {
	m := newMachine(t)
	for i, command := range []string{"../../../etc", "/", ".", "\x00", "a\nb", "-rf", strings.Repeat("ä", 500),
		"x.scope", "\u202e", `"`} {
		a := newAgent(t, m.Host, m.In("users"))
		body, err := json.Marshal(map[string]any{"labels": map[string]string{"app": "web"}, "command": command})
		must(t, err)
		if answer := a.request("POST /v1/run", string(body)); !strings.Contains(answer, " 200 ") {
			t.Errorf("command %q: %s", command, answer)
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", a.PID()))
		must(t, err)
		if name := strings.TrimSpace(string(cgroup)); strings.Count(name[strings.Index(name, "/thole.slice/"):],
			"/") != 2 || !strings.HasSuffix(name, fmt.Sprintf("-%d.scope", i+1)) {
			t.Errorf("command %q: it is in %q", command, name)
		}
	}
}

// A user opens as many connections as he can, sends floods of headers and bodies
// that never end: others are served meanwhile.
func TestSlowAndGreedyClients(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	var conns []net.Conn
	var mu sync.Mutex
	// The test's own thread is root: a user's connections are made by a user.
	must(t, m.Do(func() {
		must(t, setFSUIDs(4321))
		for i := range 300 {
			conn, err := net.Dial("unix", daemonSocket)
			if err != nil {
				continue
			}
			mu.Lock()
			conns = append(conns, conn)
			mu.Unlock()
			switch i % 4 {
			case 0: // says nothing
			case 1:
				fmt.Fprintf(conn, "POST /v1/run HTTP/1.1\r\nX: ")
			case 2:
				fmt.Fprintf(conn, "POST /v1/run HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n{")
			case 3:
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				fmt.Fprintf(conn, "GET /v1/status HTTP/1.1\r\n%s", strings.Repeat("X: y\r\n", 20_000))
			}
		}
	}))
	start := time.Now()
	m.run(1234, "alice", policy.Labels{"app": "jail"})
	m.run(0, "root", policy.Labels{"app": "web"})
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("others waited for %v", took)
	}
	for _, c := range conns {
		c.Close()
	}
}

// setFSUIDs makes the calling thread a user's for good.
func setFSUIDs(uid int) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return errno
	}
	return nil
}

// A user moves into the cgroups of thole run, makes cgroups there, or writes the
// attribute: only root may.
func TestUserInTheSlice(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	jail := m.run(1234, "jail", policy.Labels{"app": "jail"})
	_ = jail
	dir := "/sys/fs/cgroup/thole.slice"
	for _, script := range []string{
		"echo $$ > " + dir + "/cgroup.procs",
		"echo $$ > " + dir + "/jail.scope/cgroup.procs",
		"echo $$ > " + dir + "/jail.scope/cgroup.threads",
		"mkdir " + dir + "/evil.scope",
		"mkdir " + dir + "/jail.scope/inner",
		"rmdir " + dir + "/jail.scope",
		"echo 1 > " + dir + "/jail.scope/cgroup.kill",
		"echo threaded > " + dir + "/jail.scope/cgroup.type",
		"chmod 777 " + dir,
	} {
		if err := m.In("users").As(1234).Command("sh", "-c", script).Run(); err == nil {
			t.Errorf("a user could: %s", script)
		}
	}
	// Nor out again: from inside, into where all are free.
	for _, to := range []string{"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/users/cgroup.procs"} {
		if err := m.In("thole.slice/jail.scope").As(1234).Command("sh", "-c", "echo $$ > "+to).Run(); err == nil {
			t.Errorf("a jailed user could write %s", to)
		}
	}
}

// Many threads and processes of one user ask at once, and end while they are moved:
// nobody is left in a wrong cgroup, nothing is left at all.
func TestRunRaces(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	var all sync.WaitGroup
	for i := range 6 {
		all.Go(func() {
			for range 4 {
				a := newAgent(t, m.Host, m.In("users").As(1234))
				a.do(call{Op: "swarm", To: daemonSocket, A: 8, B: i % 2, Data: fmt.Appendf(nil,
					"POST /v1/run HTTP/1.1\r\nHost: thole\r\nContent-Length: %d\r\n\r\n%s",
					len(`{"labels":{"app":"jail"}}`), `{"labels":{"app":"jail"}}`)})
				a.end()
			}
		})
	}
	all.Wait()
	nstest.WaitFor(t, 10*time.Second, "nothing to be left", func() bool {
		return !strings.Contains(m.Shell("ls /sys/fs/cgroup/thole.slice 2>/dev/null || true"), ".scope") &&
			m.status().Workloads == 0
	})
	m.run(1234, "after", policy.Labels{"app": "jail"})
}

// A sender that makes sockets in threads while it is moved: what it made before is
// unlabelled, what it makes after the answer never is.
func TestThreadsAreMovedTogether(t *testing.T) {
	m := newMachine(t)
	m.apply(jailPolicy)
	free := newAgent(t, m.Host, m.In("elsewhere")).udp("127.0.0.1:6000")
	for range 5 {
		a := newAgent(t, m.Host, m.In("users").As(1234))
		body := `{"labels":{"app":"jail"}}`
		r := a.do(call{Op: "threads", To: daemonSocket, Data: fmt.Appendf(nil,
			"POST /v1/run HTTP/1.1\r\nHost: thole\r\nContent-Length: %d\r\n\r\n%s", len(body), body)})
		if !strings.Contains(string(r.Data), " 200 ") {
			t.Fatalf("run: %s", r.Data)
		}
		if strings.Contains(free.got(), "after") {
			t.Error("a thread sent after the answer")
		}
	}
}
