package datapath

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"thole/compiler/mark"
	"thole/compiler/policy"
	"thole/datapath/handshake"
	"thole/datapath/packet"
	"thole/datapath/peers"
	"thole/datapath/pki"
	"thole/datapath/queue"
	"thole/datapath/refusal"
	"thole/datapath/sockets"
	"thole/datapath/token"
)

// A Workload is one that runs on this node.
type Workload struct {
	Cgroup uint64            // its id, by which it is known
	Labels map[string]string // that are sent, all or none
	Class  uint32
}

// A Daemon knows labels and policies. It is asked by one goroutine at a time.
type Daemon interface {
	// Workload returns whose the sockets of a cgroup are; false: nobody's with labels.
	Workload(cgroup uint64) (Workload, bool)
	// Class returns the class by which the kernel's table knows what was proven. The first
	// time the table has to change for it.
	Class(policy.Remote) (uint32, error)
	// Allows reports whether the policies of this node let a class send to another.
	Allows(from, to uint32, port uint16) bool
	// AllowsAddress reports the same of an address, for who proved nothing.
	AllowsAddress(from uint32, to netip.AddrPort) bool
}

// A Config says what an Engine works with.
type Config struct {
	Queue  uint16
	Node   *pki.Node
	Daemon Daemon
	Log    *slog.Logger
}

// A finder finds out whose socket it is; it is sockets.Finder.
type finder interface {
	Connecting(local, remote netip.AddrPort, device int) (cgroup uint64, err error)
	Listener(local, remote netip.AddrPort, device int) (cgroup uint64, err error)
	Close() error
}

// A sender is sockets.Sender.
type sender interface {
	Send(packet []byte, packetMark uint32, device int) error
	Close() error
}

// An Engine handles the packets of one queue. Its goroutines are those of Run.
type Engine struct {
	daemon Daemon
	log    *slog.Logger
	peers  *peers.Peers
	finder finder
	sender sender

	mu     sync.Mutex // guards what follows
	node   handshake.Node
	table  *handshake.Table
	now    time.Time // of the packet at hand
	counts map[string]uint64

	refusals peers.Counters
	queue    *queue.Queue // nil in tests
	running  atomic.Bool  // the queue is read
}

// How often what has expired is dropped.
const sweepEvery = time.Second

// New makes an Engine in the network namespace of the calling thread, and binds its queue: packets are handled from
// now on. Run closes it.
func New(config Config) (_ *Engine, err error) {
	e := &Engine{
		daemon: config.Daemon, log: config.Log, peers: peers.New(config.Node),
		table: handshake.NewTable(), counts: map[string]uint64{},
	}
	e.node = handshake.Node{Statements: adapter{e}, Policy: adapter{e}}
	finder, err := sockets.NewFinder()
	if err != nil {
		return nil, err
	}
	sender, err := sockets.NewSender()
	if err != nil {
		return nil, errors.Join(err, finder.Close())
	}
	e.finder, e.sender = finder, sender
	if e.queue, err = queue.Open(queue.Config{Number: config.Queue}, e.handle); err != nil {
		return nil, errors.Join(err, finder.Close(), sender.Close())
	}
	e.running.Store(true)
	return e, nil
}

// Run works until the context ends, or the queue cannot be read any more. What is in
// the queue then is dropped, as is what comes to it later; connections that are proven
// do not come to it.
func (e *Engine) Run(ctx context.Context) error {
	defer e.close()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return e.queue.Run(ctx) })
	group.Go(func() error { e.sweep(ctx); return nil })
	return group.Wait()
}

// close gives back what New took. Nothing was written, so no error matters.
func (e *Engine) close() {
	e.running.Store(false)
	_ = errors.Join(e.finder.Close(), e.sender.Close())
}

// Replace takes another certificate, key or trust.
func (e *Engine) Replace(node *pki.Node) error { return e.peers.Replace(node, time.Now()) }

