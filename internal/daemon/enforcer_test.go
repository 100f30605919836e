package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
	"thole/compiler/chains"
	"thole/compiler/mark"
	"thole/internal/api"
	"thole/internal/state"
	"thole/ruleset"
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
	before := b.kernel.Loaded()
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
			if !sameTable(before, b.kernel.Loaded()) || s.Policies != 1 {
				t.Error("the table changed")
			}
		})
	}
	b.stop()
	b.start()
	if s := b.status(); s.Source != api.SourceApplied || s.LastError != nil || !sameTable(before, b.kernel.Loaded()) {
		t.Errorf("after a restart: status %+v", s)
	}
	b.apply(allowWeb)
	if s := b.status(); s.LastError != nil {
		t.Errorf("after a good set: %+v", s.LastError)
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	b := newBench(t)
	before, changes := b.kernel.Loaded(), b.kernel.Changes()
	files := []api.File{{Name: "web.yaml", Data: allowWeb}}
	a, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: files, DryRun: true})
	if err != nil || !a.Changed || !a.DryRun || !strings.Contains(a.Table, "table inet thole") || a.Diff == "" {
		t.Errorf("dry run: %+v, %v", a, err)
	}
	if b.kernel.Changes() != changes || !sameTable(before, b.kernel.Loaded()) ||
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
	good := b.kernel.Loaded()

	_, err := b.client.Apply(context.Background(),
		api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if refusal, ok := errors.AsType[*api.Refusal](err); !ok || refusal.Code != http.StatusConflict ||
		!strings.Contains(refusal.Message, dir) {
		t.Errorf("apply beside a directory: %v", err)
	}

	write(badPolicy)
	b.until("the bad file's report", func() bool { return b.status().LastError != nil })
	if s := b.status(); !strings.Contains(s.LastError.Text, dir+"/a.yaml:6:3") || !sameTable(good, b.kernel.Loaded()) {
		t.Errorf("status %+v", s.LastError)
	}
	if err := b.daemon.Reload(context.Background()); err == nil {
		t.Error("a bad set was reloaded")
	}
	b.stop()
	b.start()
	if s := b.status(); s.LastError == nil || s.Policies != 1 || !sameTable(good, b.kernel.Loaded()) {
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
	was, changes := b.status(), b.kernel.Changes()
	b.stop()
	b.start()
	if b.kernel.Changes() != changes {
		t.Errorf("the table was changed: %s", b.kernel.Applied[changes])
	}
	now := b.status()
	if now.Runs != 2 || now.Workloads != 3 || now.Epoch != was.Epoch {
		t.Errorf("status %+v; was %+v", now, was)
	}
	web.end()
	b.until("the end of one", func() bool { return b.status().Runs == 1 })
	b.until("the table without what ended", func() bool { return !b.knows(web.Answer.ID) })
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
	b.until("the table without what ended", func() bool { return !b.knows(web.Answer.ID) && b.empty() })
}

// A set that is enforced and cannot be read is not replaced by the default.
func TestUnreadableLastSet(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	b.stop()
	file := filepath.Join(b.config.State, state.PoliciesFile)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	enforced := b.kernel.Loaded()
	if _, err := b.newDaemon(); err == nil || !strings.Contains(err.Error(), state.PoliciesFile) ||
		!sameTable(enforced, b.kernel.Loaded()) {
		t.Errorf("with a table: %v", err)
	}
	b.kernel.Change(func() { b.kernel.Table = nil })
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
	b.kernel.Change(func() { b.kernel.Fail = errors.New("cannot allocate memory") })
	id := b.host.MkCgroup("system.slice/nginx.service")
	b.until("the failure's report", func() bool { return b.status().LastError != nil })
	const want = "cannot allocate memory. The previous table stays in force"
	if s := b.status(); !strings.Contains(s.LastError.Text, want) {
		t.Errorf("status %+v", s.LastError)
	}
	b.kernel.Change(func() { b.kernel.Fail = nil })
	b.until("another try", func() bool { return b.knows(id) && b.status().LastError == nil })
}

// A change that fails twice and then does not is made at once: nobody is told.
func TestFailedChangeIsTriedAtOnce(t *testing.T) {
	b := newBench(t)
	b.apply(allowWeb)
	failures := 0
	b.kernel.Before = func(ruleset.Change) {
		b.kernel.Locked(func() {
			b.kernel.Fail = nil
			if failures < triesAtOnce-1 {
				failures++
				b.kernel.Fail = errors.New("no buffer space available")
			}
		})
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
	was, changes := b.status(), b.kernel.Changes()
	b.stop()
	b.start()
	if n := b.kernel.Changes(); n != changes {
		t.Errorf("the next daemon changed the table: %s", b.kernel.Applied[changes])
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
	b.kernel.Change(func() { b.kernel.Table = nil })
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
		if loaded := chains.EpochOf(b.kernel.Loaded()); loaded != now {
			t.Errorf("%s: the table has epoch %d; the daemon says %d", what, loaded, now)
		}
		epoch = now
	}
	var web *process
	step("a run begins", false, func() { web = b.run("web", map[string]string{"app": "web"}) })
	step("a run ends", false, func() {
		web.end()
		b.until("its end", func() bool { s := b.status(); return s.Workloads+s.Ended == 0 })
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
		if err := os.Remove(filepath.Join(b.config.State, state.TableFile)); err != nil {
			t.Fatal(err)
		}
		b.start()
	})
}

// Before an epoch comes round, the connections of its half are swept; if they cannot
// be, the epoch is not used. Where the last epoch is not known, all are swept.
func TestEpochsGoRound(t *testing.T) {
	b := newBench(t)
	if want := []mark.Sweep{{}}; !slices.Equal(b.kernel.Swept(), want) {
		t.Errorf("at the start, sweeps %v; want %v", b.kernel.Swept(), want)
	}
	sets := []string{allowWeb, strings.Replace(allowWeb, "workloads: {matchLabels: {app: web}}", "cidr: 10.0.0.0/8", 1)}
	b.apply(sets[0])
	b.stop()
	b.kernel.Change(func() {
		b.kernel.Sweeps = nil
		result, err := compiler.Compile(compiler.Input{Options: compiler.Options{Epoch: mark.MaxEpoch}})
		if err != nil {
			t.Fatal(err)
		}
		b.kernel.Table = &result.Table
	})
	b.start()
	if got := b.status().Epoch; got != mark.MaxEpoch || b.kernel.Swept() != nil {
		t.Fatalf("epoch %d, sweeps %v; want the last epoch, and none", got, b.kernel.Swept())
	}
	b.kernel.Change(func() { b.kernel.FailSweep = errors.New("no buffer space") })
	before := b.kernel.Loaded()
	_, err := b.client.Apply(context.Background(), api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: sets[1]}}})
	if err == nil || !strings.Contains(err.Error(), "no buffer space") || !sameTable(before, b.kernel.Loaded()) {
		t.Errorf("without a sweep: %v", err)
	}
	if s := b.status(); s.LastError == nil || s.Epoch != mark.MaxEpoch {
		t.Errorf("without a sweep: %+v", s)
	}
	b.kernel.Change(func() { b.kernel.FailSweep, b.kernel.Sweeps = nil, nil })
	b.apply(sets[1])
	const half = 1 << 27
	if want := []mark.Sweep{{Mask: half}}; b.status().Epoch != 1 || !slices.Equal(b.kernel.Swept(), want) {
		t.Errorf("epoch %d, sweeps %v; want 1 and %v", b.status().Epoch, b.kernel.Swept(), want)
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

func TestOneDaemonASocket(t *testing.T) {
	b := newBench(t)
	if _, err := b.newDaemon(); !errors.Is(err, state.ErrLocked) || !strings.Contains(err.Error(), b.config.Socket) {
		t.Errorf("a second daemon: %v", err)
	}
	_, err := applyOnce(b.config, b.daemon.host, api.ApplyRequest{Files: []api.File{{Name: "x.yaml", Data: allowWeb}}})
	if !errors.Is(err, state.ErrLocked) {
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
	before := b.kernel.Changes()
	a, err := applyOnce(b.config, host, request)
	if err != nil || !a.Changed || a.Workloads != 1 || b.kernel.Changes() != before {
		t.Errorf("dry run: %+v, %v", a, err)
	}
	request.DryRun = false
	a, err = applyOnce(b.config, host, request)
	if err != nil || !a.Changed || a.Workloads != 1 || b.kernel.Changes() != before+1 {
		t.Errorf("apply: %+v, %v", a, err)
	}
	b.start()
	if s := b.status(); s.Source != api.SourceApplied || b.kernel.Changes() != before+1 {
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
	if b.kernel.Loaded() != nil {
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

// The built-in default stays what it is when the policies are read again.
func TestReloadOfDefault(t *testing.T) {
	b := newBench(t)
	if _, err := b.client.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := b.status(); !s.BuiltIn || s.Source != api.SourceDefault {
		t.Errorf("after a reload: %+v", s)
	}
	if _, err := b.client.Apply(t.Context(),
		api.ApplyRequest{Files: []api.File{{Name: "g.yaml", Data: grantAlice}}}); err != nil {
		t.Errorf("a grant beside the default: %v", err)
	}
}
