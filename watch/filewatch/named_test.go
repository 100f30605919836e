package filewatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
)

// A namedTest watches the files "key" and "crt" of a directory for the time of a test.
type namedTest struct {
	t     *testing.T
	files *Named
	stop  func()
}

func watchNamed(t *testing.T, files *Named) *namedTest {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- files.Run(ctx) }()
	n := &namedTest{t: t, files: files, stop: sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})}
	t.Cleanup(n.stop)
	return n
}

// becomes waits for a report after which the file at path has this content; "" is no file.
func (n *namedTest) becomes(path, want string) {
	n.t.Helper()
	deadline := time.After(nstest.Patience(patience))
	for {
		select {
		case <-n.files.Changed():
		case <-deadline:
			n.t.Fatalf("no report after which %s is %q", path, want)
		}
		got, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			n.t.Fatal(err)
		}
		if string(got) == want {
			return
		}
	}
}

// replace gives a file another content at once.
func replace(t *testing.T, path, data string) {
	t.Helper()
	temporary := filepath.Join(filepath.Dir(path), ".new")
	write(t, temporary, data)
	must(t, os.Rename(temporary, path))
}

// Whatever makes the files others than before is reported.
func TestNamedFiles(t *testing.T) {
	dir := t.TempDir()
	pki := dir + "/etc/thole/pki"
	n := watchNamed(t, NewNamed(pki, "key", "crt"))
	n.becomes(pki+"/key", "")

	must(t, os.MkdirAll(pki, 0o755))
	write(t, pki+"/key", "made later")
	n.becomes(pki+"/key", "made later")
	replace(t, pki+"/key", "replaced by rename")
	n.becomes(pki+"/key", "replaced by rename")
	write(t, pki+"/key", "written in place")
	n.becomes(pki+"/key", "written in place")
	must(t, os.Remove(pki+"/key"))
	n.becomes(pki+"/key", "")

	release(t, dir, "next", map[string]string{"key": "in another directory"})
	must(t, os.Rename(pki, dir+"/old"))
	must(t, os.Rename(dir+"/next", pki))
	n.becomes(pki+"/key", "in another directory")
	write(t, pki+"/key", "and in place there")
	n.becomes(pki+"/key", "and in place there")

	release(t, dir, "third", map[string]string{"key": "behind a link"})
	must(t, os.RemoveAll(pki))
	n.becomes(pki+"/key", "")
	point(t, pki, dir+"/third")
	n.becomes(pki+"/key", "behind a link")
	release(t, dir, "fourth", map[string]string{"key": "behind another link"})
	point(t, pki, dir+"/fourth")
	n.becomes(pki+"/key", "behind another link")
	replace(t, dir+"/fourth/key", "replaced there")
	n.becomes(pki+"/key", "replaced there")

	release(t, dir, "etc2", nil)
	release(t, dir, "etc2/thole", nil)
	release(t, dir, "etc2/thole/pki", map[string]string{"key": "below another parent"})
	must(t, os.Rename(dir+"/etc", dir+"/etc1"))
	must(t, os.Rename(dir+"/etc2", dir+"/etc"))
	n.becomes(pki+"/key", "below another parent")
}

// The mode of a file, and of the directory, matter.
func TestNamedFilesModes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/key", "1")
	n := watchNamed(t, NewNamed(dir, "key"))
	n.becomes(dir+"/key", "1")
	for _, path := range []string{dir + "/key", dir} {
		must(t, os.Chmod(path, 0o700))
		n.becomes(dir+"/key", "1")
	}
}

// Changes of other files, and reading, are no change.
func TestNamedFilesEventsThatMatter(t *testing.T) {
	dir := t.TempDir()
	pki := dir + "/pki"
	must(t, os.Mkdir(pki, 0o755))
	write(t, pki+"/key", "1")
	w := watchPath(t, pki, func(name string) bool { return name == "key" })

	write(t, pki+"/.key-123", "a temporary file")
	must(t, os.Chmod(pki+"/.key-123", 0o600))
	must(t, os.Rename(pki+"/.key-123", pki+"/other"))
	must(t, os.Remove(pki+"/other"))
	_, err := os.ReadFile(pki + "/key")
	must(t, err)
	opened, err := os.Open(pki)
	must(t, err)
	must(t, syscall.Flock(int(opened.Fd()), syscall.LOCK_EX))
	must(t, opened.Close())
	write(t, pki+"/last", "")
	for last := false; !last; {
		events, err := w.inotify.read()
		must(t, err)
		for _, e := range events {
			if w.matters(e) {
				t.Errorf("this is no change: %+v", e)
			}
			last = last || e.name == "last"
		}
	}
}

// A key that is a link, as in a volume of Kubernetes, changes when the link on the way to it does.
func TestNamedFilesBehindLinks(t *testing.T) {
	dir := t.TempDir()
	release(t, dir, "..one", map[string]string{"key": "1"})
	point(t, dir+"/..data", "..one")
	point(t, dir+"/key", "..data/key")
	n := watchNamed(t, NewNamed(dir, "key"))
	n.becomes(dir+"/key", "1")
	release(t, dir, "..two", map[string]string{"key": "2"})
	point(t, dir+"/..data", "..two")
	n.becomes(dir+"/key", "2")
	write(t, dir+"/..two/key", "in place")
	n.becomes(dir+"/key", "in place")
}

// A file that changes all the time is reported a few times a second, and in its last state.
func TestNamedFilesManyChanges(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/key", "")
	n := watchNamed(t, NewNamed(dir, "key"))
	n.becomes(dir+"/key", "")
	begun, reports := time.Now(), 0
	for time.Since(begun) < 3*reportEvery || reports == 0 && time.Since(begun) < patience {
		replace(t, dir+"/key", "between")
		select {
		case <-n.files.Changed():
			reports++
		default:
		}
	}
	if most := int(time.Since(begun)/reportEvery) + 1; reports == 0 || reports > most {
		t.Errorf("%d reports in %v, want 1 to %d", reports, time.Since(begun), most)
	}
	replace(t, dir+"/key", "last")
	n.becomes(dir+"/key", "last")
}

// Where inotify cannot be used, a change is assumed once a second, until it can be used.
func TestNamedFilesWithoutInotify(t *testing.T) {
	dir := t.TempDir()
	files := NewNamed(dir, "key")
	var mu sync.Mutex
	failure := error(syscall.EMFILE)
	files.inotify = func() (*inotify, error) {
		mu.Lock()
		defer mu.Unlock()
		if failure != nil {
			return nil, failure
		}
		return newInotify()
	}
	n := watchNamed(t, files)
	n.becomes(dir+"/key", "")
	write(t, dir+"/key", "1")
	n.becomes(dir+"/key", "1")
	if err := files.Err(); err == nil || !strings.Contains(err.Error(), "fs.inotify.max_user_instances") {
		t.Errorf("Err: %v", err)
	}
	mu.Lock()
	failure = nil
	mu.Unlock()
	nstest.WaitFor(t, patience, "inotify to be used", func() bool { return files.Err() == nil })
	replace(t, dir+"/key", "2")
	n.becomes(dir+"/key", "2")
}

// Nothing is left when Run has returned.
func TestNamedFilesEnd(t *testing.T) {
	dir := t.TempDir()
	before := runtime.NumGoroutine()
	for range 10 {
		n := watchNamed(t, NewNamed(dir, "key"))
		n.becomes(dir+"/key", "")
		n.stop()
	}
	nstest.WaitFor(t, patience, "the goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}
