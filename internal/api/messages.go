package api

import (
	"fmt"
	"time"

	"thole/compiler/policy"
	"thole/internal/condition"
	"thole/internal/exposure"
)

// The requests that the daemon answers over its socket: HTTP with JSON bodies.
// Who asks is known from the socket (SO_PEERCRED), never from the request.
const (
	pathRun       = "/v1/run"       // POST RunRequest → RunResponse; anyone, within a LabelGrant
	pathApply     = "/v1/apply"     // POST ApplyRequest → ApplyResponse; root
	pathReload    = "/v1/reload"    // POST nothing → ApplyResponse; root
	pathDisarm    = "/v1/disarm"    // POST nothing → DisarmResponse; root
	pathArm       = "/v1/arm"       // POST nothing → ApplyResponse; root
	pathStatus    = "/v1/status"    // GET → Status
	pathWorkloads = "/v1/workloads" // GET → []Workload
	pathPolicies  = "/v1/policies"  // GET → []Policy
	pathClasses   = "/v1/classes"   // GET → []Class

	pathUnlabelled = "/v1/unlabelled" // GET → Listeners
	pathOwner      = "/v1/owner"      // POST OwnerRequest → OwnerResponse
)

// A RunRequest asks to label the process that sends it. When it is answered the
// process is in its cgroup, the table knows that cgroup, and the process may exec.
type RunRequest struct {
	Name    string            `json:"name,omitempty"` // "": derived from Command
	Labels  map[string]string `json:"labels"`
	Command string            `json:"command"` // only for a derived name; nothing is decided by it

	// The process is ended if another program moves it into another cgroup.
	KillOnMove bool `json:"killOnMove,omitempty"`
}

// A RunResponse says what the caller is now.
type RunResponse struct {
	Name   string            `json:"name"`
	Cgroup string            `json:"cgroup"` // below the cgroup root: thole.slice/NAME.scope
	ID     uint64            `json:"id"`
	Labels map[string]string `json:"labels"` // those asked for and those that a grant requires
}

// A File is one policy file.
type File struct {
	Name string `json:"name"`
	Data string `json:"data"`
}

// An ApplyRequest replaces the whole policy set. With DryRun nothing changes.
type ApplyRequest struct {
	Files  []File `json:"files"`
	DryRun bool   `json:"dryRun,omitempty"`

	AllowEmpty bool `json:"allowEmpty,omitempty"` // Files may have no policy: nothing is restricted then
	Default    bool `json:"default,omitempty"`    // enforce the built-in default; there are no Files then
}

// An ApplyResponse says what a new policy set changed, or would change.
type ApplyResponse struct {
	Changed bool `json:"changed"` // the table differs from the one that was loaded
	// the set is stored and not enforced, since Thole was disarmed then
	Disarmed  *time.Time            `json:"disarmed,omitempty"`
	DryRun    bool                  `json:"dryRun,omitempty"`
	Epoch     uint16                `json:"epoch"`
	Policies  int                   `json:"policies"`
	Workloads int                   `json:"workloads"`
	Classes   int                   `json:"classes"`
	Diff      string                `json:"diff,omitempty"`  // the difference, one line an object
	Table     string                `json:"table,omitempty"` // DryRun: the whole table as an nft script
	Warnings  []Message             `json:"warnings,omitempty"`
	Problems  []condition.Condition `json:"problems,omitempty"`
	Notices   []condition.Condition `json:"notices,omitempty"`
}

// A DisarmResponse says that the daemon loads no table any more.
type DisarmResponse struct {
	PID      int    `json:"pid"`
	Table    bool   `json:"table"`              // there was one, which is removed now
	Stored   bool   `json:"stored"`             // also the next daemon will not
	Error    string `json:"error,omitempty"`    // why it could not be stored
	StateDir string `json:"stateDir,omitempty"` // where it is stored
}

// A Message is something to tell a person, with the place it is about: a
// position in a policy file, a cgroup, or "".
type Message struct {
	Where string `json:"where,omitempty"`
	Text  string `json:"text"`
}

func (m Message) String() string {
	if m.Where == "" {
		return m.Text
	}
	return m.Where + ": " + m.Text
}

// Where a policy set came from.
const (
	SourceDefault   = "default"   // embedded: no set was given yet
	SourceDirectory = "directory" // --policies DIR
	SourceApplied   = "applied"   // thole apply
)

