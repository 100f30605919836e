package nstest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command is exec.Command for a program that runs in the host and is in the cgroup from its first instruction: the
// process is born there (CLONE_INTO_CGROUP), enters the namespaces and becomes the program, with the same pid. Its
// SysProcAttr may be added to, not replaced. Who starts it waits for it; Start does so by itself.
func (c *Cgroup) Command(name string, args ...string) *exec.Cmd {
	program, err := exec.LookPath(name)
	if err == nil && program != selfExe {
		program, err = filepath.Abs(program)
	}
	return &exec.Cmd{
		Path:        selfExe,
		Args:        c.host.enterArgs(c.uid, program, append([]string{name}, args...)),
		SysProcAttr: &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.dir.Fd())},
		Err:         err,
	}
}

// Command starts a program in the host's root cgroup, where nothing is labelled.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	h.t.Helper()
	return h.root.Command(name, args...)
}

// A Process is a program that was started and is ended with the host.
type Process struct {
	*os.Process
	output *os.File
	done   chan struct{} // closed when it has ended
	err    error         // of Wait; valid when done
}

// Start starts a program in the cgroup. What it writes is collected, and logged if the test fails.
func (c *Cgroup) Start(name string, args ...string) *Process {
	c.host.t.Helper()
	return c.host.StartCommand(c.Command(name, args...))
}

// StartCommand is Cgroup.Start for a command of one of the host's cgroups.
func (h *Host) StartCommand(cmd *exec.Cmd) *Process {
	h.t.Helper()
	output, err := newOutput()
	if err != nil {
		h.t.Fatalf("nstest: %v", err)
	}
	h.OnEnd(output.Close)
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		h.t.Fatalf("nstest: starting %v: %v", cmd.Args, err)
	}
	p := &Process{Process: cmd.Process, output: output, done: make(chan struct{})}
	h.mu.Lock()
	h.started = append(h.started, p)
	h.mu.Unlock()
	h.t.Cleanup(func() {
		if h.t.Failed() && p.Output() != "" {
			h.t.Logf("output of %v:\n%s", cmd.Args, p.Output())
		}
	})
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p
}

// newOutput returns a file in memory. Unlike a pipe it has no reader, so Wait does not wait for a daemon's children.
func newOutput() (*os.File, error) {
	fd, err := unix.MemfdCreate("nstest-output", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_RDWR|unix.O_APPEND)
	return os.NewFile(uintptr(fd), "output"), err
}

// Wait waits until the process has ended, and returns its error as exec.Cmd.Wait does.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output is what the process has written until now, to stdout and stderr.
func (p *Process) Output() string {
	out, _ := io.ReadAll(io.NewSectionReader(p.output, 0, 1<<30))
	return string(out)
}

// Shell runs a script of sh in the host's root cgroup and returns what it wrote. A failing command ends it, and the
// test.
func (h *Host) Shell(script string) string {
	h.t.Helper()
	return h.root.Shell(script)
}

// Shell runs a script of sh in the cgroup and returns what it wrote. A failing command ends it, and the test.
func (c *Cgroup) Shell(script string) string {
	c.host.t.Helper()
	out, err := c.run(script, "sh", "-e")
	if err != nil {
		c.host.t.Fatalf("nstest: %v\n%s", err, script)
	}
	return out
}

// Nft loads a script of nft, in one transaction, and returns what nft had to say against it.
func (h *Host) Nft(script string) error {
	_, err := h.root.run(script, "nft", "-f", "-")
	return err
}

// NftList returns the whole ruleset of the host, as nft prints it.
func (h *Host) NftList() string {
	h.t.Helper()
	out, err := h.root.run("", "nft", "list", "ruleset")
	if err != nil {
		h.t.Fatalf("nstest: %v", err)
	}
	return out
}

func (c *Cgroup) run(stdin, name string, args ...string) (stdout string, err error) {
	cmd := c.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	return Output(name, cmd)
}

// Output runs a command and returns what it wrote to stdout. The error contains what it wrote to stderr, and calls it
// name.
func Output(name string, cmd *exec.Cmd) (stdout string, err error) {
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %v: %s", name, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
