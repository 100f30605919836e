package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"

	"thole/internal/nstest"
)

// worker is the probe's side: it owns the sockets, and does what the requests say, one after the other. Only the
// servers that answer by themselves run beside it.
type worker struct {
	name    string
	control *rightsConn
	sockets map[int]io.Closer
	last    int // handle
	more    Operations
}

// Operations are what the probes of a package do beside what all probes do. The key is the name in Process.Call. A
// function returns a value for json.Marshal, or the error with which the test fails.
type Operations map[string]func(args json.RawMessage) (result any, err error)

// Mode is what a package whose tests use probes passes to nstest.Main.
var Mode = NewMode(nil)

const (
	modeName  = "nstest-probe"
	controlFD = 3
)

// NewMode is Mode for a package whose probes have operations of their own.
func NewMode(more Operations) nstest.Mode {
	return nstest.Mode{Name: modeName, Run: func(args []string) error {
		syscall.CloseOnExec(controlFD)
		file := os.NewFile(controlFD, "control")
		conn, err := net.FileConn(file)
		if err != nil {
			return err
		}
		file.Close()
		return Serve(args[0], conn.(*net.UnixConn), more)
	}}
}

// Serve does what the test at the other end of control asks for, all on one thread: what an operation changes of its
// thread, as its capabilities, holds for the next one. It returns when the test closes control.
func Serve(name string, control *net.UnixConn, more Operations) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	conn, err := newRightsConn(control)
	if err != nil {
		return err
	}
	w := &worker{
		name:    name,
		control: conn,
		sockets: map[int]io.Closer{},
		more:    more,
	}
	return w.serve(json.NewDecoder(conn), json.NewEncoder(conn))
}

// serve answers requests until the test closes the connection, or is gone.
func (w *worker) serve(requests *json.Decoder, replies *json.Encoder) error {
	for {
		var req request
		if err := requests.Decode(&req); err != nil {
			return nil
		}
		r, err := w.do(req)
		if err != nil {
			r = reply{Err: err.Error()}
		}
		if err := replies.Encode(r); err != nil {
			return nil
		}
	}
}

func (w *worker) do(req request) (reply, error) {
	operations := map[string]func(request) (reply, error){
		"fork":        w.fork,
		"setuid":      w.setUID,
		"listen":      w.listen,
		"accept":      w.accept,
		"connect":     w.connect,
		"connected":   w.connected,
		"send":        w.send,
		"receive":     w.receive,
		"abort":       w.abort,
		"close":       w.close,
		"udp":         w.udp,
		"sendto":      w.sendTo,
		"sendfrom":    w.sendFrom,
		"drain":       w.drain,
		"join":        w.join,
		"multicast":   w.multicast,
		"ping":        w.ping,
		"icmp":        w.icmp,
		"icmp-answer": w.icmpAnswer,
	}
	if operation, ok := w.more[req.Op]; ok {
		return callOperation(operation, req)
	}
	operation, ok := operations[req.Op]
	if !ok {
		return reply{}, fmt.Errorf("no such operation: %q", req.Op)
	}
	return operation(req)
}

func callOperation(operation func(json.RawMessage) (any, error), req request) (reply, error) {
	result, err := operation(req.Args)
	if err != nil {
		return reply{}, err
	}
	encoded, err := json.Marshal(result)
	return reply{Result: encoded}, err
}

// keep gives a socket a handle.
func (w *worker) keep(socket io.Closer) int {
	w.last++
	w.sockets[w.last] = socket
	return w.last
}

// socketOf returns the socket with that handle as what it must be.
func socketOf[T io.Closer](w *worker, handle int) (T, error) {
	socket, ok := w.sockets[handle].(T)
	if !ok {
		return socket, fmt.Errorf("handle %d is a %T", handle, w.sockets[handle])
	}
	return socket, nil
}

func (w *worker) close(req request) (reply, error) {
	socket, err := socketOf[io.Closer](w, req.Handle)
	if err != nil {
		return reply{}, err
	}
	delete(w.sockets, req.Handle)
	return reply{}, socket.Close()
}

// fork starts a child that takes over the end of a control connection that came with the request.
func (w *worker) fork(req request) (reply, error) {
	control, err := w.control.take()
	if err != nil {
		return reply{}, err
	}
	defer control.Close()
	child := nstest.Reexec(modeName, req.Data)
	child.ExtraFiles = []*os.File{control}
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		return reply{}, err
	}
	go child.Wait() //nolint:errcheck // only so that no zombie stays
	return reply{PID: child.Process.Pid}, nil
}

// setUID is of all threads, therefore syscall's and not unix's.
func (w *worker) setUID(req request) (reply, error) {
	return reply{}, errors.Join(syscall.Setgroups(nil), syscall.Setgid(req.UID), syscall.Setuid(req.UID))
}
