package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/api"
	"thole/internal/nstest/engine"
	"thole/internal/nstest/probe"
	"thole/ruleset"
	"thole/ruleset/kernel"
	"thole/watch/cgroupfs"
)

// Containers that are restarted again and again, while sockets of others outlive
// their cgroups: nothing piles up, and what outlived never becomes free.
func TestRestartsLeaveNothing(t *testing.T) {
	const containers = 8
	m, e := newDockerMachine(t)
	web := m.labelledProbe("friend", "app=web").OpenUDP("udp", "127.0.0.1:4002")
	free := probe.Start(m.In("shell"), "shell").OpenUDP("udp", "127.0.0.1:4001")
	passed := passedSocket(t, e, "passer", "-l", "app=web")
	orphan := passedSocket(t, e, "orphan") // unlabelled: nobody knows whose it was when its cgroup is gone
	closed := func(when string) {
		t.Helper()
		checkSender(t, passed, web, free, when)
	}
	closed("with its container")
	e.Docker("rm", "-f", "passer", "orphan")
	m.until("the socket to be known as one that outlived", func(s api.Status) bool {
		return s.Ended == 1 && s.Workloads == 1
	})
	closed("without its container")

	// As long as the kernel holds one removed cgroup, nothing proves that it holds no other.
	runListeners(e, containers)
	root, err := cgroupfs.RootAt(m.CgroupDir(""))
	must(t, err)
	measure := func() footprint {
		t.Helper()
		m.until("all containers, and nothing that ended", func(s api.Status) bool {
			return s.Workloads == containers+1 && s.Ended == 0
		})
		m.checkCgroupsOfTable(root)
		return m.footprint()
	}
	docker := newProxy(t, e)
	restart := func(n int) {
		each(n, func(name string) {
			var i int
			fmt.Sscanf(name, "sender-%d", &i) //nolint:errcheck // each made it
			if err := docker.post(fmt.Sprintf("/containers/sender-%d/restart?t=0", i%containers)); err != nil {
				t.Error(err)
			}
		})
	}
	began := time.Now()
	restart(*restarts / 3)
	closed("after a third of the restarts")
	m.until("what was restarted to be kept", func(s api.Status) bool {
		return s.Workloads == containers+1 && s.Ended > 1 && s.Ended <= 1+*restarts/3
	})
	must(t, passed.Close())
	must(t, orphan.Close())
	before := measure()
	restart(*restarts - *restarts/3)
	after := measure()
	t.Logf("%d restarts took %v; after a third of them %+v, after all %+v",
		*restarts, time.Since(began), before, after)
	if *restarts < 300 { // the heap is still finding its size
		before.memory = after.memory
	}
	before.mayGrowTo(t, after)
	m.checkGoroutines()
}

// runListeners runs n containers on the host's network or on a bridge.
func runListeners(e *engine.Docker, n int) {
	image := e.Image("box", nil)
	each(n, func(name string) {
		network := "host"
		if name[len(name)-1]%2 == 1 {
			network = "bridge"
		}
		// nc holds a socket; Docker kills it at each restart.
		port := "90" + name[len(name)-1:] + "0"
		e.Docker("run", "-d", "--name", name, "--net", network, "-l", "app="+name, image, "nc", "-l", "-p", port)
	})
}

// checkGoroutines ends the daemon, and fails the test if it had many goroutines.
func (m *machine) checkGoroutines() {
	m.t.Helper()
	must(m.t, m.daemon.Signal(syscall.SIGQUIT)) // it prints its goroutines
	_ = m.daemon.Wait()
	if n := strings.Count(m.daemon.Output(), "\ngoroutine "); n == 0 || n > 60 {
		m.t.Errorf("the daemon has %d goroutines, want some, and not many", n)
	}
}

// checkSender sends a datagram from a socket that outlived its cgroup, to web, which its labels allow, and to free,
// which is unlabelled.
func checkSender(t *testing.T, passed *os.File, web, free *probe.UDPSocket, when string) {
	t.Helper()
	must(t, sendTo(passed, 4002, when))
	if err := sendTo(passed, 4001, when); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		t.Fatal(err)
	}
	if free.Got(when) {
		t.Errorf("%s, a socket that outlived its cgroup reached an unlabelled one", when)
	}
	if !web.Got(when) {
		t.Errorf("%s, a socket that outlived its cgroup did not reach what its labels allow", when)
	}
}

