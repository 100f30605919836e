package state

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/policyset"
	"thole/internal/remotes"
)

// The files of the state directory.
const (
	KeyFile      = "key"           // what seals the labels on cgroups; 0600
	PoliciesFile = "policies.json" // StoredSet: the last good policy set
	TableFile    = "table.json"    // TableState: what the loaded table does not say about itself; then TableChanges
	DisarmedFile = "disarmed"      // its presence disarms. Its time of modification says since when
)

// keySize is that of a SHA-256 block's output: a longer key gains nothing.
const keySize = 32

// maxFileSize bounds what is read of a file.
const maxFileSize = 64 << 20

// maxChanges bounds the bytes of changes that are appended before all is written anew.
const maxChanges = 16 << 20

// A Dir is the directory in which the daemon keeps what must survive it. The
// table and the cgroups are not there: the kernel keeps them.
type Dir struct {
	path string

	// changes is TableFile, to append to; nil: it is to be written anew. It and the count of
	// what was appended belong to the goroutine that changes the table.
	changes  *os.File
	appended int
	bytes    int // of these
}

// A StoredSet is a policy set as its source files, to be read again.
type StoredSet struct {
	Version int        `json:"version"`
	Source  string     `json:"source"`
	Files   []api.File `json:"files"`
	// the first file is the built-in default of the program that wrote this
	BuiltIn bool `json:"builtIn,omitempty"`
	// what that default does: a program that does not know of this enforces it
	Default    policyset.DefaultMode `json:"default,omitempty"`
	AllowEmpty bool                  `json:"allowEmpty,omitempty"` // there is no policy, and somebody asked for that
}

// A TableState belongs to the table that is loaded. Without it all is still right, but
// classes are numbered anew, and every connection is decided once more.
type TableState struct {
	Version   int               `json:"version"`
	Epoch     uint16            `json:"epoch"`
	Numbers   compiler.Numbers  `json:"numbers"`
	Workloads []policy.Workload `json:"workloads"` // those in the table
	Fleet     *compiler.Fleet   `json:"fleet,omitempty"`
	Identity  *Identity         `json:"identity,omitempty"`
	Remotes   []policy.Remote   `json:"remotes,omitempty"`
	Unknown   []policy.Cgroup   `json:"unknown,omitempty"` // cgroups that are gone, and whose labels are not known
	Dropped   int               `json:"dropped,omitempty"` // how many of those left the table without a proof
	Containers
}

// Containers are what a table has of containers beside the workloads (compiler.Input).
type Containers struct {
	Unlabelled []policy.Unlabelled `json:"unlabelled,omitempty"`
	Parents    []policy.Cgroup     `json:"parents,omitempty"`
	Bridges    []policy.Bridge     `json:"bridges,omitempty"`
}

// An Identity is what this node's certificate says of its workloads.
type Identity struct {
	Node    string        `json:"node"`
	Require policy.Labels `json:"require,omitempty"`
}

// A TableChange is what a step of the table changes of the TableState. The file with the TableState is replaced as a
// whole, with its changes; a change is appended with one write, after the kernel took it. Killed in between, the daemon
// that comes knows the table as it was before, which is as if it had been killed before it wrote a TableState.
type TableChange struct {
	Began   []policy.Workload    `json:"began,omitempty"`
	Ended   []uint64             `json:"ended,omitempty"` // ids of cgroups
	Numbers compiler.Renumbering `json:"numbers"`

	Epoch      uint16          `json:"epoch,omitempty"`      // 0: as it was
	Containers *Containers     `json:"containers,omitempty"` // nil: as they were
	Met        []policy.Remote `json:"met,omitempty"`
	Forgotten  []policy.Remote `json:"forgotten,omitempty"`
	Closed     []policy.Cgroup `json:"closed,omitempty"` // more that are unknown
	Opened     []uint64        `json:"opened,omitempty"` // ids of those that are not any more
	Dropped    int             `json:"dropped,omitempty"`
}

