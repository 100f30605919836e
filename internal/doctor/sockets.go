package doctor

import (
	"errors"
	"fmt"

	"thole/datapath/sockets"
	"thole/internal/api"
	"thole/internal/exposure"
)

// socketListing checks that the kernel lists sockets with their cgroups.
func socketListing() Finding {
	f := Finding{Check: "socket listing", Status: OK, Found: "sock_diag, with cgroups"}
	bare := 0 // sockets without a cgroup
	err := sockets.Bound(func(s sockets.Socket) bool {
		if s.Cgroup == 0 {
			bare++
		}
		return bare == 0
	})
	if err == nil && bare > 0 {
		err = errors.New("listing sockets: without their cgroups (INET_DIAG_CGROUP_ID)")
	}
	if err != nil {
		return f.warning(err.Error(),
			"exposed sockets cannot be named",
			"boot a kernel (5.9 or newer) with CONFIG_INET_TCP_DIAG and CONFIG_INET_UDP_DIAG")
	}
	return f
}

// mendExposure says what a person can do about an exposure. --local-routes is no help against BPF.
var mendExposure = map[exposure.Reason]string{
	exposure.BoundToDevice: "bind the program to an address, not to a device",
	exposure.MixedDevices:  "end the program that is not meant to share the port",
	exposure.SharedPort:    "give each program a port of its own, or all the same labels",
}

// exposedSockets names the live sockets that the table can be bypassed through. The daemon looks for them when it is
// asked for its status.
func exposedSockets(s api.Status) []Finding {
	const check = "exposed sockets"
	if s.Sockets == nil {
		return nil // nothing is enforced, or a problem says why they cannot be listed
	}
	findings := []Finding{decoys(s.LocalRoutes)}
	for _, e := range s.Sockets.Exposed {
		f := Finding{Check: check}
		findings = append(findings, f.warning(e.Where()+": "+e.Text,
			"one direction of what a policy denies may be delivered", mendExposure[e.Reason]))
	}
	f := Finding{Check: check, Status: OK, Found: fmt.Sprintf("none of %d", s.Sockets.Examined)}
	switch {
	case !s.Sockets.Complete:
		f = f.warning(fmt.Sprintf("%d sockets were examined, not all", s.Sockets.Examined),
			"other sockets may be exposed",
			"ss -lntup")
	case len(s.Sockets.Exposed) > 0:
		return findings
	}
	return append(findings, f)
}

// decoys says whether a socket that is bound to lo can be judged in the place of another. Where local routes were
// wanted and failed, a problem of the daemon's says why.
func decoys(r api.LocalRoutesStatus) Finding {
	f := Finding{Check: "decoys", Status: OK, Found: "open: see --local-routes of thole daemon"}
	switch {
	case r.On && r.Error == "":
		f.Found = fmt.Sprintf("closed by --local-routes, for %d addresses; open for IPv6 link-local addresses",
			r.Addresses)
	case r.On:
		return f.warning("open: --local-routes failed",
			"a datagram may reach a workload that its sender may not reach", "thole status")
	}
	return f
}
