package api

import (
	"io"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A fakeConn notes what happens to a connection.
type fakeConn struct{ detached, closed atomic.Bool }

func (f *fakeConn) Close() error { f.closed.Store(true); return nil }

func (f *fakeConn) detach() io.Closer { f.detached.Store(true); return f }

// crowd is connections with fakes, and what must hold at any time.
type crowd struct {
	*testing.T
	*connections
}

func newCrowd(t *testing.T, limits connectionLimits) crowd {
	return crowd{t, newConnections(limits)}
}

// connect connects as a user. It reports whether the connection was admitted.
func (c crowd) connect(uid uint32) (*place, bool) {
	p := &place{conn: &fakeConn{}, user: uid}
	return p, c.admit(p)
}

// fill connects n times; each must be admitted.
func (c crowd) fill(uid uint32, n int) []*place {
	c.Helper()
	var all []*place
	for range n {
		p, ok := c.connect(uid)
		if !ok {
			c.Fatalf("connection %d of uid %d was refused", len(all)+1, uid)
		}
		all = append(all, p)
	}
	return all
}

func (c crowd) hearAll(all []*place) {
	for _, p := range all {
		c.heard(p)
	}
}

func lost(p *place) bool { return p.conn.(*fakeConn).detached.Load() }

func gone(p *place) bool { return p.conn.(*fakeConn).closed.Load() }

// counts are what a test compares.
type counts struct {
	Now, Most        int
	Evicted, Refused uint64
}

func (c crowd) want(want counts) {
	c.Helper()
	s := c.connections.status()
	if diff := cmp.Diff(want, counts{s.Now, s.Most, s.Evicted, s.Refused}); diff != "" {
		c.Errorf("counts (-want +got)\n%s", diff)
	}
}

// The limits are those of the product: each is reached, and passed by one.
var productLimits = fileLimits(wantFiles)

func TestConnectionsOfAUser(t *testing.T) {
	for _, uid := range []uint32{0, 1000} {
		synctest.Test(t, func(t *testing.T) {
			c := newCrowd(t, productLimits)
			most := maxConnectionsPerUser
			if uid == 0 {
				most = maxConnectionsOfRoot
			}
			all := c.fill(uid, most)
			c.want(counts{Now: most, Most: most})
			c.heard(all[0]) // it is not silent any more
			if _, ok := c.connect(uid); !ok || lost(all[0]) || !lost(all[1]) || lost(all[2]) {
				t.Errorf("uid %d: one more did not evict the oldest silent connection, and no other", uid)
			}
			c.want(counts{Now: most, Most: most, Evicted: 1})
			if _, ok := c.connect(uid + 1); !ok || lost(all[2]) {
				t.Errorf("uid %d: the limit counts for another user", uid)
			}
		})
	}
}

func TestConnectionsThatAreAllAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, productLimits)
		all := c.fill(1000, maxConnectionsPerUser)
		c.hearAll(all)
		refused, ok := c.connect(1000)
		if ok || !lost(refused) {
			t.Error("a connection was admitted beyond the limit")
		}
		c.want(counts{Now: maxConnectionsPerUser, Most: maxConnectionsPerUser, Refused: 1})
		c.leave(all[7])
		c.fill(1000, 1)
	})
}

func TestConnectionsInTotal(t *testing.T) {
	const full = maxConnections / maxConnectionsPerUser // users
	for _, test := range []struct {
		name     string
		answered bool // the others' connections, all of them
	}{{"silent ones", false}, {"answered ones", true}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCrowd(t, productLimits)
				users := map[uint32][]*place{}
				for uid := uint32(1); uid <= full; uid++ {
					users[uid] = c.fill(uid, maxConnectionsPerUser)
					if test.answered {
						c.hearAll(users[uid])
					}
				}
				c.want(counts{Now: maxConnections, Most: maxConnections})

				c.fill(0, maxConnectionsOfRoot)
				c.want(counts{Now: maxConnections + maxConnectionsOfRoot, Most: maxConnections + maxConnectionsOfRoot})

				// A user with fewer connections than another always gets in: as many as are its share.
				share := maxConnections / (full + 1)
				newcomers := c.fill(99, share)
				for _, p := range newcomers {
					if lost(p) {
						t.Error("a connection of the user with fewest was evicted")
					}
				}
				for uid, all := range users {
					kept := 0
					for _, p := range all {
						if !lost(p) {
							kept++
						}
					}
					if kept < share-1 {
						t.Errorf("uid %d keeps %d connections; want %d, a fair share", uid, kept, share)
					}
				}
				if !lost(users[1][0]) || lost(users[1][maxConnectionsPerUser-1]) {
					t.Error("the oldest were not evicted first")
				}
			})
		})
	}
}

