package docker

import (
	"maps"
	"strconv"
	"strings"

	"thole/compiler"
	"thole/watch/workload"
)

// A record is what is known of a container. It holds as long as there is one of
// that id, also where Docker does not answer.
type record struct {
	name     string
	labels   compiler.Labels // a person's; none: it is unlabelled, unless a doubtful one makes it a workload
	facts    compiler.Labels
	doubtful compiler.Labels // that its image has too, with the same value
	refused  string          // why its labels cannot be used: it is closed
	whole    bool            // it was inspected, not only listed
	// By the id of the network: when another list has others, it is inspected anew.
	endpoints map[string]string
	own       []compiler.Network // on which bridges it is known
	ownAs     uint64             // the cgroup that it had when that was found out: started again, it may have other addresses
	places    []string           // where its cgroup is or will be, as far as Docker said
	asked     uint64             // the cgroup that it had when it was inspected; 0: it had none

	running     bool
	process     process // its first one, as the last inspection has it; zero: unknown, or it had ended
	unseen      int     // in how many listings in a row it ran without a cgroup that was found; at most unseenListings
	modeUnknown bool    // of its network: see details
}

// newRecord tells a person's labels from those of tools, and those that nobody can tell from the image's. Which
// bridges the container is connected to is not known by Docker alone.
func newRecord(c container) *record {
	r := &record{
		name: c.name, labels: compiler.Labels{}, facts: compiler.Labels{},
		whole: c.details != nil, endpoints: c.endpoints, running: c.running,
	}
	if c.details != nil {
		r.modeUnknown = c.details.modeUnknown
	}
	if c.imageLabels == nil {
		r.refused = "its image is gone, so that its labels can not be told from the image's: make the container anew"
	}
	for key, value := range c.labels {
		inherited, ok := c.imageLabels[key]
		doubtful := ok && inherited == value
		err := compiler.CheckContainerLabel(key, value)
		switch {
		case strings.HasPrefix(key, workload.FactPrefix): // only we set these
		case doubtful && err != nil && compiler.CheckContainerLabel(key, "") != nil: // no policy can name it
		case doubtful:
			if err != nil {
				value = compiler.UnusableValue
			}
			if r.doubtful == nil {
				r.doubtful = compiler.Labels{}
			}
			r.doubtful[key] = value
		case compiler.IsUserLabel(key) && err != nil:
			r.refused = err.Error()
		case compiler.IsUserLabel(key):
			r.labels[key] = value
		case err == nil:
			r.facts[key] = value
		}
	}
	maps.Copy(r.facts, c.facts())
	return r
}

func (c container) facts() compiler.Labels {
	facts := compiler.Labels{
		workload.FactKind:      compiler.KindContainer.String(),
		workload.FactContainer: c.name,
		workload.FactImage:     c.image,
		workload.FactNetwork:   c.network,
	}
	if uid, ok := c.details.uid(); ok {
		facts[workload.FactUID] = uid
	}
	return facts
}

// uid is the user that the first process starts as, where it is a number of this
// machine.
func (d *details) uid() (string, bool) {
	if d == nil || d.ownUsers {
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

// update takes over what a listing does not tell and was told before.
func (r *record) update(before *record) {
	if before == nil {
		return
	}
	r.whole, r.own, r.ownAs, r.asked, r.places = before.whole, before.own, before.ownAs, before.asked, before.places
	r.process, r.unseen, r.modeUnknown = before.process, before.unseen, before.modeUnknown
	if r.facts[workload.FactNetwork] == "" {
		r.facts[workload.FactNetwork] = before.facts[workload.FactNetwork]
	}
	if uid, ok := before.facts[workload.FactUID]; ok {
		r.facts[workload.FactUID] = uid
	}
}

// complete reports whether all is known of a container that has this cgroup. Each time
// it is started it gets another one, and is connected anew.
func (r *record) complete(cg compiler.Cgroup) bool {
	return r.whole && (r.asked == cg.ID || r.hosted())
}

// connected returns on which bridges a container that has this cgroup is known.
func (r *record) connected(cg compiler.Cgroup) []compiler.Network {
	if r.ownAs != cg.ID {
		return nil
	}
	return r.own
}

// hosted reports whether it is never connected to a bridge.
func (r *record) hosted() bool {
	network := r.facts[workload.FactNetwork]
	return network == "host" || network == "none"
}

func (r *record) workload(cg compiler.Cgroup) compiler.Workload {
	return compiler.Workload{Name: r.name, Kind: compiler.KindContainer, Labels: r.labels, Facts: r.facts, Doubtful: r.doubtful, Cgroup: cg, Own: r.connected(cg)}
}

// unlabelled is a container without labels of a person. What a policy needs to make it a workload goes with it.
func (r *record) unlabelled(cg compiler.Cgroup) compiler.Unlabelled {
	u := compiler.Unlabelled{Cgroup: cg, Own: r.connected(cg)}
	if len(r.doubtful) > 0 {
		u.Name, u.Facts, u.Doubtful = r.name, r.facts, r.doubtful
	}
	return u
}
