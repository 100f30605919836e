package whose

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
	"thole/internal/api"
)

// MaxSockets is how many sockets an answer has at most.
const MaxSockets = 256

// A Judge says whose a cgroup is, by its id. The path is "" where the cgroup is gone.
type Judge func(cgroup uint64) (path string, whose api.Ownership)

// IDs knows the ids of cgroups (cgroupfs.Root).
type IDs interface {
	ID(cgroup string) (uint64, error)
}

// An Asker answers whose processes and sockets are.
type Asker struct {
	looks *Looks
	ids   IDs
	judge Judge
}

// New returns an Asker.
func New(looks *Looks, ids IDs, judge Judge) *Asker { return &Asker{looks, ids, judge} }

// Unlabelled lists the listeners that belong to no workload and are not closed.
func (a *Asker) Unlabelled() (api.Listeners, error) {
	all, complete, err := a.looks.look()
	if err != nil {
		return api.Listeners{}, err
	}
	answer := api.Listeners{Listeners: []api.Socket{}, Complete: complete}
	judge := remembering(a.judge)
	for _, s := range all {
		if !s.Bound {
			continue
		}
		if path, whose := judge(s.Cgroup); whose.Workload == nil && !whose.Closed {
			answer.Listeners = append(answer.Listeners, apiSocket(s, path))
		}
	}
	slices.SortFunc(answer.Listeners, compare)
	return answer, nil
}

// Owner says whose a process is, and the sockets that it has; or whose the sockets at an address are.
func (a *Asker) Owner(req api.OwnerRequest) (answer api.OwnerResponse, err error) {
	wanted, err := matcher(req)
	if err != nil {
		return answer, &api.Refusal{Code: http.StatusBadRequest, Message: err.Error()}
	}
	judge := remembering(a.judge)
	if req.PID != 0 {
		if answer.Process, err = a.process(req.PID, judge); err != nil {
			return answer, err
		}
	}
	all, complete, err := a.looks.look()
	if err != nil {
		return answer, err
	}
	answer.Complete, answer.Sockets = complete, []api.OwnedSocket{}
	seen := map[uint32]bool{}
	for _, s := range best(all, wanted) {
		seen[s.Inode] = true
		if len(answer.Sockets) == MaxSockets {
			answer.Omitted++
			continue
		}
		path, whose := judge(s.Cgroup)
		answer.Sockets = append(answer.Sockets, api.OwnedSocket{Socket: apiSocket(s, path), Ownership: whose})
	}
	for _, inode := range req.Inodes {
		if !seen[inode] {
			answer.Unseen++
		}
	}
	slices.SortFunc(answer.Sockets, func(a, b api.OwnedSocket) int { return compare(a.Socket, b.Socket) })
	return answer, nil
}

// remembering asks a judge once for each cgroup.
func remembering(judge Judge) Judge {
	type answer struct {
		path  string
		whose api.Ownership
	}
	known := map[uint64]answer{}
	return func(cgroup uint64) (string, api.Ownership) {
		a, is := known[cgroup]
		if !is {
			a.path, a.whose = judge(cgroup)
			known[cgroup] = a
		}
		return a.path, a.whose
	}
}

// process says whose a process is.
func (a *Asker) process(pid int, judge Judge) (*api.OwnedProcess, error) {
	none := &api.Refusal{Code: http.StatusNotFound, Message: fmt.Sprintf("there is no process %d", pid)}
	dir := "/proc/" + strconv.Itoa(pid)
	program, err := os.ReadFile(dir + "/comm")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, none
	}
	if err != nil {
		return nil, fmt.Errorf("reading the name of process %d: %v", pid, err)
	}
	data, err := os.ReadFile(dir + "/cgroup")
	if err != nil {
		return nil, none
	}
	p := &api.OwnedProcess{PID: pid, Program: string(bytes.TrimSuffix(program, []byte("\n")))}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/"); ok {
			p.Cgroup = cmp.Or(path, ".")
		}
	}
	if p.CgroupID, err = a.ids.ID(p.Cgroup); err != nil {
		return nil, fmt.Errorf("finding the cgroup of process %d: %v", pid, err)
	}
	p.Cgroup, p.Ownership = judge(p.CgroupID)
	return p, nil
}

// A quality says how well a socket answers a question: the best ones are the answer.
type quality int

const (
	no         quality = iota
	byWildcard         // it is bound to all addresses
	byAddress
)

// matcher returns what says how well a socket answers a request.
func matcher(req api.OwnerRequest) (func(sockets.Socket) quality, error) {
	switch {
	case req.PID < 0, (req.PID == 0) == (req.Port == 0):
		return nil, errors.New("the request must have the number of a process, or a port")
	case req.PID > 0:
		inodes := map[uint32]bool{}
		for _, inode := range req.Inodes {
			inodes[inode] = true
		}
		return func(s sockets.Socket) quality {
			if s.Inode != 0 && inodes[s.Inode] {
				return byAddress
			}
			return no
		}, nil
	case req.Address == "":
		return func(s sockets.Socket) quality {
			if s.Bound && s.Local.Port() == req.Port {
				return byAddress
			}
			return no
		}, nil
	}
	address, err := netip.ParseAddr(req.Address)
	if err != nil {
		return nil, fmt.Errorf("invalid address %q", req.Address)
	}
	address = address.Unmap().WithZone("")
	return func(s sockets.Socket) quality { return at(s, address, req.Port) }, nil
}

// at says how well a socket answers for an address and port.
func at(s sockets.Socket, address netip.Addr, port uint16) quality {
	local := s.Local.Addr().Unmap()
	switch {
	case s.Local.Port() != port:
		return no
	case local == address:
		return byAddress
	case s.Bound && local.IsUnspecified() && (local.Is4() == address.Is4() || local.Is6() && !s.OnlyV6):
		return byWildcard
	}
	return no
}

// best returns the sockets that answer best.
func best(all []sockets.Socket, how func(sockets.Socket) quality) (found []sockets.Socket) {
	highest := no
	for _, s := range all {
		q := how(s)
		if q > highest {
			highest, found = q, nil
		}
		if q == highest && q != no {
			found = append(found, s)
		}
	}
	return found
}

func apiSocket(s sockets.Socket, path string) api.Socket {
	a := api.Socket{
		Protocol: map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[s.Protocol],
		Local:    shown(s.Local), Listens: s.Bound, UID: s.UID, Inode: s.Inode, CgroupID: s.Cgroup, Cgroup: path,
	}
	if s.Remote.Port() != 0 {
		a.Remote = shown(s.Remote)
	}
	return a
}

// shown is an address as people write it.
func shown(a netip.AddrPort) string { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String() }

func compare(a, b api.Socket) int {
	return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), last(a.Listens, b.Listens), comparePorts(a.Local, b.Local),
		cmp.Compare(a.Local, b.Local), cmp.Compare(a.Remote, b.Remote), cmp.Compare(a.Inode, b.Inode))
}

// last puts what does not listen behind what does.
func last(a, b bool) int {
	return map[[2]bool]int{{true, false}: -1, {false, true}: 1}[[2]bool{a, b}]
}

func comparePorts(a, b string) int {
	return cmp.Compare(netip.MustParseAddrPort(a).Port(), netip.MustParseAddrPort(b).Port())
}
