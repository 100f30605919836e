package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/ruleset"
	"thole/ruleset/kernel"
)

// A daemonClient asks the daemon.
type daemonClient interface {
	Status(context.Context) (api.Status, error)
	Workloads(context.Context) ([]api.Workload, error)
}

// answerTimeout is how long the daemon may take to answer.
const answerTimeout = 10 * time.Second

// looks is how often daemon and table are compared where they differ: what runs may have
// changed between the two questions.
const looks = 3

// enforcement says whether a daemon runs, and whether the table that is loaded is
// what the daemon says.
func enforcement(ctx context.Context, client daemonClient, name string) []Finding {
	asking, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var findings []Finding
	for range looks {
		findings = compareOnce(asking, client, name)
		if last := findings[len(findings)-1]; last.Check != "table" || last.Status != Missing {
			break
		}
	}
	return findings
}

func compareOnce(ctx context.Context, client daemonClient, name string) []Finding {
	status, err := client.Status(ctx)
	findings := slices.Concat([]Finding{daemonState(status, err)}, policyState(status),
		fleetState(status.Fleet, time.Now()), exposedSockets(status), problems(status))
	var workloads []api.Workload
	if err == nil {
		if workloads, err = client.Workloads(ctx); err != nil {
			return findings // it has just ended
		}
	}
	loaded, err := readTable(name)
	if err != nil {
		table := Finding{Check: "table"}
		return append(findings, table.unknown(err, "it is unknown whether anything is enforced", "sudo thole doctor"))
	}
	return append(findings, tableState(loaded, status.Enforcing, workloads))
}

// disarmed says that "thole cleanup" was here.
func disarmed(is bool) []Finding {
	if !is {
		return nil
	}
	f := Finding{Check: "armed"}
	return []Finding{f.missing("disarmed by thole cleanup",
		"nothing is enforced, also when a daemon starts", "thole arm")}
}

func daemonState(s api.Status, err error) Finding {
	f := Finding{Check: "daemon", Status: OK, Found: fmt.Sprintf("process %d", s.PID)}
	switch {
	case errors.Is(err, api.ErrNoDaemon):
		return f.warning("none", "workloads that start now have no labels; a loaded table stays in force",
			"thole daemon --help")
	case err != nil:
		return f.unknown(err, "it is unknown whether the table is right", "thole status")
	case s.Disarmed != nil:
		return f.missing("disarmed since "+s.Disarmed.Format(time.DateTime), "nothing is enforced", "thole arm")
	case s.LastError != nil:
		return f.missing("its last change failed: "+s.LastError.Text,
			"the enforced policies are older than the wanted ones", "thole status")
	}
	return f
}

// policyState names the policies that are valid and not enforced as they may be meant.
func policyState(s api.Status) []Finding {
	var findings []Finding
	for _, w := range s.Warnings {
		f := Finding{Check: "policies"}
		findings = append(findings, f.warning(w.Text, "see "+w.Where, "thole get policies"))
	}
	return findings
}

// certificateWarning is how long before a certificate ends it is warned of.
const certificateWarning = 7 * 24 * time.Hour

// fleetState says whether this node's certificate is good, and for how long.
func fleetState(s *api.FleetStatus, now time.Time) []Finding {
	if s == nil {
		return nil
	}
	found := fmt.Sprintf("of node %s, valid until %s", s.Node, s.Until.Format(time.DateTime))
	f := Finding{Check: "certificate", Status: OK, Found: found}
	switch left := s.Until.Sub(now); {
	case s.Error != "" && s.Error != s.Queue.Error:
		f = f.missing(s.Error, "the installed certificate and trust are not in force, or labelled connections "+
			"to and from other nodes do not open; the daemon tries again by itself", "thole pki show")
	case left <= 0:
		f = f.missing(f.Found, "other nodes refuse connections of this node's workloads",
			"thole pki renew, see docs/PKI.md")
	case left < certificateWarning:
		f = f.warning(f.Found, "from then on other nodes refuse connections of this node's workloads",
			"thole pki renew, see docs/PKI.md")
	}
	q := Finding{Check: "queue", Status: OK, Found: fmt.Sprintf("%d, by nft's expression queue", s.Queue.Number)}
	switch {
	case !s.Queue.Running:
		q = q.missing(cmp.Or(s.Queue.Error, fmt.Sprintf("%d is not read", s.Queue.Number)),
			"labelled connections to and from other nodes do not open; the daemon tries again by itself",
			"thole status")
	case !s.Queue.Native:
		q = q.warning(fmt.Sprintf("%d, by NFQUEUE of nft_compat", s.Queue.Number),
			"nft lists these rules but cannot load them from a file",
			"if you need that, boot a kernel with CONFIG_NFT_QUEUE, such as the distribution's")
	}
	return []Finding{f, q}
}

