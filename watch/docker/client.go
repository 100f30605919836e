package docker

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// An openClient is a client with the engine that it calls.
type openClient struct {
	client
	engine EngineInfo
	close  func() error
}

// A client is one connection to an engine. A connection that broke is not repaired: there is a new one.
type client interface {
	// List returns all containers, or those with these ids, also those that do not run, without details. Docker answers
	// at once. Podman answers when none of them is being started.
	List(ctx context.Context, ids ...string) ([]container, error)

	// Inspect returns a container with its details. If the container is being started, Inspect waits until that is
	// done. errNoContainer: there is none.
	Inspect(ctx context.Context, id string) (container, error)

	// Networks returns the networks that are bridges on this machine, or those with these ids, and the latter with
	// their members.
	Networks(ctx context.Context, ids ...string) ([]bridgeNetwork, error)

	// Events calls changed for each event since a moment, until the context or the connection ends.
	Events(ctx context.Context, since time.Time, changed func(event)) error
}

// errNoContainer says that the engine has no container with that id.
var errNoContainer = errors.New("no such container")

// An event says that something changed, not what.
type event struct {
	container string // its id; "": none
	networks  bool   // a network came or went
}

// A bridgeNetwork is a network of containers on one bridge.
type bridgeNetwork struct {
	id      string
	name    string
	bridge  string // the interface
	subnets []netip.Prefix
	members map[string][]netip.Addr // container id → addresses; also of those that are being started
	late    bool                    // the engine makes the interface with the first container
}

// A container is what the engine says of one. Its id and its labels never change.
type container struct {
	id          string
	name        string
	image       string            // the reference by which it was made
	running     bool              // or paused
	network     string            // "host", "bridge", "none", "container:ID" or a network's name; "": not listed
	labels      map[string]string // those of the image included
	imageLabels map[string]string // nil: its image is gone
	endpoints   map[string]string // only of one that was listed: the ids of its endpoints, by the id of the network
	infra       bool              // it only keeps the network namespace of a pod open
	details     *details          // nil: it was only listed
}

// details are what the engine tells only of a container that is not being started.
type details struct {
	user          string                  // as in docker run --user or the image: a name or number, "" for root
	userNamespace bool                    // its users are not those of this machine
	parent        string                  // --cgroup-parent
	pid           int                     // of its first process; 0: it does not run
	addresses     map[string][]netip.Addr // by the id of the network that it is connected to
	// The network mode is none of the above, so it is unknown which network the container has.
	modeUnknown bool
}
