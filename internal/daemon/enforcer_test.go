package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/chains"
	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/ruleset"
	"thole/watch/workload"
)

const badPolicy = `apiVersion: thole/v1
kind: Policy
metadata: {name: bad}
spec:
  selector: {}
  ingres: []
`

func bindUnit(unit string) string {
	return `---
apiVersion: thole/v1
kind: Workload
metadata: {name: it, labels: {app: web}}
spec: {unit: ` + unit + `}
`
}

func TestDefaultUntilASetIsGiven(t *testing.T) {
	b := newBench(t)
	if s := b.status(); s.Source != api.SourceDefault || !s.Enforcing || s.Policies != 1 || s.Version != "test" ||
		s.Counters["denied"].Packets != 3 {
		t.Errorf("status %+v", s)
	}
	b.apply(allowWeb)
	policies, err := b.client.Policies(context.Background())
	want := []api.Policy{{Name: "web", Ingress: true, Rules: 1, Position: "test.yaml:3:18"}}
	if len(policies) == 1 {
		want[0].Position = policies[0].Position
	}
	if diff := cmp.Diff(want, policies); err != nil || diff != "" {
		t.Errorf("%v, policies (-want +got)\n%s", err, diff)
	}
	if s := b.status(); s.Source != api.SourceApplied {
		t.Errorf("source %s", s.Source)
	}
}

func TestBadSetKeepsTheLastGoodOne(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	before := b.kernel.loaded()
	for name, files := range map[string][]api.File{
		"syntax": {{Name: "bad.yaml", Data: badPolicy}},
		"none":   {},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: files})
			refusal, ok := errors.AsType[*api.Refusal](err)
			if !ok || refusal.Code != http.StatusUnprocessableEntity ||
				!strings.Contains(refusal.Message, "Nothing was changed") {
				t.Errorf("apply: %v", err)
			}
			if name == "syntax" && !strings.Contains(err.Error(), "bad.yaml:6:3") {
				t.Errorf("the error %q lacks the place", err)
			}
			s := b.status()
			if s.LastError == nil || !strings.HasPrefix(err.Error(), s.LastError.Text) {
				t.Errorf("status %+v; want the error", s.LastError)
			}
			if !sameTable(before, b.kernel.loaded()) || s.Policies != 1 {
				t.Error("the table changed")
			}
		})
	}
	b.stop()
	b.start()
	if s := b.status(); s.Source != api.SourceApplied || s.LastError != nil || !sameTable(before, b.kernel.loaded()) {
		t.Errorf("after a restart: status %+v", s)
	}
	b.apply(allowWeb)
	if s := b.status(); s.LastError != nil {
		t.Errorf("after a good set: %+v", s.LastError)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	b := newBench(t)
	before, changes := b.kernel.loaded(), b.kernel.changes()
	files := []api.File{{Name: "web.yaml", Data: allowWeb}}
	a, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: files, DryRun: true})
	if err != nil || !a.Changed || !a.DryRun || !strings.Contains(a.Table, "table inet thole") || a.Diff == "" {
		t.Errorf("dry run: %+v, %v", a, err)
	}
	if b.kernel.changes() != changes || !sameTable(before, b.kernel.loaded()) ||
		b.status().Source != api.SourceDefault {
		t.Error("something changed")
	}
}

