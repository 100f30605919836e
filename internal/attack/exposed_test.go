package attack

import (
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/doctor"
	"thole/internal/nstest"
)

// services binds labels to cgroups that no user can start.
const services = `
---
apiVersion: thole/v1
kind: Workload
metadata: {name: web, labels: {app: web}}
spec: {cgroup: svc/web}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: db, labels: {app: db}}
spec: {cgroup: svc/db}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: open, labels: {tier: open}}
spec: {cgroup: svc/open}
`

// selectApps has policies select web and db.
const selectApps = `apiVersion: thole/v1
kind: Policy
metadata: {name: apps}
spec: {selector: {matchExpressions: [{key: app, operator: Exists}]}, ingress: [{from: [{sameLabels: [app]}]}]}
`

// exposed returns the codes and ports of what status says of sockets, and its exit status.
func (m *machine) exposed() (found []string, code int) {
	m.t.Helper()
	out, err := m.Command(m.thole, "status", "-o", "json").Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	}
	var status struct {
		Problems, Notices []condition.Condition
	}
	must(m.t, json.Unmarshal(out, &status))
	for _, c := range append(status.Problems, status.Notices...) {
		if strings.HasPrefix(string(c.Code), "socket") {
			found = append(found, string(c.Code)+" "+c.Where)
		}
	}
	return found, code
}

// Live sockets that the table can be bypassed through are named by status and doctor, and ordinary ones are not.
func TestExposedSocketsAreNamed(t *testing.T) {
	m := newMachine(t)
	nstest.Link(m.Host, ours+"/24", ours6+"/64", nstest.New(t), theirs+"/24", theirs6+"/64")
	agents := map[string]*agent{"free": newAgent(t, m.Host, m.In("elsewhere"))}
	for _, name := range []string{"web", "db", "open"} {
		agents[name] = newAgent(t, m.Host, m.In("svc/"+name))
	}
	m.apply(selectApps + services)
	nstest.WaitFor(t, 10*time.Second, "the workloads", func() bool { return m.status().Workloads == 3 })
	agents["run"] = m.run(0, "batch", policy.Labels{"app": "batch"})

	type socket struct {
		who, at, device string
		kind            int
	}
	const stream, datagram = unix.SOCK_STREAM, unix.SOCK_DGRAM
	for _, test := range []struct {
		name    string
		sockets []socket
		want    []string
		texts   []string // in what status and doctor say
	}{
		{name: "nothing but ordinary sockets", sockets: []socket{
			{"free", "127.0.0.53:53", "lo", datagram}, {"web", "127.0.0.1:53", "", datagram},
			{"free", "0.0.0.0:68", "veth0", datagram}, {"open", "0.0.0.0:69", "veth0", datagram},
			{"web", "0.0.0.0:80", "", stream}, {"web", "0.0.0.0:80", "", stream},
			{"db", "0.0.0.0:81", "veth0", stream},
		}},
		{"a UDP socket that is bound to a device", []socket{{"db", "0.0.0.0:53", "veth0", datagram}},
			[]string{"socket-exposed udp port 53"},
			[]string{"0.0.0.0:53 of db, bound to veth0", "datagrams of this node reach a socket"}},
		{"a decoy on lo", []socket{{"db", "0.0.0.0:53", "", datagram}, {"free", "0.0.0.0:53", "lo", datagram}},
			[]string{"socket-exposed udp port 53"},
			[]string{"0.0.0.0:53 of db; ", "0.0.0.0:53 of unlabelled elsewhere, bound to lo: "}},
		{"a decoy on lo, TCP, IPv6", []socket{{"db", "[::]:80", "", stream}, {"web", "[::]:80", "lo", stream}},
			[]string{"socket-exposed tcp port 80"},
			[]string{"[::]:80 of web, bound to lo; [::]:80 of db: "}},
		{"SO_REUSEPORT across workloads, UDP",
			[]socket{{"db", "0.0.0.0:53", "", datagram}, {"web", "0.0.0.0:53", "", datagram}},
			[]string{"socket-exposed udp port 53"}, []string{"0.0.0.0:53 of db; 0.0.0.0:53 of web: ", "BPF"}},
		{"SO_REUSEPORT across workloads, TCP",
			[]socket{{"db", "127.0.0.1:80", "", stream}, {"free", "127.0.0.1:80", "", stream}},
			[]string{"socket-exposed tcp port 80"},
			[]string{"127.0.0.1:80 of db; 127.0.0.1:80 of unlabelled elsewhere: "}},
		{"what a user can bring about", []socket{{"run", "0.0.0.0:53", "veth0", datagram}},
			[]string{"socket-exposed-user udp port 53"},
			[]string{"0.0.0.0:53 of batch, bound to veth0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, s := range test.sockets {
				sock := agents[s.who].socket(s.at, s.kind, reusePort)
				if s.device != "" {
					sock.device(s.device)
				}
				sock.bind(s.at)
				if s.kind == stream {
					sock.listen()
				}
				defer sock.close()
			}
			var got []string
			var code int
			nstest.WaitFor(t, 10*time.Second, "a look at the sockets", func() bool {
				got, code = m.exposed()
				return cmp.Equal(test.want, got)
			})
			problem := len(got) > 0 && strings.HasPrefix(got[0], "socket-exposed ")
			if (code == 1) != problem {
				t.Errorf("status exits %d with %v", code, got)
			}
			text := m.Shell(m.thole + " status || true")
			findings := m.Shell(m.thole + " doctor || true")
			for _, want := range test.texts {
				if !strings.Contains(text, want) || !strings.Contains(findings, want) {
					t.Errorf("%q is missing in status:\n%s\nor doctor:\n%s", want, text, findings)
				}
			}
			if len(test.want) == 0 && !strings.Contains(findings, "exposed sockets          none of ") {
				t.Errorf("doctor:\n%s", findings)
			}
		})
	}
	var d struct{ Findings []doctor.Finding }
	out, _ := m.Command(m.thole, "doctor", "-o", "json").Output() // it may find something missing on this kernel
	must(t, json.Unmarshal(out, &d))
	for _, f := range d.Findings {
		if f.Check == "exposed sockets" && f.Status != doctor.OK {
			t.Errorf("after all were closed: %+v", f)
		}
	}
}
