package bench

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/nstest"
)

var bigEndian = binary.BigEndian

const roleFlag = "--role" // the first argument; then the role, and the processor

// A role is a process that answers each number that it is told with what it measured.
type role struct {
	in  io.Writer
	out *bufio.Reader
	end func()
}

// start starts this test binary in a cgroup, on one processor.
func start(b *testing.B, cg *nstest.Cgroup, name string, cpu int) role {
	exe, err := os.Executable()
	must(b, err)
	cmd := cg.Command(exe, roleFlag, name, strconv.Itoa(cpu))
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1") // no signals
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	r := role{in, bufio.NewReader(out), sync.OnceFunc(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})}
	b.Cleanup(r.end)
	_, err = r.out.ReadString('\n') // it is ready
	must(b, err)
	return r
}

// do has the process do n of what it does.
func (r role) do(b *testing.B, n int) map[string]float64 {
	b.Helper()
	fmt.Fprintln(r.in, n)
	line, err := r.out.ReadBytes('\n')
	var measured map[string]float64
	if err == nil {
		err = json.Unmarshal(line, &measured)
	}
	if err != nil {
		b.Fatalf("a role answered %q: %v", line, err)
	}
	return measured
}

// begin has a server begin, which never answers.
func (r role) begin() { fmt.Fprintln(r.in, 0) }

// Roles. The functions are called once the process is alone on its processor; what they return is called for each
// round.
var roles = map[string]func() (func(n int) (map[string]float64, error), error){
	"accepter":    accepter,
	"greeter":     greeter,
	"connecter":   connecter,
	"greeted":     greeted,
	"answerer":    answerer,
	"asker":       asker,
	"asker-short": shortAsker,
	"receiver":    receiver,
	"sender":      sender,
	"sink":        sink,
	"source":      source,
	"fetcher":     fetcher,
	"keeper":      keeper,
}

func playRole(name string) {
	if err := play(name); err != nil {
		fmt.Fprintln(os.Stderr, name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// play answers each number on stdin with what a round of that size measured. The collector is off, and the thread
// has its processor for itself as far as that can be: the runtime's other threads have the others.
func play(name string) error {
	debug.SetGCPercent(-1)
	runtime.LockOSThread()
	cpu, err := strconv.Atoi(os.Args[3])
	if err != nil {
		return err
	}
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("run on processor %d: %w", cpu, err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	round, err := roles[name]()
	if err != nil {
		return err
	}
	fmt.Println("ready")
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

// timed does something n times, and returns the median and the 99th percentile of what a time took, and the mean,
// in µs. A tenth more is done before, so that caches are warm.
func timed(n int, once func() (time.Duration, error)) (map[string]float64, error) {
	times := make([]time.Duration, 0, n)
	var all time.Duration
	for i := -n / 10; i < n; i++ {
		t, err := once()
		if err != nil {
			return nil, err
		}
		if i >= 0 {
			times, all = append(times, t), all+t
		}
	}
	slices.Sort(times)
	return map[string]float64{"p50": us(times[n/2]), "p99": us(times[n*99/100]), "mean": us(all) / float64(n)}, nil
}

func us(t time.Duration) float64 { return float64(t) / float64(time.Microsecond) }
