package daemon

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/compiler"
)

func TestKey(t *testing.T) {
	state, err := openState(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := state.key()
	if err != nil || len(key) != keySize {
		t.Fatalf("key of %d bytes, %v", len(key), err)
	}
	again, err := state.key()
	if err != nil || !slices.Equal(key, again) {
		t.Errorf("the second time it is another: %v", err)
	}
	path := filepath.Join(state.dir, keyFile)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := state.key(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
}

func TestStateFilesAreReplacedAsAWhole(t *testing.T) {
	state, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.policies(); ok || err != nil {
		t.Errorf("policies of an empty directory: %v, %v", ok, err)
	}
	set, err := parseSet(SourceApplied, []compiler.File{{Name: "a.yaml", Data: []byte(allowWeb)}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := state.savePolicies(set); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := state.policies()
	if !ok || err != nil || !got.equal(set) {
		t.Errorf("policies: %+v, %v, %v", got, ok, err)
	}
	names, err := filepath.Glob(filepath.Join(state.dir, ".*"))
	if err != nil || len(names) > 0 {
		t.Errorf("files are left: %v, %v", names, err)
	}
	if err := os.WriteFile(filepath.Join(state.dir, policiesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := state.policies(); ok || err == nil || !strings.Contains(err.Error(), policiesFile) {
		t.Errorf("a broken file: %v, %v", ok, err)
	}
}

func TestGrant(t *testing.T) {
	web := compiler.LabelGrant{Name: "web", Users: []string{"alice"}, Labels: map[string][]string{"app": {"web", "db"}, "env": {"*"}}}
	ops := compiler.LabelGrant{Name: "ops", Groups: []string{"ops"}, Labels: map[string][]string{"app": {"cron"}}, Require: compiler.Labels{"team": "ops"}}
	free := compiler.LabelGrant{Name: "free", Groups: []string{"100"}, Labels: map[string][]string{"tier": {"1"}}, Require: compiler.Labels{"team": "free"}}
	grants := []compiler.LabelGrant{web, ops, free}
	alice := caller{uid: 1000, user: "alice"}
	aliceOps := caller{uid: 1000, user: "alice", groups: []string{"27", "ops"}}
	tests := []struct {
		name  string
		who   caller
		asked compiler.Labels
		want  compiler.Labels
		err   string
	}{
		{"root", caller{uid: 0, user: "root"}, compiler.Labels{"any": "thing"}, compiler.Labels{"any": "thing"}, ""},
		{"granted", alice, compiler.Labels{"app": "db", "env": "x"}, compiler.Labels{"app": "db", "env": "x"}, ""},
		{"a part of it", alice, compiler.Labels{"env": "x"}, compiler.Labels{"env": "x"}, ""},
		{"by group, required is added", caller{uid: 7, groups: []string{"ops"}}, compiler.Labels{"app": "cron"}, compiler.Labels{"app": "cron", "team": "ops"}, ""},
		{"required and given", caller{uid: 7, groups: []string{"ops"}}, compiler.Labels{"app": "cron", "team": "ops"}, compiler.Labels{"app": "cron", "team": "ops"}, ""},
		{"by gid", caller{uid: 7, groups: []string{"100"}}, compiler.Labels{"tier": "1"}, compiler.Labels{"tier": "1", "team": "free"}, ""},
		{"required of all grants", aliceOps, compiler.Labels{"app": "web"}, compiler.Labels{"app": "web", "team": "ops"}, ""},
		{"halves of two grants", aliceOps, compiler.Labels{"app": "cron", "env": "x"}, nil, "app=cron,env=x"},
		{"grants against each other", caller{uid: 7, groups: []string{"ops", "100"}}, compiler.Labels{"tier": "1"}, nil, "team=ops and team=free"},
		{"a name like a number", caller{uid: 7, user: "1000"}, compiler.Labels{"app": "web"}, nil, "No LabelGrant"},
		{"nobody", caller{uid: 7}, compiler.Labels{"app": "web"}, nil, "No LabelGrant"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := grant(grants, tt.who, tt.asked)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v; want %q", err, tt.err)
			}
		})
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(func() time.Time { return now })
	take := func(uid uint32) int {
		n := 0
		for range 2 * requestsBurst {
			if leave, err := l.enter(uid); err == nil {
				leave()
				n++
			}
		}
		return n
	}
	if n := take(1); n != requestsBurst {
		t.Errorf("%d requests at first; want %d", n, requestsBurst)
	}
	if n := take(2); n != requestsBurst {
		t.Errorf("another user: %d requests; want %d", n, requestsBurst)
	}
	if n := take(0); n != 2*requestsBurst {
		t.Errorf("root: %d requests; want %d", n, 2*requestsBurst)
	}
	now = now.Add(time.Second)
	if n := take(1); n != requestsPerSecond {
		t.Errorf("%d requests a second later; want %d", n, requestsPerSecond)
	}
	now = now.Add(time.Hour)
	var leaves []func()
	for range 2 * maxConcurrentPerUser {
		if leave, err := l.enter(1); err == nil {
			leaves = append(leaves, leave)
		}
	}
	if len(leaves) != maxConcurrentPerUser {
		t.Errorf("%d at once; want %d", len(leaves), maxConcurrentPerUser)
	}
	for _, leave := range leaves {
		leave()
	}
	if _, err := l.enter(1); err != nil {
		t.Errorf("after all left: %v", err)
	}
	now = now.Add(time.Hour)
	for uid := range uint32(maxUserBuckets) {
		_, _ = l.enter(uid + 10)
	}
	if n := len(l.users); n > maxUserBuckets+2 {
		t.Errorf("%d users are remembered", n)
	}
}
