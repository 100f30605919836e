package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"path"
	"strings"

	"github.com/docker/docker/api/types/network"
)

// podmanParent is where Podman's cgroupfs manager puts containers.
const podmanParent = "libpod_parent"

// podmanDefaultNetwork is what a container of Podman is connected to if nobody names a network. Docker calls it bridge.
const podmanDefaultNetwork = "podman"

// isPodmanName reports whether the cgroup of a container has a name that Podman gives.
func isPodmanName(name string) bool { return strings.HasPrefix(name, "libpod-") }

// isPod reports whether a cgroup is that of a pod of Podman.
//
//	libpod_parent/<id>                             the cgroupfs manager
//	machine.slice/machine-libpod_pod_<id>.slice    systemd's
func isPod(cgroup string) bool {
	name := path.Base(cgroup)
	if strings.HasSuffix(name, ".slice") {
		return strings.Contains(name, "-libpod_pod_")
	}
	return path.Dir(cgroup) == podmanParent && isID(name)
}

// isUnit reports whether a cgroup is that of a systemd service, in which podman run --cgroups=split puts its container.
func isUnit(cgroup string) bool { return strings.HasSuffix(cgroup, ".service") }

// isConmon reports whether a cgroup in a place of containers is that of Podman's monitor of a container.
func isConmon(name string) bool { return name == "conmon" || strings.HasPrefix(name, "libpod-conmon-") }

// A podmanNetworkInfo is a network as Podman's own API has it. Docker's API does not tell the interface, and answers
// only when no container is being started.
type podmanNetworkInfo struct {
	Name      string
	Driver    string
	Interface string `json:"network_interface"`
	Subnets   []struct{ Subnet string }
}

// podmanNetworks returns Podman's networks that are bridges, without their members. Their ids are their names.
func (c *apiClient) podmanNetworks(ctx context.Context) ([]bridgeNetwork, error) {
	var list []podmanNetworkInfo
	if err := c.askPodman(ctx, "/v4.0.0/libpod/networks/json", &list); err != nil {
		return nil, fmt.Errorf("listing Podman's networks: %v", err)
	}
	var found []bridgeNetwork
	for _, n := range list {
		if n.Driver != "bridge" || n.Interface == "" {
			continue
		}
		made := bridgeNetwork{id: n.Name, name: n.Name, bridge: n.Interface, late: true}
		for _, s := range n.Subnets {
			if p, err := netip.ParsePrefix(s.Subnet); err == nil {
				made.subnets = append(made.subnets, p.Masked())
			}
		}
		found = append(found, made)
	}
	return found, nil
}

// isInfra reports whether a container is the infra container of a pod, which keeps the pod's network namespace open.
// Docker's API does not say so.
func (c *apiClient) isInfra(ctx context.Context, id string) (bool, error) {
	var answer struct{ IsInfra bool }
	err := c.askPodman(ctx, "/v4.0.0/libpod/containers/"+id+"/json", &answer)
	switch {
	case errors.Is(err, errNotAtPodman):
		return false, errNoContainer // it was removed since Docker's API answered
	case err != nil:
		return false, fmt.Errorf("inspecting container %s: %v", id, err)
	}
	return answer.IsInfra, nil
}

// errNotAtPodman is what is not there. All that is asked for is there since Podman 4.0.
var errNotAtPodman = errors.New("404 Not Found: Thole needs Podman 4.0 or later")

// askPodman gets an answer of Podman's own API, which is at the same address as Docker's.
func (c *apiClient) askPodman(ctx context.Context, path string, answer any) error {
	dialEngine := c.api.Dialer()
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialEngine(ctx) },
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman"+path, nil)
	if err != nil {
		return err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return json.NewDecoder(response.Body).Decode(answer)
	case http.StatusNotFound:
		return errNotAtPodman
	}
	return errors.New(response.Status)
}

// networkKey returns the id of a network: its name, if the engine is Podman.
func (c *apiClient) networkKey(name, id string) string {
	if c.engine.isPodman() {
		return name
	}
	return id
}

// podmanNetwork returns the network mode of a container as Docker has it: the name of its network, where it has one
// that somebody named. Podman says "bridge".
func podmanNetwork(mode string, connected map[string]*network.EndpointSettings) string {
	if mode != "bridge" || len(connected) != 1 {
		return mode
	}
	for name := range connected {
		if name != podmanDefaultNetwork {
			return name
		}
	}
	return mode
}
