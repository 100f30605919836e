package engine

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"thole/internal/nstest"
	"thole/internal/nstest/probe"
)

// A container's probe is the test binary, which with its libraries is mounted into the container whatever its image. It
// is told what to do over a socket that is mounted beside it: the test listens, the probe connects as the first thing
// it does. So the engine has no part in their talk, and may be stopped.
const (
	containerControl = "/nstest.sock"
	containerExe     = "/nstest-container" // also the name of the mode: an engine executes argv[0]
)

// Mode is what a package whose tests use Docker.Probe passes to nstest.Main, beside probe.Mode.
var Mode = NewMode(nil)

// NewMode is Mode for a package whose probes have operations of their own.
func NewMode(more probe.Operations) nstest.Mode {
	return nstest.Mode{Name: containerExe, Run: func(args []string) error {
		control, err := net.Dial("unix", containerControl)
		if err != nil {
			return err
		}
		return probe.Serve(args[0], control.(*net.UnixConn), more)
	}}
}

// probes are the probes in the containers of one engine.
type probes struct {
	t    testing.TB
	host *nstest.Host
	dir  string // of the sockets

	// commandBy is the engine's command, run in a cgroup.
	commandBy func(c *nstest.Cgroup, args ...string) *exec.Cmd

	mu        sync.Mutex // guards what follows
	listeners map[string]*net.UnixListener
	probeArgs []string
}

// Probe starts a probe as the first process of a container with that name (Docker wants two letters at least): its
// sockets are born in the container's cgroup and network. The arguments are those of docker run up to and with the
// image ("--net=host", "-l", "app=web", image). Process.Stop ends the container; so does the test's end.
//
// A container with its own network asks for addresses by ARP before it sends. A Barrier covers that where the one who
// is asked is there; give a probe.Target that nobody answers for some Patience.
func (e *probes) Probe(name string, args ...string) *probe.Process {
	e.t.Helper()
	return e.ProbeBy(e.host.In(""), name, args...)
}

// ProbeBy is Probe by a command of the engine that runs in this cgroup of the host.
func (e *probes) ProbeBy(c *nstest.Cgroup, name string, args ...string) *probe.Process {
	e.t.Helper()
	nstest.RequireMode(e.t, containerExe)
	listener, err := e.listen(name)
	if err != nil {
		e.t.Fatalf("nstest: probe %s: %v", name, err)
	}
	run := []string{"run", "--detach", "--name", name, "--entrypoint", containerExe}
	run = append(run, "--volume", listener.Addr().String()+":"+containerControl)
	run = append(run, e.mountExe()...)
	run = append(run, args...)
	if _, err := nstest.Output("run", e.commandBy(c, append(run, name)...)); err != nil {
		e.t.Fatalf("nstest: probe %s: %v", name, err)
	}
	return e.accept(name, listener)
}

// ProbeAgain returns the probe of a container that was started anew ("docker restart"): another process, and without a
// socket. Of the former one nothing is left.
func (e *probes) ProbeAgain(name string) *probe.Process {
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
func (e *probes) listen(name string) (*net.UnixListener, error) {
	path := filepath.Join(e.dir, "probe-"+name)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
	if err != nil {
		return nil, err
	}
	e.host.OnEnd(listener.Close)
	e.mu.Lock()
	if e.listeners == nil {
		e.listeners = map[string]*net.UnixListener{}
	}
	e.listeners[name] = listener
	e.mu.Unlock()
	return listener, os.Chmod(path, 0o777)
}

// mountExe are the arguments of docker run that show the test binary to a container.
func (e *probes) mountExe() []string {
	e.t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.probeArgs != nil {
		return e.probeArgs
	}
	exe, err := os.Executable() // not /proc/self/exe: another process does the mount
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
func (e *probes) accept(name string, listener *net.UnixListener) *probe.Process {
	e.t.Helper()
	_ = listener.SetDeadline(time.Now().Add(nstest.Patience(patience)))
	control, err := listener.AcceptUnix()
	if err != nil {
		logs, _ := nstest.Output("logs", e.commandBy(e.host.In(""), "logs", name))
		e.t.Fatalf("nstest: probe %s does not start: %v\n%s", name, err, logs)
	}
	return probe.Attach(e.host, name, control)
}
