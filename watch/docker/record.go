package docker

import (
	"maps"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"thole/compiler/policy"
	"thole/watch/process"
	"thole/watch/workload"
)

// A record is what is known of a container. It remains as long as the engine has a container of that id, also while
// the engine does not answer.
type record struct {
	name     string
	labels   policy.Labels // a person's; none: it is unlabelled, unless another one makes it a workload (Identify)
	facts    policy.Labels
	doubtful policy.Labels // that its image has too, with the same value
	refused  string        // why its labels cannot be used: it is closed

	inspected   bool     // the record is that of an inspection, and not only of a listing
	inspectedAs uint64   // the cgroup that it had when it was inspected; 0: it had none
	places      []string // where its cgroup is or will be, as far as the engine said
	attached    attachment
	endpoints   map[string]string // by the id of the network: when a listing has others, it is inspected again
	modeUnknown bool              // of its network: see details
	infra       bool              // see container
	sharing     policy.Sharing    // only of a record that was recalled: what an earlier daemon found

	running               bool
	process               process.Process // its first one, as of the last inspection; zero: unknown, or it had ended
	listingsWithoutCgroup int             // listings in a row; at most maxListingsWithoutCgroup
}

// An attachment is how one run of a container is connected to bridges. Each time the container is started it has
// another cgroup, and may have other addresses.
type attachment struct {
	cgroup    uint64
	networks  []policy.Network
	namespace uint64 // the id of the network namespace of its first process; 0: not known
}

// newRecord makes a record of what the engine said. How the container is attached is not known by that alone.
func newRecord(c container) *record {
	r := &record{name: c.name, inspected: c.details != nil, endpoints: c.endpoints, running: c.running,
		infra: c.infra}
	r.divideLabels(c)
	r.infra = r.infra || r.facts[podSandboxKey] == podSandbox
	maps.Copy(r.facts, c.facts())
	if c.details != nil {
		r.modeUnknown = c.details.modeUnknown
	}
	return r
}

// Kubernetes' engines for Docker label the container that keeps a pod's network namespace open.
const podSandboxKey, podSandbox = "io.kubernetes.docker.type", "podsandbox"

// divideLabels divides a container's labels into those of a person, those of tools (facts), and those of which nobody
// can tell whether they are the image's (doubtful).
func (r *record) divideLabels(c container) {
	r.labels, r.facts = policy.Labels{}, policy.Labels{}
	if c.imageLabels == nil {
		r.refused = "its image was removed, so its labels cannot be distinguished from the image's labels: " +
			"create the container again"
	}
	for key, value := range c.labels {
		inherited, ok := c.imageLabels[key]
		doubtful := ok && inherited == value
		err := policy.CheckContainerLabel(key, value)
		switch {
		case strings.HasPrefix(key, workload.FactPrefix): // only the daemon sets these
		case doubtful && err != nil && policy.CheckContainerLabel(key, "") != nil: // no policy can name it
		case doubtful:
			if err != nil {
				value = policy.UnusableValue
			}
			if r.doubtful == nil {
				r.doubtful = policy.Labels{}
			}
			r.doubtful[key] = value
		case key == "" || len(key) > policy.MaxLabelText || !utf8.ValidString(key): // likewise
		case err != nil:
			r.facts[key] = policy.UnusableValue
		case policy.IsUserLabel(key):
			r.labels[key] = value
		default:
			r.facts[key] = value
		}
	}
}

// asFound divides the labels of a workload of an earlier daemon as divideLabels does: that daemon's Settings may have
// been others.
func asFound(labels, facts policy.Labels) (persons, others policy.Labels) {
	persons, others = policy.Labels{}, policy.Labels{}
	for _, all := range [...]policy.Labels{labels, facts} {
		for key, value := range all {
			if policy.IsUserLabel(key) && value != policy.UnusableValue {
				persons[key] = value
			} else {
				others[key] = value
			}
		}
	}
	return persons, others
}

func (c container) facts() policy.Labels {
	facts := policy.Labels{
		workload.FactKind:      policy.KindContainer.String(),
		workload.FactContainer: c.name,
		workload.FactImage:     c.image,
		workload.FactNetwork:   c.network,
	}
	if uid, ok := c.details.uid(); ok {
		facts[workload.FactUID] = uid
	}
	return facts
}

// uid is the user that the first process starts as, if it is a number of this machine.
func (d *details) uid() (string, bool) {
	if d == nil || d.userNamespace {
		return "", false
	}
	user, _, _ := strings.Cut(d.user, ":")
	switch n, err := strconv.ParseUint(user, 10, 32); {
	case user == "" || user == "root":
		return "0", true
	case err != nil:
		return "", false
	default:
		return strconv.FormatUint(n, 10), true
	}
}

// completeFrom copies from an earlier record what a listing does not tell.
func (r *record) completeFrom(before *record) {
	if before == nil {
		return
	}
	r.inspected, r.inspectedAs, r.modeUnknown = before.inspected, before.inspectedAs, before.modeUnknown
	r.places, r.attached = before.places, before.attached
	r.process, r.listingsWithoutCgroup = before.process, before.listingsWithoutCgroup
	if r.facts[workload.FactNetwork] == "" {
		r.facts[workload.FactNetwork] = before.facts[workload.FactNetwork]
	}
	if uid, ok := before.facts[workload.FactUID]; ok {
		r.facts[workload.FactUID] = uid
	}
}

// same reports whether a snapshot is the same with either record.
func (r *record) same(other *record) bool {
	if r == nil || other == nil {
		return r == other
	}
	a, b := *r, *other
	for _, r := range []*record{&a, &b} {
		r.inspected, r.inspectedAs, r.places, r.endpoints = false, 0, nil, nil
		r.running, r.process, r.listingsWithoutCgroup = false, process.Process{}, 0 // see notJudgedMayChange
	}
	return reflect.DeepEqual(a, b)
}

// complete reports whether all is known of a container that has this cgroup.
func (r *record) complete(cgroup policy.Cgroup) bool {
	return r.inspected && (r.inspectedAs == cgroup.ID || r.withoutBridge())
}

// networks returns on which bridges a container that has this cgroup is known.
func (r *record) networks(cgroup policy.Cgroup) []policy.Network {
	if r.attached.cgroup != cgroup.ID {
		return nil
	}
	return r.attached.networks
}

// withoutBridge reports whether the container is never connected to a bridge.
func (r *record) withoutBridge() bool {
	return r.networkName() == "host" || r.networkName() == "none"
}

// joined returns the container whose network namespace the container has joined, by its id or name; "": none.
func (r *record) joined() string {
	container, joined := strings.CutPrefix(r.networkName(), policy.JoinedNetwork)
	if !joined {
		return ""
	}
	return container
}

// networkName is host, none, bridge, the name of the network with which the container was made, or "container:ID".
func (r *record) networkName() string { return r.facts[workload.FactNetwork] }

func (r *record) workload(cgroup policy.Cgroup) policy.Workload {
	return policy.Workload{
		Name: r.name, Kind: policy.KindContainer, Labels: r.labels, Facts: r.facts, Doubtful: r.doubtful,
		Cgroup: cgroup, Own: r.networks(cgroup),
	}
}

// unlabelled is a container without labels of a person, with what makes it a workload where a policy or a Workload
// document names it.
func (r *record) unlabelled(cgroup policy.Cgroup) policy.Unlabelled {
	return policy.Unlabelled{
		Cgroup: cgroup, Own: r.networks(cgroup), Name: r.name, Facts: r.facts, Doubtful: r.doubtful,
	}
}
