package attack

import (
	"testing"

	"golang.org/x/sys/unix"

	"thole/compiler/policy"
	"thole/internal/nstest/engine"
)

// The attacks by sockets of this node, tried by the root of containers on the host's network: with the capabilities
// that Docker gives, and with none.

// dockerCapabilities are those that Docker gives a container: CAP_NET_RAW is one of them, CAP_NET_ADMIN is none.
const dockerCapabilities = 0xa80425fb

// socketAttacks are those that another process of this node may try. Some need raw or packet sockets.
var socketAttacks = []struct {
	name  string
	try   attack
	needs int // a capability, or none
}{
	{"decoy on loopback", decoyOnLoopback, none},
	{"forged answer", forgedAnswer, none},
	{"data in the last ACK, into TIME_WAIT", dataIntoTimeWait, none},
	{"a SYN that conntrack calls an answer", synIsAnswer, none},
	{"connected to itself", connectedToItself, none},
	{"listener of a device", listenerOfDevice, none},
	{"injected datagram of a living flow", injectedDatagram, unix.CAP_NET_RAW},
	{"decoy answers by a raw socket", decoyAnswers, unix.CAP_NET_RAW},
}

const none = -1

func TestSocketAttacksOfContainers(t *testing.T) {
	s := newScene(t, sameLabels)
	// Docker does the same in a container's own network: without a capability it could not share port 80.
	s.Shell("echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start")
	attackers := s.containers(engine.StartDocker(t, s.Host, "--iptables=false", "--bridge=none"))
	for name, yaml := range map[string]string{"labels": sameLabels, "ports": onePort} {
		s.enforce(yaml)
		for _, attacker := range attackers {
			t.Run(name+" "+attacker.name, func(t *testing.T) { s.attacks(t, attacker.agent) })
		}
	}
}

type container struct {
	name string
	*agent
}

// containers starts containers on the host's network, labelled as db is and not at all, with capabilities and without.
func (s *scene) containers(docker *engine.Docker) []container {
	s.t.Helper()
	image := docker.Image("box", nil)
	var list []container
	for _, c := range []struct {
		name         string
		args         []string
		capabilities uint64
	}{{"default", nil, dockerCapabilities}, {"none", []string{"--cap-drop=ALL"}, 0}} {
		for _, labelled := range []bool{true, false} {
			name := map[bool]string{true: "labelled-", false: "unlabelled-"}[labelled] + c.name
			args := append([]string{"--net=host"}, c.args...)
			a := asAgent(s.t, s.Host, docker.Probe(name, append(args, image)...))
			if got := a.capabilities(); got != c.capabilities {
				s.t.Fatalf("capabilities of a container, %s: %x, want %x", name, got, c.capabilities)
			}
			a.unlabelled = !labelled
			if labelled {
				s.label(docker.Cgroup(name).Path()[1:], policy.Labels{"app": "db"})
			}
			list = append(list, container{name, a})
		}
	}
	return list
}

// attacks tries all attacks for which the attacker has the capability.
func (s *scene) attacks(t *testing.T, attacker *agent) {
	for _, f := range families {
		for _, a := range socketAttacks {
			if a.needs == none || attacker.may(a.needs) {
				t.Run(f.name+" "+a.name, func(t *testing.T) { a.try(t, s, false, f, attacker) })
			}
		}
	}
}
