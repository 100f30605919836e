package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	dockercontainer "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	dockerclient "github.com/docker/docker/client"
)

const (
	apiTimeout     = 10 * time.Second // for an answer that the engine has at once
	inspectTimeout = 30 * time.Second // the engine waits until a container that is being started runs
)

// oldestAPI is that of Docker 20.10: the first with cgroup v2.
const oldestAPI = "1.41"

// apiClient is a client that calls an engine by Docker's API.
type apiClient struct {
	api            *dockerclient.Client
	engine         EngineInfo
	userNamespaces bool // the engine maps the users of containers to others

	mu     sync.Mutex                   // guards what follows
	images map[string]map[string]string // image id → labels, which never change
}

// dial connects to an engine.
func dial(ctx context.Context, host Host) (openClient, error) {
	c, err := newAPIClient(ctx, host)
	if err != nil {
		return openClient{}, err
	}
	return openClient{client: c, engine: c.engine, close: c.api.Close}, nil
}

// newAPIClient connects to an engine and agrees with it on a version of the API.
func newAPIClient(ctx context.Context, host Host) (*apiClient, error) {
	options := []dockerclient.Opt{dockerclient.WithHost(host.Address), dockerclient.WithAPIVersionNegotiation()}
	if host.CA != "" || host.Cert != "" {
		options = append(options, dockerclient.WithTLSClientConfig(host.CA, host.Cert, host.Key))
	}
	api, err := dockerclient.NewClientWithOpts(options...)
	if err != nil {
		return nil, fmt.Errorf("calling Docker at %s: %v: see --docker", host.Address, err)
	}
	c := &apiClient{api: api, images: map[string]map[string]string{}}
	if err := c.identify(ctx); err != nil {
		return nil, errors.Join(err, api.Close())
	}
	return c, nil
}

// identify asks the engine what it is, and refuses one that is too old.
func (c *apiClient) identify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout) // Podman waits for containers that are being started
	defer cancel()
	info, err := c.api.Info(ctx)
	if err != nil {
		return fmt.Errorf("asking Docker for its version: %v", err)
	}
	if v := c.api.ClientVersion(); versions.LessThan(v, oldestAPI) {
		return fmt.Errorf("Docker %s has API version %s, Thole needs at least %s: upgrade Docker to 20.10 or later",
			info.ServerVersion, v, oldestAPI)
	}
	c.engine = c.engineInfo(ctx, info)
	c.userNamespaces = slices.ContainsFunc(info.SecurityOptions, func(o string) bool {
		return strings.Contains(o, "name=userns") || isRootless(o)
	})
	return nil
}

