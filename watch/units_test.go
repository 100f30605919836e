package watch

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/workload"
)

// fakeUnits answers as a test wants. systemd itself is asked in internal/vm.
type fakeUnits struct {
	list  UnitList
	fail  error
	asked [][]string
}

func (f *fakeUnits) Ask(names []string) (UnitList, error) {
	f.asked = append(f.asked, names)
	return f.list, f.fail
}

// names are the workloads of a snapshot: NAME CGROUP.
func names(s workload.Snapshot) (list []string) {
	for _, w := range s.Workloads {
		list = append(list, w.Name+" "+w.Cgroup.Path)
	}
	return list
}

// The socket units that start a unit of a document are workloads, too, also without the unit itself.
func TestSocketUnits(t *testing.T) {
	tr := newTree(t)
	for _, cgroup := range []string{"system.slice/web.socket", "system.slice/web-tls.socket", "system.slice/db.socket",
		"system.slice/echo.socket", "system.slice/own.socket", "user.slice/user-7.slice/user@7.service/web.socket"} {
		tr.in(cgroup).ID()
	}
	units := &fakeUnits{list: UnitList{
		Units: map[string]Unit{"web.service": {Name: "web.service"}, "own.service": {Name: "own.service", Ran: true},
			"own.socket": {Name: "own.socket", Ran: true}},
		Sockets: []SocketUnit{
			{Name: "web.socket", Starts: []string{"web.service"}},
			{Name: "web-tls.socket", Starts: []string{"web.service"}},
			{Name: "db.socket", Starts: []string{"db.service"}},
			{Name: "echo.socket", Accept: true},
			{Name: "own.socket", Starts: []string{"own.service"}},
			{Name: "gone.socket", Starts: []string{"web.service"}},
		},
	}}
	tr.cgroups.AskUnits(units)
	bindings := []policy.Binding{
		labelled("web", policy.Binding{Unit: "web.service"}),
		labelled("echo", policy.Binding{Unit: "echo@*.service"}),
		labelled("own", policy.Binding{Unit: "own.service"}),
		labelled("own-socket", policy.Binding{Unit: "own.socket"}),
	}
	s := tr.cgroups.Scan(bindings)
	want := []string{"echo:system.slice/echo.socket system.slice/echo.socket", "own-socket system.slice/own.socket",
		"web:system.slice/web-tls.socket system.slice/web-tls.socket",
		"web:system.slice/web.socket system.slice/web.socket"}
	if diff := cmp.Diff(want, names(s)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := s.Workloads[2].Labels; got["app"] != "web" {
		t.Errorf("labels of web-tls.socket: %v", got)
	}
	wantConditions := []condition.Condition{
		{Code: condition.UnitAbsent, Where: "web.yaml:1:1",
			Text: `workload "web": the unit web.service has not run since the machine started: ` +
				"the labels have no effect yet"},
		{Code: condition.UnitAbsent, Where: "echo.yaml:1:1",
			Text: `workload "echo": no unit echo@*.service ran since this daemon began: the labels have no effect yet`},
	}
	if diff := cmp.Diff(wantConditions, s.Conditions); diff != "" {
		t.Errorf("conditions (-want +got)\n%s", diff)
	}

	// The same question is asked again only when the answer may be another one.
	tr.cgroups.Scan(bindings)
	if len(units.asked) != 1 || !slices.Equal(units.asked[0], []string{"own.service", "own.socket", "web.service"}) {
		t.Errorf("asked for %v", units.asked)
	}
	tr.in("system.slice/later.socket").ID()
	tr.until("the question after a socket unit was created", bindings, func(workload.Snapshot) bool {
		return len(units.asked) == 2
	})
	tr.cgroups.Scan(bindings[:1])
	if len(units.asked) != 3 {
		t.Errorf("asked for %v", units.asked)
	}
	tr.cgroups.units.asked = tr.cgroups.units.asked.Add(-resyncInterval)
	tr.cgroups.Scan(bindings[:1])
	tr.cgroups.Scan(nil)
	if len(units.asked) != 4 {
		t.Errorf("asked for %v", units.asked)
	}
}

// If systemd fails, what it said before counts, and a problem says so.
func TestUnitsUnknown(t *testing.T) {
	tr := newTree(t)
	tr.in("system.slice/web.socket").ID()
	bindings := []policy.Binding{labelled("web", policy.Binding{Unit: "web.service"})}
	units := &fakeUnits{fail: errors.New("no answer")}
	tr.cgroups.AskUnits(units)
	problem := func(s workload.Snapshot) bool {
		return slices.ContainsFunc(s.Conditions, func(c condition.Condition) bool {
			return c.Code == condition.UnitsUnknown && strings.HasSuffix(c.Text, ": no answer")
		})
	}
	if s := tr.cgroups.Scan(bindings); !problem(s) || len(s.Workloads) != 0 {
		t.Errorf("before any answer: %+v", s)
	}
	again := func() { tr.cgroups.units.asked = tr.cgroups.units.asked.Add(-unitsRetry) }
	units.fail = nil
	units.list = UnitList{Sockets: []SocketUnit{{Name: "web.socket", Starts: []string{"web.service"}}}}
	if s := tr.cgroups.Scan(bindings); !problem(s) || len(units.asked) != 1 {
		t.Errorf("it is asked again at once: %+v", s)
	}
	again()
	answered := tr.cgroups.Scan(bindings)
	if problem(answered) || len(answered.Workloads) != 1 {
		t.Errorf("after the answer: %+v", answered)
	}
	units.fail = errors.New("no answer")
	tr.cgroups.units.created.Store(true)
	if s := tr.cgroups.Scan(bindings); !problem(s) || len(s.Workloads) != 1 {
		t.Errorf("after an answer and a failure: %+v", s)
	}

	// The next daemon has no answer, and the loaded table.
	tr.restart()
	tr.cgroups.AskUnits(units)
	tr.cgroups.Recall(answered)
	if s := tr.cgroups.Scan(bindings); !problem(s) || len(s.Workloads) != 1 {
		t.Errorf("after a restart: %+v", s)
	}
}

// On this machine nobody answers at systemd's socket.
func TestNoSystemd(t *testing.T) {
	tr := newTree(t)
	tr.cgroups.AskUnits(systemd{})
	s := tr.cgroups.Scan([]policy.Binding{labelled("web", policy.Binding{Unit: "web.service"})})
	if i := slices.IndexFunc(s.Conditions, func(c condition.Condition) bool {
		return c.Code == condition.UnitsUnknown
	}); i < 0 || !strings.Contains(s.Conditions[i].Text, "systemd/private") {
		t.Errorf("conditions %v", s.Conditions)
	}
	if s := tr.cgroups.Scan([]policy.Binding{labelled("jobs", policy.Binding{Cgroup: "jobs"})}); len(s.Conditions) > 0 {
		t.Errorf("without a unit: %v", s.Conditions)
	}
}

// A unit that nothing can cover is a problem. A unit that does not run is a notice, until it was seen once.
func TestUnitConditions(t *testing.T) {
	for _, tt := range []struct {
		name, unit string
		known      Unit
		want       condition.Code
		text       string
	}{
		{"none", "ngnix.service", Unit{}, condition.UnitAbsent, "there is no unit ngnix.service"},
		{"never ran", "it.service", Unit{Name: "it.service"}, condition.UnitAbsent, "has not run"},
		{"ran", "it.service", Unit{Name: "it.service", Ran: true}, "", ""},
		{"another name", "httpd.service", Unit{Name: "nginx.service", Ran: true}, condition.UnitNotCovered,
			"another name of the unit nginx.service"},
		{"leaves sockets", "nfs-server.service", Unit{Name: "nfs-server.service", Leaves: true, Ran: true},
			condition.UnitNotCovered, "the processes of nfs-server.service end"},
		{"template", "worker@*.service", Unit{}, condition.UnitAbsent, "no unit worker@*.service ran"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := knownUnits{from: &fakeUnits{list: UnitList{Units: map[string]Unit{tt.unit: tt.known}}}}
			bindings := []policy.Binding{labelled("it", policy.Binding{Unit: tt.unit})}
			k.refresh(bindings, time.Now())
			got := k.conditions(bindings, nil)
			switch {
			case tt.want == "" && len(got) == 0:
			case len(got) != 1 || got[0].Code != tt.want || !strings.Contains(got[0].Text, tt.text):
				t.Errorf("got %v, want %s: %q", got, tt.want, tt.text)
			}
			k.conditions(bindings, map[string]bool{"it": true})
			got = k.conditions(bindings, nil)
			if len(got) > 0 && got[0].Code == condition.UnitAbsent {
				t.Errorf("after its cgroup was seen: %v", got)
			}
		})
	}
}
