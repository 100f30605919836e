package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2"
	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

// The names of thole run's cgroups in cgroupfs.TholeSlice: NAME.scope, or thole-NAME.scope where systemd makes them.
// The names of all units of systemd are in one space, in which no workload may be named as session-1.scope is.
const (
	scope      = ".scope"
	unitPrefix = "thole-"
)

// Scopes are the cgroups of thole run. A scope begins without the process that it is
// for, with its labels stored on it; it is believed because of their seal, also after
// a restart; and it is removed when the last process in it has ended.
type Scopes struct {
	root    cgroupfs.Root
	seal    seal
	manager Manager             // nil: they are directories that are made here
	prefix  string              // of their names
	touch   func(cgroup string) // says that one is to be looked at

	mu sync.Mutex
	// By name: scopes whose process is yet to be moved in. The function releases what holds one; nil: it is being made.
	starting map[string]func()
	known    map[string]Run // by name: those whose seal was found good
	uses     uses           // of these, and of those that ended
	moved    movedCommands
}

// NewScopes takes charge of the scopes below root. The key is what proves their
// labels; who knows it can forge them. The manager, which may be nil, makes them.
func NewScopes(root cgroupfs.Root, key []byte, manager Manager) (*Scopes, error) {
	seal, err := newSeal(key)
	if err != nil {
		return nil, err
	}
	s := &Scopes{root: root, seal: seal, manager: manager, touch: func(string) {},
		starting: map[string]func(){}, known: map[string]Run{}, uses: newUses()}
	if manager != nil {
		s.prefix = unitPrefix
	}
	return s, nil
}

// checkSlice checks that the parent of all scopes is root's.
func (s *Scopes) checkSlice() error {
	dir := s.root.Path(cgroupfs.TholeSlice)
	var stat unix.Stat_t
	if err := unix.Lstat(dir, &stat); err != nil {
		return fmt.Errorf("cgroup %s: %v", dir, err)
	}
	if stat.Uid != 0 {
		return fmt.Errorf("cgroup %s belongs to uid %d, who could move processes into it: "+
			"it must belong to root: try `chown root %[1]s`", dir, stat.Uid)
	}
	return nil
}

// Create makes the scope run.Name and stores the run on it. Until Settle or Discard
// it is not removed although it is empty. A name that is in use is fs.ErrExist.
func (s *Scopes) Create(run Run) (Run, error) {
	taken := fmt.Errorf("a workload named %q %w", run.Name, fs.ErrExist)
	if !s.reserve(run.Name) {
		return Run{}, taken
	}
	release, err := s.make(&run)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.starting, run.Name)
		if errors.Is(err, fs.ErrExist) {
			err = taken
		}
		return Run{}, err
	}
	s.starting[run.Name] = release
	s.know(run)
	s.touch(run.Cgroup.Path)
	return run, nil
}

// reserve takes a name. The lock is not held while systemd makes the scope.
func (s *Scopes) reserve(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, taken := s.starting[name]
	if !taken {
		s.starting[name] = nil
	}
	return !taken
}

// make makes the run's cgroup, with its labels. release gives up what holds it while
// it has no process of its own.
func (s *Scopes) make(run *Run) (release func(), err error) {
	unit := s.prefix + run.Name + scope
	if s.manager != nil {
		release, err = s.manager.Start(unit, "thole run --label "+run.Labels.String())
	} else {
		release, err = func() {}, s.makeDir(unit)
	}
	if err != nil {
		return nil, err
	}
	cgroup := cgroupfs.TholeSlice + "/" + unit
	run.Version = runVersion
	if err = s.checkSlice(); err == nil {
		*run, err = s.store(*run, cgroup)
	}
	if err != nil {
		release()
		return nil, errors.Join(err, s.root.Remove(cgroup))
	}
	return release, nil
}

// makeDir makes a scope by hand, and the parent of all.
func (s *Scopes) makeDir(unit string) error {
	dir := s.root.Path(cgroupfs.TholeSlice)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the cgroup %s: %v: is the cgroup tree writable? See `thole doctor`", dir, err)
	}
	if err := s.checkSlice(); err != nil {
		return err
	}
	if err := os.Mkdir(s.root.Path(cgroupfs.TholeSlice+"/"+unit), 0o755); err != nil {
		return fmt.Errorf("making the cgroup %s/%s: %w", cgroupfs.TholeSlice, unit, err)
	}
	return nil
}

