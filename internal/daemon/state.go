package daemon

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
	"thole/internal/remotes"
)

// The files of the state directory.
const (
	keyFile      = "key"           // what seals the labels on cgroups; 0600
	policiesFile = "policies.json" // storedSet: the last good policy set
	memoryFile   = "table.json"    // a memory: what the loaded table does not say about itself; then memoryChanges
)

// keySize is that of a SHA-256 block's output: a longer key gains nothing.
const keySize = 32

// A stateDir is the directory in which the daemon keeps what must survive it. The
// table and the cgroups are not there: the kernel keeps them.
type stateDir struct {
	dir string

	// changes is the memory's file, to append to; nil: it is to be written anew. It and the
	// count of what was appended belong to the enforcer's goroutine.
	changes  *os.File
	appended int
}

// A storedSet is a policy set as its source files, to be read again.
type storedSet struct {
	Version int        `json:"version"`
	Source  string     `json:"source"`
	Files   []api.File `json:"files"`
	// the first file is the built-in default of the program that wrote this
	BuiltIn    bool `json:"builtIn,omitempty"`
	AllowEmpty bool `json:"allowEmpty,omitempty"` // there is no policy, and somebody asked for that
}

// A memory belongs to the table that is loaded. Without it all is still right, but
// classes are numbered anew, and every connection is decided once more.
type memory struct {
	Version   int               `json:"version"`
	Epoch     uint16            `json:"epoch"`
	Numbers   compiler.Numbers  `json:"numbers"`
	Workloads []policy.Workload `json:"workloads"` // those in the table
	Fleet     *compiler.Fleet   `json:"fleet,omitempty"`
	Identity  *identity         `json:"identity,omitempty"`
	Remotes   []policy.Remote   `json:"remotes,omitempty"`
	containers
}

// A memoryChange is what a step of the table changes of the memory. The file with
// the memory is replaced as a whole, with its changes; a change is appended with one
// write, after the kernel took it. Killed in between, the daemon that comes knows the
// table as it was before, which is as if it had been killed before it wrote a memory.
type memoryChange struct {
	Began   []policy.Workload    `json:"began,omitempty"`
	Ended   []uint64             `json:"ended,omitempty"` // ids of cgroups
	Numbers compiler.Renumbering `json:"numbers"`

	Epoch      uint16          `json:"epoch,omitempty"`      // 0: as it was
	Containers *containers     `json:"containers,omitempty"` // nil: as they were
	Met        []policy.Remote `json:"met,omitempty"`
	Forgotten  []policy.Remote `json:"forgotten,omitempty"`
}

const stateVersion = 1

// openState makes the directory if there is none.
func openState(dir string) (*stateDir, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %v: choose another with --state", err)
	}
	return &stateDir{dir: dir}, nil
}

