package account

import (
	"io"
	"log/slog"
	"os"
	"os/user"
	"strconv"
	"strings"
	"sync"
	"time"
)

// SubordinateFile is where the holders of subordinate uids are listed.
const SubordinateFile = "/etc/subuid"

const (
	checkEvery = time.Second // how often the file is looked at, while somebody asks
	maxFile    = 4 << 20     // bytes: 100,000 lines fit
)

// Accounts knows who holds which subordinate uids.
//
// A user who holds subordinate uids can make processes of each of them (newuidmap, rootless containers), with the
// groups that the user is in. So what they ask for is charged to the holder.
type Accounts struct {
	path   string
	lookup func(name string) (*user.User, error)
	now    func() time.Time
	log    *slog.Logger

	mu      sync.Mutex
	spans   []span // in the order of the file
	read    stamp  // of what spans were read from
	checked time.Time
	busy    bool // a goroutine reads the file
}

// A span are uids that one user holds.
type span struct {
	first, last uint32
	holder      uint32
}

// A stamp tells one state of a file from another.
type stamp struct {
	size     int64
	modified time.Time
}

// Open reads the file, which need not exist. A line that cannot be used is logged and ignored.
func Open(path string, now func() time.Time, log *slog.Logger) *Accounts {
	a := &Accounts{path: path, lookup: user.Lookup, now: now, log: log, checked: now()}
	a.load()
	return a
}

// Of returns the user to whom a uid is charged: its holder, or the uid itself. The uids of a range that belongs to
// root, or to a user that does not exist, are charged together to the first of them.
//
// Of does not wait for the file: a change of it has an effect within some checkEvery.
func (a *Accounts) Of(uid uint32) uint32 {
	if uid == 0 {
		return 0
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := a.now(); !a.busy && now.Sub(a.checked) >= checkEvery {
		a.checked = now
		if stampOf(a.path) != a.read {
			a.busy = true
			go a.load() // it looks names up, which may take long; it ends by itself
		}
	}
	for _, s := range a.spans {
		if s.first <= uid && uid <= s.last {
			return s.holder
		}
	}
	return uid
}

// load reads the file.
func (a *Accounts) load() {
	read := stampOf(a.path)
	spans, err := a.parse()
	a.mu.Lock()
	defer a.mu.Unlock()
	a.busy, a.read = false, read
	if err != nil {
		a.log.Warn("the subordinate uids cannot be read: they are charged as before", "file", a.path, "error", err)
		return
	}
	a.spans = spans
}

func (a *Accounts) parse() ([]span, error) {
	f, err := os.Open(a.path)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, err
	}
	if len(data) == maxFile {
		a.log.Warn("the file of subordinate uids is read in part only", "file", a.path, "bytes", maxFile)
	}
	var spans []span
	holders := map[string]uint32{} // by owner; 0: it is none
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		owner, s, ok := parseLine(line)
		if !ok {
			a.log.Warn("a line of subordinate uids is ignored", "file", a.path, "line", line)
			continue
		}
		holder, known := holders[owner]
		if !known {
			holder = a.holder(owner)
			holders[owner] = holder
		}
		if s.holder = holder; holder == 0 {
			s.holder = s.first
		}
		spans = append(spans, s)
	}
	return spans, nil
}

// parseLine splits "owner:first:count". A range that reaches beyond the last uid ends there.
func parseLine(line string) (owner string, s span, ok bool) {
	fields := strings.Split(line, ":")
	if len(fields) != 3 || fields[0] == "" {
		return "", s, false
	}
	first, err := strconv.ParseUint(fields[1], 10, 32)
	if err != nil {
		return "", s, false
	}
	count, err := strconv.ParseUint(fields[2], 10, 32)
	if err != nil || count == 0 {
		return "", s, false
	}
	const lastUID = 1<<32 - 2 // the one after it is none
	return fields[0], span{first: uint32(first), last: uint32(min(first+count-1, lastUID))}, true
}

// holder returns the uid of an owner, by name or number; 0 if there is none, or if it is root.
func (a *Accounts) holder(owner string) uint32 {
	if uid, err := strconv.ParseUint(owner, 10, 32); err == nil {
		return uint32(uid)
	}
	u, err := a.lookup(owner)
	if err != nil {
		a.log.Warn("subordinate uids belong to an unknown user: they are charged together", "file", a.path,
			"user", owner, "error", err)
		return 0
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(uid)
}

// stampOf returns the zero stamp where there is no file.
func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	return stamp{info.Size(), info.ModTime()}
}