// A Status is what an Engine has done, and what it knows. Names are those of metrics.
type Status struct {
	Running bool              // the queue is read
	Queue   queue.Stats       // since Run
	Events  map[string]uint64 // what happened how often: "packets", "proven", "plain", "quotes", "not-sent"
	Refused map[string]uint64 // why, how often: package/reason
	Known   map[string]uint64 // what is remembered of other nodes, with bounds (peers.Status)
	Pending map[string]uint64 // handshakes that go on, by pool, and what became of others
}

// Status returns the engine's own account.
func (e *Engine) Status() Status {
	s := Status{Refused: e.refusals.Map(), Known: e.peers.Status(), Pending: map[string]uint64{}}
	if e.running.Load() {
		s.Running, s.Queue = true, e.queue.Stats()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Events = maps.Clone(e.counts)
	for pool := range handshake.Pools {
		c := e.table.Counts(pool)
		for what, n := range map[string]uint64{
			"": uint64(c.Conns), "/limit": uint64(pool.Bounds().Conns),
			"/full": c.Full, "/over-quota": c.OverQuota, "/evicted": c.Evicted, "/expired": c.Expired,
		} {
			s.Pending[pool.String()+what] = n
		}
	}
	return s
}

func (e *Engine) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			e.mu.Lock()
			e.table.Expire(now)
			e.mu.Unlock()
			e.peers.Sweep(now)
		}
	}
}

// handle is what becomes of a packet.
func (e *Engine) handle(q queue.Packet) queue.Verdict {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.now = time.Now()
	e.counts["packets"]++
	p, err := packet.Parse(q.Payload)
	if errors.Is(err, refusal.NotTCP) && q.Hook == queue.Prerouting {
		return e.quoted(&q)
	}
	if err != nil {
		return e.refused(err)
	}
	event := handshake.Event{Kind: handshake.In, Packet: &p}
	key := handshake.Key{Local: p.Destination, Remote: p.Source}
	if q.Hook == queue.Output {
		event.Kind = handshake.Out
		key = handshake.Key{Local: p.Source, Remote: p.Destination}
	}
	conn := e.table.Get(key)
	if conn.State == handshake.Closed && p.Token == 0 {
		answers := event.Kind == handshake.Out && p.Flags&(packet.SYN|packet.ACK|packet.RST) == packet.SYN|packet.ACK
		switch {
		case event.Kind == handshake.In && q.Mark == mark.Ungated, answers && q.Mark != mark.Unproven:
			// The proof may have been before it in the queue: conntrack knows by now.
			return queue.Again().WithMark(mark.Unproven)
		case event.Kind == handshake.In && q.Mark != mark.Unproven:
			return queue.Accept() // another option of the same kind, or of a connection that is over
		}
	}
	if err := e.introduce(&event, key, q.Device); err != nil {
		return e.refused(err) // the kernel sends its SYN again
	}
	next, action := e.node.Step(conn, &event)
	if action.Err != nil {
		e.count(action.Err)
		e.log.Debug("handshake", "local", key.Local, "remote", key.Remote, "state", conn.State, "do", action.Do,
			"error", action.Err)
	}
	if action.Err == nil || next != conn { // what is refused does not prolong anything
		if err := e.table.Put(key, next, e.now); err != nil {
			return e.refused(err)
		}
	}
	e.learn(conn, &action, key, &p)
	return e.carryOut(&q, &p, &next, &action)
}

// quoted is for an ICMP error about a connection whose handshake goes on. What is none,
// or cannot be read, is for the kernel to judge.
func (e *Engine) quoted(q *queue.Packet) queue.Verdict {
	quote, err := packet.ParseQuote(q.Payload)
	if err != nil {
		e.count(err)
		return queue.Accept()
	}
	key := handshake.Key{Local: quote.Source, Remote: quote.Destination}
	_, action := e.node.Step(e.table.Get(key), &handshake.Event{Kind: handshake.Quoted, Quote: &quote})
	if out := action.WriteQuote(nil, &quote); out.Packet != nil {
		e.counts["quotes"]++
		return queue.Rewrite(out.Packet)
	}
	return queue.Accept()
}

