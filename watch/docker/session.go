package docker

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/watch/process"
)

const (
	inspectsAtOnce = 8
	listInterval   = 5 * time.Second // bounds for how long lost events go unnoticed
	listAllTimeout = time.Minute
)

// A session asks an engine over one connection, and stores the answers.
type session struct {
	client     client
	close      func() error
	queues     queues
	places     *places
	bridges    *bridges
	containers *containers
	now        func() time.Time
}

// list lists networks and containers again and again. It returns when that fails.
func (s *session) list(ctx context.Context) error {
	all := time.NewTicker(listInterval)
	defer all.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-s.queues.networks:
			err = s.bridges.read(ctx, s.client)
		case <-all.C:
			err = s.listAll(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// listAllCreated calls listCreated again and again. It returns when that fails.
func (s *session) listAllCreated(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.queues.created.ready:
		}
		if err := s.listCreated(ctx); err != nil {
			return err
		}
	}
}

// listCreated asks about containers that have a cgroup and no record: most are being started.
func (s *session) listCreated(ctx context.Context) error {
	ids := s.queues.created.takeAll()
	if len(ids) == 0 {
		return nil
	}
	defer s.queues.created.done(ids...)
	if s.places.ofPodman() { // they may be the first ones of a network, of which Podman has no event
		if err := s.bridges.read(ctx, s.client); err != nil {
			return err
		}
	}
	list, err := s.client.List(ctx, ids...)
	if err != nil {
		return err
	}
	s.containers.storeListed(ids, list)
	return nil
}

// listAll lists all containers, removes the records of those that are gone, and queues those of which the list does
// not tell all that changed: events may have been lost.
func (s *session) listAll(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, listAllTimeout)
	defer cancel()
	if err := s.bridges.read(ctx, s.client); err != nil {
		return err
	}
	before := s.containers.all()
	list, err := s.client.List(ctx)
	if err != nil {
		return err
	}
	s.containers.storeAll(before, list)
	return nil
}

// inspectQueued inspects the containers that are queued now, several at once. It returns the first error.
func (s *session) inspectQueued(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(inspectsAtOnce)
	for _, id := range s.queues.inspect.takeAll() {
		group.Go(func() error {
			defer s.queues.inspect.done(id)
			return s.inspect(ctx, id)
		})
	}
	return group.Wait()
}

// inspectAll inspects one container after the other, until the context ends. If that fails, it is tried again when the
// containers are listed the next time, or the cgroup tree is searched.
func (s *session) inspectAll(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.queues.inspect.ready:
		}
		for id, ok := s.queues.inspect.take(); ok; id, ok = s.queues.inspect.take() {
			if err := s.inspect(ctx, id); err != nil {
				s.containers.markIncomplete(id)
			}
			s.queues.inspect.done(id)
		}
	}
}

// inspect replaces one container's record by what the engine answers now.
func (s *session) inspect(ctx context.Context, id string) error {
	cgroup := s.containers.cgroup(id).ID
	c, err := s.client.Inspect(ctx, id)
	if errors.Is(err, errNoContainer) {
		s.containers.store(id, nil)
		return nil
	}
	if err != nil {
		return err
	}
	r := newRecord(c)
	r.inspectedAs = cgroup
	if c.running {
		r.process = process.Find(c.details.pid)
	}
	networks, err := s.bridges.networksOf(ctx, s.client, c)
	if err != nil {
		return err
	}
	r.attached = attachment{cgroup, networks, networkNamespace(c)}
	r.places = s.places.learn(c, cgroup)
	s.containers.store(id, r)
	return nil
}
