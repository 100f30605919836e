package watch

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/watch/cgroupfs"
	"thole/watch/process"
)

// attributeName is the extended attribute of a cgroup's directory that holds its
// labels. Only CAP_SYS_ADMIN of the first user namespace may write trusted.*.
const attributeName = "trusted.thole.labels"

// A Run is what thole run started, as it is stored on its cgroup.
type Run struct {
	Version int           `json:"version"` // runVersion
	Name    string        `json:"name"`
	Labels  policy.Labels `json:"labels"`
	UID     uint32        `json:"uid"` // of who started it
	User    string        `json:"user,omitempty"`
	Started time.Time     `json:"started"`

	Command    process.Process `json:"command"` // the process that asked, which becomes the command
	KillOnMove bool            `json:"killOnMove,omitempty"`

	Cgroup policy.Cgroup `json:"-"`
}

const runVersion = 1

// A seal proves that an attribute was written by us, on this cgroup, since this
// boot: who may write attributes somewhere in the tree can neither make nor copy one.
type seal struct {
	key  []byte
	boot string
}

func newSeal(key []byte) (seal, error) {
	if len(key) < sha256.Size {
		return seal{}, fmt.Errorf(
			"the key has %d bytes, at least %d are needed: remove its file and start the daemon again",
			len(key), sha256.Size)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return seal{}, fmt.Errorf("reading the boot id: %v", err)
	}
	return seal{key: key, boot: strings.TrimSpace(string(boot))}, nil
}

// sealed is the attribute's form. The MAC covers Run byte for byte.
type sealed struct {
	MAC string          `json:"mac"` // hex
	Run json.RawMessage `json:"run"`
}

// mac is HMAC-SHA-256 over
//
//	bytes  what
//	15     "thole run, v1\n" and 0
//	8      the cgroup's id, big-endian
//	1      the length of the boot id
//	…      the boot id
//	…      the run, as JSON
func (s seal) mac(id uint64, run []byte) []byte {
	h := hmac.New(sha256.New, s.key)
	h.Write([]byte("thole run, v1\n\x00"))
	h.Write(binary.BigEndian.AppendUint64(nil, id))
	h.Write([]byte{byte(len(s.boot))})
	h.Write([]byte(s.boot))
	h.Write(run)
	return h.Sum(nil)
}

// write stores the run on its cgroup.
func (s seal) write(root cgroupfs.Root, run Run) error {
	data, err := json.Marshal(run)
	if err != nil {
		return fmt.Errorf("encoding the labels of %s: %v", run.Name, err)
	}
	value, err := json.Marshal(sealed{MAC: hex.EncodeToString(s.mac(run.Cgroup.ID, data)), Run: data})
	if err != nil {
		return fmt.Errorf("encoding the labels of %s: %v", run.Name, err)
	}
	if err := unix.Lsetxattr(root.Path(run.Cgroup.Path), attributeName, value, unix.XATTR_CREATE); err != nil {
		return fmt.Errorf("storing the labels on the cgroup %s: %v", run.Cgroup.Path, err)
	}
	return nil
}

// read returns the run that is stored on a cgroup. What is not ours is an error.
func (s seal) read(root cgroupfs.Root, cgroup policy.Cgroup) (Run, error) {
	value, err := readAttribute(root.Path(cgroup.Path))
	if err != nil {
		return Run{}, err
	}
	var form sealed
	if err := json.Unmarshal(value, &form); err != nil {
		return Run{}, errors.New("its attribute " + attributeName + " is not in Thole's form")
	}
	mac, err := hex.DecodeString(form.MAC)
	if err != nil || !hmac.Equal(mac, s.mac(cgroup.ID, form.Run)) {
		return Run{}, errors.New(
			"its attribute " + attributeName + " was not written by this daemon for this cgroup since this boot")
	}
	var run Run
	if err := json.Unmarshal(form.Run, &run); err != nil {
		return Run{}, fmt.Errorf("its attribute %s: %v", attributeName, err)
	}
	if run.Version != runVersion {
		return Run{}, fmt.Errorf("its attribute %s has version %d, must be %d", attributeName, run.Version, runVersion)
	}
	run.Cgroup = cgroup
	return run, nil
}

func readAttribute(path string) ([]byte, error) {
	value := make([]byte, maxAttribute)
	n, err := unix.Lgetxattr(path, attributeName, value)
	switch {
	case errors.Is(err, unix.ENODATA):
		return nil, errors.New("it has no attribute " + attributeName)
	case err != nil:
		return nil, fmt.Errorf("reading its attribute %s: %w", attributeName, err)
	}
	return value[:n], nil
}

// maxAttribute is the longest extended attribute (linux/limits.h, XATTR_SIZE_MAX).
const maxAttribute = 64 << 10