// introduce finds out whose SYN it is, or for whom. The error is the kernel's, where it can
// not say.
func (e *Engine) introduce(event *handshake.Event, key handshake.Key, device int) error {
	p := event.Packet
	if p.Flags&(packet.SYN|packet.ACK|packet.RST) != packet.SYN {
		return nil
	}
	find := e.finder.Listener
	if event.Kind == handshake.Out {
		find = e.finder.Connecting
		event.Plain = e.peers.Plain(key.Remote, e.now)
	}
	rand.Read(event.Nonce[:]) // it never fails
	cgroup, err := find(key.Local, key.Remote, device)
	if errors.Is(err, sockets.ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	if w, ok := e.daemon.Workload(cgroup); ok {
		event.Workload = handshake.Workload(w.Cgroup)
	}
	return nil
}

// learn notes what a packet says about its sender.
func (e *Engine) learn(before handshake.Conn, action *handshake.Action, key handshake.Key, p *packet.Packet) {
	if action.RememberPlain {
		e.counts["plain"]++
		e.peers.SetPlain(key.Remote, e.now)
	}
	if action.ForgetPlain {
		e.peers.ForgetPlain(key.Remote)
	}
	if pair := action.Remember; pair != nil {
		e.peers.Answered(pair, p.Source, p.Token == token.TypeFullT2, e.now)
	}
	if action.Mark == handshake.MarkProven {
		e.peers.Proven(peers.Server, before.Pair(), p.Source.Addr(), e.now)
		e.counts["proven"]++
	}
}

// carryOut sends what the machine wants sent, and returns its verdict.
func (e *Engine) carryOut(q *queue.Packet, p *packet.Packet, conn *handshake.Conn,
	action *handshake.Action) queue.Verdict {
	out, err := action.Write(nil, p)
	if err != nil {
		return e.refused(err)
	}
	e.send(out.Before, mark.Sent, q.Device)
	reset := mark.Sent
	if p.Flags&packet.SYN != 0 { // of who answers this node
		reset = mark.SentOut
	}
	e.send(action.WriteReset(nil, p), reset, q.Device)
	if action.SendSYN {
		e.send(conn.SYN(), mark.Sent, q.Device)
	}
	switch {
	case action.Do == handshake.Drop || q.Hook != queue.Output && (q.Mark == mark.Ungated || q.Mark == mark.Unproven):
		// what is behind conntrack passes by a proof alone
		return queue.Drop()
	case out.Packet == nil:
		return marked(queue.Accept(), action)
	}
	return marked(queue.Rewrite(out.Packet), action)
}

// marked is a verdict with what the table is told.
func marked(v queue.Verdict, action *handshake.Action) queue.Verdict {
	class := uint32(action.Class)
	switch action.Mark {
	case handshake.MarkPending:
		if action.Do == handshake.TakeT2 {
			return v.WithMark(mark.Introduced(class))
		}
		return v.WithMark(mark.Pending(class))
	case handshake.MarkProven:
		return v.WithMark(mark.Proven(class))
	case handshake.MarkUnproven:
		return v.WithMark(mark.Unproven)
	case handshake.MarkPlain:
		return v.WithMark(mark.Plain)
	}
	return v
}

func (e *Engine) send(b []byte, packetMark uint32, device int) {
	if len(b) == 0 {
		return
	}
	if err := e.sender.Send(b, packetMark, device); err != nil {
		e.counts["not-sent"]++ // it is lost, like any packet
		e.log.Debug("a packet was not sent", "error", err)
	}
}

func (e *Engine) refused(err error) queue.Verdict {
	e.count(err)
	return queue.Drop()
}

// count counts an error by its reason. What has none is a mistake, or the kernel's.
func (e *Engine) count(err error) {
	if e.refusals.Count(err) == peers.Other {
		e.log.Warn("a packet of a handshake", "error", err)
	}
}
