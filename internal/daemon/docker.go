package daemon

import (
	"context"
	"os"

	"thole/internal/api"
	"thole/watch"
)

// DockerOff as Config.Docker leaves Docker alone.
const DockerOff = "off"

// newDocker returns nil if Docker is not to be followed.
func newDocker(config Config, host *host) (*watch.Docker, error) {
	if config.Docker == DockerOff {
		return nil, nil
	}
	found, err := watch.FindDocker(config.Docker, os.Getenv)
	if err != nil {
		return nil, err
	}
	return watch.NewDocker(host.root, found), nil
}

// askOnce has Docker tell of all containers that run, so that the first table knows
// them. If it does not answer soon, what an earlier daemon knew of them counts until
// it does; the snapshot's problems say why.
func askOnce(docker *watch.Docker) {
	if docker == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerPatience)
	defer cancel()
	_ = docker.Load(ctx) // Status has the error
}

// apiDocker is Docker's status as clients see it; nil if it is not followed.
func apiDocker(docker *watch.Docker) *api.DockerStatus {
	if docker == nil {
		return nil
	}
	s := api.DockerStatus(docker.Status())
	return &s
}
