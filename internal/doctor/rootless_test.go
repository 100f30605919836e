package doctor

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"thole/internal/nstest"
)

// The process that sends for the containers of a rootless engine is named while it runs.
func TestRootlessNetworks(t *testing.T) {
	nstest.Need(t, "root", "slirp4netns")
	host := nstest.New(t)
	container := host.In("user").Start("unshare", "--net", "sleep", "1000")
	own := host.Shell("readlink /proc/self/ns/net")
	nstest.WaitFor(t, 10*time.Second, "the container's network", func() bool {
		return host.Shell(fmt.Sprintf("readlink /proc/%d/ns/net", container.Pid)) != own
	})
	slirp := host.In("user").Start("slirp4netns", "--configure", strconv.Itoa(container.Pid), "tap0")
	named := func() bool {
		list := rootlessNetworks("/proc")
		return len(list) == 1 && list[0].Status == Warning &&
			strings.Contains(list[0].Found, fmt.Sprintf("slirp4netns (process %d, uid 0)", slirp.Pid))
	}
	nstest.WaitFor(t, 10*time.Second, "the finding", named)
	slirp.Kill()
	_ = slirp.Wait() // it was killed
	if named() {
		t.Error("it has ended, and is still named")
	}
}

func TestRootlessListIsShort(t *testing.T) {
	for text, want := range map[string]string{
		"a": "a", "a b c d e": "a, b, c, d, e", "a b c d e f g": "a, b, c, d, e, and 2 more",
	} {
		if got := listRootless(strings.Fields(text)); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}
