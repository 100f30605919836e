package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"thole/compiler/policy"
)

// A policy directory is read when it was quiet for quietTime, or after busyTime if
// it never is. A watch that could not be made is tried again after retryTime.
const (
	quietTime = 100 * time.Millisecond
	busyTime  = time.Second
	retryTime = 10 * time.Second
)

// Files is what a policy directory held at one moment, or why it could not be read.
type Files struct {
	Files []policy.File // by name
	Err   error
}

func (f Files) equal(g Files) bool {
	if (f.Err == nil) != (g.Err == nil) || f.Err != nil && f.Err.Error() != g.Err.Error() {
		return false
	}
	return slices.EqualFunc(f.Files, g.Files, func(a, b policy.File) bool {
		return a.Name == b.Name && slices.Equal(a.Data, b.Data)
	})
}

// Directory watches a policy directory.
//
// It works in rounds: watch everything on the way to the files, read them, wait
// for an event and then for quiet. Each round has a watch of its own, made before
// the reading: so no change is missed, and none of a directory that was swapped for
// another is mistaken for its successor's.
type Directory struct {
	path  string
	files chan Files // size 1: the latest
}

// NewDirectory watches the policy directory at path, which need not exist yet.
func NewDirectory(path string) *Directory {
	return &Directory{path: path, files: make(chan Files, 1)}
}

// Files receives what the directory holds: once at the start, and when it has
// changed and come to rest. Only the latest waits.
func (d *Directory) Files() <-chan Files { return d.files }

// Run watches until the context ends. A watch that cannot be made is reported as
// an error of the directory, and tried again.
func (d *Directory) Run(ctx context.Context) error {
	var last Files // nothing yet: no directory is read as no files without an error
	for ctx.Err() == nil {
		now, err := d.round(ctx, last)
		if err != nil {
			now = Files{Err: err}
			d.publish(now, last)
			select {
			case <-ctx.Done():
			case <-time.After(retryTime):
			}
		}
		last = now
	}
	return nil
}

// round reads the directory, hands the files over if they are not last, and
// returns them when it is time to read again.
func (d *Directory) round(ctx context.Context, last Files) (Files, error) {
	inotify, err := fsnotify.NewWatcher()
	if err != nil {
		return Files{}, fmt.Errorf("watching the policy directory %s: %v: see `sysctl fs.inotify.max_user_instances`",
			oneLine(d.path), err)
	}
	defer inotify.Close()
	way, err := followWay(inotify, d.path)
	if err != nil {
		return Files{}, fmt.Errorf("policy directory %s: %v", d.path, err)
	}
	var now Files
	now.Files, now.Err = ReadDirectory(d.path)
	d.publish(now, last)
	return now, d.rest(ctx, inotify, way)
}

// publish replaces what waits to be received, unless it is what was sent last.
func (d *Directory) publish(now, last Files) {
	if now.equal(last) {
		return
	}
	select {
	case <-d.files:
	default:
	}
	d.files <- now // there is room: nobody else sends
}

// rest returns when something happened to the directory and it is quiet again, or
// the context has ended.
func (d *Directory) rest(ctx context.Context, inotify *fsnotify.Watcher, way way) error {
	var quiet, busy <-chan time.Time // nil until something happened
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-quiet:
			return nil
		case <-busy:
			return nil
		case event, ok := <-inotify.Events:
			if !ok {
				return fmt.Errorf("watching the policy directory %s: inotify was closed", oneLine(d.path))
			}
			if !way.matters(event) {
				continue
			}
		case _, ok := <-inotify.Errors: // an overflow: events were lost
			if !ok {
				return fmt.Errorf("watching the policy directory %s: inotify was closed", oneLine(d.path))
			}
		}
		quiet = time.After(quietTime)
		if busy == nil {
			busy = time.After(busyTime)
		}
	}
}

// A way is everything that decides what the files of a directory are.
type way struct {
	directories map[string]bool        // what happens to a file in it matters, if it is relevant
	paths       map[string]bool        // what happens to these matters: directories and links that lead there
	relevant    func(name string) bool // by the name of a file in one of directories
}

func newWay(relevant func(name string) bool) way {
	return way{directories: map[string]bool{}, paths: map[string]bool{}, relevant: relevant}
}

// matters reports whether an event can change what the files are.
func (w way) matters(e fsnotify.Event) bool {
	path := filepath.Clean(e.Name) // "//etc" where / is watched
	if w.paths[path] || w.directories[path] {
		return true
	}
	return w.directories[filepath.Dir(path)] && w.relevant(filepath.Base(path))
}

// isIndirection reports whether a name is that of the link through which a whole
// tree is swapped at once (as Kubernetes does with ..data).
func isIndirection(name string) bool { return len(name) > 2 && name[:2] == ".." }

// followWay watches each directory that holds a step of the way to a file: the
// components of path, of the links among them, and of the links in the directory.
func followWay(inotify *fsnotify.Watcher, path string) (way, error) {
	w := newWay(func(name string) bool { return isPolicyFile(name) || isIndirection(name) })
	f := follower{inotify: inotify, way: w}
	directory, err := f.enter(path)
	if err != nil || directory == "" {
		return w, err
	}
	entries, err := os.ReadDir(directory)
	if err != nil {
		return w, nil // ReadDirectory says it better
	}
	for _, e := range entries {
		if e.Type()&os.ModeSymlink != 0 && isPolicyFile(e.Name()) {
			if _, err := f.walk(filepath.Join(directory, e.Name())); err != nil {
				return w, err
			}
		}
	}
	return w, nil
}

// A follower watches the ways that it walks.
type follower struct {
	inotify *fsnotify.Watcher
	way     way
	links   int
}

// maxLinks is how many symbolic links one directory's ways may have altogether.
const maxLinks = 4096

// walk watches every directory that path passes through, links included, and
// returns where it ends, "" if it does not lead anywhere yet.
func (f *follower) walk(path string) (string, error) {
	at := "/"
	rest := splitPath(path)
	for len(rest) > 0 {
		step := filepath.Join(at, rest[0])
		rest = rest[1:]
		if err := f.add(at); err != nil {
			return "", err
		}
		f.way.paths[step] = true
		target, err := os.Readlink(step)
		if err != nil { // not a link, or not there
			if _, err := os.Lstat(step); err != nil {
				return "", nil
			}
			at = step
			continue
		}
		if f.links++; f.links > maxLinks {
			return "", nil // ReadDirectory meets the same and says so
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(splitPath(target), rest...)
	}
	return at, nil
}

// enter watches a directory and every directory on the way to it, and returns where it is; "" if it is not there yet.
func (f *follower) enter(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	directory, err := f.walk(absolute)
	if err != nil || directory == "" {
		return "", err
	}
	f.way.directories[directory] = true
	return directory, f.add(directory)
}

// splitPath returns the components of a path, ".." among them.
func splitPath(path string) []string {
	var parts []string
	for part := range strings.SplitSeq(path, "/") {
		if part != "" && part != "." {
			parts = append(parts, part)
		}
	}
	return parts
}

// add watches a directory. One that disappeared is no error: its parent tells.
func (f *follower) add(directory string) error {
	err := f.inotify.Add(directory)
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
		return nil
	}
	return fmt.Errorf("watching %s: %v: see `sysctl fs.inotify.max_user_watches`", oneLine(directory), err)
}
