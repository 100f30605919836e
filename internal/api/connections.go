package api

import (
	"container/list"
	"io"
	"sync"
	"time"
)

// connections owns the connections of the daemon's socket. It decides which ones stay, so that no user can
// keep root or another user from being answered:
//
//   - A connection is silent until its request was read completely. A silent connection is closed after
//     silentTimeout, however slowly its bytes arrive.
//   - A user at the limit of a user loses the oldest of its own silent connections for each new one.
//   - When the total of all users is reached, the user with most connections loses one: its oldest silent
//     connection, or its oldest one if none is silent. A user that has most itself can only replace a silent one.
//   - Root's connections do not count in the total, and root has a limit of its own.
//
// A connection that has no place by these rules is refused. One that is evicted or refused is not read any more,
// and lingering closes it.
//
// mu guards all fields, those of the places too. Connections are closed without the lock.
type connections struct {
	limits    connectionLimits
	lingering lingering

	mu    sync.Mutex
	users map[uint32]*userConnections
	next  uint64 // number of the next place
	total int    // of all users but root

	most                      int // connections at once, root's too
	evicted, refused, expired uint64
	beyondUser, beyondTotal   uint64 // how often each limit was met; that of root counts as a user's
}

// connectionLimits are how many connections there may be at once.
type connectionLimits struct {
	root, user, total int // the total is of all users but root
	lingering         int // of those that have no place any more
}

// userConnections are the connections of one user, the oldest first.
type userConnections struct {
	silent, answered list.List // of *place
}

// A conn is what connections needs of a connection.
type conn interface {
	io.Closer
	detach() io.Closer // ends the connection here, but the peer only notices when the result is closed; may be nil
}

// A place is one connection among the others.
type place struct {
	conn conn
	user uint32 // who is charged

	// The place in connections.
	number  uint64     // grows from place to place
	list    *list.List // silent or answered of the user; nil: the place was given up
	element *list.Element
	expiry  *time.Timer // of a silent connection
}

func newConnections(limits connectionLimits) *connections {
	return &connections{
		limits:    limits,
		lingering: lingering{limit: limits.lingering},
		users:     map[uint32]*userConnections{},
	}
}

// admit takes in a new connection, for which it may evict another, or refuses it. A refused one is not the
// caller's any more.
func (c *connections) admit(new *place) bool {
	out := c.exchange(new)
	if out != nil {
		if left := out.conn.detach(); left != nil {
			c.lingering.add(left)
		}
	}
	return out != new
}

// exchange takes in a new connection and returns the one that has no place any more: the evicted one, the new
// one, or nil.
func (c *connections) exchange(new *place) (out *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	victim, ok := c.makeRoom(new.user)
	if !ok {
		c.refused++
		return new
	}
	if victim != nil {
		c.evicted++
		c.remove(victim)
	}
	c.add(new)
	return victim
}

// makeRoom returns the place that a new connection of a user replaces; nil if none needs to be replaced.
func (c *connections) makeRoom(user uint32) (victim *place, ok bool) {
	limit, own := c.limits.user, c.users[user]
	if user == 0 {
		limit = c.limits.root
	}
	if own != nil && own.len() >= limit {
		c.beyondUser++
		victim = oldest(&own.silent)
		return victim, victim != nil
	}
	if user == 0 || c.total < c.limits.total {
		return nil, true
	}
	c.beyondTotal++
	largest := c.largest()
	if largest.len() > own.len() {
		return largest.first(), true
	}
	victim = oldest(&own.silent)
	return victim, victim != nil
}

// largest returns the user with most connections, root left out. Of several it is the one whose first
// connection was there first. It looks at every user; only a reached total or a lack of files makes that necessary.
func (c *connections) largest() *userConnections {
	var found *userConnections
	for user, u := range c.users {
		if user == 0 {
			continue
		}
		if found == nil || u.len() > found.len() || u.len() == found.len() && u.before(found) {
			found = u
		}
	}
	return found
}

// shed closes one connection now, because the process lacks a file descriptor: one that has no place any more,
// else one of the user with most. It reports whether there was one.
func (c *connections) shed() bool {
	if c.lingering.shed() {
		return true
	}
	c.mu.Lock()
	largest := c.largest()
	if largest == nil {
		c.mu.Unlock()
		return false
	}
	victim := largest.first()
	c.evicted++
	c.remove(victim)
	c.mu.Unlock()
	_ = victim.conn.Close()
	return true
}

// add gives a connection its place. The caller holds mu.
func (c *connections) add(p *place) {
	u := c.users[p.user]
	if u == nil {
		u = &userConnections{}
		c.users[p.user] = u
	}
	p.number, p.list = c.next, &u.silent
	c.next++
	p.element = p.list.PushBack(p)
	p.expiry = time.AfterFunc(silentTimeout, func() { c.expire(p) })
	if p.user != 0 {
		c.total++
	}
	c.most = max(c.most, c.now())
}

// now is how many connections there are, root's too. The caller holds mu.
func (c *connections) now() int { return c.total + c.users[0].len() }

// heard notes that the request of a connection was read completely.
func (c *connections) heard(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.users[p.user]
	if p.list == nil || p.list != &u.silent {
		return
	}
	p.expiry.Stop()
	p.list.Remove(p.element)
	p.list = &u.answered
	p.element = p.list.PushBack(p)
}

// expire closes a connection that was silent for too long.
func (c *connections) expire(p *place) {
	c.mu.Lock()
	late := p.list != nil && p.list == &c.users[p.user].silent
	if late {
		c.expired++
		c.remove(p)
	}
	c.mu.Unlock()
	if late {
		_ = p.conn.Close()
	}
}

// leave gives up the place of a connection that was closed.
func (c *connections) leave(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if p.list != nil {
		c.remove(p)
	}
}

// remove gives up a place. The caller holds mu.
func (c *connections) remove(p *place) {
	p.expiry.Stop()
	p.list.Remove(p.element)
	p.list = nil
	if c.users[p.user].len() == 0 {
		delete(c.users, p.user)
	}
	if p.user != 0 {
		c.total--
	}
}

// status is the account of the connections for "thole status".
func (c *connections) status() ConnectionStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ConnectionStatus{
		Now:        c.now(),
		Most:       c.most,
		Max:        c.limits.total,
		MaxPerUser: c.limits.user,
		Evicted:    c.evicted,
		Refused:    c.refused,
		Silent:     c.expired,
		Lingering:  c.lingering.len(),
	}
}

// len is how many connections a user has; nil has none.
func (u *userConnections) len() int {
	if u == nil {
		return 0
	}
	return u.silent.Len() + u.answered.Len()
}

// first is the connection that a user loses first: the oldest silent one, else the oldest.
func (u *userConnections) first() *place {
	if p := oldest(&u.silent); p != nil {
		return p
	}
	return oldest(&u.answered)
}

// before reports whether u loses a connection rather than another user with as many: silent ones go first,
// then those that were there first.
func (u *userConnections) before(other *userConnections) bool {
	if silent := u.silent.Len() > 0; silent != (other.silent.Len() > 0) {
		return silent
	}
	return u.first().number < other.first().number
}

func oldest(l *list.List) *place {
	if l.Len() == 0 {
		return nil
	}
	return l.Front().Value.(*place)
}
