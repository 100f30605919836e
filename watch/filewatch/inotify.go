package filewatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// An inotify is an instance of inotify(7). It is used directly, because fsnotify does not offer to watch a file or a
// link itself, nor to choose the events.
type inotify struct{ file *os.File }

// An inotifyEvent is one event. A name is that of a file in the watched directory; without a name, the event is about
// the watched file itself.
type inotifyEvent struct {
	watch int // what add returned; -1: events were lost
	mask  uint32
	name  string
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &inotify{os.NewFile(uintptr(fd), "inotify")}, nil
}

// add watches a file for these events too, and returns the number of its watch. The last component of the path may be
// a link: then the link is watched.
func (i *inotify) add(path string, mask uint32) (watch int, err error) {
	conn, err := i.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := conn.Control(func(fd uintptr) {
		watch, err = unix.InotifyAddWatch(int(fd), path, mask|unix.IN_DONT_FOLLOW|unix.IN_MASK_ADD)
	})
	return watch, errors.Join(failed, err)
}

// setDeadline says when read returns at the latest. The zero deadline is never.
func (i *inotify) setDeadline(t time.Time) error { return i.file.SetReadDeadline(t) }

// read waits for events. At the deadline, the error is os.ErrDeadlineExceeded.
func (i *inotify) read() ([]inotifyEvent, error) {
	var buffer [16 << 10]byte
	n, err := i.file.Read(buffer[:])
	if err != nil {
		return nil, err
	}
	return parseInotify(buffer[:n])
}

func (i *inotify) close() error { return i.file.Close() }

// parseInotify decodes struct inotify_event:
//
//	offset  size  meaning
//	0       4     watch
//	4       4     mask
//	8       4     cookie
//	12      4     length of the name, with the zeros that fill it up
//	16            the name
func parseInotify(b []byte) ([]inotifyEvent, error) {
	var events []inotifyEvent
	for len(b) > 0 {
		if len(b) < unix.SizeofInotifyEvent {
			return nil, fmt.Errorf("reading inotify: an event of %d bytes", len(b))
		}
		size := int(binary.NativeEndian.Uint32(b[12:])) + unix.SizeofInotifyEvent
		if size > len(b) {
			return nil, fmt.Errorf("reading inotify: an event of %d bytes, of which %d were read", size, len(b))
		}
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:size], []byte{0})
		events = append(events, inotifyEvent{
			watch: int(int32(binary.NativeEndian.Uint32(b))),
			mask:  binary.NativeEndian.Uint32(b[4:]),
			name:  string(name),
		})
		b = b[size:]
	}
	return events, nil
}
