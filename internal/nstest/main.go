package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A Mode is a task that the test binary does instead of running its tests. A subpackage whose processes are the test
// binary exports its Mode, and each package that uses the subpackage passes that Mode to Main.
//
// The name of the mode is argv[0] of the process: unlike a variable of the environment, the programs that the process
// executes later do not inherit argv[0], and ps shows it. A process that another program starts has the name in
// argv[1].
type Mode struct {
	Name string
	Run  func(args []string) error // args are those behind the name
}

const (
	modePrefix  = "nstest-"
	modeSetup   = modePrefix + "setup"
	modeEnter   = modePrefix + "enter"
	modeJanitor = modePrefix + "janitor"
)

// selfExe is the test binary also when its file is gone, or lies in a directory that others may not enter.
const selfExe = "/proc/self/exe"

// modesOfMain has the names of the modes that Run was called with. Run stores it once, before any test; until then it
// is nil. A test binary without Run would run all its tests again when it is executed again, without end: New and
// RequireMode fail the test there.
var modesOfMain atomic.Pointer[[]string]

const needsMain = "nstest: this package needs: func TestMain(m *testing.M) { nstest.Main(m) }"

// M is *testing.M, or a type that wraps it.
type M interface{ Run() int }

// Main is the TestMain of every package that uses nstest. The modes are those of the subpackages that the package uses:
//
//	func TestMain(m *testing.M) { nstest.Main(m, probe.Mode) }
func Main(m M, modes ...Mode) { os.Exit(Run(m, modes...)) }

// Run is Main without the exit, for a TestMain that has more to do. In a process that was started for a mode it does
// not return.
func Run(m M, modes ...Mode) int {
	runMode(modes)
	names := []string{}
	for _, mode := range modes {
		names = append(names, mode.Name)
	}
	modesOfMain.Store(&names)
	if os.Geteuid() != 0 {
		return m.Run()
	}
	j, err := startJanitor()
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest: the janitor does not start:", err)
		return 1
	}
	code := m.Run()
	if left := j.stop(); left != "" {
		fmt.Fprintf(os.Stderr, "nstest: these cgroups outlived their tests and had to be removed:\n%s", left)
		return 1
	}
	return code
}

// runMode ends the process if it was started for a mode, at once: with os.Exit the race detector would wait for a
// second.
func runMode(modes []Mode) {
	modes = append([]Mode{{modeSetup, runSetup}, {modeEnter, runEnter}, {modeJanitor, runJanitor}}, modes...)
	for i, arg := range os.Args[:min(2, len(os.Args))] {
		n := slices.IndexFunc(modes, func(m Mode) bool { return m.Name == arg })
		if n < 0 {
			continue
		}
		if err := modes[n].Run(os.Args[i+1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", arg, err)
			unix.Exit(125)
		}
		unix.Exit(0)
	}
	if strings.HasPrefix(os.Args[0], modePrefix) {
		fmt.Fprintf(os.Stderr, "%s: nstest.Main was not called with this mode\n", os.Args[0])
		unix.Exit(125)
	}
}

// RequireMode fails the test if Main was not called with the mode of this name.
func RequireMode(t testing.TB, name string) {
	t.Helper()
	switch modes := modesOfMain.Load(); {
	case modes == nil:
		t.Fatal(needsMain)
	case !slices.Contains(*modes, name):
		t.Fatalf("nstest: TestMain must call nstest.Main with the mode %q; see nstest.Mode", name)
	}
}

// Reexec is a command that executes the test binary again, for a mode, in the namespaces and cgroup of its caller.
func Reexec(mode string, args ...string) *exec.Cmd {
	return &exec.Cmd{Path: selfExe, Args: append([]string{mode}, args...)}
}

// Reexec is Command for the test binary itself, for a mode that Main was called with.
func (c *Cgroup) Reexec(mode string, args ...string) *exec.Cmd {
	c.host.t.Helper()
	RequireMode(c.host.t, mode)
	cmd := c.Command(selfExe)
	cmd.Args = c.host.enterArgs(c.uid, selfExe, append([]string{mode}, args...))
	return cmd
}