// checkCgroupsOfTable fails the test if the table has a cgroup that is gone.
func (m *machine) checkCgroupsOfTable(root cgroupfs.Root) {
	m.t.Helper()
	for id, set := range m.cgroupsOfTable() {
		lives, err := root.Lives(id)
		must(m.t, err)
		if !lives {
			m.t.Errorf("the set %s has the cgroup %d, which is gone, and nothing is left of it", set, id)
		}
	}
}

// A footprint is what a daemon and its table take.
type footprint struct {
	elements, files, watches, threads, remembered int
	memory                                        int // kB
}

func (m *machine) footprint() (f footprint) {
	m.t.Helper()
	table := m.loaded()
	for _, set := range append(table.Sets, table.Bridge.Sets...) {
		f.elements += len(set.Elements)
	}
	pid := m.daemon.Pid
	out := m.Shell(fmt.Sprintf(`cd /proc/%d
		ls fd | wc -l; cat fdinfo/* 2>/dev/null | grep -c ^inotify; ls task | wc -l
		stat -c %%s /run/state/table.json; awk '/^RssAnon/ {print $2}' status`, pid))
	_, err := fmt.Sscan(out, &f.files, &f.watches, &f.threads, &f.remembered, &f.memory)
	must(m.t, err)
	return f
}

// mayGrowTo fails the test where a later footprint is larger by more than chance.
func (f footprint) mayGrowTo(t *testing.T, later footprint) {
	t.Helper()
	for _, of := range []struct {
		what           string
		before, after  int
		slack, percent int
	}{
		{"elements of the table", f.elements, later.elements, 0, 0},
		{"open files", f.files, later.files, 8, 0}, // connections to Docker
		{"watched directories", f.watches, later.watches, 2, 0},
		{"threads", f.threads, later.threads, 6, 0},
		{"bytes remembered", f.remembered, later.remembered, 64, 0}, // ids have more digits
		{"kB of memory", f.memory, later.memory, 4 << 10, 20},
	} {
		if most := of.before + of.before*of.percent/100 + of.slack; of.after > most {
			t.Errorf("%s: %d, and %d before: want at most %d", of.what, of.after, of.before, most)
		}
	}
}

// loaded reads the table.
func (m *machine) loaded() (table *ruleset.Table) {
	m.t.Helper()
	var err error
	must(m.t, m.Do(func() {
		var conn *kernel.Conn
		if conn, err = kernel.Open(kernel.Options{}); err == nil {
			table, err = conn.Read("thole")
			err = errors.Join(err, conn.Close())
		}
	}))
	must(m.t, err)
	return table
}

// cgroupsOfTable are the cgroups in the table's sets, with the name of one.
func (m *machine) cgroupsOfTable() map[uint64]string {
	m.t.Helper()
	found := map[uint64]string{}
	for _, set := range m.loaded().Sets {
		for _, e := range set.Elements {
			for i, key := range set.Key {
				if key == ruleset.CgroupV2 {
					found[e.Key[i].From.Uint64()] = set.Name
				}
			}
		}
	}
	return found
}

// passedSocket has a container on the host's network hand over a UDP socket.
func passedSocket(t *testing.T, e *engine.Docker, name string, args ...string) *os.File {
	t.Helper()
	path := filepath.Join(filepath.Dir(e.Socket), name+".sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	must(t, err)
	defer listener.Close()
	exe, err := os.Executable()
	must(t, err)
	image := e.Image(name, nil, exe)
	run := append([]string{"run", "-d", "--name", name, "--net=host", "-v", path + ":/pass.sock"}, args...)
	e.Docker(append(run, image, filepath.Base(exe), roleFlag, rolePasser)...)
	must(t, listener.SetDeadline(time.Now().Add(20*time.Second)))
	conn, err := listener.AcceptUnix()
	must(t, err)
	defer conn.Close()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	must(t, err)
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	must(t, err)
	if len(messages) != 1 {
		t.Fatalf("%s passed %d messages", name, len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	must(t, err)
	file := os.NewFile(uintptr(fds[0]), name)
	t.Cleanup(func() { file.Close() })
	return file
}

// passSocket is the role of a container that hands over a socket, and waits.
func passSocket() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: localhost}); err != nil {
		return err
	}
	conn, err := net.Dial("unix", "/pass.sock")
	if err != nil {
		return err
	}
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix([]byte{0}, unix.UnixRights(fd), nil); err != nil {
		return err
	}
	select {}
}

// sendTo sends a datagram from a socket of another namespace to its localhost.
func sendTo(socket *os.File, port int, data string) error {
	return unix.Sendto(int(socket.Fd()), []byte(data), 0, &unix.SockaddrInet4{Port: port, Addr: localhost})
}
