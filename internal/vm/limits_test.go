//go:build vm

package vm

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"thole/internal/condition"
)

// limited sets a limit of the kernel until the test ends.
func limited(t *testing.T, sysctl string, to int) {
	t.Helper()
	before := sh(t, "sysctl -n "+sysctl)
	t.Cleanup(func() { sh(t, fmt.Sprintf("sysctl -qw %s=%s", sysctl, before)) })
	sh(t, fmt.Sprintf("sysctl -qw %s=%d", sysctl, to))
}

// Where conntrack's table is full, the kernel drops the packets of new connections, labelled or not. Connections that
// are there go on, and thole doctor says what is wrong.
func TestConntrackFull(t *testing.T) {
	running(t)
	start(t, labelled("app=web", "full-server", self, "serve", "127.0.0.1:7001")...)
	listens(t, 7001)
	start(t, self, "serve", "127.0.0.1:7002")
	listens(t, 7002)
	begun := map[string]string{ // connections that are there, by what of this machine has them
		"labelled":   "thole run -l app=web -- ncat 127.0.0.1 7001",
		"unlabelled": "ncat 127.0.0.1 7002",
	}
	for name, client := range begun {
		said := "/tmp/full-" + name
		sh(t, "rm -f "+said+" "+said+".in && mkfifo "+said+".in")
		start(t, "sh", "-c", client+" <"+said+".in >"+said)
		in, err := os.OpenFile(said+".in", os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		echoes := func(line string) {
			t.Helper()
			fmt.Fprintln(in, line)
			until(t, name+": the echo of "+line, func() bool {
				data, _ := os.ReadFile(said)
				return strings.Contains(string(data), line)
			})
		}
		echoes("before")
		defer echoes("full")
	}
	limited(t, "net.netfilter.nf_conntrack_max", 1)
	for _, labels := range []string{"", "app=web"} {
		command := "ncat -w 3 127.0.0.1 7002 </dev/null"
		if labels != "" {
			command = "thole run -l " + labels + " -- ncat -w 3 127.0.0.1 7001 </dev/null"
		}
		if out, err := try(command); err == nil || !strings.Contains(strings.ToLower(out), "time") {
			t.Errorf("%q: a new connection is not dropped: %v: %s", labels, err, out)
		}
	}
	if out, _ := try("thole doctor"); !strings.Contains(out, "nf_conntrack_max") {
		t.Errorf("thole doctor does not say that the table is full:\n%s", out)
	}
}

// Where inotify has no watches left, the daemon says so, and reads the tree of cgroups once a minute: a unit that
// begins gets its labels then.
func TestWithoutInotifyWatches(t *testing.T) {
	sh(t, "systemctl stop thole nginx")
	limited(t, "fs.inotify.max_user_watches", 1)
	t.Cleanup(func() { sh(t, "systemctl restart thole") })
	running(t)
	problems := status(t).Problems
	isUnwatched := func(c condition.Condition) bool { return c.Code == condition.CgroupsUnwatched }
	if !slices.ContainsFunc(problems, isUnwatched) {
		t.Errorf("the status does not say that cgroups are not watched: %+v", problems)
	}
	sh(t, "systemctl start nginx")
	until(t, "the unit to be found", func() bool { return workload(t, "nginx").Cgroup != "" })
}
