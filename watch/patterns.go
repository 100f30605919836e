package watch

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
)

// The limits of what a user can cost who makes cgroups where a pattern looks for them.
const (
	maxPatternCgroups = 256  // of one pattern and user that match; the ended ones that are in the table count too
	maxPatternEntries = 4096 // that are read of one cgroup

	patternLooks    = 10 // looks at all cgroups, of one user at once; one more each patternLookEvery
	patternEvents   = 2000
	patternEventsPS = 500 // events of inotify, of one user in a second

	patternLookEvery = time.Second      // how often a closed cgroup is looked at
	patternClosed    = 10 * time.Second // for how long it stays closed after too many changes
)

// patterns bound what a user can cost by the cgroups that it makes where a pattern (Workload documents with cgroup:)
// looks for them, in a cgroup that the user may write. Up to the bounds, each change is looked at when it happens.
//
//   - Of the cgroups that match, the oldest maxPatternCgroups are workloads.
//   - After too many changes in a cgroup, it is not watched for patternClosed, and looked at each patternLookEvery.
//
// Beyond the bounds, the cgroup is closed (Snapshot.Parents): what is below it and no workload reaches nothing, until
// it is. So no user can escape its labels by making more cgroups than Thole looks at.
//
// mu guards all fields. It is taken after the lock of Cgroups.
type patterns struct {
	root   cgroupfs.Root
	ledger func() Ledger
	wake   func() // has all cgroups looked at

	closedFor time.Duration // patternClosed

	mu       sync.Mutex
	writable map[string]uint32 // cgroups that the last scan looked into, and that a user may write: whom they cost
	users    map[uint32]*patternUser
	closed   map[string]time.Time // after too many changes, until when
	timer    *time.Timer          // for the next look at what is closed; nil: none is needed
	taken    map[patternKey]map[uint64]bool

	full, churned uint64 // how often a cgroup was closed
}

// A patternUser is what one user may change yet.
type patternUser struct{ looks, events *rate.Limiter }

// A patternKey is what has a bound of its own: a pattern's component, for one user.
type patternKey struct {
	binding   string // its name
	component int
	user      uint32
}

func newPatterns(root cgroupfs.Root, ledger func() Ledger, wake func()) *patterns {
	return &patterns{root: root, ledger: ledger, wake: wake, closedFor: patternClosed, writable: map[string]uint32{},
		users: map[uint32]*patternUser{}, closed: map[string]time.Time{}, taken: map[patternKey]map[uint64]bool{}}
}

// in returns the cgroup that an event happened in, if a user may write there and a pattern looks there.
func (p *patterns) in(cgroup string, changes bool) (dir string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if dir = path.Dir(cgroup); dir == "." {
		dir = ""
	}
	if _, ok = p.writable[dir]; !ok && !changes {
		_, ok = p.writable[cgroup] // a change of the cgroup itself, such as of its mode
		dir = cgroup
	}
	return dir, ok
}

// event takes an event in such a cgroup. changes says that cgroups came or went, and pending that a look at all
// cgroups is to come anyway. look is true if there should be one.
func (p *patterns) event(dir string, changes, pending bool) (look bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, is := p.closed[dir]; is {
		return false
	}
	user := p.user(p.writable[dir])
	enough := user.events.Allow()
	if enough && (!changes || pending) {
		return false
	}
	if enough && user.looks.Allow() {
		return true
	}
	p.churned++
	p.closed[dir] = time.Now().Add(p.closedFor)
	p.lookAgain()
	return true // so that it is closed in the table, and not watched
}

// lookAgain has all cgroups looked at after patternLookEvery. The caller holds mu.
func (p *patterns) lookAgain() {
	if p.timer == nil {
		p.timer = time.AfterFunc(patternLookEvery, p.tick)
	}
}

// user returns what a user may change yet. The caller holds mu.
func (p *patterns) user(who uint32) *patternUser {
	u := p.users[who]
	if u == nil {
		u = &patternUser{looks: rate.NewLimiter(rate.Every(patternLookEvery), patternLooks),
			events: rate.NewLimiter(patternEventsPS, patternEvents)}
		p.users[who] = u
	}
	return u
}

// tick has the closed cgroups looked at, and opens those whose time is over.
func (p *patterns) tick() {
	p.mu.Lock()
	now := time.Now()
	for dir, until := range p.closed {
		if now.After(until) {
			delete(p.closed, dir)
		}
	}
	p.timer = nil
	if len(p.closed) > 0 {
		p.lookAgain()
	}
	p.mu.Unlock()
	p.wake()
}

// stop ends the timer.
func (p *patterns) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.timer != nil {
		p.timer.Stop()
	}
}

// A PatternUse says how near the users are to the limits who are nearest.
type PatternUse struct {
	Cgroups, MaxCgroups int
	Full                uint64 // how often a look found more
	Looks, MaxLooks     int
	Churned             uint64 // how often a cgroup was closed after too many changes
}

