package doctor

import (
	"context"
	"os/exec"
	"slices"
)

// A Status is the outcome of one check.
type Status string

// The outcomes. Missing and Unknown make enforcement incomplete, Warning does not.
const (
	OK      Status = "ok"
	Warning Status = "warning"
	Missing Status = "missing"
	Unknown Status = "unknown" // could not be found out
)

// A Finding is what one check found.
type Finding struct {
	Check   string `json:"check"`
	Status  Status `json:"status"`
	Found   string `json:"found"`
	Follows string `json:"follows,omitempty"` // not OK: what does not work, or is open
	Mend    string `json:"mend,omitempty"`    // not OK: what the user can do
}

// Complete reports whether enforcement is complete on a machine with these findings.
func Complete(findings []Finding) bool {
	for _, f := range findings {
		if f.Status == Missing || f.Status == Unknown {
			return false
		}
	}
	return true
}

// A Machine is what the checks need to know of their surroundings.
type Machine struct {
	Table  string // the name of our table: its rules are not foreign
	Daemon daemonClient
	Docker string // the address of the engine, as the daemon's flag --docker has it

	Disarmed bool // a file in the state directory says so, whether a daemon runs or not

	// ProbeCommand starts this program again so that it calls Probe and writes what
	// that returns to its standard output, as JSON.
	ProbeCommand func(context.Context) *exec.Cmd
}

// Examine runs every check, in the order in which they are read best.
func Examine(ctx context.Context, m Machine) []Finding {
	root, mounted := cgroupMount()
	return slices.Concat(
		[]Finding{privileges(), kernelVersion(), mounted},
		cgroupNamespace(),
		cgroupDelegation(root),
		inScratch(ctx, root, m.ProbeCommand),
		[]Finding{peerPidfd(), conntrackTable(), conntrackMarks(), socketListing()},
		foreignRules(ctx, m.Table),
		[]Finding{bridges(), nftProgram(), engine(ctx, m.Docker)},
		rootlessNetworks("/proc"),
		disarmed(m.Disarmed),
		enforcement(ctx, m.Daemon, m.Table),
	)
}

// with fills in the outcome of a check that did not end well.
func (f Finding) with(s Status, found, follows, mend string) Finding {
	f.Status, f.Found, f.Follows, f.Mend = s, found, follows, mend
	return f
}

func (f Finding) warning(found, follows, mend string) Finding {
	return f.with(Warning, found, follows, mend)
}

func (f Finding) missing(found, follows, mend string) Finding {
	return f.with(Missing, found, follows, mend)
}

func (f Finding) unknown(err error, follows, mend string) Finding {
	return f.with(Unknown, err.Error(), follows, mend)
}
