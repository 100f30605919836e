package filewatch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The events that are watched for. IN_ATTRIB of a directory, and all of parentEvents, also tell of other files in the
// directory, and would wake the daemon at each file that is written in /tmp or /etc. So steps that are directories
// have stepEvents only.
const (
	// a step of the path: it is renamed or removed
	stepEvents = unix.IN_MOVE_SELF | unix.IN_DELETE_SELF
	// a step that is a link or a file: its link count changes (it was replaced or removed), or it is written to
	fileEvents = unix.IN_ATTRIB | unix.IN_MODIFY
	// the directory that contains a step: a file of the step's name comes, goes, or can be accessed
	parentEvents = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_ATTRIB
	// the directory whose files are wanted
	directoryEvents = parentEvents | unix.IN_MODIFY
)

// maxLinks is how many links the kernel follows in one path (MAXSYMLINKS).
const maxLinks = 40

// A pathWatch tells when the files of a directory may have changed, or another directory may be at its path.
//
// It watches every step of the path, and of the links on it, itself. Events of files beside a step do not wake it.
// The kernel reports the removal of a directory only when no process uses it any more. But a directory must be empty
// before it can be removed: so while the path leads nowhere, or to a directory without any of the files, the
// directories that contain the steps are watched too.
type pathWatch struct {
	inotify  *inotify
	relevant func(name string) bool // whether a file of the directory is wanted, by its name
	watched  map[int]*watchedNames  // by the numbers of watches
}

// watchedNames are the names of files in one watched directory that matter.
type watchedNames struct {
	steps     map[string]bool
	directory bool // so do the relevant ones
}

// newPathWatch watches a directory at path, which need not exist yet, and the way to it. What happens from then on, to
// the files that relevant names, is what wait returns after.
func newPathWatch(inotify *inotify, path string, relevant func(name string) bool) (*pathWatch, error) {
	w := &pathWatch{inotify: inotify, relevant: relevant, watched: map[int]*watchedNames{}}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	files, err := w.enter(absolute, false)
	if len(files) == 0 && err == nil {
		files, err = w.enter(absolute, true)
	}
	for _, file := range files {
		if err == nil {
			err = w.follow(file)
		}
	}
	return w, err
}

// enter watches the steps to a directory, and its files. It returns those that are wanted.
func (w *pathWatch) enter(path string, parents bool) (files []string, err error) {
	directory, err := w.walk(path, parents)
	if err != nil || directory == "" {
		return nil, err
	}
	names, err := w.add(directory, directoryEvents)
	if err != nil || names == nil {
		return nil, err
	}
	names.directory = true
	entries, _ := os.ReadDir(directory) // the reader of the files says why it cannot be read
	for _, e := range entries {
		if w.relevant(e.Name()) {
			files = append(files, filepath.Join(directory, e.Name()))
		}
	}
	return files, nil
}

// follow watches the file that a link in the directory leads to, and the way there. Other files of the directory are
// watched with it.
func (w *pathWatch) follow(path string) error {
	if _, err := os.Readlink(path); err != nil {
		return nil
	}
	end, err := w.walk(path, false)
	if err == nil && end == "" {
		_, err = w.walk(path, true)
	}
	return err
}

// walk watches every step of a path, the steps of links included, and returns where it ends; "" if it leads nowhere.
// With parents, it also watches the directories that contain the steps. Each watch is made before the step is looked
// at, so that no change is missed.
func (w *pathWatch) walk(path string, parents bool) (string, error) {
	at, links := "/", 0
	rest := splitPath(path)
	for len(rest) > 0 {
		name := rest[0]
		step := filepath.Join(at, name)
		rest = rest[1:]
		if parents {
			names, err := w.add(at, parentEvents)
			if err != nil {
				return "", err
			}
			if names != nil {
				names.steps[name] = true
			}
		}
		if there, err := w.addStep(step); err != nil || !there {
			return "", err
		}
		target, err := os.Readlink(step)
		if err != nil { // not a link
			at = step
			continue
		}
		if links++; links > maxLinks {
			return "", nil // the reader of the files fails too, and says so
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(splitPath(target), rest...)
	}
	return at, nil
}

// addStep watches a step of a path itself. It reports whether the step exists.
func (w *pathWatch) addStep(step string) (there bool, err error) {
	if names, err := w.add(step, stepEvents); err != nil || names == nil {
		return false, err
	}
	info, err := os.Lstat(step)
	if err != nil {
		return false, nil
	}
	if !info.IsDir() {
		_, err = w.add(step, fileEvents)
	}
	return true, err
}

// add watches a file for some events too. It returns nil where there is none, or it may not be accessed.
func (w *pathWatch) add(path string, events uint32) (*watchedNames, error) {
	watch, err := w.inotify.add(path, events)
	if slices.ContainsFunc([]error{unix.ENOENT, unix.ENOTDIR, unix.EACCES}, func(e error) bool {
		return errors.Is(err, e)
	}) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("watching %s: %v: see `sysctl fs.inotify.max_user_watches`", oneLine(path), err)
	}
	if w.watched[watch] == nil {
		w.watched[watch] = &watchedNames{steps: map[string]bool{}}
	}
	return w.watched[watch], nil
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

// wait returns true after something may have changed, and false at the deadline (the zero deadline is never) or when
// the context ends.
func (w *pathWatch) wait(ctx context.Context, deadline time.Time) (bool, error) {
	if err := w.inotify.setDeadline(deadline); err != nil {
		return false, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.inotify.setDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		events, err := w.inotify.read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(events, w.matters) {
			return true, nil
		}
	}
}

// matters reports whether an event can change what the files are.
func (w *pathWatch) matters(e inotifyEvent) bool {
	names := w.watched[e.watch]
	if e.name == "" || names == nil { // it is about a step itself, or events were lost
		return true
	}
	return names.steps[e.name] || names.directory && w.relevant(e.name)
}