func (s *Scopes) store(run Run, cgroup string) (Run, error) {
	id, err := s.root.ID(cgroup)
	if err != nil {
		return Run{}, err
	}
	run.Cgroup = policy.Cgroup{Path: cgroup, ID: id}
	return run, s.seal.write(s.root, run)
}

// Move moves a process, with all its threads, into the scope. The pid may have
// changed hands meanwhile: who calls checks afterwards whom he moved.
func (s *Scopes) Move(run Run, pid int) error {
	group, err := cgroup2.Load("/"+run.Cgroup.Path, cgroup2.WithMountpoint(s.root.Dir()))
	if err != nil {
		return fmt.Errorf("cgroup %s: %v", run.Cgroup.Path, err)
	}
	if err := group.AddProc(uint64(pid)); err != nil {
		return fmt.Errorf("moving process %d into the cgroup %s: %v", pid, run.Cgroup.Path, err)
	}
	return nil
}

// Settle says that the scope's process is in it: from now on it is removed when it
// is empty.
func (s *Scopes) Settle(run Run) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started(run)
}

// started ends what held a scope, which may be empty by now. It needs the lock.
func (s *Scopes) started(run Run) {
	if release, ok := s.starting[run.Name]; ok {
		release()
		delete(s.starting, run.Name)
	}
	s.touch(run.Cgroup.Path)
}

// Discard gives up a scope. If a process is in it nevertheless, it stays until
// that has ended.
func (s *Scopes) Discard(run Run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started(run)
	if err := s.root.Remove(run.Cgroup.Path); err != nil {
		return err
	}
	s.forget(run.Name)
	return nil
}

// know enters a run. It needs the lock, as forget does.
func (s *Scopes) know(run Run) {
	s.forget(run.Name)
	s.known[run.Name] = run
	s.uses.begin(run.Cgroup.ID, run.UID, run.Labels)
}

func (s *Scopes) forget(name string) {
	run, ok := s.known[name]
	if !ok {
		return
	}
	delete(s.known, name)
	s.uses.end(run.Cgroup.ID)
}

