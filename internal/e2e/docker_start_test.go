package e2e

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
)

var (
	starts   = flag.Int("starts", 8, "containers that are started, on each kind of network")
	restarts = flag.Int("restarts", 16, "restarts of containers")
	away     = flag.Duration("away", time.Second, "how long Docker's socket is gone")
)

// startersAtOnce is how many containers are started at the same time.
const startersAtOnce = 4

// networks are the two ways in which a container reaches a server of this node.
var networks = []struct {
	name   string
	to     [4]byte
	hook   string // where its packets are first seen, before any rule of ours
	linger time.Duration
}{
	{"host", localhost, "output", 0},
	// What waits for an answer to ARP is lost when the container ends.
	{"bridge", [4]byte{172, 17, 0, 1}, "prerouting", time.Second},
}

// A scene is a machine with busy cores, an image whose first instructions send to a
// forbidden port and to an allowed one, and who listens there.
type scene struct {
	*machine
	engine             *engine.Docker // nil: it is Podman
	image              string
	forbidden, allowed *probe.UDPSocket
}

func newScene(t *testing.T, hook string, program []byte) *scene {
	t.Helper()
	m, e := newDockerMachine(t)
	s := newSceneOn(t, m, hook, program, e.Image)
	s.engine = e
	return s
}

// newSceneOn is newScene for any engine. The function makeImage makes an image with programs in it.
func newSceneOn(
	t *testing.T, m *machine, hook string, program []byte,
	makeImage func(name string, labels map[string]string, programs ...string) string,
) *scene {
	t.Helper()
	sender := filepath.Join(t.TempDir(), "sender")
	must(t, os.WriteFile(sender, program, 0o755))
	must(t, m.Nft(fmt.Sprintf(`table ip seen {
		counter forbidden { }
		counter allowed { }
		chain c {
			type filter hook %s priority -400
			udp dport 4001 counter name forbidden
			udp dport 4002 counter name allowed
		}
	}`, hook)))
	busy := m.In("busy")
	for range 2 {
		busy.Start("sh", "-c", "while :; do :; done")
	}
	return &scene{
		machine: m, image: makeImage("sender", nil, sender),
		forbidden: m.labelledProbe("other", "app=db").OpenUDP("udp", "0.0.0.0:4001"),
		allowed:   m.labelledProbe("friend", "app=web").OpenUDP("udp", "0.0.0.0:4002"),
	}
}

// sent is how many packets left the containers, as counted before any rule of ours.
func (s *scene) sent(counter string) (packets int) {
	s.t.Helper()
	out := s.Shell("nft list counter ip seen " + counter + " | grep packets")
	_, err := fmt.Sscanf(out, " packets %d", &packets)
	must(s.t, err)
	return packets
}

// each calls f for n containers, some at a time.
func each(n int, f func(name string)) {
	var all sync.WaitGroup
	for worker := range startersAtOnce {
		all.Go(func() {
			for i := worker; i < n; i += startersAtOnce {
				f(fmt.Sprintf("sender-%d", i))
			}
		})
	}
	all.Wait()
}

// Containers whose first instructions send, started and restarted while both cores
// are busy: what is forbidden never arrives, what is allowed always does.
func TestContainersAreKnownBeforeTheirFirstInstruction(t *testing.T) {
	for _, tt := range networks {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, tt.hook, probe.SenderProgram(tt.to, probe.AfterSend{Linger: tt.linger}, 4001, 4002))
			check := func(what string, n int) {
				t.Helper()
				if got := len(s.forbidden.Received()); got != 0 {
					t.Errorf("%s: %d forbidden packets arrived", what, got)
				}
				sent, got := s.sent("allowed"), len(s.allowed.Received())
				if sent != n || s.sent("forbidden") != n {
					t.Errorf("%s: the containers sent %d packets of each kind, want %d", what, sent, n)
				}
				if got != sent {
					t.Errorf("%s: %d of %d allowed packets arrived", what, got, sent)
				}
			}
			began := time.Now()
			each(*starts, func(name string) {
				s.engine.Docker("run", "--name", name, "--net", tt.name, "-l", "app=web", s.image, "sender")
			})
			check("started", *starts)
			t.Logf("%d starts took %v", *starts, time.Since(began))
			began = time.Now()
			each(*starts, func(name string) {
				s.engine.Docker("restart", name)
				s.engine.Docker("wait", name)
			})
			check("restarted", 2**starts)
			t.Logf("%d restarts took %v", *starts, time.Since(began))
		})
	}
}

// Containers that are started while the daemon is dead, and send all the time: below
// a parent of containers nothing arrives, and what is allowed does once it is back.
func TestContainersThatSendWithoutTheDaemon(t *testing.T) {
	for _, tt := range networks {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, tt.hook, probe.SenderProgram(tt.to, probe.AfterSend{Linger: time.Second, Again: true},
				4001, 4002))
			run := func(name string) {
				s.engine.Docker("run", "-d", "--name", name, "--net", tt.name, "-l", "app=web", s.image, "sender")
			}
			run("first") // Docker makes the parent with its first container
			s.untilWorkloads("first")
			s.engine.Docker("rm", "-f", "first")
			s.untilWorkloads()

			s.daemon.Kill()
			_ = s.daemon.Wait() // it was killed
			before, arrived := s.sent("allowed"), len(s.allowed.Received())
			each(*starts, run)
			nstest.WaitFor(t, time.Minute, "the containers to send", func() bool {
				return s.sent("allowed") >= before+*starts
			})
			if got := len(s.allowed.Received()); got > arrived {
				t.Errorf("without the daemon %d packets arrived, want none", got-arrived)
			}
			s.start(followDocker)
			nstest.WaitFor(t, time.Minute, "what is allowed to arrive from all", func() bool {
				return senders(s.allowed.Received()[arrived:]) == *starts
			})
			if got := len(s.forbidden.Received()); got != 0 {
				t.Errorf("%d forbidden packets arrived", got)
			}
		})
	}
}

// senders is from how many sockets datagrams came.
func senders(list []probe.Datagram) int {
	from := map[string]bool{}
	for _, d := range list {
		from[d.From] = true
	}
	return len(from)
}
