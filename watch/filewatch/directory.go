package filewatch

import (
	"context"
	"fmt"
	"slices"
	"time"

	"thole/compiler/policy"
)

// A policy directory is read when it was quiet for quietTime, or after busyTime if
// it never is. A watch that could not be made is tried again after retryTime.
const (
	quietTime = 100 * time.Millisecond
	busyTime  = time.Second
	retryTime = 10 * time.Second
)

// Policies is what a policy directory held at one moment, or why it could not be read.
type Policies struct {
	Files []policy.File // by name
	Err   error
}

func (f Policies) equal(g Policies) bool {
	if (f.Err == nil) != (g.Err == nil) || f.Err != nil && f.Err.Error() != g.Err.Error() {
		return false
	}
	return slices.EqualFunc(f.Files, g.Files, func(a, b policy.File) bool {
		return a.Name == b.Name && slices.Equal(a.Data, b.Data)
	})
}

// Directory watches a policy directory.
//
// It works in rounds: watch the path (pathWatch), read the files, wait for an event and
// then for quiet. Each round has a watch of its own, made before the reading: so no
// change is missed, and an event of a directory that was replaced is not mistaken for
// one of its successor.
type Directory struct {
	path  string
	files chan Policies // size 1: the latest
}

// NewDirectory watches the policy directory at path, which need not exist yet.
func NewDirectory(path string) *Directory {
	return &Directory{path: path, files: make(chan Policies, 1)}
}

// Files receives what the directory holds: once at the start, and when it has
// changed and come to rest. Only the latest waits.
func (d *Directory) Files() <-chan Policies { return d.files }

// Run watches until the context ends. A watch that cannot be made is reported as
// an error of the directory, and tried again.
func (d *Directory) Run(ctx context.Context) error {
	var last Policies // nothing yet: no directory is read as no files without an error
	for ctx.Err() == nil {
		now, err := d.round(ctx, last)
		if err != nil {
			now = Policies{Err: err}
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
func (d *Directory) round(ctx context.Context, last Policies) (Policies, error) {
	inotify, err := newInotify()
	if err != nil {
		return Policies{}, fmt.Errorf("watching the policy directory %s: %v: "+
			"see `sysctl fs.inotify.max_user_instances`",
			oneLine(d.path), err)
	}
	defer inotify.close() //nolint:errcheck // nothing was written
	path, err := newPathWatch(inotify, d.path, isPolicyFile)
	if err != nil {
		return Policies{}, fmt.Errorf("policy directory %s: %v", oneLine(d.path), err)
	}
	var now Policies
	now.Files, now.Err = ReadPolicies(d.path)
	d.publish(now, last)
	if err := rest(ctx, path); err != nil {
		return now, fmt.Errorf("watching the policy directory %s: %v", oneLine(d.path), err)
	}
	return now, nil
}

// publish replaces what waits to be received, unless it is what was sent last.
func (d *Directory) publish(now, last Policies) {
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
func rest(ctx context.Context, path *pathWatch) error {
	happened, err := path.wait(ctx, time.Time{})
	busy := time.Now().Add(busyTime)
	for happened && err == nil && time.Now().Before(busy) {
		quiet := time.Now().Add(quietTime)
		if quiet.After(busy) {
			quiet = busy
		}
		happened, err = path.wait(ctx, quiet)
	}
	return err
}
