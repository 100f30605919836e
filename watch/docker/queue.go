package docker

import "sync"

// queues hold what the engine is to be asked.
type queues struct {
	created  *queue        // containers that have a cgroup and no record
	inspect  *queue        // containers of which not all is known
	starting *queue        // containers that are being connected to a bridge
	networks chan struct{} // size 1: a network was created or removed
}

func newQueues() queues {
	return queues{created: newQueue(), inspect: newQueue(), starting: newQueue(), networks: make(chan struct{}, 1)}
}

// addEvent queues what an event makes necessary. Many events about one container are one question.
func (q queues) addEvent(ev event) {
	if ev.container != "" {
		q.inspect.add(ev.container)
	}
	if ev.networks {
		select {
		case q.networks <- struct{}{}:
		default: // the question is queued already
		}
	}
}

// A queue holds the ids of containers that the engine is to be asked about. An id that was taken is not given out
// again until done is called with it: so the latest answer is stored last.
type queue struct {
	ready chan struct{} // size 1: there may be something to take

	mu      sync.Mutex // guards what follows
	waiting map[string]bool
	busy    map[string]bool
}

func newQueue() *queue {
	return &queue{ready: make(chan struct{}, 1), waiting: map[string]bool{}, busy: map[string]bool{}}
}

func (q *queue) add(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting[id] = true
	q.signal()
}

// take gives one id out; ok is false if there is none.
func (q *queue) take() (id string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id := range q.waiting {
		if !q.busy[id] {
			delete(q.waiting, id)
			q.busy[id] = true
			q.signal() // another goroutine may take the next
			return id, true
		}
	}
	return "", false
}

// takeAll gives all ids out.
func (q *queue) takeAll() []string {
	var ids []string
	for id, ok := q.take(); ok; id, ok = q.take() {
		ids = append(ids, id)
	}
	return ids
}

// done says that the questions about these ids were answered.
func (q *queue) done(ids ...string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, id := range ids {
		delete(q.busy, id)
	}
	q.signal()
}

func (q *queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default: // a signal is waiting already
	}
}
