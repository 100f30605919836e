package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/internal/nstest/engine"
)

// Two documents name a cgroup by pattern, so that status speaks of it, too.
const evilBindings = `apiVersion: thole/v1
kind: Workload
metadata: {name: first, labels: {app: web}}
spec: {cgroup: evil*}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: second, labels: {app: web}}
spec: {cgroup: "evil*red"}
---
`

// printable reports whether a terminal only gets text and line ends.
func printable(output string) bool {
	return utf8.ValidString(output) && !strings.ContainsFunc(output, func(r rune) bool {
		return r != '\n' && !strconv.IsPrint(r)
	})
}

// said is all that a command writes, whether it fails or not.
func said(cmd *exec.Cmd) string {
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// A cgroup's name has a terminal escape and bytes that are no UTF-8. It is shown escaped, and JSON has it as it is.
// The program of 2c6b93c prints the escape itself.
func TestHostileCgroup(t *testing.T) {
	const name, shown = "evil\x1b[31m\u202ered", `evil\x1b[31m\u202ered`
	eachProgram(t, func(t *testing.T, old bool, program string) {
		m := &machine{Host: nstest.New(t), t: t, thole: program}
		m.start("--docker", "off")
		must(t, m.apply(evilBindings+policyFrom("web")))
		m.In(name).Start("sleep", "infinity")
		m.until("the workload", func(s api.Status) bool { return s.Workloads == 1 && len(s.Problems) == 1 })
		dir := t.TempDir()
		file := filepath.Join(dir, "evil\x1b[31m\nthole: all is well.yaml")
		must(t, os.WriteFile(file, []byte("kind: Nonsense\n"), 0o644))
		for _, command := range [][]string{
			{"get", "workloads", "-o", "wide"}, {"status"}, {"apply", "-f", file}, {"apply", "-f", dir},
		} {
			out := said(m.Command(m.thole, command...))
			if strings.Contains(out, "\x1b[31m") != old || printable(out) == old {
				t.Errorf("%q: %q", command, out)
			}
			if !old && (!strings.Contains(out, `\x1b[31m`) || strings.Contains(out, "\nthole: all is well")) {
				t.Errorf("%q: %q, want what is hostile escaped, and on its line", command, out)
			}
			if !old && command[0] != "apply" && !strings.Contains(out, shown) {
				t.Errorf("%q does not show the cgroup: %s", command, out)
			}
		}
		out, err := m.Command(m.thole, "get", "workloads", "-o", "json").Output()
		must(t, err)
		var list []api.Workload
		must(t, json.Unmarshal(out, &list))
		if len(list) != 1 || list[0].Cgroup != name {
			t.Errorf("JSON has %+v, want the cgroup %q", list, name)
		}
	})
}

// The labels of containers are shown escaped. One with a control character does not count, and closes no container.
func TestHostileContainerLabels(t *testing.T) {
	nstest.Need(t, "dockerd", "docker")
	eachProgram(t, func(t *testing.T, old bool, program string) {
		m := &machine{Host: nstest.New(t), t: t, thole: program}
		m.start(followDocker)
		e := engine.StartDocker(t, m.Host)
		m.until("the daemon to follow Docker", func(s api.Status) bool { return s.Docker != nil && s.Docker.Connected })
		image := e.Image("box", nil)
		e.Docker("run", "-d", "--net=host", "--name=turned", "-l", "app=web\u202egnp", image, "sleep", "1000")
		e.Docker("run", "-d", "--net=host", "--name=odd", "-l", "evil\x1b[31m=x\x1b[0m", "-l", "app=db", image, "sleep",
			"1000")
		m.until("both containers", func(s api.Status) bool { return s.Workloads == 2 || old && len(s.Problems) > 0 })
		status, workloads := said(m.Command(m.thole, "status")), said(m.Command(m.thole, "get", "workloads"))
		if !printable(status) || strings.Contains(status, `evil\x1b[31m`) != old {
			t.Errorf("status: %q", status)
		}
		listed := said(m.Command(m.thole, "get", "workloads", "-o", "json"))
		if !old && (!printable(listed) || !strings.Contains(listed, `evil\u001b[31m`)) {
			t.Errorf("get workloads -o json: %q", listed)
		}
		if printable(workloads) == old || strings.Contains(workloads, `app=web\u202egnp`) == old {
			t.Errorf("get workloads: %q", workloads)
		}
	})
}