func (p *patterns) use() PatternUse {
	p.mu.Lock()
	defer p.mu.Unlock()
	use := PatternUse{MaxCgroups: maxPatternCgroups, Full: p.full, MaxLooks: patternLooks, Churned: p.churned}
	for _, taken := range p.taken {
		use.Cgroups = max(use.Cgroups, len(taken))
	}
	for _, u := range p.users {
		use.Looks = max(use.Looks, patternLooks-int(u.looks.Tokens()))
	}
	return use
}

// A patternLook is what one scan does with patterns.
type patternLook struct {
	*patterns
	account  func(uid uint32) uint32
	inTable  func(cgroup uint64) bool
	writable map[string]uint32
	taken    map[patternKey]map[uint64]bool

	waits      bool              // for ended cgroups to leave the table, so that there is room
	parents    map[string]uint64 // closed cgroups, with their ids
	conditions []condition.Condition
}

// look begins a scan.
func (p *patterns) look() *patternLook {
	ledger := p.ledger()
	return &patternLook{patterns: p, account: ledger.account, inTable: ledger.inTable, writable: map[string]uint32{},
		taken: map[patternKey]map[uint64]bool{}, parents: map[string]uint64{}}
}

// end ends a scan. It returns the cgroups that are closed.
func (l *patternLook) end() (closed []policy.Cgroup) {
	p := l.patterns
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writable, p.taken = l.writable, l.taken
	if l.waits {
		p.lookAgain()
	}
	for who, u := range p.users {
		if u.looks.Tokens() >= patternLooks && u.events.Tokens() >= patternEvents {
			delete(p.users, who) // as new
		}
	}
	for path, id := range l.parents {
		closed = append(closed, policy.Cgroup{Path: path, ID: id})
	}
	return closed
}

// enter notes that a pattern looks into a cgroup. It returns whom the cgroups in it cost, if a user may make some; and
// whether it is to be watched.
func (l *patternLook) enter(b policy.Binding, cgroup string) (who uint32, bounded, watched bool) {
	uid, bounded, err := l.root.Writer(cgroup)
	if err != nil || !bounded {
		return 0, false, true
	}
	who = l.account(uid)
	l.writable[cgroup] = who
	l.patterns.mu.Lock()
	_, closed := l.patterns.closed[cgroup]
	l.patterns.mu.Unlock()
	if closed {
		l.close(b, condition.PatternChurn, cgroup, fmt.Sprintf(
			"the pattern %q looks into the cgroup %s, where uid %d makes and removes cgroups more often than once a "+
				"second: those that it makes are found after up to a second, and are closed until then",
			b.Cgroup, cgroup, who))
	}
	return who, true, !closed
}

// close closes what is below a cgroup and no workload.
func (l *patternLook) close(b policy.Binding, code condition.Code, cgroup, text string) {
	id, err := l.root.ID(cgroup)
	if err != nil {
		return // it is gone
	}
	l.parents[cgroup] = id
	c := condition.Condition{Code: code, Where: b.Position.String(), Text: text +
		". Nothing below this cgroup that is no workload reaches anything, or is reached"}
	if !slices.Contains(l.conditions, c) {
		l.conditions = append(l.conditions, c)
	}
}

// exceed notes that a cgroup has more than may be followed.
func (l *patternLook) exceed(b policy.Binding, cgroup string, who uint32) {
	l.patterns.mu.Lock()
	l.patterns.full++
	l.patterns.mu.Unlock()
	l.close(b, condition.PatternFull, cgroup, fmt.Sprintf("the pattern %q matches more than %d cgroups of uid %d, or "+
		"the cgroup %s has more than %d in it: the newest are not workloads, and are closed",
		b.Cgroup, maxPatternCgroups, who, cgroup, maxPatternEntries))
}

// A candidate is a cgroup that matches.
type candidate struct {
	path string
	id   uint64
}

// fit returns those of a user's cgroups that match a component of a pattern and are followed: the oldest, as far as
// there is room beside those that ended and are in the table.
func (l *patternLook) fit(b policy.Binding, component int, who uint32, found []candidate) (paths []string) {
	slices.SortFunc(found, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	key := patternKey{b.Name, component, who}
	taken := map[uint64]bool{}
	for _, c := range found {
		taken[c.id] = true
	}
	ended := map[uint64]bool{}
	l.patterns.mu.Lock()
	for id := range l.patterns.taken[key] {
		if !taken[id] && l.inTable(id) {
			ended[id] = true
		}
	}
	l.patterns.mu.Unlock()
	room := max(0, maxPatternCgroups-len(ended))
	l.waits = l.waits || len(found) > room && len(ended) > 0
	for _, c := range found[min(room, len(found)):] {
		if dir := path.Dir(c.path); l.parents[dir] == 0 {
			l.exceed(b, dir, who)
		}
	}
	for _, c := range found[:min(room, len(found))] {
		paths = append(paths, c.path)
		ended[c.id] = true
	}
	l.taken[key] = ended
	return paths
}

// withParents adds closed cgroups to the parents of containers.
func withParents(parents, closed []policy.Cgroup) []policy.Cgroup {
	all := slices.Clone(parents)
	for _, c := range closed {
		if !slices.Contains(parents, c) {
			all = append(all, c)
		}
	}
	return all
}