func TestFollowedDirectory(t *testing.T) {
	dir := t.TempDir()
	write := func(data string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(allowWeb)
	b := newBench(t, func(b *bench) { b.config.Policies = dir })
	if s := b.status(); s.Source != api.SourceDirectory || s.Directory != dir || s.Policies != 1 {
		t.Fatalf("status %+v", s)
	}
	good := b.kernel.loaded()

	_, err := b.client.Apply(context.Background(),
		api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if refusal, ok := errors.AsType[*api.Refusal](err); !ok || refusal.Code != http.StatusConflict ||
		!strings.Contains(refusal.Message, dir) {
		t.Errorf("apply beside a directory: %v", err)
	}

	write(badPolicy)
	b.until("the bad file's report", func() bool { return b.status().LastError != nil })
	if s := b.status(); !strings.Contains(s.LastError.Text, dir+"/a.yaml:6:3") || !sameTable(good, b.kernel.loaded()) {
		t.Errorf("status %+v", s.LastError)
	}
	if err := b.daemon.Reload(context.Background()); err == nil {
		t.Error("a bad set was reloaded")
	}
	b.stop()
	b.start()
	if s := b.status(); s.LastError == nil || s.Policies != 1 || !sameTable(good, b.kernel.loaded()) {
		t.Errorf("after a restart with the bad file: status %+v", s)
	}
	write(allowWeb)
	b.until("the mended file", func() bool { return b.status().LastError == nil })

	write(allowWeb + strings.ReplaceAll("---\n"+allowWeb, "name: web", "name: web2"))
	b.until("the second policy", func() bool { return b.status().Policies == 2 })
	if err := b.daemon.Reload(context.Background()); err != nil {
		t.Errorf("reload: %v", err)
	}
}

func TestRestartAdoptsWhatIsThere(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb + bindUnit("nginx.service"))
	b.host.MkCgroup("system.slice/nginx.service")
	b.until("the unit", func() bool { return b.status().Workloads == 1 })
	web := b.run("web", map[string]string{"app": "web"})
	b.run("db", map[string]string{"app": "db"})
	was, changes := b.status(), b.kernel.changes()
	b.stop()
	b.start()
	if b.kernel.changes() != changes {
		t.Errorf("the table was changed: %s", b.kernel.applied[changes])
	}
	now := b.status()
	if now.Runs != 2 || now.Workloads != 3 || now.Epoch != was.Epoch {
		t.Errorf("status %+v; was %+v", now, was)
	}
	web.end()
	b.until("the end of one", func() bool { return b.status().Runs == 1 })
	if b.knows(web.Answer.ID) {
		t.Error("the table still knows what ended")
	}
}

// What ended while no daemon was there leaves the table when one comes.
func TestRestartSeesWhatEnded(t *testing.T) {
	b := newBench(t)
	web := b.run("web", map[string]string{"app": "web"})
	b.stop()
	web.end()
	if !b.knows(web.Answer.ID) {
		t.Error("the table changed without a daemon")
	}
	b.start()
	if b.knows(web.Answer.ID) || !b.empty() {
		t.Error("the workload is still there")
	}
}

// A set that is enforced and cannot be read is not replaced by the default.
func TestUnreadableLastSet(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	b.stop()
	file := filepath.Join(b.config.State, policiesFile)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	enforced := b.kernel.loaded()
	if _, err := b.newDaemon(); err == nil || !strings.Contains(err.Error(), policiesFile) ||
		!sameTable(enforced, b.kernel.loaded()) {
		t.Errorf("with a table: %v", err)
	}
	b.kernel.set(func() { b.kernel.table = nil })
	b.start()
	if s := b.status(); s.Source != api.SourceDefault || s.LastError == nil || !s.Enforcing {
		t.Errorf("without a table: %+v", s)
	}
}

func TestUnitsComeAndGo(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb + bindUnit("nginx.service"))
	// A dry run of another set does not keep this one from being followed.
	_, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}},
		DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		id := b.host.MkCgroup("system.slice/nginx.service")
		b.until("the unit", func() bool { return b.knows(id) })
		b.host.Rmdir("system.slice/nginx.service")
		b.until("its end", func() bool { return !b.knows(id) })
	}
}

func TestFailedChangeIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb + bindUnit("nginx.service"))
	b.kernel.set(func() { b.kernel.fail = errors.New("cannot allocate memory") })
	id := b.host.MkCgroup("system.slice/nginx.service")
	b.until("the failure's report", func() bool { return b.status().LastError != nil })
	const want = "cannot allocate memory. The previous table stays in force"
	if s := b.status(); !strings.Contains(s.LastError.Text, want) {
		t.Errorf("status %+v", s.LastError)
	}
	b.kernel.set(func() { b.kernel.fail = nil })
	b.until("another try", func() bool { return b.knows(id) && b.status().LastError == nil })
}

