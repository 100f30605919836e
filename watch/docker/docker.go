package docker

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler"
	"thole/internal/condition"
	"thole/watch/cgroupfs"
	"thole/watch/workload"
)

const (
	dockerTimeout    = 10 * time.Second // for an answer that Docker has at once
	inspectTimeout   = 30 * time.Second // it waits until a container that is being started runs
	inspectsAtOnce   = 8
	reconnectFirst   = 50 * time.Millisecond  // after Docker went away; doubles
	reconnectLast    = 250 * time.Millisecond // a socket at which nobody listens says so at once
	listInterval     = 5 * time.Second        // bounds for how long lost events go unnoticed
	reconcileTimeout = time.Minute
)

// Docker knows the containers of an engine.
//
// A container's cgroup says that it runs, and Docker says what it is. Its cgroup is
// made some 30 ms or more before its first instruction; Docker's event comes at about
// the same time as that. So who is asked about is decided by the cgroup tree:
//
//	cgroup made ──► births ── List ──────┐
//	                joins ─── Networks ──┼─► records ── list ──► Snapshot
//	events, cgroups ► inspects, Inspect ─┘
//
// List answers at once also about a container that is just being started, with its
// labels; Inspect waits until that is done, and knows how it is connected. The labels
// of a container never change: what was known once stays known while Docker is away,
// and across the daemon's restarts (Recall).
type Docker struct {
	host  Host
	root  cgroupfs.Root
	dial  func(context.Context, Host) (engine, func() error, error)
	links switchboard
	now   func() time.Time
	wake  func() // see OnChange

	births   *backlog // have a cgroup and no record
	inspects *backlog
	joins    *backlog      // are being connected to a bridge
	networks chan struct{} // size 1: a network came or went

	mu        sync.Mutex // guards what follows
	records   map[string]*record
	strangers map[string]bool            // ids of which Docker said that there is none
	living    map[string]compiler.Cgroup // those that had a cgroup at the last look
	parents   map[string]bool            // cgroups that Docker named as a place of containers
	bridges   map[string]string          // the interfaces of networks, by the network's id
	named     map[string]string          // their ids, by name
	alike     []compiler.Bridge          // those of them to which containers alone are connected
	problems  []condition.Condition      // of the network interfaces
	reported  map[string]bool            // containers of which the last look has a problem: see notJudged
	status    Status
	knew      bool // it answered once
}

// A Status says whether Docker answers.
type Status struct {
	Host       string
	Connected  bool
	Since      time.Time
	Error      string // why it is not connected
	Containers int    // that are known, also those that do not run
}

// New makes one that is not connected yet.
func New(root cgroupfs.Root, host Host) *Docker {
	return &Docker{
		host:     host,
		root:     root,
		dial:     dialDocker,
		links:    links{},
		now:      time.Now,
		wake:     func() {},
		births:   newBacklog(),
		inspects: newBacklog(),
		joins:    newBacklog(),
		networks: make(chan struct{}, 1),
		records:  map[string]*record{}, strangers: map[string]bool{}, living: map[string]compiler.Cgroup{},
		parents: map[string]bool{}, bridges: map[string]string{},
		status: Status{Host: host.Address, Since: time.Now()},
	}
}

// Status says whether Docker answers, and since when.
func (d *Docker) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.status
	s.Containers = len(d.records)
	return s
}

// Recall takes over what an earlier daemon knew, until Docker is asked.
func (d *Docker) Recall(s workload.Snapshot) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.knew {
		return
	}
	recall := func(cgroup string, r *record) {
		if id, ok := containerID(path.Base(cgroup)); ok && d.records[id] == nil {
			d.records[id] = r
		}
	}
	for _, w := range s.Workloads {
		if w.Kind != compiler.KindContainer && len(w.Doubtful) > 0 { // a document gave it the other labels
			recall(w.Cgroup.Path, &record{name: w.Name, doubtful: w.Doubtful})
		}
		if w.Kind == compiler.KindContainer {
			recall(w.Cgroup.Path, &record{name: w.Name, labels: w.Labels, facts: w.Facts, doubtful: w.Doubtful, own: w.Own, ownAs: w.Cgroup.ID})
		}
	}
	for _, u := range s.Unlabelled {
		recall(u.Cgroup.Path, &record{name: u.Name, facts: u.Facts, doubtful: u.Doubtful, own: u.Own, ownAs: u.Cgroup.ID})
	}
	for _, p := range s.Parents {
		if _, one := containerID(path.Base(p.Path)); !one {
			d.parents[p.Path] = true
		}
	}
	d.alike = s.Bridges
}