// key returns the key, and makes one the first time.
func (s *stateDir) key() ([]byte, error) {
	path := filepath.Join(s.dir, keyFile)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		key := make([]byte, keySize)
		rand.Read(key) // it never fails
		return key, s.write(keyFile, key, true)
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

// savePolicies keeps a set as the last good one.
func (s *stateDir) savePolicies(set policySet) error {
	stored := storedSet{Version: stateVersion, Source: set.source, BuiltIn: set.builtIn, AllowEmpty: set.allowEmpty}
	files := set.files
	if set.builtIn { // a program that does not know of BuiltIn enforces it too
		files = append([]policy.File{defaultFile()}, files...)
	}
	if len(files) == 0 { // a program before AllowEmpty takes no files for a mistake
		files = []policy.File{{Name: "empty.yaml", Data: []byte("# --allow-empty\n")}}
	}
	for _, f := range files {
		stored.Files = append(stored.Files, api.File{Name: f.Name, Data: string(f.Data)})
	}
	return s.writeJSON(policiesFile, stored, true)
}

// policies returns the last good set; ok is false if none was given yet.
func (s *stateDir) policies() (set policySet, ok bool, err error) {
	var stored storedSet
	if ok, err := s.readJSON(policiesFile, &stored); !ok {
		return policySet{}, false, err
	}
	if len(stored.Files) == 0 {
		return policySet{}, false, fmt.Errorf("%s contains no policy file: remove it to start with the built-in policy",
			filepath.Join(s.dir, policiesFile))
	}
	if stored.BuiltIn {
		stored.Files = stored.Files[1:]
	}
	if set, err = parseSet(stored.Source, compilerFiles(stored.Files)); err != nil {
		return set, false, err
	}
	if stored.BuiltIn {
		set = set.withDefault()
	}
	set.allowEmpty = stored.AllowEmpty
	return set, true, nil
}

// saveMemory keeps what belongs to the loaded table. It need not survive a crash of
// the machine, which the table does not either.
func (s *stateDir) saveMemory(m memory) error {
	s.close()
	m.Version = stateVersion
	if err := s.writeJSON(memoryFile, m, false); err != nil {
		return err
	}
	var err error
	if s.changes, err = os.OpenFile(filepath.Join(s.dir, memoryFile), os.O_WRONLY|os.O_APPEND, 0); err != nil {
		return fmt.Errorf("writing the state: %v", err)
	}
	return nil
}

// close ends the appending to the memory.
func (s *stateDir) close() {
	if s.changes != nil {
		_ = s.changes.Close() // each write was checked
	}
	s.changes, s.appended = nil, 0
}

// saveChange appends to the memory. ok is false where that is to be saved as a whole:
// there are as many changes as room, or this one could not be written.
func (s *stateDir) saveChange(c memoryChange, room int) (ok bool) {
	if s.changes == nil || s.appended >= room {
		return false
	}
	data, err := json.Marshal(c)
	if err == nil {
		_, err = s.changes.Write(append(data, '\n'))
	}
	if err != nil {
		s.close() // what comes after half a change is not read
		return false
	}
	s.appended++
	return true
}

// memory returns what was kept of the loaded table; the zero value if nothing was. A
// change that was not written to its end is left out.
func (s *stateDir) memory() (m memory, err error) {
	_, err = s.decode(memoryFile, func(d *json.Decoder) error {
		if err := d.Decode(&m); err != nil {
			return err
		}
		var changes []memoryChange
		for {
			var c memoryChange
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
func (m *memory) change(changes []memoryChange) {
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
			m.containers = *c.Containers
		}
		m.Remotes = append(remotes.Without(m.Remotes, c.Forgotten), c.Met...)
	}
	m.Workloads = slices.Collect(maps.Values(workloads))
}

func (s *stateDir) writeJSON(name string, v any, sync bool) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encoding %s: %v", name, err)
	}
	return s.write(name, data, sync)
}

// readJSON returns false if there is no such file, or an error.
func (s *stateDir) readJSON(name string, v any) (bool, error) {
	return s.decode(name, func(d *json.Decoder) error { return d.Decode(v) })
}

// decode has a file decoded; it returns false if there is none.
func (s *stateDir) decode(name string, how func(*json.Decoder) error) (bool, error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the state: %v", err)
	}
	defer f.Close()
	if err := how(json.NewDecoder(io.LimitReader(f, maxStateFileSize))); err != nil {
		return false, fmt.Errorf("reading %s: %v: it can be removed", f.Name(), err)
	}
	return true, nil
}

// write replaces a file at once: who reads it sees the old content or the new one.
// With sync this also holds after a crash of the machine.
func (s *stateDir) write(name string, data []byte, sync bool) error {
	if err := s.replace(name, data, sync); err != nil {
		return fmt.Errorf("writing the state: %v", err)
	}
	return nil
}

func (s *stateDir) replace(name string, data []byte, sync bool) error {
	f, err := os.CreateTemp(s.dir, "."+name+"-*") // 0600
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
	if err := os.Rename(f.Name(), filepath.Join(s.dir, name)); err != nil {
		return err
	}
	if !sync {
		return nil
	}
	return s.sync()
}

// sync makes what was renamed, made or removed in the directory survive a crash of the machine.
func (s *stateDir) sync() error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