// A change that fails twice and then does not is made at once: nobody is told.
func TestFailedChangeIsTriedAtOnce(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	failures := 0
	b.kernel.before = func(ruleset.Change) {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		b.kernel.fail = nil
		if failures < triesAtOnce-1 {
			failures++
			b.kernel.fail = errors.New("no buffer space available")
		}
	}
	if web := b.run("web", map[string]string{"app": "web"}); !b.knows(web.Answer.ID) {
		t.Error("the workload is not in the table")
	}
	if failures != triesAtOnce-1 {
		t.Errorf("%d tries failed; want %d", failures, triesAtOnce-1)
	}
	if log := b.logs.String(); strings.Contains(log, "level=ERROR") {
		t.Errorf("the failures were reported:\n%s", log)
	}
}

// What cannot be written is in force all the same, is told, and is written when it can be.
func TestStateIsWrittenAtLast(t *testing.T) {
	b := newBench(t)
	away := b.config.State + ".away"
	if err := os.Rename(b.config.State, away); err != nil {
		t.Fatal(err)
	}
	_, err := b.client.Apply(context.Background(),
		api.ApplyRequest{Files: []api.File{{Name: "test.yaml", Data: allowWeb}}})
	const lost = "the policy set is enforced but not stored: it is lost at the next start"
	if err == nil || !strings.Contains(err.Error(), lost) {
		t.Errorf("apply: %v", err)
	}
	web := b.run("web", map[string]string{"app": "web"})
	if s := b.status(); s.Policies != 1 || s.Workloads != 1 || s.LastError == nil ||
		!strings.Contains(s.LastError.Text, "no such file or directory") {
		t.Errorf("status %+v, %+v", s, s.LastError)
	}
	if err := os.Rename(away, b.config.State); err != nil {
		t.Fatal(err)
	}
	b.until("the state to be written", func() bool { return b.status().LastError == nil })
	was, changes := b.status(), b.kernel.changes()
	b.stop()
	b.start()
	if n := b.kernel.changes(); n != changes {
		t.Errorf("the next daemon changed the table: %s", b.kernel.applied[changes])
	}
	if now := b.status(); now.Policies != 1 || now.Source != api.SourceApplied || now.Epoch != was.Epoch ||
		!b.knows(web.Answer.ID) {
		t.Errorf("status %+v; was %+v", now, was)
	}
}

// Somebody flushes our table: the next change mends it.
func TestDriftIsMended(t *testing.T) {
	b := newBench(t)
	web := b.run("web", map[string]string{"app": "web"})
	epoch := b.status().Epoch
	b.kernel.set(func() { b.kernel.table = nil })
	db := b.run("db", map[string]string{"app": "db"})
	if !b.knows(web.Answer.ID) || !b.knows(db.Answer.ID) {
		t.Error("the table was not mended")
	}
	if now := b.status().Epoch; now == epoch {
		t.Error("connections that were made meanwhile are not decided again")
	}
}

func TestEpoch(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb + bindUnit("nginx.service"))
	other := allowWeb + "  egress: []\n"
	epoch := b.status().Epoch
	step := func(what string, raises bool, f func()) {
		t.Helper()
		f()
		now := b.status().Epoch
		if raised := now != epoch; raised != raises {
			t.Errorf("%s: epoch %d after %d; want raised %v", what, now, epoch, raises)
		}
		if loaded := chains.EpochOf(b.kernel.loaded()); loaded != now {
			t.Errorf("%s: the table has epoch %d; the daemon says %d", what, loaded, now)
		}
		epoch = now
	}
	var web *process
	step("a run begins", false, func() { web = b.run("web", map[string]string{"app": "web"}) })
	step("a run ends", false, func() {
		web.end()
		b.until("its end", func() bool { return b.status().Workloads == 0 })
	})
	step("the same set", false, func() { b.apply(allowWeb + bindUnit("nginx.service")) })
	step("a unit begins", true, func() {
		b.host.MkCgroup("system.slice/nginx.service")
		b.until("the unit", func() bool { return b.status().Workloads == 1 })
	})
	step("a policy changes", true, func() {
		b.apply(other + bindUnit("nginx.service"))
	})
	step("a unit's labels change", true, func() {
		b.apply(other + strings.Replace(bindUnit("nginx.service"), "app: web", "app: db", 1))
	})
	step("a unit is not bound any more", true, func() { b.apply(other) })
	step("a restart", false, func() { b.stop(); b.start() })
	step("a restart without memory", false, func() {
		b.stop()
		if err := os.Remove(filepath.Join(b.config.State, memoryFile)); err != nil {
			t.Fatal(err)
		}
		b.start()
	})
}

