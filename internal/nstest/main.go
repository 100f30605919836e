package nstest

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// The test binary runs itself again for the processes that a Host needs. argv[0] says which part it then plays: it is
// not inherited by what is exec'ed later, as a variable in the environment would be, and it reads well in ps.
const (
	modeSetup     = "nstest-setup"
	modeEnter     = "nstest-enter"
	modeProbe     = "nstest-probe"
	modeJanitor   = "nstest-janitor"
	modeContainer = "/nstest-container" // a path, for an engine executes argv[0]
)

// selfExe is the test binary also when its file is gone, or lies in a directory that others may not enter.
const selfExe = "/proc/self/exe"

// underRun is set once, by Run, before any test. A test binary without Run would answer a re-exec by running all its
// tests again, and so on without end: New refuses to work there.
var underRun atomic.Bool

// M is *testing.M, or what wraps it.
type M interface{ Run() int }

// Main is the TestMain of every package that uses nstest:
//
//	func TestMain(m *testing.M) { nstest.Main(m) }
func Main(m M) { os.Exit(Run(m)) }

// Run is Main without the exit, for a TestMain that has more to do. In a re-exec'ed process it does not return.
func Run(m M) int {
	playPart()
	underRun.Store(true)
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

// playPart ends the process if it was started for one of the modes, at once: with os.Exit the race detector would wait
// for a second.
func playPart() {
	var play func() error
	if len(os.Args) > 3 && os.Args[1] == faultsFlag {
		fmt.Fprintln(os.Stderr, "nstest:", playWrapped(os.Args[2], os.Args[3:])) // it has failed
		os.Exit(1)
	}
	switch os.Args[0] {
	case modeSetup:
		play = playSetup
	case modeEnter:
		play = playEnter
	case modeProbe:
		play = playProbe
	case modeJanitor:
		play = playJanitor
	case modeContainer:
		play = playContainer
	default:
		return
	}
	if err := play(); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		unix.Exit(125)
	}
	unix.Exit(0)
}