// list returns the scopes that live, by name, and removes the empty ones if sweep
// is set; systemd removes its own. What is in our slice without a good seal is reported and carries no
// labels. watch is called for each scope before it is looked at.
//
// The lock is held for one scope after the other, so that who makes a scope does not wait for a look at all. A scope
// that is made meanwhile may be missing: Create touches it.
func (s *Scopes) list(sweep bool, watch func(cgroup string)) ([]Run, []condition.Condition) {
	watch("")
	watch(cgroupfs.TholeSlice)
	before := s.ids()
	names, err := s.root.Children(cgroupfs.TholeSlice)
	if err != nil {
		return nil, []condition.Condition{{
			Code: condition.CgroupsUnreadable, Where: cgroupfs.TholeSlice, Text: err.Error(),
		}}
	}
	var runs []Run
	var problems []condition.Condition
	for _, dir := range names {
		s.mu.Lock()
		run, lives, problem := s.read(dir, sweep, watch)
		s.mu.Unlock()
		if problem != "" {
			problems = append(problems, condition.Condition{
				Code: condition.ScopeRefused, Where: cgroupfs.TholeSlice + "/" + dir,
				Text: problem + "its processes reach nothing",
			})
		}
		if lives {
			runs = append(runs, run)
			delete(before, run.Name)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, id := range before {
		if s.known[name].Cgroup.ID == id { // none of this name was made meanwhile
			s.ended(name, sweep)
		}
	}
	return runs, append(problems, s.moved.conditions(time.Now())...)
}

// ids returns the cgroups of the runs that are known, by name.
func (s *Scopes) ids() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := make(map[string]uint64, len(s.known))
	for name, run := range s.known {
		ids[name] = run.Cgroup.ID
	}
	return ids
}

// ended forgets a run whose scope is gone or empty. If sweep is set, it is found out whether its command lives
// elsewhere. It needs the lock.
func (s *Scopes) ended(name string, sweep bool) {
	if run, known := s.known[name]; known && sweep {
		s.moved.look(s, run, time.Now())
	}
	s.forget(name)
}

// lookAt looks at one cgroup of the slice, as list does. tell reports that list has something to tell.
func (s *Scopes) lookAt(dir string, watch func(cgroup string)) (run Run, lives, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	run, lives, why := s.read(dir, true, watch)
	if name, ours := s.nameOf(dir); ours && !lives {
		s.ended(name, true)
	}
	return run, lives, why != "" || s.moved.news
}

// read returns the run whose cgroup is dir, if there is one and it is not still being
// made. It needs the lock.
func (s *Scopes) read(dir string, sweep bool, watch func(cgroup string)) (run Run, lives bool, problem string) {
	cgroup := cgroupfs.TholeSlice + "/" + dir
	name, ours := s.nameOf(dir)
	if !ours {
		return run, false, "it is not ours: "
	}
	watch(cgroup + "/" + cgroupfs.EventsFile)
	release, starting := s.starting[name]
	switch {
	case starting && release == nil: // its labels are being stored
		return run, false, ""
	case !starting && sweep && s.empty(name, cgroup):
		return run, false, ""
	}
	run, err := s.verify(name, cgroup)
	switch {
	case cgroupfs.Gone(err):
		return run, false, ""
	case err != nil:
		return run, false, "refused: " + err.Error() + "; "
	default:
		return run, true, ""
	}
}

// nameOf returns the name of the run whose cgroup is dir.
func (s *Scopes) nameOf(dir string) (string, bool) {
	name, ok := strings.CutSuffix(dir, scope)
	if !ok {
		return "", false
	}
	return strings.CutPrefix(name, s.prefix)
}

// empty looks whether a process is in the scope. If there is none, it is found out whether the command lives elsewhere,
// and the scope is removed, or left to systemd. gone reports that it is not there any more. One that cannot be removed
// is looked at again the next time.
func (s *Scopes) empty(name, cgroup string) (gone bool) {
	populated, err := s.root.Populated(cgroup)
	if cgroupfs.Gone(err) {
		return true
	}
	if err != nil || populated {
		return false
	}
	if run, known := s.known[name]; known {
		s.moved.look(s, run, time.Now())
	}
	return s.manager == nil && s.root.Remove(cgroup) == nil
}

// verify returns the run that is stored on the cgroup. A seal is checked once: an
// id is never given to a second cgroup.
func (s *Scopes) verify(name, cgroup string) (Run, error) {
	id, err := s.root.ID(cgroup)
	if err != nil {
		return Run{}, err
	}
	if run, ok := s.known[name]; ok && run.Cgroup.ID == id {
		return run, nil
	}
	run, err := s.seal.read(s.root, policy.Cgroup{Path: cgroup, ID: id})
	if err != nil {
		return Run{}, err
	}
	if run.Name != name {
		return Run{}, fmt.Errorf("its labels are those of %q", run.Name)
	}
	s.know(run)
	return run, nil
}

// RemoveEmptyScopes removes every empty cgroup of thole run, and their parent if
// nothing is left in it. It needs no key and returns the cgroups that stay because
// processes live in them.
func RemoveEmptyScopes(root cgroupfs.Root) (stay []string, err error) {
	names, err := root.Children(cgroupfs.TholeSlice)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		cgroup := cgroupfs.TholeSlice + "/" + name
		switch populated, err := root.Populated(cgroup); {
		case cgroupfs.Gone(err):
		case err != nil:
			return stay, fmt.Errorf("cgroup %s: %v", cgroup, err)
		case populated:
			stay = append(stay, cgroup)
		default:
			if err := root.Remove(cgroup); err != nil {
				return stay, err
			}
		}
	}
	if len(stay) > 0 {
		return stay, nil
	}
	return nil, root.Remove(cgroupfs.TholeSlice)
}

// workload is the run as the compiler sees it.
func (r Run) workload() policy.Workload {
	facts := policy.Labels{
		workload.FactKind: policy.KindRun.String(),
		workload.FactUID:  strconv.FormatUint(uint64(r.UID), 10),
	}
	if r.User != "" {
		facts[workload.FactUser] = r.User
	}
	return policy.Workload{Name: r.Name, Kind: policy.KindRun, Labels: r.Labels, Facts: facts, Cgroup: r.Cgroup}
}

// Holds reports whether the process is in the scope itself.
func (s *Scopes) Holds(run Run, pid int) (bool, error) {
	data, err := os.ReadFile(s.root.Path(run.Cgroup.Path + "/cgroup.procs"))
	if err != nil {
		return false, fmt.Errorf("cgroup %s: %v", run.Cgroup.Path, err)
	}
	return slices.Contains(strings.Fields(string(data)), strconv.Itoa(pid)), nil
}
