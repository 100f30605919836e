package api

import (
	"container/list"
	"io"
	"sync"
	"time"
)

// lingering closes the connections that lost their place, evenly over time. If it closed them at once, a user
// who connects again after each close would cost as much CPU as there is, and everybody would wait behind these
// connections. A few are closed within lingerPeriod, many within silentTimeout.
//
// mu guards all fields. Connections are closed without the lock.
type lingering struct {
	limit int // more are closed at once, the oldest first

	mu    sync.Mutex
	queue list.List // of io.Closer
	timer *time.Timer
}

// add takes over a connection that nobody reads any more.
func (l *lingering) add(conn io.Closer) {
	l.mu.Lock()
	l.queue.PushBack(conn)
	over := l.take(l.queue.Len() - l.limit)
	if l.timer == nil && l.queue.Len() > 0 {
		l.timer = time.AfterFunc(lingerPeriod, l.tick)
	}
	l.mu.Unlock()
	closeAll(over)
}

// tick closes the part of the connections whose turn it is.
func (l *lingering) tick() {
	l.mu.Lock()
	part := l.take(max(lingerLeast, l.queue.Len()/int(silentTimeout/lingerPeriod)))
	if l.queue.Len() == 0 {
		l.timer = nil
	} else {
		l.timer.Reset(lingerPeriod)
	}
	l.mu.Unlock()
	closeAll(part)
}

// shed closes the oldest connection now, because the process lacks a file descriptor. It reports whether there
// was one.
func (l *lingering) shed() bool {
	l.mu.Lock()
	one := l.take(1)
	l.mu.Unlock()
	closeAll(one)
	return len(one) > 0
}

// end closes all connections.
func (l *lingering) end() {
	l.mu.Lock()
	all := l.take(l.queue.Len())
	l.mu.Unlock()
	closeAll(all)
}

// len is how many connections there are.
func (l *lingering) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.queue.Len()
}

// take removes up to n connections, the oldest first. The caller holds mu.
func (l *lingering) take(n int) []io.Closer {
	var taken []io.Closer
	for ; n > 0 && l.queue.Len() > 0; n-- {
		taken = append(taken, l.queue.Remove(l.queue.Front()).(io.Closer))
	}
	return taken
}

func closeAll(conns []io.Closer) {
	for _, c := range conns {
		_ = c.Close()
	}
}
