package doctor

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"thole/internal/api"
	"thole/ruleset"
)

func TestDaemonState(t *testing.T) {
	for _, test := range []struct {
		name   string
		status api.Status
		err    error
		want   Status
	}{
		{"runs", api.Status{ProcessStatus: api.ProcessStatus{PID: 1}, Enforcing: true}, nil, OK},
		{"none", api.Status{}, fmt.Errorf("asking: %w", api.ErrNoDaemon), Warning},
		{"does not answer", api.Status{}, errors.New("time-out"), Unknown},
		{"failed", api.Status{ProcessStatus: api.ProcessStatus{PID: 1}, Enforcing: true,
			LastError: &api.Failure{Text: "no memory"}}, nil, Missing},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := daemonState(test.status, test.err); got.Status != test.want {
				t.Errorf("got %+v, want %s", got, test.want)
			}
		})
	}
}

func TestTableState(t *testing.T) {
	chains := []ruleset.Chain{
		{Name: "input", Hook: ruleset.Input, Rules: rules(accept)},
		{Name: "output", Hook: ruleset.Output, Rules: rules(accept)},
	}
	sets := []ruleset.Set{
		{Name: "listener1", Key: []ruleset.Type{ruleset.CgroupV2}, Data: ruleset.ClassID, Elements: []ruleset.Element{
			{Key: []ruleset.Value{ruleset.Number(77)}, Number: 1},
		}},
		{Name: "same1", Key: []ruleset.Type{ruleset.CgroupV2, ruleset.Mark}},
	}
	loaded := &ruleset.Table{Name: "thole", Sets: sets, Chains: chains}
	flushed := &ruleset.Table{Name: "thole", Sets: sets, Chains: []ruleset.Chain{{Name: "input", Hook: ruleset.Input},
		chains[1]}}
	foreign := &ruleset.Table{Name: "thole", Foreign: []string{"a flowtable"}}
	workload := func(class uint32) []api.Workload {
		return []api.Workload{{Name: "web", Cgroup: "web", ID: 77, Class: class}}
	}
	for _, test := range []struct {
		name      string
		loaded    *ruleset.Table
		wanted    bool
		workloads []api.Workload
		want      Status
	}{
		{"neither daemon nor table", nil, false, nil, OK},
		{"a table without its daemon", loaded, false, nil, OK},
		{"both agree", loaded, true, workload(1), OK},
		{"the table was flushed", nil, true, workload(1), Missing},
		{"another class", loaded, true, workload(2), Missing},
		{"an element was removed", &ruleset.Table{Name: "thole", Chains: chains}, true, workload(1), Missing},
		{"a chain was flushed", flushed, true, workload(1), Missing},
		{"a chain was removed", &ruleset.Table{Name: "thole", Sets: sets, Chains: chains[:1]}, true, workload(1),
			Missing},
		{"something foreign in it", foreign, true, nil, Missing},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := tableState(test.loaded, test.wanted, test.workloads); got.Status != test.want {
				t.Errorf("got %+v, want %s", got, test.want)
			}
		})
	}
}

func TestFleetState(t *testing.T) {
	now := time.Now()
	good := api.FleetStatus{Node: "a", Until: now.Add(90 * 24 * time.Hour),
		Queue: api.FleetQueue{Running: true, Native: true}}
	for name, tt := range map[string]struct {
		change             func(*api.FleetStatus)
		certificate, queue Status
	}{
		"good":           {func(*api.FleetStatus) {}, OK, OK},
		"ends soon":      {func(s *api.FleetStatus) { s.Until = now.Add(certificateWarning - 1) }, Warning, OK},
		"has ended":      {func(s *api.FleetStatus) { s.Until = now }, Missing, OK},
		"cannot be read": {func(s *api.FleetStatus) { s.Error = "others have access" }, Missing, OK},
		"by nft_compat":  {func(s *api.FleetStatus) { s.Queue.Native = false }, OK, Warning},
		"is not read":    {func(s *api.FleetStatus) { s.Queue.Running = false }, OK, Missing},
		"no engine": {func(s *api.FleetStatus) {
			s.Queue.Running, s.Error, s.Queue.Error = false, "queue 1 is bound", "queue 1 is bound"
		}, OK, Missing},
	} {
		s := good
		tt.change(&s)
		if got := fleetState(&s, now); len(got) != 2 || got[0].Status != tt.certificate || got[1].Status != tt.queue {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := fleetState(nil, now); got != nil {
		t.Errorf("without a fleet: %+v", got)
	}
}
