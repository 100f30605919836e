package kernel

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// An Outcome is what became of a change that was not applied without an error.
type Outcome uint8

// The outcomes. After Unknown, somebody else may have written the table: read it.
const (
	Unknown   Outcome = iota
	NotLoaded         // the table is as it was
	Loaded            // the table is as it was wanted
)

// String returns the outcome for a message.
func (o Outcome) String() string {
	switch o {
	case NotLoaded:
		return "nothing was changed"
	case Loaded:
		return "the change is loaded"
	default:
		return "what is loaded is not known"
	}
}

// An ApplyError says why a change failed and, from reading back, what is loaded now:
// an error may also come after the kernel committed (ENOBUFS).
type ApplyError struct {
	Table   string
	Outcome Outcome
	Err     error
}

func (e *ApplyError) Error() string {
	return fmt.Sprintf("loading table %s: %v; %s", e.Table, e.Err, e.Outcome)
}

func (e *ApplyError) Unwrap() error { return e.Err }

// Apply loads a change: all of it, in one transaction, or nothing. It fails if what is
// loaded is not what the change was made for, where it matters: something to be added
// is there, or something to be removed is not. Any error but one in the change itself
// is an *ApplyError.
func (c *Conn) Apply(change ruleset.Change) error {
	if change.Empty() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	compat, err := c.compat(change)
	if err != nil {
		return err
	}
	b, err := newBatch(change, compat)
	if err != nil {
		return err
	}
	if err := c.send(b); err != nil {
		return &ApplyError{Table: b.table, Outcome: c.outcome(b.table, change), Err: err}
	}
	return nil
}

// Delete removes a table. It is nil if there is none.
func (c *Conn) Delete(name string) error {
	have, err := c.Read(name)
	if err != nil || have == nil {
		return err
	}
	return c.Apply(ruleset.Diff(have, nil))
}

// outcome reads back what is loaded. A Patch does not say what that should be.
func (c *Conn) outcome(table string, change ruleset.Change) Outcome {
	if change.Have == nil && change.Want == nil {
		return Unknown
	}
	now, err := c.read(table)
	switch {
	case err != nil:
		return Unknown
	case sameOrNil(now, change.Want):
		return Loaded
	case sameOrNil(now, change.Have):
		return NotLoaded
	default:
		return Unknown
	}
}

func sameOrNil(a, b *ruleset.Table) bool {
	if a == nil || b == nil {
		return a == b
	}
	return ruleset.Same(*a, *b)
}

// send sends a batch and returns the first error of its answers. The kernel works on
// it within sendmsg(2), so all answers are there when that returns (net/netfilter/
// nfnetlink.c, nfnetlink_rcv_batch).
func (c *Conn) send(b *batch) error {
	if err := c.makeRoom(b); err != nil {
		return err
	}
	if err := c.drain(); err != nil {
		return err
	}
	c.stale = true
	sent, err := c.nl.SendMessages(b.messages)
	if err != nil {
		return err
	}
	whats := make(map[uint32]string, len(sent))
	for i, m := range sent {
		whats[m.Header.Sequence] = b.whats[i]
	}
	last := sent[len(sent)-2].Header.Sequence // see batch.end
	answers, err := c.answers()
	c.stale = err != nil
	done := false
	for _, a := range answers {
		switch {
		case a.err != nil:
			return fmt.Errorf("%s: %w", whats[a.sequence], a.err)
		case a.sequence == last:
			done = true
		}
	}
	if err == nil && !done {
		err = errors.New("no answer")
	}
	return err
}

// sendOverhead is what a message takes of the send buffer beside its bytes.
const sendOverhead = 4096

// makeRoom sizes the send buffer: a batch is one datagram, and goes whole or not at
// all (EMSGSIZE). The receive buffer holds an answer for each message in the worst
// case, each with the overhead of a packet (NLMSG_GOODSIZE, include/linux/netlink.h).
func (c *Conn) makeRoom(b *batch) error {
	size := sendOverhead
	for _, m := range b.messages {
		size += nlmsg.HeaderSize + len(m.Data) + 3
	}
	if err := c.nl.SetWriteBuffer(max(size, minBuffer)); err != nil {
		return fmt.Errorf("a send buffer of %d bytes: %w", size, err)
	}
	size = answerSize * len(b.messages)
	if err := c.nl.SetReadBuffer(max(size, minBuffer)); err != nil {
		return fmt.Errorf("a receive buffer of %d bytes: %w", size, err)
	}
	return nil
}

const (
	answerSize = 1024      // of an error, as the kernel accounts it
	maxAnswer  = 8 << 10   // of a message about an error, without the message itself
	minBuffer  = 212 << 10 // net.core.wmem_default and rmem_default
)

// An answer is an error or, with err nil, an acknowledgement.
type answer struct {
	sequence uint32 // of the message that it is about
	err      error
}

// answers reads all there are. It does not wait. Package netlink's Receive would not
// tell which message failed.
func (c *Conn) answers() ([]answer, error) {
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return nil, err
	}
	var out []answer
	var failed error
	buf := make([]byte, maxAnswer)
	for {
		var n int
		var recvErr error
		if err := raw.Read(func(fd uintptr) bool {
			n, _, recvErr = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			return true
		}); err != nil {
			return out, err
		}
		switch {
		case errors.Is(recvErr, unix.EINTR):
			continue
		case errors.Is(recvErr, unix.EAGAIN):
			return out, failed
		case errors.Is(recvErr, unix.ENOBUFS): // some answers are lost; read what is left
			failed = recvErr
			continue
		case recvErr != nil:
			return out, recvErr
		}
		if out, err = appendAnswers(out, buf[:n]); err != nil {
			return out, err
		}
	}
}

// appendAnswers reads the answers of one datagram.
func appendAnswers(out []answer, b []byte) ([]answer, error) {
	for len(b) > 0 {
		m, rest, err := nlmsg.Next(b)
		if err != nil {
			return out, err
		}
		if m.Header.Type == netlink.Error {
			out = append(out, answer{m.Header.Sequence, nlmsg.Answer(m)})
		}
		b = rest
	}
	return out, nil
}
