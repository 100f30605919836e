package condition

import "slices"

// A Code names one kind of condition. Codes are stable: scripts compare them.
type Code string

// Problems.
const (
	BindingOverlap         Code = "binding-overlap"
	BindingUnresolved      Code = "binding-unresolved"
	BridgeShared           Code = "bridge-shared"
	CertificateContradicts Code = "certificate-contradicts"
	CgroupsUnreadable      Code = "cgroups-unreadable"
	CgroupsUnwatched       Code = "cgroups-unwatched"
	ContainerNotJudged     Code = "container-not-judged"
	ContainerParentShared  Code = "container-parent-shared"
	ContainerRefused       Code = "container-refused"
	ContainerUnknown       Code = "container-unknown"
	ContainerUnprotected   Code = "container-unprotected"
	CountersUnreadable     Code = "counters-unreadable"
	Disarmed               Code = "disarmed"
	DockerAway             Code = "docker-away"
	EndedDropped           Code = "ended-dropped"
	EndedUnknown           Code = "ended-unknown"
	FleetDegraded          Code = "fleet-degraded"
	LocalRoutesFailed      Code = "local-routes-failed"
	NoPolicies             Code = "no-policies"
	DefaultAudited         Code = "default-audited"
	PatternChurn           Code = "pattern-churn"
	PatternFull            Code = "pattern-full"
	PKIUnwatched           Code = "pki-unwatched"
	ScopeRefused           Code = "scope-refused"
	SocketExposed          Code = "socket-exposed"
	SocketsUnlisted        Code = "sockets-unlisted"
	StateUnreadable        Code = "state-unreadable"
	UnitNotCovered         Code = "unit-not-covered"
	UnitsUnknown           Code = "units-unknown"
)

// Notices.
const (
	BindingOverlapRun         Code = "binding-overlap-run"
	CertificateContradictsRun Code = "certificate-contradicts-run"
	ContainerAbsent           Code = "container-absent"
	ImageLabel                Code = "image-label"
	RunMoved                  Code = "run-moved"
	NetworkShared             Code = "network-shared"
	SocketExposedUser         Code = "socket-exposed-user"
	SocketsUnexamined         Code = "sockets-unexamined"
	SwarmService              Code = "swarm-service"
	UnitAbsent                Code = "unit-absent"
)

// Notices returns the codes of all notices, ascending.
func Notices() []Code {
	return []Code{BindingOverlapRun, CertificateContradictsRun, ContainerAbsent, ImageLabel, NetworkShared, RunMoved,
		SocketExposedUser, SocketsUnexamined, SwarmService, UnitAbsent}
}

// IsNotice reports whether conditions of this code are notices; all others are problems.
func (c Code) IsNotice() bool { return slices.Contains(Notices(), c) }

// A Condition is one thing to tell an administrator or a user.
type Condition struct {
	Code  Code   `json:"code"`
	Where string `json:"where,omitempty"` // a position in a policy file, a cgroup, a container, or ""
	Text  string `json:"text"`
}

// String is the condition as text output shows it, without its code.
func (c Condition) String() string {
	if c.Where == "" {
		return c.Text
	}
	return c.Where + ": " + c.Text
}

// Split divides conditions into problems and notices, each in its order.
func Split(all []Condition) (problems, notices []Condition) {
	for _, c := range all {
		if c.Code.IsNotice() {
			notices = append(notices, c)
		} else {
			problems = append(problems, c)
		}
	}
	return problems, notices
}
