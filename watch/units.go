package watch

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
)

// Units says what systemd knows of its units.
type Units interface {
	// Ask returns the units that have these names, and all socket units that are loaded.
	Ask(names []string) (UnitList, error)
}

// A UnitList is an answer of systemd.
type UnitList struct {
	Units   map[string]Unit // by the names that were asked for
	Sockets []SocketUnit
}

// A Unit is what systemd knows of one unit.
type Unit struct {
	Name   string // its first name; "": there is none of the name that was asked for
	Ran    bool   // since the machine started, as far as systemd remembers
	Leaves bool   // a oneshot that stays active when its processes have ended (Type=oneshot, RemainAfterExit=yes)
}

// A SocketUnit listens, and starts services.
type SocketUnit struct {
	Name   string
	Starts []string // services (Triggers=)
	Accept bool     // it starts an instance of its service for each connection
}

// starts reports whether the socket unit starts a unit of a Workload document.
func (s SocketUnit) starts(unit string) bool {
	if s.Accept && policy.IsPattern(unit) && strings.HasPrefix(unit, strings.TrimSuffix(s.Name, ".socket")+"@") {
		return true // there may be no instance now
	}
	return slices.ContainsFunc(s.Starts, func(name string) bool { return policy.Glob(unit, name) })
}

const (
	unitsAnew  = resyncInterval / 2 // an older answer is asked for again
	unitsRetry = 10 * time.Second   // after a failure
)

// knownUnits is what is known of the units that Workload documents name. It asks systemd at a scan: once a minute, when
// a document names another unit, and when the cgroup of a socket unit was created. (No cgroup tells that a running
// socket unit is to start another service: that is noticed within a minute.)
type knownUnits struct {
	from    Units // nil: this machine has no systemd
	created atomic.Bool

	// The lock of Cgroups guards what follows.
	names   []string // asked for, ascending
	asked   time.Time
	answer  *UnitList // the last one; nil: there is none yet
	failure error     // of the last question
	seen    map[string]bool
	// From before this daemon: which socket units have the labels of which Workload document. It counts until systemd
	// answers.
	recalled map[string]string
}

// cgroupCreated is called with each cgroup that was created. The answers are asked for again, if it may change them.
func (k *knownUnits) cgroupCreated(name string) {
	if strings.HasSuffix(name, ".socket") {
		k.created.Store(true)
	}
}

// refresh asks systemd, if documents name units and the last answer may be obsolete.
func (k *knownUnits) refresh(bindings []policy.Binding, now time.Time) {
	named := map[string]bool{}
	patterns := false
	for _, b := range bindings {
		if b.Unit != "" && !policy.IsPattern(b.Unit) {
			named[b.Unit] = true
		}
		patterns = patterns || policy.IsPattern(b.Unit)
	}
	names := slices.Sorted(maps.Keys(named))
	anew := k.created.Swap(false) || !slices.Equal(names, k.names) || k.answer == nil && k.failure == nil
	k.names = names
	switch {
	case k.from == nil || len(names) == 0 && !patterns:
		k.answer, k.failure = nil, nil
		return
	case k.failure != nil && now.Sub(k.asked) < unitsRetry:
		return
	case k.failure == nil && !anew && now.Sub(k.asked) < unitsAnew:
		return
	}
	k.asked = now
	answer, err := k.from.Ask(names)
	if k.failure = err; err == nil {
		k.answer, k.recalled = &answer, nil
	}
}

// recall takes over which socket units had labels when the loaded table was made.
func (k *knownUnits) recall(workloads []policy.Workload) {
	k.recalled = map[string]string{}
	for _, w := range workloads {
		document, cgroup, ok := strings.Cut(w.Name, ":")
		if ok && w.Kind == policy.KindUnit && cgroup == w.Cgroup.Path && strings.HasSuffix(cgroup, ".socket") {
			k.recalled[path.Base(cgroup)] = document
		}
	}
}

// socketsOf returns the socket units that start the unit of a document. Another document may name one of them itself:
// then that counts.
func (k *knownUnits) socketsOf(b policy.Binding, all []policy.Binding) (sockets []string) {
	if k.answer == nil {
		for socket, document := range k.recalled {
			if document == b.Name {
				sockets = append(sockets, socket)
			}
		}
	} else {
		for _, s := range k.answer.Sockets {
			if s.starts(b.Unit) {
				sockets = append(sockets, s.Name)
			}
		}
	}
	slices.Sort(sockets)
	return slices.DeleteFunc(sockets, func(socket string) bool {
		return slices.ContainsFunc(all, func(b policy.Binding) bool { return policy.Glob(b.Unit, socket) })
	})
}

// conditions says which documents cannot have the effect that a person expects. found has the names of those whose
// unit has a cgroup now.
func (k *knownUnits) conditions(bindings []policy.Binding, found map[string]bool) (list []condition.Condition) {
	seen := map[string]bool{}
	for _, b := range bindings {
		if b.Unit == "" {
			continue
		}
		if seen[b.Unit] = k.seen[b.Unit] || found[b.Name]; !seen[b.Unit] || k.answer != nil {
			list = append(list, k.unitConditions(b, seen[b.Unit])...)
		}
	}
	k.seen = seen
	if k.failure != nil {
		list = append(list, condition.Condition{Code: condition.UnitsUnknown, Text: fmt.Sprintf(
			"systemd cannot be asked which sockets start the units of Workload documents, so the labels may lack on "+
				"sockets that systemd listens on for them: %v", k.failure)})
	}
	return list
}

// unitConditions is conditions of one document. seen: its unit has, or had, a cgroup.
func (k *knownUnits) unitConditions(b policy.Binding, seen bool) (list []condition.Condition) {
	add := func(code condition.Code, format string, args ...any) {
		list = append(list, condition.Condition{Code: code, Where: b.Position.String(),
			Text: fmt.Sprintf("workload %q: ", b.Name) + fmt.Sprintf(format, args...)})
	}
	if k.answer == nil || policy.IsPattern(b.Unit) {
		if !seen {
			add(condition.UnitAbsent, "no unit %s ran since this daemon began: the labels have no effect yet", b.Unit)
		}
		return list
	}
	unit := k.answer.Units[b.Unit]
	switch {
	case unit.Name == "" && !seen:
		add(condition.UnitAbsent, "there is no unit %s: the labels have no effect. See `systemctl list-unit-files`",
			b.Unit)
	case unit.Name != "" && unit.Name != b.Unit:
		add(condition.UnitNotCovered, "%s is another name of the unit %s, whose cgroup has its first name: write that",
			b.Unit, unit.Name)
	case unit.Leaves:
		add(condition.UnitNotCovered, "the processes of %s end when it has started (Type=oneshot): sockets that it "+
			"leaves, such as those of the kernel's NFS server, are not in its cgroup, and do not have the labels",
			b.Unit)
	case !unit.Ran && !seen:
		add(condition.UnitAbsent, "the unit %s has not run since the machine started: the labels have no effect yet",
			b.Unit)
	}
	return list
}
