package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxRootlessListed is how many processes the finding names.
const maxRootlessListed = 5

// rootlessPrograms are the programs through which rootless engines connect containers to the network.
var rootlessPrograms = []string{"slirp4netns", "pasta", "pasta.avx2"}

// listRootless names at most maxRootlessListed processes.
func listRootless(found []string) string {
	listed := strings.Join(found[:min(len(found), maxRootlessListed)], ", ")
	if more := len(found) - maxRootlessListed; more > 0 {
		listed += fmt.Sprintf(", and %d more", more)
	}
	return listed
}

// rootlessNetworks looks for processes that open the connections of rootless containers, and returns nothing where
// there are none. The directory proc is that of proc(5).
func rootlessNetworks(proc string) []Finding {
	f := Finding{Check: "rootless containers", Status: OK}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return []Finding{f.unknown(err, "it is unknown whether there are any", "mount -t proc proc /proc")}
	}
	var found []string
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		dir := filepath.Join(proc, entry.Name())
		name, err := os.ReadFile(filepath.Join(dir, "comm"))
		program := strings.TrimSpace(string(name))
		var stat unix.Stat_t
		if err != nil || !slices.Contains(rootlessPrograms, program) || unix.Stat(dir, &stat) != nil {
			continue
		}
		found = append(found, fmt.Sprintf("%s (process %s, uid %d)", program, entry.Name(), stat.Uid))
	}
	if len(found) == 0 {
		return nil
	}
	return []Finding{f.warning(listRootless(found), "all connections of the containers behind one of these processes "+
		"are the process's own: policies cannot distinguish these containers",
		"run containers that a policy concerns as root; or label all processes of the user, with a Workload "+
			"document (user: NAME)")}
}