// Status is the daemon's own account of itself. In JSON its groups are not seen: all fields are on one level.
type Status struct {
	ProcessStatus
	Enforcing bool   `json:"enforcing"` // a table that this daemon compiled or adopted is loaded
	Epoch     uint16 `json:"epoch"`
	// since when nothing is to be loaded, until thole arm
	Disarmed *time.Time `json:"disarmed,omitempty"`
	SetStatus
	// when the table last changed or was found to be equal
	Applied time.Time `json:"applied"`
	Counts
	DriftStatus
	// cgroups of workloads that are gone and are still in the table, because sockets may outlive them
	Ended int `json:"ended"`
	// older ones whose labels are not kept: what their sockets send and receive is discarded
	EndedUnknown int               `json:"endedUnknown"`
	Docker       *DockerStatus     `json:"docker,omitempty"` // absent: it is not followed
	Fleet        *FleetStatus      `json:"fleet,omitempty"`  // absent: there are no other nodes
	Connections  ConnectionStatus  `json:"connections"`
	Bounds       []Bound           `json:"bounds"` // by what they are about
	Answers      AnswerStatus      `json:"answers"`
	Sockets      *SocketStatus     `json:"sockets,omitempty"` // absent: they were not looked at
	LocalRoutes  LocalRoutesStatus `json:"localRoutes"`
	LastError    *Failure          `json:"lastError,omitempty"`
	Findings
	Counters map[string]Counter `json:"counters,omitempty"` // the table's named counters
}

// A ProcessStatus says which process the daemon is.
type ProcessStatus struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
}

// A SetStatus says where the active policy set came from.
type SetStatus struct {
	Source string `json:"source"` // SourceDefault, …
	// the built-in default's policies are in force, beside the documents of the source
	BuiltIn   bool   `json:"builtIn,omitempty"`
	Default   string `json:"default,omitempty"`   // "audit" or "undecided": these policies only record
	Directory string `json:"directory,omitempty"` // with --policies
}

// Counts are how many there are of each.
type Counts struct {
	Policies  int `json:"policies"`
	Workloads int `json:"workloads"`
	Classes   int `json:"classes"`
	Runs      int `json:"runs"` // living cgroups of thole run
}

// A DriftStatus says what other programs did to the table.
type DriftStatus struct {
	// how often another program's change of the table was found and mended
	Mended     int      `json:"mended"`
	LastMended *Mending `json:"lastMended,omitempty"`
}

// Findings are what a person should know.
type Findings struct {
	Problems []condition.Condition `json:"problems,omitempty"` // an administrator is needed: thole status exits 1
	Notices  []condition.Condition `json:"notices,omitempty"`  // what users may cause: they change no exit status
	Warnings []Message             `json:"warnings,omitempty"`
}

// Healthy reports whether the node enforces what it was told, as far as the daemon can say.
func (s Status) Healthy() bool { return s.Enforcing && s.LastError == nil && len(s.Problems) == 0 }

// A ConnectionStatus is the account of the connections to the daemon's socket.
type ConnectionStatus struct {
	Now        int    `json:"now"`        // root's too, and that of this request
	Most       int    `json:"most"`       // at once, since the daemon began
	Max        int    `json:"max"`        // of all users but root, at once
	MaxPerUser int    `json:"maxPerUser"` // of each user but root, at once
	Evicted    uint64 `json:"evicted"`    // ended to make room for a new one
	Refused    uint64 `json:"refused"`    // ended because there was no room
	Silent     uint64 `json:"silent"`     // closed because they sent no complete request in time
	Lingering  int    `json:"lingering"`  // evicted or refused, and not closed yet
}

// An AnswerStatus is the account of the answers to "thole get". An answer is made once for each state of the table.
type AnswerStatus struct {
	Made uint64 `json:"made"` // since the daemon began
	Kept uint64 `json:"kept"` // sent as they had been made before
}

// A LocalRoutesStatus says whether packets of this node to its own addresses are routed over lo alone, which closes
// decoys (docs/SECURITY.md).
type LocalRoutesStatus struct {
	On        bool   `json:"on"`              // --local-routes, and not disarmed
	Addresses int    `json:"addresses"`       // that are routed so
	Error     string `json:"error,omitempty"` // why not all are, or why what an earlier daemon made is not removed
}

// A SocketStatus says which live sockets the table can be bypassed through.
type SocketStatus struct {
	Examined int           `json:"examined"` // listeners of TCP and unconnected sockets of UDP
	Complete bool          `json:"complete"` // false: a bound was reached, so others may be exposed
	Exposed  []ExposedPort `json:"exposed"`
}

// An ExposedPort is a port on which a socket may get what was judged for another socket, or for none.
type ExposedPort struct {
	Reason   exposure.Reason `json:"reason"`
	Protocol string          `json:"protocol"`
	Port     uint16          `json:"port"`
	Text     string          `json:"text"` // names the sockets, and says what reaches them
	Sockets  []ExposedSocket `json:"sockets"`
}

// Where names the port.
func (e ExposedPort) Where() string { return fmt.Sprintf("%s port %d", e.Protocol, e.Port) }

// An ExposedSocket is one of the sockets on an ExposedPort.
type ExposedSocket struct {
	Address  string `json:"address"`
	Device   string `json:"device,omitempty"` // that it is bound to
	UID      uint32 `json:"uid"`
	Workload string `json:"workload,omitempty"` // absent: it is unlabelled
	Cgroup   string `json:"cgroup,omitempty"`   // in which it was made; absent: that is gone
}

