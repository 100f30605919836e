package e2e

import (
	"bufio"
	"encoding/binary"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

// Streams are many TCP connections of one process on which records are sent all the
// time, each stamped with when it was sent. Each process notes what it sent and got.
// The clock is the machine's (CLOCK_MONOTONIC), in nanoseconds.
const (
	roleStreamServer = "stream-server"
	roleStreamClient = "stream-client"
)

// A streamPlan is what a process is told, as a line of JSON on its stdin.
type streamPlan struct {
	Address string
	First   uint32 // the number of the first connection
	Count   int
	Pushed  int // each so many-th is one on which only the server sends; 0: none
	Period  time.Duration
}

// A record is what is sent:
//
//	offset  size  meaning
//	0       4     the number of the connection
//	4       4     1: only the server sends from now on
//	8       8     when it was sent
const recordSize = 16

// A stream is what one end notes of one connection.
type stream struct {
	ID    uint32
	Push  bool
	Sent  []sent
	Got   []got
	End   string // the error that ended it, or ""
	EndAt int64
}

// sent says when a record was given to the kernel: not before, and not after.
type sent struct{ Before, After int64 }

// got says when a record was sent and when it was read.
type got struct{ Stamp, At int64 }

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// playStreams dials or serves connections until stdin ends, and then writes what it noted.
func playStreams(client bool) error {
	in := bufio.NewReader(os.Stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var plan streamPlan
	if err := json.Unmarshal(line, &plan); err != nil {
		return err
	}
	var ends []*end
	if client {
		ends, err = dialStreams(plan)
	} else {
		ends, err = acceptStreams(plan)
	}
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i, e := range ends {
		all.Go(e.read)
		all.Go(func() { e.write(plan.Period, time.Duration(i)*plan.Period/time.Duration(len(ends)), client, stop) })
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, in)
	close(stop)
	notes := make([]stream, 0, len(ends))
	for _, e := range ends {
		e.conn.Close()
	}
	all.Wait()
	for _, e := range ends {
		notes = append(notes, e.stream)
	}
	return gob.NewEncoder(os.Stdout).Encode(notes)
}

// An end is one end of a connection. Reading and writing have a goroutine each.
type end struct {
	conn   net.Conn
	stream stream
	mu     sync.Mutex // guards stream.End and EndAt
}

func dialStreams(p streamPlan) ([]*end, error) {
	ends := make([]*end, p.Count)
	errs := make([]error, p.Count)
	var all sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range ends {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			conn, err := net.DialTimeout("tcp", p.Address, time.Minute)
			if err != nil {
				errs[i] = err
				return
			}
			e := &end{conn: conn, stream: stream{ID: p.First + uint32(i), Push: p.Pushed > 0 && i%p.Pushed == 0}}
			errs[i] = e.send() // says who it is
			ends[i] = e
		})
	}
	all.Wait()
	return ends, errors.Join(errs...)
}

func acceptStreams(p streamPlan) ([]*end, error) {
	l, err := net.Listen("tcp", p.Address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	fmt.Println("listening")
	var ends []*end
	for range p.Count {
		conn, err := l.Accept()
		if err != nil {
			return nil, err
		}
		var b [recordSize]byte
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return nil, err
		}
		ends = append(ends, &end{conn: conn, stream: stream{ID: binary.BigEndian.Uint32(b[:]), Push: b[7] == 1}})
	}
	return ends, nil
}

func (e *end) send() error {
	var b [recordSize]byte
	binary.BigEndian.PutUint32(b[:], e.stream.ID)
	if e.stream.Push {
		b[7] = 1
	}
	s := sent{Before: monotonic()}
	binary.BigEndian.PutUint64(b[8:], uint64(s.Before))
	_, err := e.conn.Write(b[:])
	s.After = monotonic()
	e.stream.Sent = append(e.stream.Sent, s)
	return err
}

func (e *end) write(period, offset time.Duration, client bool, stop <-chan struct{}) {
	if client && e.stream.Push {
		return
	}
	wait := time.NewTimer(offset) // all ends do not send at the same time
	defer wait.Stop()
	for {
		select {
		case <-wait.C:
		case <-stop:
			return
		}
		wait.Reset(period)
		if err := e.send(); err != nil {
			e.ended(err)
			return
		}
	}
}

func (e *end) read() {
	var b [recordSize]byte
	for {
		if _, err := io.ReadFull(e.conn, b[:]); err != nil {
			e.ended(err)
			return
		}
		e.stream.Got = append(e.stream.Got, got{int64(binary.BigEndian.Uint64(b[8:])), monotonic()})
	}
}

func (e *end) ended(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stream.End == "" && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.EOF) {
		e.stream.End, e.stream.EndAt = err.Error(), monotonic()
	}
}

// A streamer is such a process.
type streamer struct {
	t   testing.TB
	in  io.Closer
	out *bufio.Reader
}

func startStreams(t testing.TB, cg *nstest.Cgroup, role string, plan streamPlan) *streamer {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	cmd := cg.Command(exe, roleFlag, role)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { endRole(cmd, in) })
	must(t, json.NewEncoder(in).Encode(plan))
	return &streamer{t, in, bufio.NewReader(out)}
}

// says waits for a line.
func (s *streamer) says(want string) {
	s.t.Helper()
	line, err := s.out.ReadString('\n')
	if err != nil || line != want+"\n" {
		s.t.Fatalf("streams: %q, %v; want %q", line, err, want)
	}
}

// end ends the process and returns what it noted, by number of connection.
func (s *streamer) end() map[uint32]stream {
	s.t.Helper()
	must(s.t, s.in.Close())
	var notes []stream
	must(s.t, gob.NewDecoder(s.out).Decode(&notes))
	all := map[uint32]stream{}
	for _, n := range notes {
		all[n.ID] = n
	}
	return all
}

// endedBefore says whether an error ended the connection before t.
func (s stream) endedBefore(t int64) bool { return s.End != "" && s.EndAt < t }

// A window is a time.
type window struct{ from, to int64 }

// gap is the longest time within the window in which nothing was read.
func (s stream) gap(w window) time.Duration {
	longest, last := int64(0), w.from
	for _, g := range s.Got {
		if g.At <= w.from || g.At > w.to {
			continue
		}
		longest, last = max(longest, g.At-last), g.At
	}
	return time.Duration(max(longest, w.to-last))
}

// firstAfter returns when the first record that was sent after t was surely sent.
func (s stream) firstAfter(t int64) (int64, bool) {
	i := slices.IndexFunc(s.Sent, func(x sent) bool { return x.Before > t })
	if i < 0 {
		return 0, false
	}
	return s.Sent[i].After, true
}

// sentAfter returns the stamps of what was read and sent after t.
func (s stream) sentAfter(t int64) []int64 {
	var stamps []int64
	for _, g := range s.Got {
		if g.Stamp > t {
			stamps = append(stamps, g.Stamp)
		}
	}
	return stamps
}
