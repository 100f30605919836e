package owner

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/holder"
	"thole/internal/printable"
)

// A text is what is written, line by line.
type text struct{ strings.Builder }

// head begins what is said of one thing.
func (t *text) head(format string, args ...any) {
	t.WriteString(printable.Line(fmt.Sprintf(format, args...)) + "\n")
}

// rows say something of it. Only the first has the name.
func (t *text) rows(name string, values ...string) {
	for _, value := range values {
		fmt.Fprintf(t, "  %-10s %s\n", name, printable.Line(value))
		name = ""
	}
}

// Text is the answer for people. It has no control characters but line ends.
func (a Answer) Text() string {
	var t text
	if p := a.Process; p != nil {
		t.head("process %d %s", p.PID, p.Program)
		t.ownership(p.Ownership)
	}
	for _, s := range a.Sockets {
		t.socket(s, a.Process)
		var processes []string
		for _, p := range a.Holders[inodeText(s.Inode)] {
			processes = append(processes, holding(s, p))
		}
		t.rows("process", processes...)
	}
	if a.SocketsUnknown {
		t.head("only root, and the user whose process it is, may know its sockets")
	}
	if a.Omitted > 0 {
		t.head("%d more sockets are not shown", a.Omitted)
	}
	if a.Unseen > 0 {
		t.head("%d more sockets of the process are neither of TCP nor of UDP, or in another network namespace",
			a.Unseen)
	}
	if !a.Complete {
		t.head("not all sockets were looked at: there are too many")
	}
	return t.String()
}

func (t *text) socket(s api.OwnedSocket, p *api.OwnedProcess) {
	what := ""
	switch {
	case s.Listens:
		what = ", listening"
	case s.Remote != "":
		what = ", connected to " + s.Remote
	}
	t.head("%s %s%s", s.Protocol, s.Local, what)
	if p != nil && p.CgroupID == s.CgroupID {
		t.rows("owner", "that of the process")
	} else {
		t.ownership(s.Ownership)
	}
}

// ownership says whose something is, and why.
func (t *text) ownership(o api.Ownership) {
	w := o.Workload
	switch {
	case w != nil:
		t.rows("owner", fmt.Sprintf("%s (%s), %s", w.Name, w.Kind, w.StateText()))
	case o.Closed:
		t.rows("owner", "not known: it is closed")
	default:
		t.rows("owner", "nobody: it is unlabelled")
	}
	t.rows("why", o.Why)
	if w == nil {
		return
	}
	var labels []string
	all, remarks := w.AllLabels()
	for _, key := range slices.Sorted(maps.Keys(all)) {
		remark := ""
		if remarks[key] != "" {
			remark = ", " + remarks[key]
		}
		labels = append(labels, fmt.Sprintf("%s (%s%s)", policy.Labels{key: all[key]}, w.Sources[key], remark))
	}
	t.rows("labels", labels...)
}

// holding names a process that has a socket, and says where it is if it has left the socket's cgroup.
func holding(s api.OwnedSocket, p holder.Process) string {
	name := fmt.Sprintf("%d %s", p.PID, p.Program)
	if p.Cgroup == s.Cgroup || strings.HasPrefix(p.Cgroup, s.Cgroup+"/") {
		return name
	}
	return fmt.Sprintf("%s, which has left the cgroup of the socket: it is in %s", name, p.Cgroup)
}