// Version is that of the files' format.
const Version = 1

// Open makes the directory if there is none.
func Open(path string) (*Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %v: choose another with --state", err)
	}
	return At(path), nil
}

// At returns a directory that may not be there.
func At(path string) *Dir { return &Dir{path: path} }

// Path is where the directory is.
func (s *Dir) Path() string { return s.path }

// Key returns the key, and makes one the first time.
func (s *Dir) Key() ([]byte, error) {
	path := filepath.Join(s.path, KeyFile)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, keySize)
		rand.Read(key) // it never fails
		return key, s.write(KeyFile, key, true)
	}
	if err != nil {
		return nil, fmt.Errorf("the key in the state directory: %v", err)
	}
	if info.Mode().Perm()&0o077 != 0 || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s must be a file that only root can read, because its readers could forge labels: "+
			"try `chmod 600 %[1]s`", path)
	}
	return os.ReadFile(path)
}

// ReadKey returns the key, and makes no file. Without a key, no labels were sealed: a random key
// accepts none.
func (s *Dir) ReadKey() ([]byte, error) {
	key, err := os.ReadFile(filepath.Join(s.path, KeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, keySize)
		rand.Read(key) // it never fails
		return key, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the key in the state directory: %v: are you root?", err)
	}
	return key, nil
}

// SavePolicies keeps a set as the last good one.
func (s *Dir) SavePolicies(set policyset.Set) error {
	stored := StoredSet{Version: Version, Source: set.Source, BuiltIn: set.BuiltIn, Default: set.Default,
		AllowEmpty: set.AllowEmpty}
	files := set.Files
	if set.Source == api.SourceDefault {
		files = nil // the next version of the program may have another
	}
	if set.BuiltIn { // a program that does not know of BuiltIn enforces it too
		files = append([]policy.File{policyset.DefaultFile()}, files...)
	}
	if len(files) == 0 { // a program before AllowEmpty takes no files for a mistake
		files = []policy.File{{Name: "empty.yaml", Data: []byte("# --allow-empty\n")}}
	}
	for _, f := range files {
		stored.Files = append(stored.Files, api.File{Name: f.Name, Data: string(f.Data)})
	}
	return s.writeJSON(PoliciesFile, stored, true)
}

// Policies returns the last good set; ok is false if none was given yet.
func (s *Dir) Policies() (set policyset.Set, ok bool, err error) {
	var stored StoredSet
	if ok, err := s.readJSON(PoliciesFile, &stored); !ok {
		return policyset.Set{}, false, err
	}
	if len(stored.Files) == 0 {
		return policyset.Set{}, false, fmt.Errorf(
			"%s contains no policy file: remove it to start with the built-in policy",
			filepath.Join(s.path, PoliciesFile))
	}
	if stored.BuiltIn {
		stored.Files = stored.Files[1:]
	}
	if set, err = policyset.ParseStored(stored.Source, policyset.Files(stored.Files)); err != nil {
		return set, false, err
	}
	if stored.BuiltIn {
		set = set.WithDefault(stored.Default)
	}
	set.AllowEmpty = stored.AllowEmpty
	return set, true, nil
}

// SaveTable keeps what belongs to the loaded table. It need not survive a crash of
// the machine, which the table does not either.
func (s *Dir) SaveTable(m TableState) error {
	s.Close()
	m.Version = Version
	if err := s.writeJSON(TableFile, m, false); err != nil {
		return err
	}
	var err error
	if s.changes, err = os.OpenFile(filepath.Join(s.path, TableFile), os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return fmt.Errorf("writing the state: %v", err)
	}
	return nil
}

// Close ends the appending to TableFile: SaveTable is next.
func (s *Dir) Close() {
	if s.changes != nil {
		_ = s.changes.Close() // each write was checked
	}
	s.changes, s.appended, s.bytes = nil, 0, 0
}

