package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"thole/internal/daemon"
	"thole/watch/docker"
)

// engineTimeout is how long the engine may take to answer. An idle one takes milliseconds.
const engineTimeout = 5 * time.Second

// engine names the engine at address, which is the value of the daemon's flag --docker.
func engine(ctx context.Context, address string) Finding {
	f := Finding{Check: "engine", Status: OK}
	if address == daemon.DockerOff {
		f.Found = "none is followed (--docker off)"
		return f
	}
	const unknown = "it is unknown which engine the daemon follows"
	host, err := docker.FindHost(address, os.Getenv)
	if err != nil {
		return f.unknown(err, unknown, "thole doctor --docker unix:///path/of/docker.sock, or --docker off")
	}
	ctx, cancel := context.WithTimeout(ctx, engineTimeout)
	defer cancel()
	info, err := docker.DescribeEngine(ctx, host)
	if errors.Is(err, docker.ErrNoEngine) {
		f.Found = "none at " + host.Address
		return f
	}
	if err != nil {
		return f.unknown(fmt.Errorf("%s: %v", host.Address, err), unknown+", and its containers are not known",
			"start the engine, or give its address: --docker unix:///path/of/docker.sock, or off")
	}
	return f.engine(info, host.Address)
}

// engine judges an engine that answered.
func (f Finding) engine(e docker.EngineInfo, address string) Finding {
	f.Found = fmt.Sprintf("%s %s, API version %s, cgroup driver %s, at %s",
		cmp.Or(e.Name, "unknown"), e.Version, e.API, cmp.Or(e.CgroupDriver, "unknown"), address)
	const (
		open = "no policy protects or restricts them"
		mend = "run containers that a policy concerns with Docker or Podman, and give its address: " +
			"--docker unix:///path"
	)
	switch {
	case e.Rootless:
		return f.warning(f.Found+", rootless", "the user who runs this engine decides which labels its containers "+
			"have, and its containers on bridges are behind one process: policies cannot distinguish them",
			"give the address of root's engine: --docker unix:///path")
	case e.Name == docker.EngineDocker, e.Name == docker.EnginePodman:
		return f
	default:
		return f.warning(f.Found, "containers of an engine that is neither Docker nor Podman may not be "+
			"recognised: then "+open, mend)
	}
}
