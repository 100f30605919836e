package nstest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Need skips the test if the machine lacks one of the features: "root" (privileges to make namespaces), "cgroup2", or
// the name of a program. Where everything must run (CI=true or THOLE_MUST=1) it fails instead.
func Need(t testing.TB, features ...string) {
	t.Helper()
	var missing []string
	for _, f := range features {
		if err := have(f); err != nil {
			missing = append(missing, fmt.Sprintf("%s (%v)", f, err))
		}
	}
	if len(missing) == 0 {
		return
	}
	msg := "this machine lacks " + strings.Join(missing, ", ")
	if os.Getenv("CI") == "true" || os.Getenv("THOLE_MUST") == "1" {
		t.Fatalf("%s; CI=true or THOLE_MUST=1 does not let a test skip", msg)
	}
	// go test hides skips unless it is told -v; this is seen wherever any output is.
	fmt.Fprintf(os.Stderr, "*** SKIPPED %s: %s ***\n", t.Name(), msg)
	t.Skip(msg)
}

// NativeQueue says that the kernel is one with nft's expression queue (THOLE_QUEUE=native), so that a test whose
// packets go another way to userspace has failed.
func NativeQueue() bool { return os.Getenv("THOLE_QUEUE") == "native" }

func have(feature string) error {
	switch feature {
	case "root":
		if os.Geteuid() != 0 {
			return fmt.Errorf("run as root; uid is %d", os.Geteuid())
		}
		return nil
	case "cgroup2":
		_, err := cgroup2Mount()
		return err
	default:
		_, err := exec.LookPath(feature)
		return err
	}
}