// As many users as there are places: the next one gets in, and evicts the oldest.
func TestConnectionsOfManyUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, productLimits)
		var all []*place
		for uid := uint32(1); uid <= maxConnections; uid++ {
			all = append(all, c.fill(uid, 1)...)
		}
		c.heard(all[0])
		c.fill(5000, 1)
		if lost(all[0]) || !lost(all[1]) {
			t.Error("the oldest silent connection was not the one that was evicted")
		}
		if _, ok := c.connect(1); ok {
			t.Error("a user that has as many as the others was admitted, although it has no silent connection")
		}
		c.want(counts{Now: maxConnections, Most: maxConnections, Evicted: 1, Refused: 1})
	})
}

func TestSilentConnectionsAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, productLimits)
		all := c.fill(1000, 2)
		c.heard(all[1])
		time.Sleep(silentTimeout - time.Nanosecond)
		synctest.Wait()
		if gone(all[0]) {
			t.Error("a connection was closed too early")
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if !gone(all[0]) {
			t.Error("the silent connection was not closed")
		}
		if time.Sleep(time.Hour); gone(all[1]) {
			t.Error("the other one was closed")
		}
		c.want(counts{Now: 1, Most: 2})
		if s := c.connections.status(); s.Silent != 1 {
			t.Errorf("%d counted as silent, want 1", s.Silent)
		}
		c.leave(all[1])
		c.leave(all[1])
		c.want(counts{Most: 2})
	})
}

// A few evicted connections are closed soon, many are closed evenly over time.
func TestLingering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, productLimits)
		all := c.fill(1000, maxConnectionsPerUser+1)
		time.Sleep(lingerPeriod)
		synctest.Wait()
		if !gone(all[0]) || c.lingering.len() != 0 {
			t.Error("a single evicted connection was not closed at once")
		}

		const many = 5000
		all = c.fill(1000, many)
		closed := func() int {
			n := 0
			for _, p := range all {
				if gone(p) {
					n++
				}
			}
			return n
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := closed(); n < 800 || n > 1200 {
			t.Errorf("%d of %d were closed in the first second; want a fifth", n, many)
		}
		time.Sleep(silentTimeout)
		synctest.Wait()
		if n := closed(); n != many {
			t.Errorf("%d of %d are closed at last", n, many)
		}
	})
}

func TestLingeringIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, productLimits)
		all := c.fill(1000, maxConnectionsPerUser+maxLingering)
		if gone(all[0]) || c.lingering.len() != maxLingering {
			t.Errorf("%d linger, want %d", c.lingering.len(), maxLingering)
		}
		c.fill(1000, 1)
		if !gone(all[0]) || gone(all[1]) {
			t.Error("beyond the bound the oldest is not closed at once")
		}
		c.lingering.end()
	})
}

// Without a file descriptor left, what has no place goes first, then the oldest of the user with most.
func TestShed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd(t, connectionLimits{root: 9, user: 3, total: 9, lingering: 1})
		c.fill(0, 1)
		small, large := c.fill(1, 1), c.fill(2, 4)
		for i, want := range []*place{large[0], large[1], large[2], small[0], large[3]} {
			if !c.shed() || !gone(want) {
				t.Errorf("turn %d: another one was closed, or none", i)
			}
		}
		if c.shed() {
			t.Error("a connection of root was closed")
		}
		c.want(counts{Now: 1, Most: 5, Evicted: 5})
	})
}

// However few file descriptors there are, users never take those that root and the daemon need.
func TestFileLimits(t *testing.T) {
	for _, test := range []struct {
		files uint64
		want  connectionLimits
	}{
		{wantFiles, connectionLimits{maxConnectionsOfRoot, maxConnectionsPerUser, maxConnections, maxLingering}},
		{1 << 63, connectionLimits{maxConnectionsOfRoot, maxConnectionsPerUser, maxConnections, maxLingering}},
		{4096, connectionLimits{maxConnectionsOfRoot, maxConnectionsPerUser, maxConnections, 4096 - 512 - 2048}},
		{1024, connectionLimits{maxConnectionsOfRoot, maxConnectionsPerUser, 256, 0}},
		{0, connectionLimits{maxConnectionsOfRoot, leastConnections, leastConnections, 0}},
	} {
		got := fileLimits(test.files)
		if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(connectionLimits{})); diff != "" {
			t.Errorf("%d file descriptors (-want +got)\n%s", test.files, diff)
		}
		taken := uint64(got.total*filesPerRequest + got.lingering)
		if test.files >= 1024 && taken+reservedFiles > test.files {
			t.Errorf("%d file descriptors: users take %d", test.files, taken)
		}
	}
}
