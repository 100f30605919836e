package exposure

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	web  = Owner{Workload: "web", Cgroup: "web", Side: 1, Selected: true}
	web2 = Owner{Workload: "web2", Cgroup: "web2", Side: 1, Selected: true} // its equal
	db   = Owner{Workload: "db", Cgroup: "db", Side: 2, Selected: true}
	run  = Owner{Workload: "run", Cgroup: "run", Side: 3, Selected: true, Users: true}
	open = Owner{Workload: "open", Cgroup: "open", Side: 4} // no policy selects it
	free = Owner{Cgroup: "dns"}
)

// at is a socket: "udp 0.0.0.0:53 lo".
func at(place string, o Owner) Socket {
	words := strings.Fields(place)
	address := netip.MustParseAddrPort(words[1])
	s := Socket{Protocol: words[0], Address: address.Addr(), Port: address.Port(), Owner: o}
	for _, word := range words[2:] {
		switch word {
		case "only6":
			s.OnlyV6 = true
		case "uid1":
			s.UID = 1
		default:
			s.Device = word
		}
	}
	return s
}

func TestFind(t *testing.T) {
	for _, test := range []struct {
		name    string
		sockets []Socket
		want    []string // what is found
		routed  []string // what is left of it with local routes
	}{
		{"one socket", []Socket{at("udp 0.0.0.0:53", web)}, nil, nil},
		{"stub resolver and dnsmasq", []Socket{at("udp 127.0.0.53:53 lo", free), at("udp 127.0.0.1:53", web)},
			nil, nil},
		{"a wildcard beside an address", []Socket{at("udp 0.0.0.0:53", free), at("udp 10.0.0.1:53", web)}, nil, nil},
		{"other ports", []Socket{at("udp 0.0.0.0:53 lo", free), at("udp 0.0.0.0:54", web)}, nil, nil},
		{"other protocols", []Socket{at("udp 0.0.0.0:53 lo", free), at("tcp 0.0.0.0:53", web)}, nil, nil},
		{"multicast DNS", []Socket{at("udp 224.0.0.251:5353 eth0", web), at("udp [ff02::fb]:5353 eth0", web),
			at("udp 255.255.255.255:67 eth0", web)}, nil, nil},

		{"device, UDP", []Socket{at("udp 0.0.0.0:68 eth0", web)}, []string{"bound-to-device udp 68: web"}, nil},
		{"device, IPv6", []Socket{at("udp [::]:68 eth0", web)}, []string{"bound-to-device udp 68: web"},
			[]string{"bound-to-device udp 68: web"}},
		{"device, an address", []Socket{at("udp [fd00::1]:68 eth0", web)}, []string{"bound-to-device udp 68: web"},
			nil},
		{
			"link-local", []Socket{at("udp [fe80::1%eth0]:546 eth0", web)},
			[]string{"bound-to-device udp 546: web"}, []string{"bound-to-device udp 546: web"},
		},
		{"device, lo", []Socket{at("udp 0.0.0.0:53 lo", web)}, nil, nil},
		{"device, TCP", []Socket{at("tcp 0.0.0.0:80 eth0", web)}, nil, nil},
		{"device, unlabelled", []Socket{at("udp 0.0.0.0:68 eth0", free)}, nil, nil},
		{"device, not selected", []Socket{at("udp 0.0.0.0:68 eth0", open)}, nil, nil},

		{"decoy", []Socket{at("udp 0.0.0.0:53", db), at("udp 0.0.0.0:53 lo", web)},
			[]string{"mixed-devices udp 53: web, db"}, nil},
		{"decoy, TCP", []Socket{at("tcp 0.0.0.0:80", db), at("tcp 0.0.0.0:80 lo", free)},
			[]string{"mixed-devices tcp 80: db, unlabelled dns"}, nil},
		{
			"decoy of the two families", []Socket{at("udp 0.0.0.0:53", db), at("udp [::]:53 lo", free)},
			[]string{"mixed-devices udp 53: db, unlabelled dns"}, nil,
		},
		{"other families", []Socket{at("udp 0.0.0.0:53", db), at("udp [::]:53 lo only6", free)}, nil, nil},
		{
			"decoy for link-local addresses", []Socket{at("udp [::]:53 only6", db), at("udp [::]:53 lo only6", free)},
			[]string{"mixed-devices udp 53: db, unlabelled dns"}, []string{"mixed-devices udp 53: db, unlabelled dns"},
		},
		{
			"an address beside a mapped one",
			[]Socket{at("udp [::ffff:10.0.0.1]:53", db), at("udp 10.0.0.1:53 lo", free)},
			[]string{"mixed-devices udp 53: db, unlabelled dns"}, nil,
		},
		{"decoy of an equal workload", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53 lo", web2)}, nil, nil},
		{"only loopback addresses in common", []Socket{at("udp 0.0.0.0:53 lo", web), at("udp 127.0.0.1:53", db)},
			nil, nil},
		{"two devices, neither lo, TCP", []Socket{at("tcp 0.0.0.0:80 eth0", web), at("tcp 0.0.0.0:80 eth1", db)},
			nil, nil},
		{
			"a device beside none", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53 eth0", free)},
			[]string{"mixed-devices udp 53: web, unlabelled dns"}, nil,
		},

		{"group, UDP", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53", db)},
			[]string{"shared-port udp 53: db, web"}, []string{"shared-port udp 53: db, web"}},
		{"group, TCP, loopback", []Socket{at("tcp 127.0.0.1:80", web), at("tcp 127.0.0.1:80", free)},
			[]string{"shared-port tcp 80: web, unlabelled dns"}, []string{"shared-port tcp 80: web, unlabelled dns"}},
		{"group of one workload", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53", web)}, nil, nil},
		{"group of equal workloads", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53", web2)}, nil, nil},
		{"group of unlabelled sockets",
			[]Socket{at("udp 0.0.0.0:53", free), at("udp 0.0.0.0:53", Owner{Cgroup: "other"})}, nil, nil},
		{"group of what is not selected", []Socket{at("udp 0.0.0.0:53", open), at("udp 0.0.0.0:53", free)}, nil, nil},
		{"one port, two users", []Socket{at("udp 0.0.0.0:53", web), at("udp 0.0.0.0:53 uid1", db)}, nil, nil},

		{"what users bring about comes last", []Socket{at("udp 0.0.0.0:1 eth0", run), at("udp 0.0.0.0:2 eth0", web)},
			[]string{"bound-to-device udp 2: web", "bound-to-device udp 1: run"}, nil},
	} {
		for routes, want := range map[bool][]string{false: test.want, true: test.routed} {
			found, complete := Find(test.sockets, Options{LocalRoutes: routes})
			var got []string
			for _, e := range found {
				var owners []string
				for _, s := range e.Sockets {
					owners = append(owners, s.Owner.String())
				}
				got = append(got, fmt.Sprintf("%s %s %d: %s", e.Reason, e.Protocol, e.Port, strings.Join(owners, ", ")))
			}
			if diff := cmp.Diff(want, got); diff != "" || !complete {
				t.Errorf("%s, local routes %t, complete %t (-want +got):\n%s", test.name, routes, complete, diff)
			}
		}
	}
}

func TestByUsers(t *testing.T) {
	for _, test := range []struct {
		owners []Owner
		want   bool
	}{
		{[]Owner{run}, true},
		{[]Owner{run, free}, true},
		{[]Owner{run, open}, true}, // nothing of open's is restricted
		{[]Owner{run, web}, false},
		{[]Owner{web, free}, false},
	} {
		var e Exposure
		for _, o := range test.owners {
			e.Sockets = append(e.Sockets, Socket{Owner: o})
		}
		if got := e.ByUsers(); got != test.want {
			t.Errorf("%v: %t", test.owners, got)
		}
	}
}

// TestBounds has more on one port, and more ports, than are looked at: what is a workload's is looked at first.
func TestBounds(t *testing.T) {
	var many []Socket
	for i := range MaxPerPort {
		many = append(many, at("udp 0.0.0.0:53", Owner{Cgroup: fmt.Sprint(i)}))
	}
	decoy := append(many[:MaxPerPort-1:MaxPerPort-1], at("udp 0.0.0.0:53 lo", web))
	found, complete := Find(decoy, Options{})
	if !complete || len(found) != 1 || len(found[0].Sockets) != MaxPerPort {
		t.Errorf("at the bound of a port: %d, complete %t", len(found), complete)
	}
	found, complete = Find(append(decoy, many[MaxPerPort-1]), Options{})
	if complete || len(found) != 1 || found[0].Sockets[0].Owner != web {
		t.Errorf("beyond the bound of a port: %d, complete %t", len(found), complete)
	}
	var ports []Socket
	for i := range MaxExposures {
		ports = append(ports, at(fmt.Sprintf("udp 0.0.0.0:%d eth0", i+1), run))
	}
	if found, complete := Find(ports, Options{}); !complete || len(found) != MaxExposures {
		t.Errorf("at the bound of exposures: %d, complete %t", len(found), complete)
	}
	found, complete = Find(append(ports, at("udp 0.0.0.0:999 eth0", web)), Options{})
	if complete || len(found) != MaxExposures || found[0].Sockets[0].Owner != web {
		t.Errorf("beyond the bound of exposures: %d, complete %t", len(found), complete)
	}
}
