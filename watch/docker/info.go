package docker

import (
	"cmp"
	"context"
	"errors"
	"net"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/system"
	"golang.org/x/sys/unix"
)

// The engines that answer Docker's API.
const (
	EngineDocker = "Docker"
	EnginePodman = "Podman"
)

// An EngineInfo describes the engine at an address, as the engine itself does.
type EngineInfo struct {
	Name         string // EngineDocker, EnginePodman or another name; "": the engine does not tell
	Version      string
	API          string // the version of Docker's API
	CgroupDriver string
	Rootless     bool // it is a user's own engine, which runs as that user
}

// isPodman reports whether it is Podman.
func (e EngineInfo) isPodman() bool { return e.Name == EnginePodman }

// isDocker reports whether it is Docker, for all that is known.
func (e EngineInfo) isDocker() bool { return e.Name == EngineDocker || e.Name == "" }

// isRootless reports whether a security option of an engine says that the engine runs as a user.
func isRootless(option string) bool { return strings.Contains(option, "name=rootless") }

// ErrNoEngine is the error of DescribeEngine where no engine runs, and none is expected.
var ErrNoEngine = errors.New("no engine listens")

// DescribeEngine asks the engine at host to describe itself.
func DescribeEngine(ctx context.Context, host Host) (EngineInfo, error) {
	if !host.Given && !hasListener(ctx, host.Address) {
		return EngineInfo{}, ErrNoEngine
	}
	c, err := newAPIClient(ctx, host)
	if err != nil {
		return EngineInfo{}, err
	}
	return c.engine, c.api.Close()
}

// hasListener reports whether a socket of this machine exists and has a listener, or cannot be tried.
func hasListener(ctx context.Context, address string) bool {
	path, _ := strings.CutPrefix(address, "unix://")
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close() // nothing was sent
	}
	return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ECONNREFUSED)
}

// engineInfo asks which engine it is. If the engine, or a proxy before it, does not answer that, the name is "".
func (c *apiClient) engineInfo(ctx context.Context, info system.Info) EngineInfo {
	engine := EngineInfo{Version: info.ServerVersion, API: c.api.ClientVersion(), CgroupDriver: info.CgroupDriver}
	engine.Rootless = slices.ContainsFunc(info.SecurityOptions, isRootless)
	v, err := c.api.ServerVersion(ctx)
	if err != nil {
		return engine
	}
	engine.Name, engine.API = v.Platform.Name, cmp.Or(v.APIVersion, engine.API)
	for _, component := range v.Components {
		switch component.Name {
		case "Engine":
			engine.Name = EngineDocker
		case "Podman Engine":
			engine.Name = EnginePodman
		}
	}
	return engine
}
