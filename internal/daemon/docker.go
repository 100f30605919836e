package daemon

import (
	"context"
	"os"
	"time"

	"thole/internal/api"
	"thole/watch"
	"thole/watch/docker"
)

// dockerPatience is how long a start waits for Docker.
const dockerPatience = 3 * time.Second

// DockerOff as Config.Docker leaves Docker alone.
const DockerOff = "off"

// newDocker returns nil if Docker is not to be followed.
func newDocker(config Config, host *host) (*docker.Docker, error) {
	if config.Docker == DockerOff {
		return nil, nil
	}
	found, err := docker.FindHost(config.Docker, os.Getenv)
	if err != nil {
		return nil, err
	}
	return docker.New(host.root, found), nil
}

// engineOf is what watch follows: no engine, and not a nil pointer in an interface, if Docker is not to be followed.
func engineOf(d *docker.Docker) watch.Engine {
	if d == nil {
		return nil
	}
	return d
}

// askOnce has Docker tell of all containers that run, so that the first table knows
// them. If it does not answer soon, what an earlier daemon knew of them counts until
// it does; the snapshot's problems say why.
func askOnce(d *docker.Docker) {
	if d == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerPatience)
	defer cancel()
	_ = d.Load(ctx) // Status has the error
}

// apiDocker is Docker's status as clients see it; nil if it is not followed.
func apiDocker(d *docker.Docker) *api.DockerStatus {
	if d == nil {
		return nil
	}
	s := api.DockerStatus(d.Status())
	return &s
}
