package legit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"

	"thole/internal/nstest"
)

// A worker is a process in a cgroup that plays sides of cases, many at a time. The test sends it orders, and it
// answers with events; both are lines of JSON.
//
//	order  start: play this side of this situation
//	       tell:  the other side, or the test, said something to the side with this ID
//	event  tell:  the side says something to the other side
//	       pause: the side waits until the test has loaded the table
//	       done:  the side has ended, with an error or without
type order struct {
	Kind      string
	ID        int
	Situation string     `json:",omitempty"`
	Server    bool       `json:",omitempty"`
	At        netip.Addr `json:",omitzero"`
	Port      int        `json:",omitempty"`
	Text      string     `json:",omitempty"`
}

type event struct {
	Kind string
	ID   int
	Text string `json:",omitempty"`
}

const workerFlag = "--legit-worker"

// A worker as the test has it.
type worker struct {
	in io.WriteCloser

	mu    sync.Mutex // guards what follows, and writes to in
	sides map[int]chan event
	last  int
}

func newWorker(t testing.TB, cg *nstest.Cgroup) *worker {
	t.Helper()
	cmd := cg.Command("/proc/self/exe", workerFlag)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	w := &worker{in: in, sides: map[int]chan event{}}
	read := make(chan struct{})
	go func() {
		defer close(read)
		w.read(json.NewDecoder(bufio.NewReader(out)))
	}()
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait()
	})
	return w
}

// read passes events on to who waits for them, until the worker ends.
func (w *worker) read(out *json.Decoder) {
	for {
		var e event
		if err := out.Decode(&e); err != nil {
			break
		}
		w.mu.Lock()
		events := w.sides[e.ID]
		if e.Kind == "done" {
			delete(w.sides, e.ID)
		}
		w.mu.Unlock()
		events <- e // each side sends few: the channel has room
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, events := range w.sides {
		events <- event{Kind: "done", ID: id, Text: "the worker process ended"}
	}
	w.sides = nil
}

// mostEvents is how many events a side may send.
const mostEvents = 64

// start has the worker play a side. Its events come on the channel.
func (w *worker) start(o order) (id int, events chan event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last++
	o.Kind, o.ID = "start", w.last
	events = make(chan event, mostEvents)
	if w.sides == nil {
		events <- event{Kind: "done", Text: "the worker process ended"}
		return o.ID, events
	}
	w.sides[o.ID] = events
	w.write(o)
	return o.ID, events
}

func (w *worker) tell(id int, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.write(order{Kind: "tell", ID: id, Text: text})
}

// write ignores errors: read notices that the worker has ended.
func (w *worker) write(o order) {
	line, _ := json.Marshal(o)
	_, _ = w.in.Write(append(line, '\n'))
}

// playWorker is the worker's own part.
func playWorker() error {
	var (
		mu  sync.Mutex // guards out and boxes
		out = json.NewEncoder(os.Stdout)
	)
	boxes := map[int]chan string{}
	send := func(e event) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(e)
	}
	known := situations()
	in := json.NewDecoder(os.Stdin)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return nil
		}
		mu.Lock()
		if o.Kind == "start" {
			boxes[o.ID] = make(chan string, mostEvents)
		}
		box := boxes[o.ID]
		mu.Unlock()
		if o.Kind == "tell" {
			box <- o.Text
			continue
		}
		s := &side{at: o.At, port: o.Port, box: box, send: func(kind, text string) {
			send(event{Kind: kind, ID: o.ID, Text: text})
		}}
		go func() {
			err := s.play(find(known, o.Situation), o.Server)
			text := ""
			if err != nil {
				text = err.Error()
			}
			send(event{Kind: "done", ID: o.ID, Text: text})
		}()
	}
}

// childFlag is of a process that a worker starts in its own cgroup, with a socket as descriptor 3. The next argument
// says what the child does with it.
const childFlag = "--legit-child"

// startChild starts such a process. The file is the child's then.
func (s *side) startChild(part string, file *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", childFlag, part)
	cmd.ExtraFiles = []*os.File{file}
	cmd.Stderr = os.Stderr
	s.check(cmd.Start())
	s.check(file.Close())
	return cmd
}

// playChild is the child's own part.
func playChild(part string) error {
	parts := map[string]func(*side, *os.File){
		"echo": childEcho, "greet": childGreet, "ask": childAsk, "accept": childAccept, "datagram": childDatagram,
	}
	play := parts[part]
	if play == nil {
		return fmt.Errorf("no such part of a child: %q", part)
	}
	s := &side{}
	return s.protect(func() { play(s, os.NewFile(3, "socket")) })
}

// A failure ends a side: side.check panics with it, side.protect returns it.
type failure struct{ error }

// protect runs fn, closes what the side has opened, and returns what a check in fn failed with.
func (s *side) protect(fn func()) error {
	err := catch(fn)
	for i := len(s.closers) - 1; i >= 0; i-- {
		s.closers[i]()
	}
	return err
}

// catch runs fn and returns what a check in it failed with.
func catch(fn func()) (err error) {
	defer func() {
		r := recover()
		if failed, ok := r.(failure); ok {
			err = failed.error
		} else if r != nil {
			panic(r)
		}
	}()
	fn()
	return nil
}
