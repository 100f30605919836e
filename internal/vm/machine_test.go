//go:build vm

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"thole/internal/api"
	"thole/internal/nstest"
	"thole/policies"
)

const (
	self     = "/guest/.program" // this program, in the VM
	patience = 3 * time.Minute   // for what takes a second there, if nothing else wants the processors
	policy   = "/etc/thole/policies/"
)

// The program plays servers and clients, too:
//
//	serve ADDRESS        accepts TCP connections, until it is killed
//	dial ADDRESS         exits with 0 if it is connected, 1 if it is refused, 2 else
//	record ADDRESS FILE  appends a line to the file for each datagram
//	call FILE ADDRESS... calls servers, and writes what came of it (first_start_test.go)
//	escape ADDRESS TREE CGROUP
//	                     tries to have the tree mounted without nsdelegate, moves itself into
//	                     the cgroup, says what came of that, and dials
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "serve":
			serve(os.Args[2])
		case "dial":
			os.Exit(dial(os.Args[2]))
		case "record":
			record(os.Args[2], os.Args[3])
		case "call":
			call(os.Args[2], os.Args[3:])
			os.Exit(0)
		case "escape":
			escape(os.Args[3], os.Args[4])
			os.Exit(dial(os.Args[2]))
		}
	}
	if os.Getenv("VM_GUEST") == "" {
		fmt.Fprintln(os.Stderr, "these tests change the machine they run in: use make test-vm")
		os.Exit(1)
	}
	flag.Parse()
	again := choose(os.Getenv("VM_BOOT"))
	if os.Getenv(firstStart) == "" {
		prepare()
	}
	code := m.Run()
	if code == 0 && again {
		code = startAgain
	}
	if code == 1 {
		fmt.Println(try("journalctl --no-pager -b -o short-monotonic -u thole -u docker -u docker.slice -u " +
			"thole.slice | tail -n 80"))
	}
	os.Exit(code)
}

// choose chooses the tests of a boot of this machine, and says whether another boot follows.
func choose(boot string) (again bool) {
	chosen := flag.Lookup("test.run").Value.String()
	again = chosen == "" || strings.Contains(chosen, "Boot")
	switch {
	case os.Getenv(firstStart) != "" && boot == "1":
		must(flag.Set("test.run", "^TestFirstStart$"))
		return true
	case os.Getenv(firstStart) != "":
		must(flag.Set("test.run", "^TestAfterFirstStart$"))
		return false
	case boot == "1":
		must(flag.Set("test.skip", "^TestAfter|^TestFirstStart"))
	case boot == "2":
		must(flag.Set("test.run", "^TestAfterBoot"))
	default:
		must(flag.Set("test.run", "^TestAfterCleanup"))
		again = false
	}
	return again
}

// startAgain has the guest start the machine again and run this program once more.
const startAgain = 194

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// prepare writes what the machine's owner would.
func prepare() {
	must(os.MkdirAll(policy, 0o755))
	must(os.WriteFile("/etc/default/thole", []byte("THOLE_OPTIONS=--policies "+policy+"\n"), 0o644))
	must(os.WriteFile(policy+"same-labels.yaml", policies.Default, 0o644))
	must(os.WriteFile(policy+"workloads.yaml", []byte(`
apiVersion: thole/v1
kind: Workload
metadata: {name: nginx, labels: {app: nginx}}
spec: {unit: nginx.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: alice, labels: {team: a}}
spec: {user: alice}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: web-receiver, labels: {app: web}}
spec: {unit: web-receiver.service}
---
apiVersion: thole/v1
kind: Workload
metadata: {name: db-receiver, labels: {app: db}}
spec: {unit: db-receiver.service}
---
apiVersion: thole/v1
kind: Policy
metadata: {name: nfs}
spec:
  selector: {matchLabels: {app: nfs}}
  egress: [{to: [{unlabelled: true}], ports: [2049/tcp]}]
---
apiVersion: thole/v1
kind: LabelGrant
metadata: {name: developers}
spec: {users: [alice, bob], labels: {app: [web]}}
`), 0o644))
}

