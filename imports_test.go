package thole

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// mayImport says what each package of the project may import of it, and which
// modules from outside. Tests are not bound by it. A path ending in /... stands
// for what is below it too.
var mayImport = map[string][]string{
	"thole/ruleset": {},
	"thole/ruleset/kernel": {
		"thole/internal/nlmsg", "thole/ruleset",
		"github.com/google/nftables/...", "github.com/mdlayher/netlink/...", "golang.org/x/sys/...",
	},
	"thole/compiler": {
		"thole/compiler/chains", "thole/compiler/classes", "thole/compiler/mark", "thole/compiler/partition",
		"thole/compiler/policy", "thole/ruleset",
	},
	"thole/compiler/chains":        {"thole/compiler/mark", "thole/ruleset"},
	"thole/compiler/classes":       {"thole/compiler/partition", "thole/compiler/policy"},
	"thole/compiler/mark":          {},
	"thole/compiler/partition":     {"thole/compiler/policy"},
	"thole/compiler/policy":        {"thole/compiler/policy/strict"},
	"thole/compiler/policy/strict": {"gopkg.in/yaml.v3"},
	"thole/policies":               {},
	"thole/internal/account":       {},
	"thole/internal/condition":     {},
	"thole/internal/exposure":      {},
	"thole/compiler/inventory":     {"thole/compiler/policy"},
	"thole/internal/printable":     {"gopkg.in/yaml.v3"},
	"thole/internal/holder":        {},
	"thole/internal/lookpath":      {"golang.org/x/sys/..."},
	"thole/internal/owner": {
		"thole/compiler/policy", "thole/internal/api", "thole/internal/holder", "thole/internal/printable",
	},
	"thole/internal/whose": {"thole/datapath/sockets", "thole/internal/api", "golang.org/x/sys/..."},
	"thole/internal/exposure/live": {
		"thole/datapath/sockets", "thole/internal/api", "thole/internal/condition", "thole/internal/exposure",
		"golang.org/x/sys/...",
	},
	"thole/internal/nlmsg": {"github.com/mdlayher/netlink", "golang.org/x/sys/..."},
	"thole/internal/routes": {
		"thole/internal/nlmsg", "github.com/mdlayher/netlink/...", "golang.org/x/sys/...",
	},
	"thole/watch/cgroupfs": {"thole/watch/process", "golang.org/x/sys/..."},
	"thole/watch/process":  {"golang.org/x/sys/..."},
	"thole/watch/workload": {"thole/compiler/policy", "thole/internal/condition"},
	"thole/watch": {
		"thole/compiler/policy", "thole/internal/condition", "thole/watch/cgroupfs", "thole/watch/process",
		"thole/watch/workload",
		"github.com/containerd/cgroups/v3/...", "github.com/fsnotify/fsnotify",
		"github.com/coreos/go-systemd/v22/...", "github.com/godbus/dbus/v5", "golang.org/x/sys/...",
		"golang.org/x/time/...",
	},
	"thole/watch/filewatch": {"thole/compiler/policy", "golang.org/x/sys/..."},
	"thole/watch/docker": {
		"thole/compiler/policy", "thole/internal/condition", "thole/watch/cgroupfs", "thole/watch/docker/links",
		"thole/watch/process", "thole/watch/workload",
		"github.com/containerd/errdefs/...", "github.com/docker/docker/...", "golang.org/x/sync/...",
		"golang.org/x/sys/...",
	},
	"thole/watch/docker/links": {
		"thole/internal/nlmsg", "github.com/mdlayher/netlink/...", "golang.org/x/sys/...",
	},
	"thole/datapath": {"thole/compiler/mark", "thole/compiler/policy", "thole/datapath/...",
		"golang.org/x/sync/..."},
	"thole/datapath/refusal":   {},
	"thole/datapath/token":     {"thole/datapath/refusal"},
	"thole/datapath/packet":    {"thole/datapath/refusal", "thole/datapath/token"},
	"thole/datapath/handshake": {"thole/datapath/refusal", "thole/datapath/token", "thole/datapath/packet"},
	"thole/datapath/pki":       {"thole/compiler/policy"},
	"thole/internal/api": {
		"thole/compiler/inventory", "thole/compiler/policy", "thole/watch/...", "thole/internal/condition",
		"thole/internal/exposure", "golang.org/x/...",
	},
	"thole/internal/fleet": {
		"thole/compiler/policy", "thole/watch/...", "thole/datapath", "thole/datapath/pki", "thole/datapath/queue",
		"thole/datapath/refusal", "thole/internal/api", "thole/internal/condition",
		"golang.org/x/...",
	},
	"thole/internal/remotes": {"thole/compiler/policy", "thole/datapath/pki", "thole/datapath/refusal"},
	"thole/internal/policyset": {
		"thole/compiler/policy", "thole/internal/api", "thole/internal/condition", "thole/policies",
	},
	"thole/internal/state": {
		"thole/compiler", "thole/compiler/policy", "thole/internal/api", "thole/internal/policyset",
		"thole/internal/remotes", "golang.org/x/sys/...",
	},
	"thole/internal/enforce/certified": {
		"thole/compiler/policy", "thole/internal/condition", "thole/internal/state",
	},
	"thole/internal/enforce/explain": {
		"thole/compiler/policy", "thole/internal/api", "thole/internal/condition", "thole/watch/workload",
	},
	"thole/internal/enforce": {
		"thole/internal/enforce/certified", "thole/internal/enforce/explain",
		"thole/compiler", "thole/compiler/chains", "thole/compiler/mark", "thole/compiler/policy", "thole/datapath",
		"thole/datapath/pki", "thole/internal/api", "thole/internal/condition", "thole/internal/exposure",
		"thole/internal/policyset", "thole/internal/remotes", "thole/internal/state", "thole/ruleset",
		"thole/ruleset/kernel", "thole/watch", "thole/watch/cgroupfs", "thole/watch/filewatch", "thole/watch/workload",
	},
	"thole/internal/daemon": {
		"thole/compiler", "thole/compiler/inventory", "thole/compiler/policy", "thole/datapath",
		"thole/datapath/sockets", "thole/internal/account", "thole/internal/api",
		"thole/internal/condition", "thole/internal/enforce", "thole/internal/exposure/...", "thole/internal/fleet",
		"thole/internal/policyset", "thole/internal/remotes", "thole/internal/routes", "thole/internal/state",
		"thole/internal/whose", "thole/ruleset", "thole/ruleset/kernel", "thole/watch/...",
		"golang.org/x/sync/...", "golang.org/x/sys/...",
	},
	"thole/internal/doctor": {
		"thole/datapath/sockets", "thole/internal/condition", "thole/internal/exposure", "thole/ruleset",
		"thole/ruleset/kernel", "thole/watch/...", "thole/internal/api", "thole/internal/daemon",
		"github.com/...", "golang.org/x/...",
	},
	"thole/cmd/thole": {
		"thole/compiler", "thole/compiler/inventory", "thole/compiler/policy", "thole/watch/filewatch",
		"thole/watch/process", "thole/datapath/pki", "thole/internal/api",
		"thole/internal/daemon", "thole/internal/condition", "thole/internal/doctor", "thole/internal/holder",
		"thole/internal/lookpath", "thole/internal/owner", "thole/internal/printable",
		"github.com/spf13/...", "github.com/coreos/go-systemd/v22/daemon", "golang.org/x/sys/...",
		"gopkg.in/yaml.v3",
	},

	// What the handshake stands on.
	"thole/datapath/peers": {
		"thole/datapath/refusal", "thole/datapath/packet", "thole/datapath/pki", "thole/datapath/token",
	},
	"thole/datapath/queue": {
		"thole/internal/nlmsg",
		"github.com/florianl/go-nfqueue/v2", "github.com/mdlayher/netlink/...", "golang.org/x/sys/...",
	},
	"thole/datapath/sockets": {
		"thole/internal/nlmsg", "github.com/mdlayher/netlink", "golang.org/x/sys/...",
	},

	// For tests and tools only: nothing above imports them.
	"thole/internal/nstest":          {"golang.org/x/sys/..."}, // no subpackage
	"thole/internal/nstest/baseline": {"thole/internal/nstest"},
	"thole/internal/nstest/engine":   {"thole/internal/nstest", "thole/internal/nstest/probe", "golang.org/x/sys/..."},
	"thole/internal/nstest/faults":   {"thole/internal/nstest", "golang.org/x/sys/..."},
	"thole/internal/nstest/leaktest": {
		"thole/internal/nstest", "thole/internal/nstest/probe", "thole/internal/nstest/wire", "golang.org/x/sys/...",
	},
	"thole/internal/nstest/probe":  {"thole/internal/nstest", "golang.org/x/sys/..."},
	"thole/internal/nstest/tbtest": {},
	"thole/internal/nstest/wire":   {"thole/internal/nstest", "golang.org/x/sys/..."},
	"thole/internal/promise":       {"github.com/google/go-cmp/..."},
	"thole/internal/figures":       {},
	"thole/internal/paired":        {},
	"thole/compiler/compilertest": {
		"thole/compiler", "thole/compiler/chains", "thole/compiler/partition", "thole/ruleset",
	},
	"thole/internal/enforce/enforcetest": {
		"thole/compiler/mark", "thole/ruleset", "thole/ruleset/kernel", "thole/ruleset/rulesettest",
	},
	"thole/compiler/reference": {
		"thole/compiler", "thole/compiler/policy", "thole/compiler/reference/policyyaml",
	},
	"thole/compiler/reference/policyyaml": {"thole/compiler/policy", "gopkg.in/yaml.v3"},
	"thole/datapath/pki/pkitest":          {"thole/datapath/pki"},
	"thole/watch/docker/dockertest":       {},
	"thole/compiler/mutants": {
		"thole/compiler", "thole/compiler/policy", "thole/compiler/reference", "thole/ruleset",
	},
	"thole/ruleset/rulesettest": {"thole/ruleset"},
	"thole/ruleset/simulator":   {"thole/ruleset"},
}

func TestDirectionOfImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}:{{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), ":")
		if imports == "" {
			continue // tests only
		}
		allowed, ok := mayImport[pkg]
		if !ok {
			t.Errorf("%s is not in the table of this test: say what it may import", pkg)
			continue
		}
		for _, imp := range strings.Fields(imports) {
			if isStandard(imp) || slices.ContainsFunc(allowed, func(a string) bool { return covers(a, imp) }) {
				continue
			}
			t.Errorf("%s imports %s: allowed are the standard library and %v", pkg, imp, allowed)
		}
	}
}

// Netlink messages and attributes are encoded and decoded by internal/nlmsg alone.
func TestOneWayToEncodeNetlink(t *testing.T) {
	other := regexp.MustCompile(`netlink\.(NewAttribute|Marshal|Unmarshal)|\.MarshalBinary\(|syscall\.ParseNetlink`)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if found := other.Find(data); found != nil {
			t.Errorf("%s uses %s: use internal/nlmsg", path, found)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return first != "thole" && !strings.Contains(first, ".")
}

func covers(allowed, path string) bool {
	prefix, below := strings.CutSuffix(allowed, "/...")
	return path == prefix || below && strings.HasPrefix(path, prefix+"/")
}
