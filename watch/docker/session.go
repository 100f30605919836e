package docker

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"time"

	"thole/watch/cgroupfs"
)

// ask asks what is answered at once. It fails if it is not.
func (d *Docker) ask(ctx context.Context, e engine) error {
	list := time.NewTicker(listInterval)
	defer list.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-d.births.ready:
			err = d.askBirths(ctx, e)
		case <-d.networks:
			err = d.readBridges(ctx, e)
		case <-list.C:
			err = d.reconcile(ctx, e)
		}
		if err != nil {
			return err
		}
	}
}

// askBirths asks about containers that are being started.
func (d *Docker) askBirths(ctx context.Context, e engine) error {
	ids := d.births.takeAll()
	if len(ids) == 0 {
		return nil
	}
	defer d.births.done(ids...)
	list, err := e.List(ctx, ids...)
	if err != nil {
		return err
	}
	d.mu.Lock()
	for _, id := range ids {
		d.strangers[id] = true
	}
	for _, c := range list {
		d.listed(c)
	}
	d.mu.Unlock()
	d.wake()
	return nil
}

// listed enters what a listing says, and returns whether that is new. It needs the lock.
func (d *Docker) listed(c container) (changed bool) {
	before := d.records[c.id]
	r := newRecord(c)
	r.update(before)
	d.records[c.id] = r
	delete(d.strangers, c.id)
	_, runs := d.living[c.id]
	if runs || !r.running {
		r.unseen = 0
	} else {
		r.unseen = min(r.unseen+1, unseenListings)
	}
	if !r.whole || runs && !maps.Equal(before.endpoints, r.endpoints) {
		d.inspects.add(c.id)
	}
	return !before.same(r) || d.judgedAnew(c.id, before, r)
}

// reconcile lists all containers, forgets those that are gone, and has inspected
// those of which the list does not tell all that changed: events may have been lost.
func (d *Docker) reconcile(ctx context.Context, e engine) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	if err := d.readBridges(ctx, e); err != nil {
		return err
	}
	d.mu.Lock()
	absent := maps.Clone(d.records) // not those that are entered while Docker answers
	d.mu.Unlock()
	list, err := e.List(ctx)
	if err != nil {
		return err
	}
	d.mu.Lock()
	changed := len(d.strangers) > 0 // they are asked about anew
	clear(d.strangers)
	for _, c := range list {
		changed = d.listed(c) || changed
		delete(absent, c.id)
	}
	for id := range absent {
		changed = true
		delete(d.records, id)
	}
	d.forgetParents()
	d.mu.Unlock()
	if changed {
		d.wake()
	}
	return nil
}

// inspectAll inspects one container after the other. What fails is tried again
// when the containers are listed the next time, or the cgroups looked at.
func (d *Docker) inspectAll(ctx context.Context, e engine) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.inspects.ready:
		}
		for id, ok := d.inspects.take(); ok; id, ok = d.inspects.take() {
			if err := d.inspect(ctx, e, id); err != nil {
				d.doubt(id)
			}
			d.inspects.done(id)
		}
	}
}

// inspect has one container's record say what Docker says now.
func (d *Docker) inspect(ctx context.Context, e engine, id string) error {
	d.mu.Lock()
	cgroup := d.living[id].ID
	d.mu.Unlock()
	c, err := e.Inspect(ctx, id)
	if errors.Is(err, errNoContainer) {
		d.store(id, nil)
		return nil
	}
	if err != nil {
		return err
	}
	r := newRecord(c)
	r.asked, r.ownAs = cgroup, cgroup
	if c.running {
		r.process = findProcess(c.details.pid)
	}
	if r.own, err = d.connections(ctx, e, c); err != nil {
		return err
	}
	r.places = d.learnParents(c, cgroup)
	d.store(id, r)
	return nil
}

// doubt says that not all is known of a container any more.
func (d *Docker) doubt(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.records[id]; r != nil {
		less := *r
		less.whole = false
		d.records[id] = &less
	}
}

// store replaces a record; nil is none. What was asked before the container was
// started says nothing of how it is connected since.
func (d *Docker) store(id string, r *record) {
	d.mu.Lock()
	before := d.records[id]
	if r == nil {
		delete(d.records, id)
	} else {
		if before != nil {
			r.endpoints = before.endpoints
		}
		if before != nil && before.process == r.process {
			r.unseen = before.unseen
		}
		if before != nil && r.asked != d.living[id].ID {
			r.own, r.ownAs = before.own, before.ownAs
		}
		d.records[id] = r
		delete(d.strangers, id)
	}
	changed := !before.same(r) || before != nil && r != nil && d.judgedAnew(id, before, r)
	d.mu.Unlock()
	if changed {
		d.wake()
	}
}

// same reports whether a snapshot is the same with either record.
func (r *record) same(other *record) bool {
	if r == nil || other == nil {
		return r == other
	}
	a, b := *r, *other
	for _, r := range []*record{&a, &b} {
		r.asked, r.whole, r.endpoints, r.places = 0, false, nil, nil
		r.running, r.process, r.unseen = false, process{}, 0 // see judgedAnew
	}
	return reflect.DeepEqual(a, b)
}

// learnParents enters where a container's cgroup is or will be.
func (d *Docker) learnParents(c container, cgroup uint64) []string {
	places := parentsOf(c.details.parent)
	if cgroup == 0 && c.details.pid != 0 { // it runs, and was not found
		if p, ok := d.placeOfProcess(c.details.pid, c.id); ok {
			places = append(places, p)
		}
	}
	d.mu.Lock()
	before := len(d.parents)
	for _, p := range places {
		d.parents[p] = true
	}
	more := len(d.parents) > before
	d.mu.Unlock()
	if more {
		d.wake()
	}
	return places
}

// forgetParents forgets places that are gone and that no container names any more. It
// needs the lock.
func (d *Docker) forgetParents() {
	named := map[string]bool{}
	for _, r := range d.records {
		for _, p := range r.places {
			named[p] = true
		}
	}
	maps.DeleteFunc(d.parents, func(place string, _ bool) bool {
		_, err := d.root.ID(place)
		return cgroupfs.Gone(err) && !named[place]
	})
}
