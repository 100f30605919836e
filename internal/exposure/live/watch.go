package live

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/exposure"
)

// The bounds of a look at all sockets. None is meant to be met in normal use.
const (
	maxSockets = 65_536                 // that are looked at
	maxTime    = 200 * time.Millisecond // that it may take
	pauseRatio = 9                      // times what the last look took, until the next: a tenth of one CPU at most
	maxShown   = 8                      // sockets in the text of a condition
)

// A Watch looks for exposed sockets when a status is asked for. It is safe for concurrent use.
//
// A user may ask often and have many sockets. So a look ends at maxSockets and maxTime, and what it found is the
// answer for pauseRatio times as long as it took.
type Watch struct {
	bound func(visit func(sockets.Socket) bool) error
	now   func() time.Time

	mu         sync.Mutex // guards what follows, and is held while it is looked
	next       time.Time
	status     *api.SocketStatus
	conditions []condition.Condition
}

// New returns a Watch of the sockets that a function lists (sockets.Bound).
func New(bound func(visit func(sockets.Socket) bool) error, now func() time.Time) *Watch {
	return &Watch{bound: bound, now: now}
}

// An OwnerOf function says what a socket of a cgroup belongs to.
type OwnerOf func(cgroup uint64) exposure.Owner

// Look returns what is exposed, and what is to be said of it.
func (w *Watch) Look(of OwnerOf, o exposure.Options) (*api.SocketStatus, []condition.Condition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	began := w.now()
	if began.Before(w.next) {
		return w.status, w.conditions
	}
	listed, complete, err := w.list(of, began.Add(maxTime))
	if err != nil {
		w.status, w.conditions = nil, []condition.Condition{{Code: condition.SocketsUnlisted, Text: fmt.Sprintf(
			"%v: exposed sockets are not known", err)}}
	} else {
		found, all := exposure.Find(listed, o)
		w.status = &api.SocketStatus{Examined: len(listed), Complete: complete && all, Exposed: apiExposures(found)}
		w.conditions = exposedConditions(w.status, found)
	}
	ended := w.now()
	w.next = ended.Add(pauseRatio * ended.Sub(began))
	return w.status, w.conditions
}

// list lists the sockets with their owners. complete is false where a bound was reached.
func (w *Watch) list(of OwnerOf, until time.Time) (list []exposure.Socket, complete bool, err error) {
	complete = true
	var found []sockets.Socket
	err = w.bound(func(s sockets.Socket) bool {
		complete = len(found) < maxSockets && w.now().Before(until)
		if complete {
			found = append(found, s)
		}
		return complete
	})
	if err != nil {
		return nil, false, err
	}
	devices, err := deviceNames(found)
	if err != nil {
		return nil, false, err
	}
	owners := map[uint64]exposure.Owner{}
	for _, s := range found {
		if s.Cgroup == 0 {
			return nil, false, errors.New("listing sockets: the kernel does not tell their cgroups (INET_DIAG)")
		}
		owner, known := owners[s.Cgroup]
		if !known {
			if !w.now().Before(until) {
				return list, false, nil
			}
			owner = of(s.Cgroup)
			owners[s.Cgroup] = owner
		}
		list = append(list, exposure.Socket{
			Protocol: map[uint8]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_UDP: "udp"}[s.Protocol],
			Address:  s.Local.Addr(), OnlyV6: s.OnlyV6, Port: s.Local.Port(),
			Device: devices[s.Device], UID: s.UID, Owner: owner,
		})
	}
	return list, complete, nil
}

// deviceNames names the devices that sockets are bound to.
func deviceNames(list []sockets.Socket) (map[int]string, error) {
	names := map[int]string{}
	for _, s := range list {
		if s.Device != 0 {
			names[s.Device] = fmt.Sprintf("device %d", s.Device) // it may be gone
		}
	}
	if len(names) == 0 {
		return names, nil
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("listing devices: %v", err)
	}
	for _, device := range all {
		if names[device.Index] != "" {
			names[device.Index] = device.Name
		}
	}
	return names, nil
}

func apiExposures(found []exposure.Exposure) []api.ExposedPort {
	list := []api.ExposedPort{}
	for _, e := range found {
		port := api.ExposedPort{Reason: e.Reason, Protocol: e.Protocol, Port: e.Port, Text: exposedText(e)}
		for _, s := range e.Sockets {
			port.Sockets = append(port.Sockets, api.ExposedSocket{
				Address: s.Address.String(), Device: s.Device, UID: s.UID,
				Workload: s.Owner.Workload, Cgroup: s.Owner.Cgroup,
			})
		}
		list = append(list, port)
	}
	return list
}

// exposedConditions are a problem for each exposure that a user cannot bring about alone, and a notice for each other.
func exposedConditions(s *api.SocketStatus, found []exposure.Exposure) (list []condition.Condition) {
	for i, e := range s.Exposed {
		c := condition.Condition{Code: condition.SocketExposed, Where: e.Where(), Text: e.Text}
		if found[i].ByUsers() {
			c.Code = condition.SocketExposedUser
		}
		list = append(list, c)
	}
	if !s.Complete {
		list = append(list, condition.Condition{Code: condition.SocketsUnexamined, Text: fmt.Sprintf(
			"%d sockets were examined, and at most %d exposed ports are named: a bound was reached, so others may be "+
				"exposed",
			s.Examined, exposure.MaxExposures)})
	}
	return list
}

// exposedText names the sockets and says what reaches them.
func exposedText(e exposure.Exposure) string {
	var names []string
	for _, s := range e.Sockets[:min(len(e.Sockets), maxShown)] {
		names = append(names, s.String())
	}
	if more := len(e.Sockets) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	what := strings.Join(names, "; ") + ": "
	switch {
	case e.Reason == exposure.BoundToDevice:
		return what + "datagrams of this node reach a socket that is bound to a device, whatever the policies say. " +
			"Its answers are judged"
	case e.Reason == exposure.SharedPort:
		return what + "these sockets can share the port by SO_REUSEPORT, so a BPF program of one of them may choose " +
			"another socket than the one that the table judged. Answers are judged"
	case e.Protocol == "tcp":
		return what + "the table may judge one of these sockets where the kernel connects another. Data that a " +
			"client sends before the first answer may reach that other socket; answers are judged"
	default:
		return what + "the table may judge one of these sockets where the kernel delivers to another, whatever the " +
			"policies say. Answers are judged"
	}
}
