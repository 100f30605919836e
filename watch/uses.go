package watch

import (
	"strconv"

	"thole/compiler/policy"
	"thole/watch/workload"
)

// A Ledger is what is known elsewhere of the cgroups that a user has made Thole follow.
type Ledger struct {
	Account func(uid uint32) uint32  // whom a uid is charged to; nil: itself
	InTable func(cgroup uint64) bool // whether the loaded table has a workload of this id; nil: it has none
}

func (l Ledger) account(uid uint32) uint32 {
	if l.Account == nil {
		return uid
	}
	return l.Account(uid)
}

func (l Ledger) inTable(cgroup uint64) bool { return l.InTable != nil && l.InTable(cgroup) }

// A Use is what one user has of thole run.
type Use struct {
	Runs   int  // that live, and that ended and are still in the table, because sockets outlive them
	Ended  int  // of them
	Labels int  // distinct label sets of them
	Has    bool // the label set that was asked for is one of them
}

// uses are the runs of all users. A run counts from its start until its cgroup is gone and the table has it no more:
// else a user could fill the table with runs that end and leave a socket to a process elsewhere.
type uses struct {
	ledger Ledger
	users  map[uint32]*userUse // by who is charged
	at     map[uint64]uint32   // whose a cgroup is, by its id
}

// A userUse is what one user has.
type userUse struct {
	runs   map[uint64]usedRun // by the id of the cgroup
	labels map[string]int     // label sets: how many runs have each
}

type usedRun struct {
	labels string
	ended  bool
}

func newUses() uses { return uses{users: map[uint32]*userUse{}, at: map[uint64]uint32{}} }

// begin enters a run that lives.
func (u *uses) begin(id uint64, uid uint32, labels policy.Labels) {
	if who, known := u.at[id]; known {
		run := u.users[who].runs[id]
		run.ended = false
		u.users[who].runs[id] = run
		return
	}
	who := u.ledger.account(uid)
	mine := u.users[who]
	if mine == nil {
		mine = &userUse{runs: map[uint64]usedRun{}, labels: map[string]int{}}
		u.users[who] = mine
	}
	run := usedRun{labels: labels.String()}
	u.at[id], mine.runs[id] = who, run
	mine.labels[run.labels]++
}

// end notes that a cgroup is gone. The table may still have it.
func (u *uses) end(id uint64) {
	who, known := u.at[id]
	if !known {
		return
	}
	run := u.users[who].runs[id]
	run.ended = true
	u.users[who].runs[id] = run
}

// settle forgets those runs of a user that ended, and that the table has no more.
func (u *uses) settle(who uint32) {
	mine := u.users[who]
	if mine == nil {
		return
	}
	for id, run := range mine.runs {
		if !run.ended || u.ledger.inTable(id) {
			continue
		}
		delete(mine.runs, id)
		delete(u.at, id)
		if mine.labels[run.labels]--; mine.labels[run.labels] == 0 {
			delete(mine.labels, run.labels)
		}
	}
	if len(mine.runs) == 0 {
		delete(u.users, who)
	}
}

// of returns what a user has.
func (u *uses) of(who uint32, labels policy.Labels) (use Use) {
	u.settle(who)
	mine := u.users[who]
	if mine == nil {
		return Use{}
	}
	use.Runs, use.Labels = len(mine.runs), len(mine.labels)
	for _, run := range mine.runs {
		if run.ended {
			use.Ended++
		}
	}
	use.Has = labels != nil && mine.labels[labels.String()] > 0
	return use
}

// most returns what the users have who have most, root left out, and what all have together.
func (u *uses) most() (most Use, total int) {
	for who := range u.users {
		use := u.of(who, nil)
		total += use.Runs
		if who != 0 {
			most.Runs, most.Labels = max(most.Runs, use.Runs), max(most.Labels, use.Labels)
			most.Ended = max(most.Ended, use.Ended)
		}
	}
	return most, total
}

// FollowTable says whom runs are charged to, and which of those that ended are still in the table.
func (s *Scopes) FollowTable(l Ledger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.uses.ledger = l
}

// ledger is what FollowTable said.
func (s *Scopes) ledger() Ledger {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses.ledger
}

// Use returns what the user has to whom a uid is charged, and how many runs there are in all.
func (s *Scopes) Use(uid uint32, labels policy.Labels) (use Use, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses.of(s.uses.ledger.account(uid), labels), len(s.uses.at)
}

// MostUse returns what the users have who have most, root left out, and how many runs there are in all.
func (s *Scopes) MostUse() (most Use, total int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.uses.most()
}

// recall enters the runs of the table that an earlier daemon loaded. Those that live are found by a scan; of those that
// ended nothing else tells.
func (s *Scopes) recall(workloads []policy.Workload) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range workloads {
		uid, err := strconv.ParseUint(w.Facts[workload.FactUID], 10, 32)
		if w.Kind != policy.KindRun || err != nil {
			continue
		}
		s.uses.begin(w.Cgroup.ID, uint32(uid), w.Labels)
		s.uses.end(w.Cgroup.ID)
	}
}