// Load asks Docker once, for all that runs. Where no container has a cgroup there
// is nothing to ask.
func (d *Docker) Load(ctx context.Context) error {
	if d.Find(func(string) {}); !d.anyLives() {
		return nil
	}
	e, hangUp, err := d.connect(ctx)
	if err != nil {
		d.lost(err)
		return err
	}
	defer hangUp() //nolint:errcheck // all was answered
	d.Find(func(string) {})
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(inspectsAtOnce)
	for _, id := range d.inspects.takeAll() {
		group.Go(func() error {
			defer d.inspects.done(id)
			return d.inspect(ctx, e, id)
		})
	}
	return group.Wait()
}

func (d *Docker) anyLives() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.living) > 0
}

// Run follows Docker until the context ends. When it goes away, what is known stays.
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
			pause = reconnectFirst // it had answered, or will not be asked too often
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

// connect returns a connection over which all containers were listed.
func (d *Docker) connect(ctx context.Context) (engine, func() error, error) {
	e, hangUp, err := d.dial(ctx, d.host)
	if err != nil {
		return nil, nil, err
	}
	if err := d.reconcile(ctx, e); err != nil {
		return nil, nil, errors.Join(err, hangUp())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.knew = true
	d.status = Status{Host: d.host.Address, Connected: true, Since: d.now()}
	return e, hangUp, nil
}

// lost records why there is no connection.
func (d *Docker) lost(err error) {
	d.mu.Lock()
	before := d.status
	d.status.Error = err.Error()
	if before.Connected {
		d.status.Connected, d.status.Since = false, d.now()
	}
	changed := before != d.status
	d.mu.Unlock()
	if changed {
		d.wake()
	}
}

// away says what follows where Docker does not answer.
func (d *Docker) away() []condition.Condition {
	problems := slices.Clone(d.problems)
	if !d.status.Connected && d.status.Error != "" && (d.knew || d.host.Given || len(d.living) > 0) {
		problems = append(problems, condition.Condition{Code: condition.DockerAway, Where: "docker", Text: fmt.Sprintf(
			"what was known of containers stays, those that start now are not known: %s: "+
				"see `systemctl status docker`, or --docker", strings.ReplaceAll(d.status.Error, "\n", `\n`))})
	}
	return problems
}

// follow keeps the records true over one connection. It returns when that ends.
func (d *Docker) follow(ctx context.Context) error {
	since := d.now() // events from then on are told, whenever we come to hear them
	e, hangUp, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer hangUp() //nolint:errcheck // it is given up
	d.wake()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.Events(ctx, since, d.heard) })
	group.Go(func() error { return d.ask(ctx, e) })
	group.Go(func() error { return d.join(ctx, e) })
	for range inspectsAtOnce {
		group.Go(func() error { d.inspectAll(ctx, e); return nil })
	}
	return group.Wait()
}

// heard takes an event: many about one container are one question.
func (d *Docker) heard(ev event) {
	if ev.container != "" {
		d.inspects.add(ev.container)
	}
	if ev.networks {
		select {
		case d.networks <- struct{}{}:
		default: // it will be asked already
		}
	}
}

// OnChange sets what is called when Find may return something else than before. It must be set before Run.
func (d *Docker) OnChange(changed func()) { d.wake = changed }

// CgroupCreated is called with the name of a cgroup that was created. If it is a container's whose labels are not known,
// the engine is asked for them, and the function of OnChange is called with the answer: it returns true.
func (d *Docker) CgroupCreated(name string) (pending bool) {
	id, ok := containerID(name)
	if !ok {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.records[id] != nil {
		return false
	}
	d.births.add(id)
	return true
}
