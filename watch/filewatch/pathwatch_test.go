package filewatch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// watchPath watches a directory for the time of a test, without reading events.
func watchPath(t *testing.T, path string, relevant func(name string) bool) *pathWatch {
	t.Helper()
	inotify, err := newInotify()
	must(t, err)
	t.Cleanup(func() { must(t, inotify.close()) })
	must(t, inotify.setDeadline(time.Now().Add(nstest.Patience(patience))))
	w, err := newPathWatch(inotify, path, relevant)
	must(t, err)
	return w
}

// pending returns how many bytes of events wait to be read. The kernel queues events before the system call that
// causes them returns; where none waits, a reader was not woken.
func pending(t *testing.T, w *pathWatch) (bytes int) {
	t.Helper()
	conn, err := w.inotify.file.SyscallConn()
	must(t, err)
	must(t, conn.Control(func(fd uintptr) { bytes, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }))
	must(t, err)
	return bytes
}

// A layout of policies behind links: p.yaml in the directory, l.yaml as a link out of it. The path is
// DIR/current/b/policies.
func layout(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	must(t, os.MkdirAll(dir+"/a/b/policies", 0o755))
	must(t, os.MkdirAll(dir+"/store/v1", 0o755))
	point(t, dir+"/current", "a")
	write(t, dir+"/store/v1/l.yaml", "1")
	point(t, dir+"/store/now", "v1")
	point(t, dir+"/a/b/policies/l.yaml", dir+"/store/now/l.yaml")
	write(t, dir+"/a/b/policies/p.yaml", "1")
	return dir, dir + "/current/b/policies"
}

// Files beside a component of the path, of any name, do not wake the daemon, whatever happens to them.
func TestFilesBesideThePathDoNotWake(t *testing.T) {
	dir, path := layout(t)
	w := watchPath(t, path, isPolicyFile)
	for _, beside := range []string{"", "a", "a/b", "store", "store/v1"} {
		for i := range 1000 {
			file := filepath.Join(dir, beside, fmt.Sprintf("%d.yaml", i))
			write(t, file, "not of this directory")
			must(t, os.Chmod(file, 0o600))
			must(t, os.Rename(file, file+".old"))
			must(t, os.Remove(file+".old"))
		}
		must(t, os.Mkdir(filepath.Join(dir, beside, "directory"), 0o755))
		must(t, os.Remove(filepath.Join(dir, beside, "directory")))
		if n := pending(t, w); n > 0 {
			t.Fatalf("files in %q: %d bytes of events wait; want no wake-up", beside, n)
		}
	}
	write(t, dir+"/store/v1/l.yaml", "2")
	if pending(t, w) == 0 {
		t.Error("a policy file is written to, and no event waits")
	}
}

// Whatever leads the path elsewhere is followed: links and directories that are swapped, renamed, removed and made
// again, also where a process has the removed directory open.
func TestReplacedComponentsWake(t *testing.T) {
	write2 := func(t *testing.T, path string) {
		must(t, os.MkdirAll(path, 0o755))
		write(t, path+"/p.yaml", "2")
		write(t, path+"/l.yaml", "2")
	}
	tests := []struct {
		name    string
		replace func(t *testing.T, dir string)
	}{
		{"a link on the path is swapped", func(t *testing.T, dir string) {
			write2(t, dir+"/other/b/policies")
			point(t, dir+"/current", "other")
		}},
		{"a link on the path is removed and made again", func(t *testing.T, dir string) {
			write2(t, dir+"/other/b/policies")
			must(t, os.Remove(dir+"/current"))
			must(t, os.Symlink("other", dir+"/current"))
		}},
		{"a link that has two names is swapped", func(t *testing.T, dir string) {
			must(t, os.Link(dir+"/current", dir+"/second"))
			write2(t, dir+"/other/b/policies")
			point(t, dir+"/current", "other")
		}},
		{"a link becomes a directory", func(t *testing.T, dir string) {
			must(t, os.Remove(dir+"/current"))
			write2(t, dir+"/current/b/policies")
		}},
		{"a directory above is renamed, and another takes its place", func(t *testing.T, dir string) {
			write2(t, dir+"/b2/policies")
			must(t, os.Rename(dir+"/a/b", dir+"/a/old"))
			must(t, os.Rename(dir+"/b2", dir+"/a/b"))
		}},
		{"two directories change places", func(t *testing.T, dir string) {
			write2(t, dir+"/a/b2/policies")
			must(t, unix.Renameat2(unix.AT_FDCWD, dir+"/a/b", unix.AT_FDCWD, dir+"/a/b2", unix.RENAME_EXCHANGE))
		}},
		{"a directory becomes a link", func(t *testing.T, dir string) {
			write2(t, dir+"/elsewhere")
			must(t, os.Rename(dir+"/a/b/policies", dir+"/old"))
			must(t, os.Symlink(dir+"/elsewhere", dir+"/a/b/policies"))
		}},
		{"the directories are removed and made again", func(t *testing.T, dir string) {
			must(t, os.RemoveAll(dir+"/a/b"))
			write2(t, dir+"/a/b/policies")
		}},
		{"a link in the directory leads elsewhere", func(t *testing.T, dir string) {
			write(t, dir+"/a/b/policies/p.yaml", "2")
			must(t, os.Mkdir(dir+"/store/v2", 0o755))
			write(t, dir+"/store/v2/l.yaml", "2")
			point(t, dir+"/store/now", "v2")
		}},
	}
	want := map[string]string{"p.yaml": "2", "l.yaml": "2"}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, path := layout(t)
			d := follow(t, path)
			becomes(t, d, map[string]string{"p.yaml": "1", "l.yaml": "1"})
			tt.replace(t, dir)
			reaches(t, d, want)
			write(t, path+"/p.yaml", "3")
			reaches(t, d, map[string]string{"p.yaml": "3", "l.yaml": "2"})
		})
	}
}