// Before an epoch comes round, the connections of its half are swept; if they cannot
// be, the epoch is not used. Where the last epoch is not known, all are swept.
func TestEpochsGoRound(t *testing.T) {
	b := newBench(t)
	if want := []mark.Sweep{{}}; !slices.Equal(b.kernel.swept(), want) {
		t.Errorf("at the start, sweeps %v; want %v", b.kernel.swept(), want)
	}
	sets := []string{allowWeb, strings.Replace(allowWeb, "workloads: {matchLabels: {app: web}}", "cidr: 10.0.0.0/8", 1)}
	b.apply(sets[0])
	b.stop()
	b.kernel.set(func() {
		b.kernel.sweeps = nil
		result, err := compiler.Compile(compiler.Input{Options: compiler.Options{Epoch: mark.MaxEpoch}})
		if err != nil {
			t.Fatal(err)
		}
		b.kernel.table = &result.Table
	})
	b.start()
	if got := b.status().Epoch; got != mark.MaxEpoch || b.kernel.swept() != nil {
		t.Fatalf("epoch %d, sweeps %v; want the last epoch, and none", got, b.kernel.swept())
	}
	b.kernel.set(func() { b.kernel.failSweep = errors.New("no buffer space") })
	before := b.kernel.loaded()
	_, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: sets[1]}}})
	if err == nil || !strings.Contains(err.Error(), "no buffer space") || !sameTable(before, b.kernel.loaded()) {
		t.Errorf("without a sweep: %v", err)
	}
	if s := b.status(); s.LastError == nil || s.Epoch != mark.MaxEpoch {
		t.Errorf("without a sweep: %+v", s)
	}
	b.kernel.set(func() { b.kernel.failSweep, b.kernel.sweeps = nil, nil })
	b.apply(sets[1])
	const half = 1 << 27
	if want := []mark.Sweep{{Mask: half}}; b.status().Epoch != 1 || !slices.Equal(b.kernel.swept(), want) {
		t.Errorf("epoch %d, sweeps %v; want 1 and %v", b.status().Epoch, b.kernel.swept(), want)
	}
}

func TestSocketsOutliveTheirCgroup(t *testing.T) {
	b := newBench(t)
	web := b.run("web", map[string]string{"app": "web"})
	hold := func(ids ...uint64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sockets = map[uint64]bool{}
		for _, id := range ids {
			b.sockets[id] = true
		}
	}
	hold(web.Answer.ID)
	web.end()
	b.until("the end of the cgroup", func() bool { return b.empty() && b.status().Ended == 1 })
	if !b.knows(web.Answer.ID) {
		t.Fatal("a socket of the ended workload is unlabelled")
	}
	// A new workload of the same name is another one.
	again := b.run("web", map[string]string{"app": "web"})
	if !b.knows(web.Answer.ID) || !b.knows(again.Answer.ID) {
		t.Error("the table does not know both")
	}
	b.stop()
	b.start()
	if !b.knows(web.Answer.ID) || b.status().Ended != 1 {
		t.Error("the ended workload was forgotten by a restart")
	}
	hold()
	b.until("the end of the workload", func() bool { return !b.knows(web.Answer.ID) && b.status().Ended == 0 })
	if !b.knows(again.Answer.ID) {
		t.Error("the new workload went with the old one")
	}
}