// Stale reports whether TableFile is to be written as a whole before changes are appended to it.
func (s *Dir) Stale() bool { return s.changes == nil }

// AppendChange appends to TableFile. ok is false where that is to be saved as a whole:
// there are as many changes as room, or this one could not be written.
func (s *Dir) AppendChange(c TableChange, room int) (ok bool) {
	if s.Stale() || s.appended >= room {
		return false
	}
	data, err := json.Marshal(c)
	if s.bytes += len(data); s.bytes > maxChanges {
		return false
	}
	if err == nil {
		_, err = s.changes.Write(append(data, '\n'))
	}
	if err != nil {
		s.Close() // what comes after half a change is not read
		return false
	}
	s.appended++
	return true
}

// Table returns what was kept of the loaded table; the zero value if nothing was. A
// change that was not written to its end is left out.
func (s *Dir) Table() (m TableState, err error) {
	_, err = s.decode(TableFile, func(d *json.Decoder) error {
		if err := d.Decode(&m); err != nil {
			return err
		}
		var changes []TableChange
		for {
			var c TableChange
			if d.Decode(&c) != nil {
				break
			}
			changes = append(changes, c)
		}
		m.change(changes)
		return nil
	})
	return m, err
}

// change makes what was appended.
func (m *TableState) change(changes []TableChange) {
	if len(changes) == 0 {
		return
	}
	workloads := map[uint64]policy.Workload{}
	for _, w := range m.Workloads {
		workloads[w.Cgroup.ID] = w
	}
	for _, c := range changes {
		for _, id := range c.Ended {
			delete(workloads, id)
		}
		for _, w := range c.Began {
			workloads[w.Cgroup.ID] = w
		}
		m.Numbers.Renumber(c.Numbers)
		if c.Epoch != 0 {
			m.Epoch = c.Epoch
		}
		if c.Containers != nil {
			m.Containers = *c.Containers
		}
		m.Remotes = append(remotes.Without(m.Remotes, c.Forgotten), c.Met...)
		m.Unknown = append(m.Unknown, c.Closed...)
		if len(c.Opened) > 0 {
			opened := slices.Sorted(slices.Values(c.Opened))
			m.Unknown = slices.DeleteFunc(m.Unknown, func(u policy.Cgroup) bool {
				_, is := slices.BinarySearch(opened, u.ID)
				return is
			})
		}
		m.Dropped += c.Dropped
	}
	m.Workloads = slices.Collect(maps.Values(workloads))
}

func (s *Dir) writeJSON(name string, v any, sync bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %v", name, err)
	}
	return s.write(name, data, sync)
}

// readJSON returns false if there is no such file, or an error.
func (s *Dir) readJSON(name string, v any) (bool, error) {
	return s.decode(name, func(d *json.Decoder) error { return d.Decode(v) })
}

// decode has a file decoded; it returns false if there is none.
func (s *Dir) decode(name string, how func(*json.Decoder) error) (bool, error) {
	f, err := os.Open(filepath.Join(s.path, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the state: %v", err)
	}
	defer f.Close()
	if err := how(json.NewDecoder(io.LimitReader(f, maxFileSize))); err != nil {
		return false, fmt.Errorf("reading %s: %v: it can be removed", f.Name(), err)
	}
	return true, nil
}

// write replaces a file at once: a reader sees the old content or the new one.
// With sync this also holds after a crash of the machine.
func (s *Dir) write(name string, data []byte, sync bool) error {
	if err := s.replace(name, data, sync); err != nil {
		return fmt.Errorf("writing the state: %v", err)
	}
	return nil
}

func (s *Dir) replace(name string, data []byte, sync bool) error {
	f, err := os.CreateTemp(s.path, "."+name+"-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it fails after the renaming, as it should
	_, err = f.Write(data)
	if sync && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(s.path, name)); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	return s.sync()
}

// sync makes what was renamed, made or removed in the directory survive a crash of the machine.
func (s *Dir) sync() error {
	dir, err := os.Open(s.path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