// A DockerStatus says whether Docker answers.
type DockerStatus struct {
	Host       string    `json:"host"`
	Connected  bool      `json:"connected"`
	Since      time.Time `json:"since"`
	Error      string    `json:"error,omitempty"` // why it is not connected
	Containers int       `json:"containers"`      // that are known, also those that do not run
}

// A FleetStatus is this node's part among other nodes.
type FleetStatus struct {
	Node       string     `json:"node,omitempty"`     // its name, as its certificate has it; "": that cannot be used
	Until      time.Time  `json:"until"`              // its certificate holds
	Error      string     `json:"error,omitempty"`    // why the fleet is degraded: credentials, or the queue
	Networks   []string   `json:"networks"`           // where other nodes are
	Required   []string   `json:"required,omitempty"` // labels that the certificate puts on all workloads: key=value
	Queue      FleetQueue `json:"queue"`
	Classes    int        `json:"classes"` // of other nodes' workloads
	MaxClasses int        `json:"maxClasses"`

	// Counts by name: what happened, why something was refused, what is known of other
	// nodes, and which handshakes go on, both with their bounds.
	Events  map[string]uint64 `json:"events"`
	Refused map[string]uint64 `json:"refused"`
	Known   map[string]uint64 `json:"known"`
	Pending map[string]uint64 `json:"pending"`
}

// A FleetQueue is the NFQUEUE that packets between nodes come by.
type FleetQueue struct {
	Number   uint16 `json:"number"`
	Native   bool   `json:"native"`          // by nft's expression queue; else by xtables' target NFQUEUE (nft_compat)
	Running  bool   `json:"running"`         // it is read
	Error    string `json:"error,omitempty"` // why it is not read; it is tried again
	Waiting  uint64 `json:"waiting"`         // packets without a verdict now
	Packets  uint64 `json:"packets"`         // with a verdict, since the daemon began
	Dropped  uint64 `json:"dropped"`         // of them
	Full     uint64 `json:"full"`            // packets lost: the queue was full
	Overruns uint64 `json:"overruns"`        // packets lost: the socket's buffer was
}

// A Mending is a change of our table by another program that was found.
type Mending struct {
	Time    time.Time `json:"time"`
	Program string    `json:"program,omitempty"` // "": the kernel did not say
	PID     uint32    `json:"pid,omitempty"`     // of the thread, as the first pid namespace counts
}

// A Failure is the last thing that went wrong and was not mended since.
type Failure struct {
	Time time.Time `json:"time"`
	Text string    `json:"text"`
}

// A Counter is one of the table's counters.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// A WorkloadState says how much of what the policies say of a workload is enforced.
type WorkloadState string

// The states of a workload.
const (
	StateOpen     WorkloadState = "open"     // no enforced policy selects it
	StateIsolated WorkloadState = "isolated" // an enforced policy selects it, and all of it is enforced
	StatePartial  WorkloadState = "partial"  // an enforced policy selects it, and not all of it is enforced
	StateEnded    WorkloadState = "ended"    // its cgroup is gone, and sockets outlive it
)

// A Workload is a labelled cgroup of this node.
type Workload struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Kind      string            `json:"kind"`
	State     WorkloadState     `json:"state"`
	Missing   []condition.Code  `json:"missing,omitempty"` // of StatePartial: the conditions because of which it is
	Labels    map[string]string `json:"labels"`
	Facts     map[string]string `json:"facts,omitempty"` // thole/* and the like
	// that the image of a container has too, with the same value
	Doubtful map[string]string `json:"doubtful,omitempty"`
	// who gave each of these labels
	Sources map[string]policy.Source `json:"labelSources"`
	Cgroup  string                   `json:"cgroup"`
	ID      uint64                   `json:"id"`
	// of a container with networks of its own: bridge, port, addresses
	Networks []string `json:"networks,omitempty"`
	Class    uint32   `json:"class"`    // 0: in none
	Ingress  []string `json:"ingress"`  // the enforced policies that isolate it
	Egress   []string `json:"egress"`   //
	Position string   `json:"position"` // of its Workload document; "-" if there is none
}

// A Policy is one policy of the active set.
type Policy struct {
	Name     string `json:"name"`
	Audit    bool   `json:"audit,omitempty"`
	Ingress  bool   `json:"ingress"` // it isolates what it selects
	Egress   bool   `json:"egress"`
	Rules    int    `json:"rules"`   // allow rules
	Denies   int    `json:"denies"`  // deny rules
	Selected int    `json:"selects"` // workloads that run now
	Position string `json:"position"`
}

// A Class are workloads that no policy of the active set tells apart.
type Class struct {
	Number    uint32              `json:"number"`
	Workloads []string            `json:"workloads"`
	Labels    []map[string]string `json:"labels"`
	Ingress   []string            `json:"ingress"`
	Egress    []string            `json:"egress"`
}

// problemBody is the body of every answer that is not 200.
type problemBody struct {
	Error  string `json:"error"`
	Reason string `json:"reason,omitempty"` // of a Refusal
}