// The kernel reports the removal of a directory that a process has open only when it is closed.
func TestRemovedDirectoriesThatAreOpen(t *testing.T) {
	dir, path := layout(t)
	for _, open := range []string{"/a/b", "/a/b/policies", "/store/v1"} {
		f, err := os.Open(dir + open)
		must(t, err)
		t.Cleanup(func() { must(t, f.Close()) })
	}
	d := follow(t, path)
	becomes(t, d, map[string]string{"p.yaml": "1", "l.yaml": "1"})
	must(t, os.RemoveAll(dir+"/store/v1"))
	fails(t, d)
	must(t, os.Mkdir(dir+"/store/v1", 0o755))
	write(t, dir+"/store/v1/l.yaml", "2")
	reaches(t, d, map[string]string{"p.yaml": "1", "l.yaml": "2"})
	for _, directory := range []string{"/a/b/policies", "/a/b"} {
		for _, file := range []string{"p.yaml", "l.yaml"} {
			must(t, os.Remove(filepath.Join(path, file)))
		}
		fails(t, d)
		must(t, os.RemoveAll(dir+directory))
		must(t, os.MkdirAll(path, 0o755))
		for _, file := range []string{"p.yaml", "l.yaml"} {
			write(t, filepath.Join(path, file), directory)
		}
		reaches(t, d, map[string]string{"p.yaml": directory, "l.yaml": directory})
	}
}

// reaches waits until the directory holds these files. What is between is not of interest.
func reaches(t *testing.T, d *Directory, want map[string]string) {
	t.Helper()
	for {
		got, err := next(t, d)
		if err == nil && fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
	}
}

// fails waits until the directory cannot be read.
func fails(t *testing.T, d *Directory) {
	t.Helper()
	for {
		if _, err := next(t, d); err != nil {
			return
		}
	}
}

// Where the directory is not there yet, or has no file, what happens beside the path does not count either.
func TestMissingComponents(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/etc/thole/policies"
	for _, there := range []string{dir, dir + "/etc", dir + "/etc/thole", path} {
		must(t, os.MkdirAll(there, 0o755))
		w := watchPath(t, path, isPolicyFile)
		write(t, there+"/beside", "")
		write(t, there+"/last", "")
		for last := false; !last; {
			events, err := w.inotify.read()
			must(t, err)
			for _, e := range events {
				if w.matters(e) {
					t.Errorf("with %s: this is no change: %+v", there, e)
				}
				last = last || e.name == "last"
			}
		}
		for _, file := range []string{"/beside", "/last"} {
			must(t, os.Remove(there+file))
		}
	}
}

// Whatever inotify delivers is decoded, or refused.
func TestParseInotify(t *testing.T) {
	event := func(length uint32, name string) string {
		return fmt.Sprintf("\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00%c\x00\x00\x00%s", rune(length), name)
	}
	tests := []struct {
		name, data string
		want       string
	}{
		{"nothing", "", "[] <nil>"},
		{"two", event(4, "a\x00\x00\x00") + event(0, ""), "[{1 2 a} {1 2 }] <nil>"},
		{"lost", "\xff\xff\xff\xff" + event(0, "")[4:], "[{-1 2 }] <nil>"},
		{"no head", "\x01\x00", "[] reading inotify: an event of 2 bytes"},
		{"no name", event(4, "a"), "[] reading inotify: an event of 20 bytes, of which 17 were read"},
	}
	for _, tt := range tests {
		events, err := parseInotify([]byte(tt.data))
		if got := fmt.Sprint(events, err); got != tt.want {
			t.Errorf("%s: %s; want %s", tt.name, got, tt.want)
		}
	}
}