func (c *apiClient) List(ctx context.Context, ids ...string) ([]container, error) {
	ctx, cancel := context.WithTimeout(ctx, c.listTimeout())
	defer cancel()
	only := filters.NewArgs()
	for _, id := range ids {
		only.Add("id", id)
	}
	options := dockercontainer.ListOptions{All: true, Filters: only}
	list, err := c.api.ContainerList(ctx, options)
	if errdefs.IsInternal(err) && c.engine.isPodman() { // a container was removed while Podman made the list
		list, err = c.api.ContainerList(ctx, options)
	}
	if err != nil {
		return nil, fmt.Errorf("listing containers: %v", err)
	}
	found := make([]container, len(list))
	for i, s := range list {
		found[i] = container{
			id: s.ID, name: ownName(s.Names), image: s.Image, labels: s.Labels,
			running: isRunning(s.State),
			network: c.networkMode(s.HostConfig.NetworkMode),
		}
		found[i].endpoints = c.endpoints(s.NetworkSettings)
		if found[i].imageLabels, err = c.imageLabels(ctx, s.ImageID); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// listTimeout is for lists. Podman makes them when no container is being started or connected to a network.
func (c *apiClient) listTimeout() time.Duration {
	if c.engine.isPodman() {
		return inspectTimeout
	}
	return apiTimeout
}

func (c *apiClient) Inspect(ctx context.Context, id string) (container, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	r, err := c.api.ContainerInspect(ctx, id)
	switch {
	case errdefs.IsNotFound(err):
		return container{}, errNoContainer
	case err != nil:
		return container{}, fmt.Errorf("inspecting container %s: %v", id, err)
	case r.ContainerJSONBase == nil || r.State == nil || r.HostConfig == nil || r.Config == nil,
		r.NetworkSettings == nil:
		return container{}, fmt.Errorf("inspecting container %s: the answer is incomplete", id)
	}
	found := container{
		id:      r.ID,
		name:    strings.TrimPrefix(r.Name, "/"),
		image:   r.Config.Image,
		running: (r.State.Running || r.State.Paused) && !r.State.Restarting,
		network: c.networkMode(string(r.HostConfig.NetworkMode)),
		labels:  r.Config.Labels,
		details: &details{
			user:          r.Config.User,
			userNamespace: c.usersAreMapped(r.HostConfig.UsernsMode),
			parent:        r.HostConfig.CgroupParent,
			pid:           r.State.Pid,
			addresses:     map[string][]netip.Addr{},
			// Docker has no other modes. The network that a mode names may have been disconnected and removed since.
			modeUnknown: !c.engine.isDocker() && !knownMode(r.HostConfig.NetworkMode, r.NetworkSettings.Networks),
		},
	}
	for name, n := range r.NetworkSettings.Networks {
		if list := addresses(n); len(list) > 0 {
			found.details.addresses[c.networkKey(name, n.NetworkID)] = list
		}
	}
	if c.engine.isPodman() {
		found.network = podmanNetwork(found.network, r.NetworkSettings.Networks)
		if found.infra, err = c.isInfra(ctx, found.id); err != nil {
			return container{}, err
		}
	}
	found.imageLabels, err = c.imageLabels(ctx, r.Image)
	return found, err
}

// imageLabels returns the labels of an image: not nil, unless it is gone.
func (c *apiClient) imageLabels(ctx context.Context, image string) (map[string]string, error) {
	if c.engine.isPodman() && strings.TrimPrefix(image, "sha256:") == "" {
		return map[string]string{}, nil // it has a directory instead (podman run --rootfs)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if labels, ok := c.images[image]; ok {
		return labels, nil
	}
	r, err := c.api.ImageInspect(ctx, image)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsInternal(err): // or Docker cannot read it
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("inspecting image %s: %v", image, err)
	}
	labels := map[string]string{}
	if r.Config != nil && r.Config.Labels != nil {
		labels = r.Config.Labels
	}
	c.images[image] = labels
	return labels, nil
}

func (c *apiClient) Networks(ctx context.Context, ids ...string) ([]bridgeNetwork, error) {
	ctx, cancel := context.WithTimeout(ctx, c.listTimeout())
	defer cancel()
	if c.engine.isPodman() {
		return c.podmanNetworks(ctx)
	}
	if len(ids) == 0 {
		return c.allNetworks(ctx)
	}
	var found []bridgeNetwork
	for _, id := range ids {
		n, err := c.api.NetworkInspect(ctx, id, network.InspectOptions{})
		switch {
		case errdefs.IsNotFound(err):
		case err != nil:
			return nil, fmt.Errorf("inspecting network %s: %v", id, err)
		default:
			found = append(found, newNetwork(n))
		}
	}
	return found, nil
}

// allNetworks returns the networks that are bridges, without their members.
func (c *apiClient) allNetworks(ctx context.Context) ([]bridgeNetwork, error) {
	bridges := filters.NewArgs(filters.Arg("driver", "bridge"))
	list, err := c.api.NetworkList(ctx, network.ListOptions{Filters: bridges})
	if err != nil {
		return nil, fmt.Errorf("listing networks: %v", err)
	}
	var found []bridgeNetwork
	for _, n := range list {
		if n.Name != swarmGateway {
			found = append(found, newNetwork(n))
		}
	}
	return found, nil
}

// swarmGateway is a bridge to which Swarm connects containers without an event.
const swarmGateway = "docker_gwbridge"

func newNetwork(n network.Inspect) bridgeNetwork {
	made := bridgeNetwork{
		id: n.ID, name: n.Name, bridge: n.Options["com.docker.network.bridge.name"],
		members: map[string][]netip.Addr{},
	}
	if made.bridge == "" {
		made.bridge = "br-" + n.ID[:min(12, len(n.ID))]
	}
	for _, c := range n.IPAM.Config {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil {
			made.subnets = append(made.subnets, p.Masked())
		}
	}
	for id, endpoint := range n.Containers {
		for _, s := range []string{endpoint.IPv4Address, endpoint.IPv6Address} {
			if p, err := netip.ParsePrefix(s); err == nil {
				made.members[id] = append(made.members[id], p.Addr())
			}
		}
	}
	return made
}

// relevantActions are the actions that can change a record. The engine leaves out the events of all others: health
// checks and exec have events, too.
var relevantActions = []events.Action{
	events.ActionCreate, events.ActionStart, events.ActionRestart, events.ActionPause, events.ActionUnPause,
	events.ActionRename, events.ActionUpdate, events.ActionDie, events.ActionDestroy,
	events.ActionConnect, events.ActionDisconnect,
	// Podman's own names of a start, die and destroy.
	"init", "died", "remove",
}

func (c *apiClient) Events(ctx context.Context, since time.Time, changed func(event)) error {
	only := filters.NewArgs(
		filters.Arg("type", string(events.ContainerEventType)), filters.Arg("type", string(events.NetworkEventType)))
	for _, a := range relevantActions {
		only.Add("event", string(a))
	}
	messages, errs := c.api.Events(ctx, events.ListOptions{Since: strconv.FormatInt(since.Unix(), 10), Filters: only})
	for {
		select {
		case m := <-messages:
			if m.Type == events.NetworkEventType {
				changed(event{container: c.containerOf(m.Actor), networks: true})
			} else {
				changed(event{container: m.Actor.ID})
			}
		case err := <-errs:
			return fmt.Errorf("following Docker's events: %v", err)
		}
	}
}

// containerOf returns the container that an event of a network names.
func (c *apiClient) containerOf(actor events.Actor) string {
	if c.engine.isPodman() {
		return actor.ID
	}
	return actor.Attributes["container"]
}

// usersAreMapped reports whether the users of a container are not those of this machine.
func (c *apiClient) usersAreMapped(mode dockercontainer.UsernsMode) bool {
	if c.engine.isPodman() && mode != "" {
		return !mode.IsHost()
	}
	return c.userNamespaces && !mode.IsHost()
}

// endpoints returns the ids of a container's endpoints, by the id of the network. Podman has none: there the addresses
// take their place.
func (c *apiClient) endpoints(s *dockercontainer.NetworkSettingsSummary) map[string]string {
	ids := map[string]string{}
	if s == nil {
		return ids
	}
	for name, n := range s.Networks {
		if n == nil {
			continue
		}
		if id := cmp.Or(n.EndpointID, n.IPAddress+n.GlobalIPv6Address); id != "" {
			ids[c.networkKey(name, n.NetworkID)] = id
		}
	}
	return ids
}

// isRunning reports whether a container in this state has processes. Only Podman has the state "stopping".
func isRunning(state dockercontainer.ContainerState) bool {
	return state == dockercontainer.StateRunning || state == dockercontainer.StatePaused || state == "stopping"
}

// ownName is the container's name among those that others have linked it by.
func ownName(names []string) string {
	for _, n := range names {
		if n = strings.TrimPrefix(n, "/"); !strings.Contains(n, "/") {
			return n
		}
	}
	return ""
}

// networkMode calls the default network by its name. Only Docker means it by "".
func (c *apiClient) networkMode(mode string) string {
	if mode == "default" || mode == "" && c.engine.isDocker() {
		return "bridge"
	}
	return mode
}

// knownMode reports whether a network mode says which network a container has.
func knownMode(mode dockercontainer.NetworkMode, connected map[string]*network.EndpointSettings) bool {
	if mode.IsHost() || mode.IsNone() || mode.IsBridge() || mode.IsDefault() || mode.IsContainer() {
		return true
	}
	_, ok := connected[string(mode)]
	return ok
}

func addresses(n *network.EndpointSettings) []netip.Addr {
	if n == nil {
		return nil
	}
	var list []netip.Addr
	for _, s := range []string{n.IPAddress, n.GlobalIPv6Address} {
		if a, err := netip.ParseAddr(s); err == nil {
			list = append(list, a)
		}
	}
	return list
}