// problems passes on what the daemon cannot do as it is wanted.
func problems(s api.Status) []Finding {
	var findings []Finding
	for _, p := range s.Problems {
		if p.Code == condition.SocketExposed {
			continue // exposedSockets has it
		}
		findings = append(findings, Finding{Check: "problem"}.warning(p.String(), "the problem needs an administrator",
			"thole status"))
	}
	return findings
}

// restart mends a table that somebody changed: a daemon that starts reads it back.
const restart = "restart the daemon, for example: systemctl restart thole"

// tableState looks for what somebody else did to the table, and compares its classes
// of cgroups with the daemon's.
func tableState(loaded *ruleset.Table, wanted bool, workloads []api.Workload) Finding {
	f := Finding{Check: "table", Status: OK, Found: "none is loaded: nothing is enforced now"}
	if loaded == nil {
		if wanted {
			return f.missing("it is not loaded, although the daemon says that it is", "nothing is enforced", restart)
		}
		return f
	}
	classes := classesOf(loaded)
	f.Found = fmt.Sprintf("loaded, %d cgroups", len(classes))
	if n := len(loaded.Foreign); n > 0 {
		return f.missing("another program added to it: "+loaded.Foreign[0],
			"its verdicts may differ from the policies", restart)
	}
	if place := hollow(loaded); place != "" {
		return f.missing("another program emptied it: "+place, "packets there are not judged", restart)
	}
	for _, w := range workloads {
		if classes[w.ID] != w.Class {
			return f.missing(fmt.Sprintf("it has cgroup %s in class %d, and the daemon has %s in class %d", w.Cgroup,
				classes[w.ID], w.Name, w.Class),
				"its verdicts differ from the policies", restart)
		}
	}
	return f
}

// hollow names a hook at which no rule of the table is: every table that was compiled
// has rules at both. "" is none.
func hollow(t *ruleset.Table) string {
	for _, hook := range []ruleset.Hook{ruleset.Input, ruleset.Output} {
		hooked := func(c ruleset.Chain) bool { return c.Hook == hook && len(c.Rules) > 0 }
		if !slices.ContainsFunc(t.Chains, hooked) {
			return "no rule is at hook " + hook.String()
		}
	}
	return ""
}

// classesOf reads the maps that say which cgroup is in which class.
func classesOf(t *ruleset.Table) map[uint64]uint32 {
	groups := map[uint32]uint32{} // the class of a number of a workload's own
	for _, set := range t.Sets {
		if set.Name == "group" {
			for _, e := range set.Elements {
				groups[uint32(e.Key[0].From.Uint64())] = e.Number
			}
		}
	}
	classes := map[uint64]uint32{}
	for _, set := range t.Sets {
		if !strings.HasPrefix(set.Name, "listener") {
			continue
		}
		for _, e := range set.Elements {
			class, ok := groups[e.Number]
			if !ok {
				class = e.Number
			}
			classes[e.Key[0].From.Uint64()] = class
		}
	}
	return classes
}

func readTable(name string) (*ruleset.Table, error) {
	conn, err := kernel.Open(kernel.Options{})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.Read(name)
}
