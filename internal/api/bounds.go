package api

// A Bound is one of the limits that keep a user from costing others much, and how near it is. docs/SECURITY.md says
// what happens beyond each.
type Bound struct {
	Name   string `json:"name"`
	Now    uint64 `json:"now"` // of the user who has most, root left out; or of all, where the name does not say user
	Max    uint64 `json:"max"`
	Beyond uint64 `json:"beyond"` // how often something was refused or ended because of it, since the daemon began
}

// The names of the bounds.
const (
	BoundConnections     = "connections"
	BoundConnectionsUser = "connections-user"
	BoundLingering       = "connections-lingering"
	BoundRequestsAtOnce  = "requests-at-once-user"
	BoundRequests        = "requests-user"     // of a bucket that is refilled by 100 a second
	BoundAnswers         = "answer-bytes-user" // of a bucket that is refilled by 8 MiB a second
	BoundRuns            = "runs"
	BoundRunsUser        = "runs-user"
	BoundLabelSets       = "label-sets-user"
	BoundPatternCgroups  = "pattern-cgroups-user" // of a pattern and a user
	BoundPatternLooks    = "pattern-looks-user"   // of a bucket that is refilled by one a second
)

// bounds are those of the server.
func (s *Server) bounds() []Bound {
	return append(append(s.listener.connections.bounds(), s.limiter.bounds()...), s.runner.bounds()...)
}

// bounds are those of the connections.
func (c *connections) bounds() []Bound {
	c.mu.Lock()
	defer c.mu.Unlock()
	most := 0
	for user, u := range c.users {
		if user != 0 {
			most = max(most, u.len())
		}
	}
	return []Bound{
		{Name: BoundConnections, Now: uint64(c.total), Max: uint64(c.limits.total), Beyond: c.beyondTotal},
		{Name: BoundConnectionsUser, Now: uint64(most), Max: uint64(c.limits.user), Beyond: c.beyondUser},
		{Name: BoundLingering, Now: uint64(c.lingering.len()), Max: uint64(c.limits.lingering)},
	}
}

// bounds are those of thole run.
func (r *runner) bounds() []Bound {
	most, total := r.scopes.MostUse()
	r.mu.Lock()
	defer r.mu.Unlock()
	return []Bound{
		{Name: BoundRuns, Now: uint64(total), Max: maxRuns, Beyond: r.beyond.runs},
		{Name: BoundRunsUser, Now: uint64(most.Runs), Max: maxRunsPerUser, Beyond: r.beyond.runsOfUser},
		{Name: BoundLabelSets, Now: uint64(most.Labels), Max: maxLabelSetsPerUser, Beyond: r.beyond.labelSets},
	}
}
