package api

import (
	"context"
	"net/http"
)

// Owners say whose the sockets and processes of this node are.
type Owners interface {
	Unlabelled() (Listeners, error)
	Owner(OwnerRequest) (OwnerResponse, error)
}

// A Socket is one of the network namespace of the daemon.
type Socket struct {
	Protocol string `json:"protocol"` // "tcp" or "udp"
	Local    string `json:"local"`    // address and port
	Remote   string `json:"remote,omitempty"`
	Listens  bool   `json:"listens"` // it can be sent to without a connection
	UID      uint32 `json:"uid"`
	Inode    uint32 `json:"inode,omitempty"` // by which /proc/PID/fd shows it
	CgroupID uint64 `json:"cgroupID"`        // in which it was made
	Cgroup   string `json:"cgroup"`          // its path; "": it is gone
}

// Listeners are the answer to the question which listeners belong to nobody.
type Listeners struct {
	Listeners []Socket `json:"listeners"`
	Complete  bool     `json:"complete"` // false: a bound was reached
}

// An OwnerRequest asks for one of: a process, or all sockets at an address.
type OwnerRequest struct {
	PID    int      `json:"pid,omitempty"`
	Inodes []uint32 `json:"inodes,omitempty"` // of the sockets that the process has, as far as the asker may know

	Address string `json:"address,omitempty"` // "": any
	Port    uint16 `json:"port,omitempty"`
}

// An OwnerResponse says whose these are.
type OwnerResponse struct {
	Process *OwnedProcess `json:"process,omitempty"`
	Sockets []OwnedSocket `json:"sockets"`
	Unseen  int           `json:"unseen,omitempty"`  // inodes asked for that are no socket of TCP or UDP there
	Omitted int           `json:"omitted,omitempty"` // sockets beyond the number that an answer has
	// false: there were more sockets than are looked at
	Complete bool `json:"complete"`
}

// An OwnedProcess is a process with its owner.
type OwnedProcess struct {
	PID      int    `json:"pid"`
	Program  string `json:"program"`
	CgroupID uint64 `json:"cgroupID"`
	Cgroup   string `json:"cgroup"` // in which it is now
	Ownership
}

// An OwnedSocket is a socket with its owner.
type OwnedSocket struct {
	Socket
	Ownership
}

// An Ownership says which workload something belongs to.
type Ownership struct {
	Workload *Workload `json:"workload,omitempty"` // absent: it is unlabelled, or closed
	Closed   bool      `json:"closed,omitempty"`   // its labels are not known: nothing reaches it
	Why      string    `json:"why"`
}

// Unlabelled lists the listeners that belong to nobody.
func (c *Client) Unlabelled(ctx context.Context) (Listeners, error) {
	return call[Listeners](ctx, c, http.MethodGet, pathUnlabelled, nil)
}

// Owner asks whose a process or a socket is.
func (c *Client) Owner(ctx context.Context, req OwnerRequest) (OwnerResponse, error) {
	return call[OwnerResponse](ctx, c, http.MethodPost, pathOwner, req)
}

func (s *Server) getUnlabelled(context.Context, *userConn, nothing) (Listeners, error) {
	return s.owners.Unlabelled()
}

func (s *Server) postOwner(_ context.Context, _ *userConn, req OwnerRequest) (OwnerResponse, error) {
	return s.owners.Owner(req)
}