// graves answers for the kernel.
type graves struct {
	living, sockets map[uint64]bool
	unknown         map[uint64]bool // it cannot be found out whether these live
	err             error
}

func (g graves) Lives(id uint64) (bool, error) {
	if g.unknown[id] {
		return false, errors.New("it cannot be found out")
	}
	return g.living[id], nil
}

func (g graves) Sockets() (map[uint64]bool, error) { return g.sockets, g.err }

func TestOutlived(t *testing.T) {
	in := func(id uint64) policy.Workload {
		return policy.Workload{Cgroup: policy.Cgroup{Path: fmt.Sprint(id), ID: id}}
	}
	enforced := []policy.Workload{in(11), in(12), in(14)}
	running := enforced[:1]
	tests := []struct {
		name  string
		world graves
		want  []uint64
	}{
		{"no sockets", graves{living: map[uint64]bool{11: true}}, nil},
		{"a socket of one", graves{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{11: true, 12: true}},
			[]uint64{12}},
		{"one is only not bound any more", graves{living: map[uint64]bool{11: true, 12: true},
			sockets: map[uint64]bool{12: true, 14: true}}, []uint64{14}},
		{"a socket of a child that is gone too",
			graves{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{99: true}}, []uint64{12, 14}},
		{"a socket of a child of the older",
			graves{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{13: true}}, []uint64{12}},
		{"a socket of a cgroup that was gone before",
			graves{living: map[uint64]bool{11: true}, sockets: map[uint64]bool{7: true}}, nil},
		{"a socket of an unlabelled cgroup", graves{living: map[uint64]bool{11: true, 99: true},
			sockets: map[uint64]bool{99: true, 0: true}}, nil},
		{"it is not known", graves{living: map[uint64]bool{11: true}, err: errors.New("no")}, []uint64{12, 14}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := &enforcer{cgroups: tt.world, now: time.Now, loaded: loaded{workloads: newRoster(enforced, nil)}}
			d, found := e.deltaTo(policySet{}, workload.Snapshot{Workloads: running})
			unknown := slices.Contains(codesOf(found), condition.EndedUnknown)
			if unknown != (tt.world.err != nil) {
				t.Errorf("conditions %v", found)
			}
			slices.Sort(d.outlived)
			if !slices.Equal(d.outlived, tt.want) {
				t.Errorf("got %v; want %v", d.outlived, tt.want)
			}
		})
	}
}

// A problem with workloads that ended is told once, however often single cgroups are looked at, and until the sockets
// were listed.
func TestEndedUnknownIsToldOnce(t *testing.T) {
	w := policy.Workload{Kind: policy.KindRun, Cgroup: policy.Cgroup{Path: "thole.slice/a", ID: 11}}
	other := condition.Condition{Code: condition.ImageLabel, Text: "another"}
	e := &enforcer{cgroups: graves{err: errors.New("no")}, now: time.Now, conditions: []condition.Condition{other},
		loaded: loaded{workloads: newRoster([]policy.Workload{w}, nil)}}
	look := func() []condition.Code {
		d, found := e.deltaTo(policySet{}, workload.Snapshot{Partial: true, Gone: []string{w.Cgroup.Path}})
		e.loaded.workloads.apply(&d)
		e.conditions = found
		return codesOf(found)
	}
	for range 3 {
		if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel, condition.EndedUnknown}) {
			t.Errorf("conditions %v", got)
		}
		e.endedChecked = time.Time{}
	}
	e.cgroups = graves{}
	if got := look(); !slices.Equal(got, []condition.Code{condition.ImageLabel}) {
		t.Errorf("after the sockets were listed: %v", got)
	}
}

