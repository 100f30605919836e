package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
	"thole/policies"
)

// BenchmarkConnect measures how long a connect takes between two processes of the
// same labels, as ratios to namespaces without Thole. The three are measured in
// turns within one run, since this machine is shared and noisy: a ratio is taken
// within a round, where both sides saw the same noise.
func BenchmarkConnect(b *testing.B) {
	const rounds, connects = 150, 200
	thole := newContestant(b, func(n *node) { n.enforce(policies.Default) })
	conntrack := newContestant(b, func(n *node) {
		must(n.t, n.Nft("table inet t { chain c { type filter hook input priority 0; ct state established accept; }; }"))
	})
	nothing := newContestant(b, func(*node) {})
	all := []*contestant{thole, conntrack, nothing}
	for _, c := range all {
		c.round(b, connects) // warm
	}
	for b.Loop() {
		for i := range rounds {
			for j := range all {
				c := all[(i+j)%len(all)]
				c.rounds = append(c.rounds, c.round(b, connects))
			}
		}
	}
	for _, against := range []struct {
		name string
		*contestant
	}{{"conntrack", conntrack}, {"nothing", nothing}} {
		for _, p := range []int{50, 99} {
			low, mid, high := ratios(thole, against.contestant, p)
			b.ReportMetric(mid, fmt.Sprintf("p%d/%s", p, against.name))
			fmt.Printf("connect p%d against %-9s  %.3f   (quartiles of %d rounds: %.3f to %.3f)\n", p, against.name, mid, len(thole.rounds), low, high)
		}
	}
	fmt.Printf("connect p50: thole %v, conntrack %v, nothing %v\n", thole.median(50), conntrack.median(50), nothing.median(50))
}

// A contestant is a namespace with a server and a client of the same labels. The
// server sleeps while the client connects, so that nothing but the client's own way
// through the kernel is measured; it empties its queue between rounds.
type contestant struct {
	client, server role
	rounds         []percentiles
}

// A role is a process that answers each line that it is told.
type role struct {
	in  io.Writer
	out *bufio.Reader
}

type percentiles struct{ p50, p99 time.Duration }

func (p percentiles) at(n int) time.Duration {
	if n == 50 {
		return p.p50
	}
	return p.p99
}

func newContestant(b *testing.B, setup func(*node)) *contestant {
	n := &node{t: b, Host: nstest.New(b)}
	server := n.label("thole.slice/server", app("web"))
	client := n.label("thole.slice/client", app("web"))
	setup(n)
	c := &contestant{server: startRole(b, server, roleServer)}
	c.drain(b)
	c.client = startRole(b, client, roleClient)
	return c
}

// drain has the server accept all that waits.
func (c *contestant) drain(b *testing.B) {
	fmt.Fprintln(c.server.in, "drain")
	if line, err := c.server.out.ReadString('\n'); err != nil {
		b.Fatalf("server: %q: %v", line, err)
	}
}

// round has the client connect n times.
func (c *contestant) round(b *testing.B, n int) percentiles {
	fmt.Fprintln(c.client.in, n)
	times := make([]uint64, n)
	if err := binary.Read(c.client.out, binary.LittleEndian, times); err != nil {
		b.Fatal(err)
	}
	c.drain(b)
	slices.Sort(times)
	return percentiles{time.Duration(times[n/2]), time.Duration(times[n*99/100])}
}

func (c *contestant) median(p int) time.Duration {
	var all []time.Duration
	for _, r := range c.rounds {
		all = append(all, r.at(p))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// ratios returns quartiles of the rounds' ratios.
func ratios(a, b *contestant, p int) (low, mid, high float64) {
	var all []float64
	for i := range a.rounds {
		all = append(all, float64(a.rounds[i].at(p))/float64(b.rounds[i].at(p)))
	}
	slices.Sort(all)
	return all[len(all)/4], all[len(all)/2], all[len(all)*3/4]
}

// The roles that this test binary plays when it is started anew in a cgroup.
const (
	roleFlag   = "--role" // the first argument
	roleServer = "server"
	roleClient = "client"
	rolePasser = "passer"
)

func startRole(b *testing.B, cg *nstest.Cgroup, name string) role {
	exe, err := os.Executable()
	must(b, err)
	cmd := cg.Command(exe, roleFlag, name)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() { endRole(cmd, in) })
	return role{in, bufio.NewReader(out)}
}

func endRole(cmd *exec.Cmd, in io.Closer) {
	in.Close()
	cmd.Process.Kill()
	cmd.Wait()
}

// playRole is what a process with a role does instead of tests.
func playRole(role string) {
	var err error
	switch role {
	case roleServer:
		err = serveConnects()
	case roleClient:
		err = makeConnects()
	case rolePasser:
		err = passSocket()
	case roleStreamServer, roleStreamClient:
		err = playStreams(role == roleStreamClient)
	case roleCaller:
		err = makeCalls()
	case roleAnswerer:
		err = answerCalls()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

var benchAddress = &unix.SockaddrInet4{Port: 4242, Addr: [4]byte{127, 0, 0, 1}}

// serveConnects listens; for each line it accepts and closes what waits, and answers.
func serveConnects() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, benchAddress); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return err
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		for {
			conn, _, err := unix.Accept(fd)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err == nil {
				unix.Close(conn)
			}
		}
		fmt.Println("empty")
	}
	return lines.Err()
}

// makeConnects reads numbers and answers each with as many durations, in nanoseconds.
func makeConnects() error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		n, err := strconv.Atoi(strings.TrimSpace(lines.Text()))
		if err != nil {
			return err
		}
		times := make([]uint64, n)
		for i := range times {
			if times[i], err = connectOnce(); err != nil {
				return err
			}
		}
		if err := binary.Write(os.Stdout, binary.LittleEndian, times); err != nil {
			return err
		}
	}
	return lines.Err()
}

// connectOnce times a connect. It closes with a reset, so that ports are not used up.
func connectOnce() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	start := time.Now()
	if err := unix.Connect(fd, benchAddress); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return uint64(took), unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
