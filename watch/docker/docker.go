package docker

import (
	"context"
	"errors"
	"path"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/watch/cgroupfs"
	"thole/watch/docker/links"
	"thole/watch/workload"
)

const (
	reconnectFirst = 50 * time.Millisecond  // after the engine went away; doubles
	reconnectLast  = 250 * time.Millisecond // a call to a socket without a listener fails at once
)

// Docker finds the containers of an engine. It implements watch.Engine.
type Docker struct {
	dial    func(context.Context, Host) (openClient, error)
	now     func() time.Time
	changed func(containers ...string) // see OnChange

	connection *connection
	queues     queues
	places     *places
	bridges    *bridges
	containers *containers

	ranBefore func() bool // whether some cgroup had the name of a container when that was asked first
}

// New makes one that is not connected yet.
func New(root cgroupfs.Root, host Host) *Docker {
	d := &Docker{dial: dial, now: time.Now, changed: func(...string) {}, queues: newQueues()}
	notify := func() { d.changed() }
	d.connection = newConnection(host, d.now)
	d.places = newPlaces(root, notify)
	d.bridges = newBridges(links.Host{}, notify)
	d.ranBefore = sync.OnceValue(d.places.anywhere)
	d.containers = newContainers(d.places, d.queues, func(ids ...string) { d.changed(ids...) })
	return d
}

// OnChange sets what is called when Find may return something else than before: with the ids of the containers that
// changed, or with none if anything may have. It must be set before Run.
func (d *Docker) OnChange(changed func(containers ...string)) { d.changed = changed }

// CgroupChanged is called with a cgroup that was created or removed. It returns the id of the container whose cgroup
// it is; "": it may be anything. If the labels of a container whose cgroup was created are not known, the engine is
// asked for them, and CgroupChanged returns pending: the function of OnChange is called when the engine has answered.
// Podman answers when the container runs: so a cgroup that is not closed needs a look before that.
func (d *Docker) CgroupChanged(cgroup string, created bool) (container string, pending bool) {
	id, ok := containerID(path.Base(cgroup))
	if !ok || isPod(cgroup) {
		return "", false
	}
	if !created {
		return id, false
	}
	known, closed := d.containers.created(id, cgroup)
	if known {
		return id, false
	}
	d.queues.created.add(id)
	// Where no engine answers, a search finds out whether that is a problem. Podman's container is closed by a search.
	return "", d.connection.state().Connected && (closed || !d.places.ofPodman())
}

// Find returns the containers that run: those that have a cgroup. The engine will be asked about those of which
// something is not known yet.
//
// If only is not nil, Find looks at these containers alone. ok is false where that does not suffice: in the cases that
// are listed at look, and while the engine does not answer, since the problem of its absence depends on all containers.
func (d *Docker) Find(only []string, watch func(cgroup string)) (found workload.Snapshot, ok bool) {
	if only == nil {
		return d.findAll(watch), true
	}
	if !d.connection.state().Connected {
		return found, false
	}
	return d.containers.look(only)
}

func (d *Docker) findAll(watch func(cgroup string)) workload.Snapshot {
	exclusive, shared := d.bridges.found()
	found, notJudged := d.containers.search(d.connection.host.Address, watch)
	found.Bridges = exclusive
	found.Conditions = append(found.Conditions, shared...)
	found.Conditions = append(found.Conditions, d.connection.problem(d.containers.anyRuns())...)
	found.Conditions = append(found.Conditions, notJudged...)
	found.Unasked = !d.connection.hasAnswered() && (d.containers.anyRuns() || d.ranBefore())
	return found
}

// Status says whether the engine answers, and since when.
func (d *Docker) Status() Status {
	s := d.connection.state()
	s.Containers = d.containers.count()
	return s
}

// Recall takes over what an earlier daemon knew, until the engine answers.
func (d *Docker) Recall(s workload.Snapshot) {
	if d.connection.hasAnswered() {
		return
	}
	d.containers.recall(s)
	d.places.recall(s.Parents)
	d.bridges.recall(s.Bridges)
}

// Load asks the engine once about all containers that run. If no container has a cgroup, the engine is not called.
func (d *Docker) Load(ctx context.Context) error {
	if d.findAll(func(string) {}); !d.containers.anyRuns() {
		return nil
	}
	s, err := d.connect(ctx)
	if err != nil {
		d.lost(err)
		return err
	}
	defer s.close() //nolint:errcheck // all was answered
	d.findAll(func(string) {})
	return s.inspectQueued(ctx)
}

// Run follows the engine until the context ends. While the engine is away, the records remain.
func (d *Docker) Run(ctx context.Context) error {
	pause := reconnectFirst
	for {
		began := d.now()
		err := d.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		d.lost(err)
		if d.now().Sub(began) > reconnectLast {
			pause = reconnectFirst // the engine had answered, or the call took long enough
		}
		again := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil
		case <-again.C:
			pause = min(2*pause, reconnectLast)
		}
	}
}

// follow keeps the records up to date over one connection. It returns when the connection ends.
func (d *Docker) follow(ctx context.Context) error {
	since := d.now() // the engine tells all events from then on, also those before the call of Events
	s, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer s.close() //nolint:errcheck // it is given up
	d.changed()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.client.Events(ctx, since, s.queues.addEvent) })
	group.Go(func() error { return s.list(ctx) })
	for range inspectsAtOnce {
		group.Go(func() error { return s.listAllCreated(ctx) })
	}
	group.Go(func() error { return newStartWatch(s).run(ctx) })
	for range inspectsAtOnce {
		group.Go(func() error { s.inspectAll(ctx); return nil })
	}
	return group.Wait()
}

// connect returns a session in which all containers were listed.
func (d *Docker) connect(ctx context.Context) (*session, error) {
	client, err := d.dial(ctx, d.connection.host)
	if err != nil {
		return nil, err
	}
	d.places.connected(client.engine)
	s := d.newSession(client.client, client.close)
	if err := s.listAll(ctx); err != nil {
		return nil, errors.Join(err, s.close())
	}
	d.connection.opened()
	return s, nil
}

func (d *Docker) newSession(client client, closeClient func() error) *session {
	return &session{
		client: client, close: closeClient, now: d.now,
		queues: d.queues, places: d.places, bridges: d.bridges, containers: d.containers,
	}
}

// lost records why there is no connection.
func (d *Docker) lost(err error) {
	if d.connection.lost(err) {
		d.changed()
	}
}
