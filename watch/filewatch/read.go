package filewatch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
)

// The limits of a policy directory.
const (
	maxFiles     = 1000
	maxFileSize  = 1 << 20  // bytes
	maxTotalSize = 16 << 20 // bytes
)

// maxReads is how often a directory is read that changes while it is read.
const maxReads = 10

// ErrNoPolicyFile says that a directory has no policy file. Such a directory is refused like an input without a policy.
var ErrNoPolicyFile = errors.New("the directory has no file named *.yaml or *.yml. To remove all policies on " +
	"purpose, run `thole cleanup`, which turns Thole off; or `thole apply --allow-empty -f /dev/null`, " +
	"which a daemon with --policies refuses")

// errChanged says that the directory changed while it was read.
var errChanged = errors.New("its files changed each time that they were read")

// ReadPolicies reads the policy files of a directory, by name, as they were at
// one moment: a directory that changes while it is read is read again. One without
// any is an error: an empty set opens everything, and is what is seen between the
// removal of old files and the coming of new ones.
func ReadPolicies(path string) ([]policy.File, error) {
	var err error
	for range maxReads {
		var files []policy.File
		if files, err = readOnce(path); err == nil {
			return files, nil
		}
		if !errors.Is(err, errChanged) {
			break
		}
	}
	return nil, fmt.Errorf("policy directory %s: %w", oneLine(path), err)
}

func readOnce(path string) ([]policy.File, error) {
	before, err := printDirectory(path)
	if err != nil {
		return nil, err
	}
	if len(before) == 0 {
		return nil, ErrNoPolicyFile
	}
	if len(before) > maxFiles {
		return nil, fmt.Errorf("it has %d policy files; at most %d are read: join some", len(before), maxFiles)
	}
	files := make([]policy.File, 0, len(before))
	total := 0
	for _, p := range before {
		file := filepath.Join(path, p.name)
		data, err := readFile(file)
		if err != nil {
			return nil, err
		}
		if total += len(data); total > maxTotalSize {
			return nil, fmt.Errorf("its policy files have more than %d bytes together", maxTotalSize)
		}
		files = append(files, policy.File{Name: file, Data: data})
	}
	after, err := printDirectory(path)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(before, after) {
		return nil, errChanged
	}
	return files, nil
}

// A fingerprint tells one state of a file from another, without its content.
type fingerprint struct {
	name            string
	device, inode   uint64
	size            int64
	written, status unix.Timespec // mtime, ctime
}

// printDirectory returns the fingerprints of a directory's policy files, by name.
func printDirectory(path string) ([]fingerprint, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, errors.Unwrap(err) // without the path, which is said already
	}
	var prints []fingerprint
	for _, e := range entries {
		if !isPolicyFile(e.Name()) || e.IsDir() {
			continue
		}
		var stat unix.Stat_t
		err := unix.Stat(filepath.Join(path, e.Name()), &stat)
		if errors.Is(err, unix.ENOENT) && e.Type()&fs.ModeSymlink == 0 {
			return nil, errChanged
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %v", oneLine(e.Name()), err)
		}
		prints = append(prints, fingerprint{e.Name(), stat.Dev, stat.Ino, stat.Size, stat.Mtim, stat.Ctim})
	}
	return prints, nil
}

// readFile reads a regular file of bounded size. It never waits, whatever the name
// stands for.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errChanged
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", oneLine(filepath.Base(path)), errors.Unwrap(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", oneLine(filepath.Base(path)))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("%s has more than %d bytes: divide it", oneLine(filepath.Base(path)), maxFileSize)
	}
	return data, nil
}

// oneLine keeps text from outside on one line of a message, so that it cannot forge another one.
func oneLine(s string) string { return strings.ReplaceAll(s, "\n", `\n`) }

// isPolicyFile tells policy files from what editors and tools leave beside them.
func isPolicyFile(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasPrefix(name, "#") || strings.HasSuffix(name, "~") {
		return false // hidden, vim's .x.swp, Emacs' .#x and #x#, backups
	}
	extension := filepath.Ext(name)
	return extension == ".yaml" || extension == ".yml"
}
