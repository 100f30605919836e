package e2e

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

var benchRounds = flag.Int("rounds", 150, "how often each of those that are compared has its turn")

// A contestant is a namespace with a server and a client of the same labels. Where they are
// compared, they have their turns within one run, since machines are shared and noisy: a
// ratio is taken within a round, where both sides saw the same noise.
type contestant struct {
	client, server role
	rounds         [][]float64 // what the client measured in each
}

// A game is what contestants do. The server sleeps while the client works, where it can, so
// that nothing but the client's own way through the kernel is measured; it empties its queue
// between rounds.
type game struct {
	server, client string // roles
	n              int    // what the client is told for a round
	arrives        bool   // the server has got n of what the client sent
}

// compete has all contestants do their rounds, in turns.
func compete(b *testing.B, g game, all ...*contestant) {
	for i := range *benchRounds {
		for j := range all {
			c := all[(i+j)%len(all)]
			c.rounds = append(c.rounds, c.round(b, g))
		}
	}
}

// round has the client do its work.
func (c *contestant) round(b *testing.B, g game) (measured []float64) {
	fmt.Fprintln(c.client.in, g.n)
	line, err := c.client.out.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &measured)
	}
	if err != nil {
		b.Fatalf("client: %q: %v", line, err)
	}
	if n := c.drain(b); g.arrives && n != g.n {
		b.Fatalf("%d of %d arrived", n, g.n)
	}
	return measured
}

// drain has the server take all that waits, and returns how much that was.
func (c *contestant) drain(b *testing.B) (n int) {
	fmt.Fprintln(c.server.in, "drain")
	line, err := c.server.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscan(line, &n)
	}
	if err != nil {
		b.Fatalf("server: %q: %v", line, err)
	}
	return n
}

// column is the i-th of what was measured in each round.
func (c *contestant) column(i int) (values []float64) {
	for _, round := range c.rounds {
		values = append(values, round[i])
	}
	return values
}

// reportRatio reports the ratios, within each round, of the i-th of what two measured.
func reportRatio(b *testing.B, metric string, i int, of, to *contestant) {
	ratios := of.column(i)
	for round, value := range to.column(i) {
		ratios[round] /= value
	}
	report(b, metric, ratios)
}

// report reports the median of what was measured, and its quartiles (internal/figures).
func report(b *testing.B, metric string, values []float64) {
	slices.Sort(values)
	n := len(values)
	b.ReportMetric(values[n/2], metric)
	b.ReportMetric(values[n/4], metric+":low")
	b.ReportMetric(values[n*3/4], metric+":high")
}

// reportTimes reports durations in a unit.
func reportTimes(b *testing.B, metric string, unit time.Duration, times []time.Duration) {
	var values []float64
	for _, t := range times {
		values = append(values, float64(t)/float64(unit))
	}
	report(b, metric, values)
}

// The roles that this test binary plays when it is started anew in a cgroup.
const (
	roleFlag      = "--role" // the first argument
	roleAccepter  = "accepter"
	roleConnecter = "connecter"
	rolePasser    = "passer"
)

// A role is a process that answers each line that it is told.
type role struct {
	in  io.Writer
	out *bufio.Reader
}

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
	case roleAccepter:
		err = serveConnectsAt(benchAddress)
	case roleConnecter:
		err = play(func(n int) ([]float64, error) { return connectTimesTo(benchAddress, n) })
	case rolePasser:
		err = passSocket()
	case roleStreamServer, roleStreamClient:
		err = playStreams(role == roleStreamClient)
	case roleCaller:
		err = makeCalls()
	case roleAnswerer:
		err = answerCalls()
	case roleFlooder:
		err = sendFlood()
	case roleFarAccepter:
		err = serveConnectsAt(&unix.SockaddrInet4{Port: 4242})
	case roleFarConnecter:
		err = play(func(n int) ([]float64, error) { return connectTimesTo(farAddress, n) })
	case roleFarCrowd:
		err = play(connectCrowd)
	case roleFarSink:
		err = serveBulk(":4242")
	case roleFarSource:
		err = sendBulk("10.0.0.2:4242")
	case rolePostman:
		err = acceptAll()
	case roleBurner:
		err = burn()
	case roleSilent:
		err = holdSilent()
	case roleAsker:
		err = runErrands()
	case roleGreedy, roleControl:
		err = burdens[role].be()
	case roleMarker:
		err = play(sendMarked)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, role, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// play answers each number on stdin with what a round of that size measured.
func play(round func(n int) ([]float64, error)) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			return err
		}
		measured, err := round(n)
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
			return err
		}
	}
	return lines.Err()
}

// drained answers each line on stdin with how much take took.
func drained(take func() int) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(take())
	}
	return lines.Err()
}

var benchAddress = &unix.SockaddrInet4{Port: 4242, Addr: [4]byte{127, 0, 0, 1}}
