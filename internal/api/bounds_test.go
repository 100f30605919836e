package api

import (
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"thole/watch"
)

// room says whether a user may start one more run with these labels.
func (b *runBench) roomFor(uid uint32, labels map[string]string) error {
	return b.room(watch.Run{UID: uid, Labels: labels})
}

// fill has a user start runs until there are n, each with the label n%sets.
func (b *runBench) fill(uid uint32, from, to, sets int) {
	b.t.Helper()
	for i := from; i < to; i++ {
		run := watch.Run{Name: fmt.Sprintf("u%d-%d", uid, i), UID: uid, Labels: label(i % sets)}
		if _, err := b.create(run, RunRequest{Name: run.Name}); err != nil {
			b.t.Fatalf("run %d: %v", i+1, err)
		}
	}
}

func label(n int) map[string]string { return map[string]string{"job": fmt.Sprint(n)} }

// A user may have a bounded number of label sets, each of which may be a class; those that it has it may use again.
func TestLabelSetsOfAUser(t *testing.T) {
	b := newRunBench(t)
	b.fill(1000, 0, maxLabelSetsPerUser, maxLabelSetsPerUser)
	err := b.roomFor(1000, label(maxLabelSetsPerUser))
	if err == nil || !strings.Contains(err.Error(), "sets of labels") {
		t.Errorf("one more: %v", err)
	}
	if err := b.roomFor(1000, label(7)); err != nil {
		t.Errorf("one of them again: %v", err)
	}
	if err := b.roomFor(1001, label(maxLabelSetsPerUser)); err != nil {
		t.Errorf("another user: %v", err)
	}
	if err := b.roomFor(0, label(maxLabelSetsPerUser)); err != nil {
		t.Errorf("root: %v", err)
	}
	b.wantBound(BoundLabelSets, maxLabelSetsPerUser, 1)
}

// Runs that live, and those that ended and are in the table, count together; and those of subordinate uids are their
// holder's.
func TestRunsOfAUser(t *testing.T) {
	b := newRunBench(t)
	holder := func(uid uint32) uint32 {
		if uid >= 100_000 {
			return 1000
		}
		return uid
	}
	b.account = holder
	b.scopes.FollowTable(watch.Ledger{Account: holder, InTable: func(uint64) bool { return true }})
	const half = maxRunsPerUser / 2
	b.fill(1000, 0, half, 1)
	b.fill(100_007, half, maxRunsPerUser-1, 1)
	if err := b.roomFor(1000, label(0)); err != nil {
		t.Errorf("the last one: %v", err)
	}
	b.fill(1000, maxRunsPerUser-1, maxRunsPerUser, 1)
	for _, uid := range []uint32{1000, 100_000, 165_535} {
		if err := b.roomFor(uid, label(0)); err == nil || !strings.Contains(err.Error(), "uid 1000") {
			t.Errorf("uid %d, one more: %v", uid, err)
		}
	}
	if err := b.roomFor(1001, label(0)); err != nil {
		t.Errorf("another user: %v", err)
	}
	// They end, and the table still has them.
	if _, err := watch.RemoveEmptyScopes(b.root); err != nil {
		t.Fatal(err)
	}
	forgetEnded(t, b)
	if err := b.roomFor(1000, label(0)); err == nil || !strings.Contains(err.Error(), "1000 of them ended") {
		t.Errorf("those that ended do not count: %v", err)
	}
	b.wantBound(BoundRunsUser, maxRunsPerUser, 4)
	b.scopes.FollowTable(watch.Ledger{Account: holder})
	if err := b.roomFor(1000, label(0)); err != nil {
		t.Errorf("the table has forgotten them: %v", err)
	}
	b.wantBound(BoundRunsUser, 0, 4)
}

// forgetEnded has the cgroups scanned, as the daemon does.
func forgetEnded(t *testing.T, b *runBench) {
	t.Helper()
	cgroups, err := watch.NewCgroups(b.root, b.scopes, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer cgroups.Close()
	cgroups.Scan(nil)
}

func (b *runBench) wantBound(name string, now, beyond uint64) {
	b.t.Helper()
	for _, bound := range b.bounds() {
		if bound.Name == name && (bound.Now != now || bound.Beyond != beyond) {
			b.t.Errorf("bound %+v; want %d now, %d beyond", bound, now, beyond)
		}
	}
}

// A user may receive a bounded number of bytes, and have a bounded number unread. An answer of any size is possible.
func TestAnswersOfAUser(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(func() time.Time { return now })
	const size = maxAnswering / 2
	for sent := 0; sent < answerBurst; sent += size {
		if err := l.mayReceive(1); err != nil {
			t.Fatalf("after %d bytes: %v", sent, err)
		}
		l.charge(1, size)()
	}
	if err := l.mayReceive(1); err == nil || !strings.Contains(err.Error(), "8 MiB a second") {
		t.Errorf("beyond the burst: %v", err)
	}
	if err := l.mayReceive(2); err != nil {
		t.Errorf("another user: %v", err)
	}
	if err := l.mayReceive(0); err != nil {
		t.Errorf("root: %v", err)
	}
	now = now.Add(time.Second)
	if err := l.mayReceive(1); err != nil {
		t.Errorf("a second later: %v", err)
	}
	now = now.Add(time.Hour)
	read := l.charge(1, 3*answerBurst)
	if err := l.mayReceive(1); err == nil || !strings.Contains(err.Error(), "not read") {
		t.Errorf("with an answer that is not read: %v", err)
	}
	read()
	now = now.Add(8 * time.Second)
	if err := l.mayReceive(1); err == nil {
		t.Error("a large answer was not charged in full")
	}
	if now = now.Add(time.Second); l.mayReceive(1) != nil {
		t.Error("a large answer is charged for too long")
	}
	l.allowance(1, now)
	l.forgetIdle(now.Add(time.Hour))
	if len(l.users) > 0 {
		t.Errorf("%d users are remembered", len(l.users))
	}
}

// One answer is made for each version, whoever asks.
func TestListingsAreKept(t *testing.T) {
	var c listingCache
	made := 0
	get := func(version uint64) string {
		return string(c.of(version, func() []byte { made++; return fmt.Append(nil, "v", version) }))
	}
	for _, tt := range []struct {
		version uint64
		want    string
		made    int
	}{{3, "v3", 1}, {3, "v3", 1}, {2, "v3", 1}, {4, "v4", 2}, {4, "v4", 2}} {
		if got := get(tt.version); got != tt.want || made != tt.made {
			t.Errorf("version %d: %q, made %d; want %q, %d", tt.version, got, made, tt.want, tt.made)
		}
	}
	var s AnswerStatus
	if c.count(&s); s != (AnswerStatus{Made: 2, Kept: 3}) {
		t.Errorf("counted %+v", s)
	}
}

// A connection is charged to the holder of its uid, and has no right of it.
func TestConnectionsAreCharged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	listener, err := listen(path, func(uint32) uint32 { return 4242 }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if c := conn.(*userConn); c.user != 4242 || c.uid != uint32(os.Getuid()) {
		t.Errorf("uid %d, charged to %d", c.uid, c.user)
	}
}
