package nstest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A container's probe is the test binary, which with its libraries is mounted into the container whatever its image. It
// is told what to do over a socket that is mounted beside it: the test listens, the probe connects as the first thing
// it does. So the engine has no part in their talk, and may be stopped.
const (
	containerControl = "/nstest.sock"
	containerExe     = modeContainer
)

// Probe starts a probe as the first process of a container with that name (Docker wants two letters at least): its
// sockets are born in the container's cgroup and network. The arguments are those of docker run up to and with the
// image ("--net=host", "-l", "app=web", image). Probe.Stop ends the container; so does the test's end.
//
// A container with its own network asks for addresses by ARP before it sends. A Barrier covers that where the one who
// is asked is there; give a Target that nobody answers for some Patience.
func (e *Engine) Probe(name string, args ...string) *Probe {
	e.t.Helper()
	listener, err := e.listen(name)
	if err != nil {
		e.t.Fatalf("nstest: probe %s: %v", name, err)
	}
	run := []string{"run", "--detach", "--name", name, "--entrypoint", containerExe}
	run = append(run, "--volume", listener.Addr().String()+":"+containerControl)
	run = append(run, e.mountExe()...)
	run = append(run, args...)
	e.Docker(append(run, name)...)
	return e.accept(name, listener)
}

// ProbeAgain returns the probe of a container that was started anew ("docker restart"): another process, and without a
// socket. Of the former one nothing is left.
func (e *Engine) ProbeAgain(name string) *Probe {
	e.t.Helper()
	e.mu.Lock()
	listener := e.listeners[name]
	e.mu.Unlock()
	if listener == nil {
		e.t.Fatalf("nstest: container %s was not started by Probe", name)
	}
	return e.accept(name, listener)
}

// listen makes the socket to which the probe of that name connects, which may be another user in the container.
func (e *Engine) listen(name string) (*net.UnixListener, error) {
	path := filepath.Join(e.dir, "probe-"+name)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	e.host.onEnd(listener.Close)
	e.mu.Lock()
	e.listeners[name] = listener
	e.mu.Unlock()
	return listener, os.Chmod(path, 0o777)
}

// mountExe are the arguments of docker run that show the test binary to a container.
func (e *Engine) mountExe() []string {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.probeArgs != nil {
		return e.probeArgs
	}
	exe, err := os.Executable() // not selfExe: another process does the mount
	if err != nil {
		e.t.Fatalf("nstest: %v", err)
	}
	e.probeArgs = []string{"--volume", exe + ":" + containerExe + ":ro"}
	for _, library := range libraries(exe) {
		e.probeArgs = append(e.probeArgs, "--volume", library+":"+library+":ro")
	}
	return e.probeArgs
}

// accept returns the probe that connects next.
func (e *Engine) accept(name string, listener *net.UnixListener) *Probe {
	e.t.Helper()
	_ = listener.SetDeadline(time.Now().Add(Patience(enginePatience)))
	control, err := listener.AcceptUnix()
	if err != nil {
		logs, _ := e.TryDocker("logs", name)
		e.t.Fatalf("nstest: probe %s does not start: %v\n%s", name, err, logs)
	}
	pid, err := peerPID(control)
	if err != nil {
		e.t.Fatalf("nstest: probe %s: %v", name, err)
	}
	p := e.host.probeOn(name, control)
	p.setPID(pid)
	return p
}

// peerPID returns the process at the other end as this one sees it, also if it is in another pid namespace.
func peerPID(conn *net.UnixConn) (int, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	if controlErr := raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); controlErr != nil {
		return 0, controlErr
	}
	if err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}

// playContainer is playProbe in a container.
func playContainer() error {
	control, err := net.Dial("unix", containerControl)
	if err != nil {
		return err
	}
	return serveProbe(os.Args[1], control.(*net.UnixConn))
}

// childPID translates the number of a probe's child from the pid namespace of the probe to that of the test.
func (p *Probe) childPID(pid int) (int, error) {
	children, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.pid))
	for _, file := range children {
		list, _ := os.ReadFile(file)
		for _, child := range strings.Fields(string(list)) {
			if innermostPID(child) == strconv.Itoa(pid) {
				return strconv.Atoi(child)
			}
		}
	}
	return 0, fmt.Errorf("probe %s has no child %d", p.Name, pid)
}

// innermostPID returns the number that the process has in its own pid namespace.
func innermostPID(pid string) string {
	status, _ := os.ReadFile("/proc/" + pid + "/status")
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			fields := strings.Fields(numbers)
			return fields[len(fields)-1]
		}
	}
	return ""
}
