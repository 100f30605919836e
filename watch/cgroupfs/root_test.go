package cgroupfs

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"thole/internal/nstest"
)

func TestCgroupMounts(t *testing.T) {
	tests := []struct {
		name, mountinfo string
		want            []string
	}{
		{"unified", "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw",
			[]string{"/sys/fs/cgroup"}},
		{"hybrid",
			"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n" +
				"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n" +
				"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw",
			[]string{"/sys/fs/cgroup/unified"}},
		{"from outside of the namespace", "31 23 0:28 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw", nil},
		{"part of the tree", "31 23 0:28 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw", nil},
		{"escaped", `31 23 0:28 / /mnt/my\040cgroups\134 rw - cgroup2 none rw`, []string{`/mnt/my cgroups\`}},
		{"short line", "31 23 0:28", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := cgroupMounts(strings.NewReader(tt.mountinfo))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestIDAndLife(t *testing.T) {
	host := nstest.New(t)
	root, err := RootAt(host.CgroupDir(""))
	if err != nil {
		t.Fatal(err)
	}
	want := host.MkCgroup("a/b")
	got, err := root.ID("a/b")
	if err != nil || got != want {
		t.Fatalf("ID = %d, %v; want %d", got, err, want)
	}
	if lives, err := root.Lives(got); err != nil || !lives {
		t.Errorf("Lives = %v, %v; want true", lives, err)
	}
	host.Rmdir("a/b")
	if lives, err := root.Lives(got); err != nil || lives {
		t.Errorf("after the removal, Lives = %v, %v; want false", lives, err)
	}
	host.MkCgroup("a/b")
	if lives, err := root.Lives(got); err != nil || lives {
		t.Errorf("after one of the same name was made, Lives = %v, %v; want false", lives, err)
	}
}

// What is dying below a cgroup is read with the cgroup's id. (internal/attack has sockets that hold a removed one.)
func TestDying(t *testing.T) {
	host := nstest.New(t)
	root, err := RootAt(host.CgroupDir(""))
	if err != nil {
		t.Fatal(err)
	}
	above := host.MkCgroup("a")
	below := host.MkCgroup("a/b")
	if above >= below {
		t.Errorf("the ids %d and %d do not ascend", above, below)
	}
	host.Rmdir("a/b")
	nstest.WaitFor(t, 10*time.Second, "the kernel to release the cgroup", func() bool {
		id, some, err := root.Dying("a")
		if err != nil || id != above {
			t.Fatalf("Dying = %d, %t, %v; want the id %d", id, some, err, above)
		}
		return !some
	})
	if id, some, err := root.Dying("a/b"); id != 0 || some || err != nil {
		t.Errorf("of a cgroup that is gone: %d, %t, %v", id, some, err)
	}
	if id, _, err := root.Dying(""); id == 0 || id >= above || err != nil {
		t.Errorf("of the root: %d, %v", id, err)
	}
}

func TestRootAtRefusesOtherFileSystems(t *testing.T) {
	if _, err := RootAt(t.TempDir()); err == nil {
		t.Error("RootAt took a directory that is no cgroup")
	}
}

func TestOpenRoot(t *testing.T) {
	host := nstest.New(t)
	var root Root
	var id uint64
	err := host.Do(func() {
		var err error
		if root, err = OpenRoot(); err != nil {
			t.Error(err)
			return
		}
		if id, err = root.ID(""); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if root.Dir() != "/sys/fs/cgroup" || id != host.CgroupID("") {
		t.Errorf("OpenRoot = %s with id %d; want /sys/fs/cgroup with id %d", root.Dir(), id, host.CgroupID(""))
	}
}
