package filewatch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// follow watches a directory for the time of the test.
func follow(t *testing.T, path string) *Directory {
	t.Helper()
	d := NewDirectory(path)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return d
}

// next returns the files that are seen next, by base name.
func next(t *testing.T, d *Directory) (map[string]string, error) {
	t.Helper()
	select {
	case f := <-d.Files():
		got := map[string]string{}
		for _, file := range f.Files {
			got[filepath.Base(file.Name)] = string(file.Data)
		}
		return got, f.Err
	case <-time.After(patience):
		t.Fatalf("waited %v for the directory to be read", patience)
		return nil, nil
	}
}

// becomes waits until the directory is seen to hold these files.
func becomes(t *testing.T, d *Directory, want map[string]string) {
	t.Helper()
	got, err := next(t, d)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Fatalf("error %v, files (-want +got)\n%s", err, diff)
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryFollowsFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "1")
	d := follow(t, dir)
	becomes(t, d, map[string]string{"a.yaml": "1"})
	write(t, dir+"/a.yaml", "2")
	becomes(t, d, map[string]string{"a.yaml": "2"})
	write(t, dir+"/b.yml", "3")
	becomes(t, d, map[string]string{"a.yaml": "2", "b.yml": "3"})
	must(t, os.Remove(dir+"/a.yaml"))
	becomes(t, d, map[string]string{"b.yml": "3"})
	write(t, dir+"/.b.yml.new", "4")
	must(t, os.Rename(dir+"/.b.yml.new", dir+"/b.yml"))
	becomes(t, d, map[string]string{"b.yml": "4"})
}

func TestEditorsFilesAreNotRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "1")
	for _, name := range []string{".a.yaml.swp", ".a.yaml", "a.yaml~", "#a.yaml#", ".#a.yaml", "4913", "a.yaml.bak",
		"README"} {
		write(t, filepath.Join(dir, name), "not a policy")
	}
	must(t, os.Mkdir(dir+"/directory.yaml", 0o755))
	d := follow(t, dir)
	becomes(t, d, map[string]string{"a.yaml": "1"})
	write(t, dir+"/.a.yaml.swp", "still not")
	write(t, dir+"/a.yaml~", "still not")
	write(t, dir+"/a.yaml", "2")
	becomes(t, d, map[string]string{"a.yaml": "2"})
}

// release makes a tree of policies as Kubernetes and git-sync do.
func release(t *testing.T, dir, name string, files map[string]string) string {
	t.Helper()
	tree := filepath.Join(dir, name)
	must(t, os.Mkdir(tree, 0o755))
	for file, data := range files {
		write(t, filepath.Join(tree, file), data)
	}
	return tree
}

// point makes a link lead elsewhere, at once.
func point(t *testing.T, link, target string) {
	t.Helper()
	must(t, os.Symlink(target, link+".tmp"))
	must(t, os.Rename(link+".tmp", link))
}

func TestSwapOfDataLink(t *testing.T) {
	dir := t.TempDir()
	one := map[string]string{"a.yaml": "1", "b.yaml": "1"}
	release(t, dir, "..one", one)
	point(t, dir+"/..data", "..one")
	for name := range one {
		point(t, filepath.Join(dir, name), "..data/"+name)
	}
	d := follow(t, dir)
	becomes(t, d, one)
	for _, n := range []string{"2", "3", "4"} {
		files := map[string]string{"a.yaml": n, "b.yaml": n}
		release(t, dir, ".."+n, files)
		point(t, dir+"/..data", ".."+n)
		becomes(t, d, files)
	}
	must(t, os.RemoveAll(dir+"/..one"))
	write(t, dir+"/..4/a.yaml", "written in place")
	becomes(t, d, map[string]string{"a.yaml": "written in place", "b.yaml": "4"})
}