func serve(address string) {
	l, err := net.Listen("tcp", address)
	must(err)
	for {
		conn, err := l.Accept()
		must(err)
		go io.Copy(conn, conn)
	}
}

func dial(address string) int {
	conn, err := net.DialTimeout("tcp", address, time.Minute)
	if err == nil {
		fmt.Println("connected")
		conn.Close()
		return 0
	}
	fmt.Println(err)
	if strings.Contains(err.Error(), "refused") {
		return 1
	}
	return 2
}

func record(address, file string) {
	conn, err := net.ListenPacket("udp", address)
	must(err)
	out, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(err)
	buf := make([]byte, 100)
	for {
		_, from, err := conn.ReadFrom(buf)
		must(err)
		fmt.Fprintln(out, from)
	}
}

func escape(tree, cgroup string) {
	fmt.Println("remount:", unix.Mount("none", tree, "cgroup2", unix.MS_REMOUNT, ""))
	fmt.Println("move:", os.WriteFile(filepath.Join(tree, cgroup, "cgroup.procs"), []byte("0"), 0))
}

// sh runs a shell script that must succeed, and returns what it wrote.
func sh(t *testing.T, script string) string {
	t.Helper()
	began := time.Now()
	out, err := try(script)
	if took := time.Since(began); took > 5*time.Second {
		t.Logf("%.0f s: %s", took.Seconds(), script)
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(out)
}

func try(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) { // what it left in the background has its output
		err = nil
	}
	return out.String(), err
}

// start starts a program in the background, in a cgroup of a unit's. It is killed when the test ends.
func start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { end(cmd) })
	return cmd
}

func end(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// labelled are the arguments that run something with labels.
func labelled(labels, name string, args ...string) []string {
	return append([]string{"thole", "run", "-l", labels, "--name", name, "--"}, args...)
}

// until waits for something.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	nstest.WaitFor(t, patience, what, ok)
}

// ask reads the JSON that thole answers.
func ask(t *testing.T, to any, args string) {
	t.Helper()
	out, _ := exec.Command("sh", "-c", "thole "+args+" -o json").Output()
	if err := json.Unmarshal(out, to); err != nil {
		t.Fatalf("thole %s: %v: %s", args, err, out)
	}
}

func status(t *testing.T) (s api.Status) {
	t.Helper()
	ask(t, &s, "status")
	return s
}

// workload returns the workload of that name whose cgroup is there; its cgroup is "" if there is none.
func workload(t *testing.T, name string) api.Workload {
	t.Helper()
	var list []api.Workload
	ask(t, &list, "get workloads")
	i := slices.IndexFunc(list, func(w api.Workload) bool {
		_, err := os.Stat(cgroup(w.Cgroup)) // what ended is listed, too
		return w.Name == name && err == nil
	})
	if i < 0 {
		return api.Workload{}
	}
	return list[i]
}

// connects says whether one can connect: with labels ("app=web"), or without ("").
func connects(t *testing.T, labels, address string) bool {
	t.Helper()
	args := []string{self, "dial", address}
	if labels != "" {
		args = append([]string{"thole", "run", "-l", labels, "--"}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	switch code := exitCode(err); {
	case code == 0:
		return true
	case code == 1 && strings.Contains(string(out), "connection refused"):
		return false
	}
	t.Fatalf("%q dials %s: %v: %s", labels, address, err, out)
	return false
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	return -1
}

// listens waits until a port is listened at.
func listens(t *testing.T, port int) {
	t.Helper()
	until(t, "a listener at port "+strconv.Itoa(port), func() bool {
		out, _ := try(fmt.Sprintf("ss -Hltn sport = :%d", port))
		return strings.TrimSpace(out) != ""
	})
}

func lines(file string) int {
	data, _ := os.ReadFile(file)
	return bytes.Count(data, []byte("\n"))
}

// cgroup is the directory of a cgroup.
func cgroup(path string) string { return filepath.Join("/sys/fs/cgroup", path) }

func inode(t *testing.T, path string) string {
	t.Helper()
	return sh(t, "stat -c %i "+cgroup(path))
}

// running starts the daemon, if it does not run.
func running(t *testing.T) {
	t.Helper()
	sh(t, "systemctl start thole")
}
