package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A probe process and its test talk over a stream socket: one JSON object asks, one answers, in turn. Errors of set-up
// ("no such address") go in reply.Err and fail the test; what the network did goes in Outcome.
type request struct {
	Op       string
	Handle   int           `json:",omitempty"` // the socket that an earlier reply named
	Network  string        `json:",omitempty"` // as for net.Listen
	To       string        `json:",omitempty"`
	From     string        `json:",omitempty"` // the local address
	Data     string        `json:",omitempty"`
	Options  []Option      `json:",omitempty"`
	Device   string        `json:",omitempty"`
	ICMPType int           `json:",omitempty"`
	UID      int           `json:",omitempty"`
	Patience time.Duration `json:",omitempty"` // how long to wait for what is not there yet

	Args json.RawMessage `json:",omitempty"` // of Operations
}

type reply struct {
	Err      string        `json:",omitempty"`
	Handle   int           `json:",omitempty"`
	Addr     string        `json:",omitempty"`
	PID      int           `json:",omitempty"`
	Outcome  Outcome       `json:",omitempty"`
	Errno    unix.Errno    `json:",omitempty"`
	Data     string        `json:",omitempty"`
	Elapsed  time.Duration `json:",omitempty"`
	Received []Datagram    `json:",omitempty"`
	Errors   []ICMPError   `json:",omitempty"`

	Result json.RawMessage `json:",omitempty"` // of Operations
}

// An Outcome says what became of an attempt to reach somebody.
type Outcome string

// Outcomes.
const (
	Connected  Outcome = "connected"  // TCP: the connection stands, and its server answered if it was asked
	Arrived    Outcome = "arrived"    // UDP: the datagram is in the receiver's socket; ICMP: the answer came
	Refused    Outcome = "refused"    // ECONNREFUSED: a RST, or an ICMP port unreachable
	Reset      Outcome = "reset"      // ECONNRESET, EPIPE: a RST after the connection stood
	Prohibited Outcome = "prohibited" // EHOSTUNREACH, EACCES, EPERM: an ICMP error, or not allowed to leave
	Silent     Outcome = "silent"     // nothing came back
	Closed     Outcome = "closed"     // the other end closed its side in good order

	pending Outcome = "pending" // not decided when the probe looked; ask again after a barrier
)

// outcomeOf sorts the errors that the network causes; all others are mistakes of the test.
func outcomeOf(err error) (Outcome, error) {
	var errno unix.Errno
	switch {
	case err == nil:
		return Connected, nil
	case errors.Is(err, io.EOF):
		return Closed, nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return Silent, nil
	case !errors.As(err, &errno):
		return "", err
	}
	switch errno {
	case unix.ECONNREFUSED:
		return Refused, nil
	case unix.ECONNRESET, unix.EPIPE:
		return Reset, nil
	case unix.EHOSTUNREACH, unix.EACCES, unix.EPERM:
		return Prohibited, nil
	case unix.ETIMEDOUT, unix.EAGAIN:
		return Silent, nil
	}
	return "", err
}

// socketPair returns the test's end of a control connection, and the probe's.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours := os.NewFile(uintptr(fds[0]), "control")
	defer ours.Close()
	theirs := os.NewFile(uintptr(fds[1]), "control of probe")
	conn, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
	}
	return conn, theirs, err
}

// rightsConn is the process's end of a control connection. It keeps the file descriptors that come with the bytes. It
// reads and writes without Go's poller, which would have the thread of the requests wait for another one.
type rightsConn struct {
	file *os.File
	fds  []int
}

// newRightsConn takes over a connection.
func newRightsConn(conn *net.UnixConn) (*rightsConn, error) {
	file, err := conn.File()
	if err != nil {
		return nil, err
	}
	return &rightsConn{file: file}, errors.Join(conn.Close(), unix.SetNonblock(int(file.Fd()), false))
}

func (r *rightsConn) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(r.file.Fd()), p, oob, 0)
	for errors.Is(err, unix.EINTR) {
		n, oobn, _, _, err = unix.Recvmsg(int(r.file.Fd()), p, oob, 0)
	}
	if err != nil {
		return 0, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return n, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return n, err
		}
		r.fds = append(r.fds, fds...)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *rightsConn) Write(p []byte) (int, error) { return r.file.Write(p) }

// take returns the oldest file descriptor that came and was not taken.
func (r *rightsConn) take() (*os.File, error) {
	if len(r.fds) == 0 {
		return nil, errors.New("no file descriptor came with the request")
	}
	fd := r.fds[0]
	r.fds = r.fds[1:]
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), fmt.Sprint("passed ", fd)), nil
}