func TestSwapOfADirectoryAbove(t *testing.T) {
	dir := t.TempDir()
	release(t, dir, "one", nil)
	release(t, dir, "one/policies", map[string]string{"a.yaml": "1"})
	release(t, dir, "two", nil)
	release(t, dir, "two/policies", map[string]string{"a.yaml": "2"})
	point(t, dir+"/current", dir+"/one")
	d := follow(t, dir+"/current/policies")
	becomes(t, d, map[string]string{"a.yaml": "1"})
	point(t, dir+"/current", "two")
	becomes(t, d, map[string]string{"a.yaml": "2"})
	must(t, os.Rename(dir+"/two", dir+"/gone"))
	if _, err := next(t, d); err == nil {
		t.Fatal("a directory that is gone was read")
	}
	must(t, os.Rename(dir+"/gone", dir+"/two"))
	becomes(t, d, map[string]string{"a.yaml": "2"})
}

func TestDirectoryThatComesLater(t *testing.T) {
	dir := t.TempDir() + "/etc/thole/policies"
	d := follow(t, dir)
	if _, err := next(t, d); err == nil {
		t.Fatal("a directory that is not there was read")
	}
	must(t, os.MkdirAll(dir, 0o755))
	write(t, dir+"/a.yaml", "1")
	got, err := next(t, d)
	for err != nil { // the empty directory may be seen first
		got, err = next(t, d)
	}
	if diff := cmp.Diff(map[string]string{"a.yaml": "1"}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// A tree that is written bit by bit is seen when it rests, not half.
func TestHalfWrittenTree(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "1")
	d := follow(t, dir)
	becomes(t, d, map[string]string{"a.yaml": "1"})
	want := map[string]string{}
	must(t, os.Remove(dir+"/a.yaml"))
	for _, name := range []string{"b", "c", "d", "e"} {
		f, err := os.Create(filepath.Join(dir, name+".yaml"))
		must(t, err)
		for range 50 {
			_, err := f.WriteString("line\n")
			must(t, err)
		}
		must(t, f.Close())
		want[name+".yaml"] = strings.Repeat("line\n", 50)
	}
	becomes(t, d, want)
}

func TestOnlyTheLatestWaits(t *testing.T) {
	d := NewDirectory("")
	d.publish(Policies{Err: os.ErrNotExist}, Policies{})
	d.publish(Policies{Err: os.ErrPermission}, Policies{})
	if got := <-d.Files(); !errors.Is(got.Err, os.ErrPermission) {
		t.Errorf("got %v; want the latest", got.Err)
	}
}

func TestReadDirectoryErrors(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, dir string)
		want string
	}{
		{"empty", func(*testing.T, string) {}, "has no file named"},
		{"too large", func(t *testing.T, dir string) {
			write(t, dir+"/a.yaml", strings.Repeat("#", maxFileSize+1))
		}, "a.yaml has more than"},
		{"too many", func(t *testing.T, dir string) {
			for i := range maxFiles + 1 {
				write(t, filepath.Join(dir,
					strings.Repeat("x", i/100+1)+string(rune('a'+i%26))+time.Duration(i).String()+".yaml"), "")
			}
		}, "1001 policy files"},
		{"too much", func(t *testing.T, dir string) {
			for i := range maxTotalSize/maxFileSize + 1 {
				write(t, filepath.Join(dir, string(rune('a'+i))+".yaml"), strings.Repeat("#", maxFileSize))
			}
		}, "together"},
		{"pipe", func(t *testing.T, dir string) { must(t, unix.Mkfifo(dir+"/a.yaml", 0o600)) }, "not a regular file"},
		{"dangling link", func(t *testing.T, dir string) {
			must(t, os.Symlink("nowhere", dir+"/a.yaml"))
		}, "a.yaml: no such file"},
		{"loop", func(t *testing.T, dir string) { must(t, os.Symlink("a.yaml", dir+"/a.yaml")) }, "too many levels"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			tt.make(t, dir)
			_, err := ReadPolicies(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("ReadPolicies = %v; want %q and the directory", err, tt.want)
			}
		})
	}
}