// A container of which it is not known whether it ended stays without its address, and makes way for a new one that has
// its path and its address.
func TestUnknownEndMakesWay(t *testing.T) {
	container := policy.Workload{Kind: policy.KindContainer, Labels: policy.Labels{"app": "web"},
		Cgroup: policy.Cgroup{Path: "docker/a", ID: 11},
		Own:    []policy.Network{{Bridge: "docker0", Addresses: []netip.Addr{netip.MustParseAddr("172.17.0.2")}}}}
	again := container
	again.Cgroup.ID = 12
	e := &enforcer{cgroups: graves{unknown: map[uint64]bool{11: true}}, now: time.Now,
		loaded: loaded{workloads: newRoster([]policy.Workload{container}, nil)}}
	d, _ := e.deltaTo(policySet{}, workload.Snapshot{Workloads: []policy.Workload{again}})
	e.loaded.workloads.apply(&d)
	old, ok := e.loaded.workloads.of(11)
	if !ok || old.Own != nil || old.Cgroup.Path != "docker/a#11" || !d.takes {
		t.Errorf("the old one is there: %t, %+v; takes %t", ok, old, d.takes)
	}
	if id, _ := e.loaded.workloads.named("docker/a"); id != 12 {
		t.Errorf("the path names %d", id)
	}
}

func TestOneDaemonASocket(t *testing.T) {
	b := newBench(t)
	if _, err := b.newDaemon(); !errors.Is(err, errLocked) || !strings.Contains(err.Error(), b.config.Socket) {
		t.Errorf("a second daemon: %v", err)
	}
	_, err := applyOnce(b.config, b.daemon.host, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if !errors.Is(err, errLocked) {
		t.Errorf("apply beside a daemon: %v", err)
	}
	b.status() // the first one is not disturbed
}

func TestApplyWithoutADaemon(t *testing.T) {
	b := newBench(t)
	b.run("web", map[string]string{"app": "web"})
	host := b.daemon.host
	b.stop()
	request := api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}, DryRun: true}
	before := b.kernel.changes()
	a, err := applyOnce(b.config, host, request)
	if err != nil || !a.Changed || a.Workloads != 1 || b.kernel.changes() != before {
		t.Errorf("dry run: %+v, %v", a, err)
	}
	request.DryRun = false
	a, err = applyOnce(b.config, host, request)
	if err != nil || !a.Changed || a.Workloads != 1 || b.kernel.changes() != before+1 {
		t.Errorf("apply: %+v, %v", a, err)
	}
	b.start()
	if s := b.status(); s.Source != api.SourceApplied || b.kernel.changes() != before+1 {
		t.Errorf("the daemon that came: %+v", s)
	}
}

func TestDryRunWithoutADaemonLeavesNoTrace(t *testing.T) {
	b := newBench(t)
	host := b.daemon.host
	b.stop()
	b.config.State = t.TempDir() + "/none"
	if _, err := applyOnce(b.config, host, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}},
		DryRun: true}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(b.config.State); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a state directory: %v", err)
	}
}

func TestCleanup(t *testing.T) {
	b := newBench(t)
	web := b.run("web", map[string]string{"app": "web"})
	host := b.daemon.host
	b.stop()
	got, err := cleanup(host)
	if diff := cmp.Diff(CleanupResult{Table: true, Stay: []string{web.Answer.Cgroup}}, got); err != nil || diff != "" {
		t.Errorf("cleanup: %v, (-want +got)\n%s", err, diff)
	}
	if b.kernel.loaded() != nil {
		t.Error("the table is still there")
	}
	web.end()
	if got, err := cleanup(host); err != nil || got.Table || len(got.Stay) > 0 || b.host.CgroupID("thole.slice") != 0 {
		t.Errorf("the second cleanup: %+v, %v", got, err)
	}
}

func TestNoDaemon(t *testing.T) {
	socket := t.TempDir() + "/thole.sock"
	_, err := api.NewClient(socket).Status(context.Background())
	if !errors.Is(err, api.ErrNoDaemon) || err.Error() != "no daemon at "+socket+
		": start one with `thole daemon`, or see `thole daemon --help`" {
		t.Errorf("error %v", err)
	}
}
