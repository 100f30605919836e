package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"thole/internal/api"
	"thole/internal/holder"
)

// A Question asks whose something is.
type Question struct {
	text    string
	request api.OwnerRequest
}

// An Answer is the daemon's, and what /proc tells this process.
type Answer struct {
	api.OwnerResponse
	// by the socket's inode, as text
	Holders map[string][]holder.Process `json:"holders"`
	// the caller may not know which sockets the process has
	SocketsUnknown bool `json:"socketsUnknown,omitempty"`
}

// ParseQuestion reads the number of a process, :PORT or ADDRESS:PORT.
func ParseQuestion(text string) (Question, error) {
	q := Question{text: text}
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		pid, err := strconv.Atoi(text)
		if q.request.PID = pid; err == nil && pid > 0 {
			return q, nil
		}
	} else {
		host := strings.TrimSuffix(strings.TrimPrefix(text[:at], "["), "]")
		port, err := strconv.ParseUint(text[at+1:], 10, 16)
		address, bad := netip.ParseAddr(host)
		if q.request.Port = uint16(port); err == nil && port > 0 && host == "" {
			return q, nil
		}
		if q.request.Address = address.String(); err == nil && port > 0 && bad == nil {
			return q, nil
		}
	}
	return q, fmt.Errorf("invalid %q: must be the number of a process, :PORT or ADDRESS:PORT", text)
}

// Ask asks the daemon. It fails if there is no such process or socket.
func (q Question) Ask(ctx context.Context, c *api.Client) (a Answer, err error) {
	if q.request.PID != 0 {
		q.request.Inodes, err = holder.SocketsOf(q.request.PID)
		a.SocketsUnknown = errors.Is(err, fs.ErrPermission)
	}
	if a.OwnerResponse, err = c.Owner(ctx, q.request); err != nil {
		return a, err
	}
	if a.Process == nil && len(a.Sockets) == 0 {
		more := ""
		if !a.Complete {
			more = ", as far as it looks: there are too many"
		}
		return a, fmt.Errorf("there is no such socket of TCP or UDP in the daemon's network namespace%s", more)
	}
	inodes := map[uint32]bool{}
	for _, s := range a.Sockets {
		inodes[s.Inode] = true
	}
	found, err := holder.Of(inodes)
	a.Holders = map[string][]holder.Process{}
	for inode, processes := range found {
		a.Holders[inodeText(inode)] = processes
	}
	return a, err
}

func inodeText(inode uint32) string { return strconv.FormatUint(uint64(inode), 10) }

// AnyUnlabelled reports whether something of the answer belongs to no workload.
func (a Answer) AnyUnlabelled() bool {
	return a.Process != nil && a.Process.Workload == nil ||
		slices.ContainsFunc(a.Sockets, func(s api.OwnedSocket) bool { return s.Workload == nil })
}
