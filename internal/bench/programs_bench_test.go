package bench

import (
	"encoding/csv"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"thole/internal/nstest"
)

// onBenchCPU runs a program on the processor of the benchmarks, before what else wants it.
func onBenchCPU(argv ...string) []string {
	return append([]string{"nice", "-n", "-20", "taskset", "-c", strconv.Itoa(benchCPU)}, argv...)
}

// serve starts a server in the arena and waits until it listens. What it returns ends it.
func (a *arena) serve(network string, end syscall.Signal, argv ...string) func() {
	argv = onBenchCPU(argv...)
	p := a.server.Start(argv[0], argv[1:]...)
	nstest.WaitFor(a.b, 30*time.Second, argv[5]+" to answer: "+p.Output(), func() bool {
		var err error
		must(a.b, a.Do(func() { err = answers(network) }))
		return err == nil
	})
	return func() {
		must(a.b, p.Signal(end))
		_ = p.Wait() // how it ends does not matter
	}
}

// answers asks once, as something unlabelled: so Thole's table must be dormant.
func answers(network string) error {
	c, err := net.Dial(network, "127.0.0.1:4242")
	if err != nil || network == "tcp" {
		return errors.Join(err, closed(c))
	}
	defer c.Close()
	buf := make([]byte, 512)
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if _, err := c.Write(query); err != nil {
		return err
	}
	n, err := c.Read(buf)
	if err == nil && (n < 12 || buf[3]&15 != 0 || buf[7] != 1) {
		err = fmt.Errorf("%q is no answer", buf[:n])
	}
	return err
}

func closed(c net.Conn) error {
	if c == nil {
		return nil
	}
	return c.Close()
}

// write writes a server's file.
func (a *arena) write(name, text string) string {
	path := filepath.Join(a.dir(), name)
	must(a.b, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// dir is a new directory that every user may enter, unlike those of testing.
func (a *arena) dir() string {
	dir, err := os.MkdirTemp("", "thole-bench")
	must(a.b, err)
	a.b.Cleanup(func() { os.RemoveAll(dir) })
	must(a.b, os.Chmod(dir, 0o755))
	return dir
}

func (a *arena) serveNginx() func() {
	conf := a.write("nginx.conf", `daemon off; worker_processes 1; error_log stderr;
		pid `+filepath.Join(a.dir(), "pid")+`;
		events { worker_connections 1024; }
		http {
			access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
			server { listen 127.0.0.1:4242; location / { return 200 "`+strings.Repeat("x", pageSize)+`"; } }
		}`)
	return a.serve("tcp", syscall.SIGTERM, "nginx", "-e", "stderr", "-c", conf)
}

func (a *arena) serveDnsmasq() func() {
	return a.serve("udp", syscall.SIGTERM, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file",
		"--user=root", "--no-resolv", "--no-hosts", "--address=/host.test/10.1.2.3",
		"--bind-interfaces", "--listen-address=127.0.0.1", "--port=4242")
}

func (a *arena) serveUnbound() func() {
	conf := a.write("unbound.conf", `server:
  do-daemonize: no
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  interface: 127.0.0.1@4242
  num-threads: 1
  do-ip6: no
  local-zone: "test." static
  local-data: "host.test. A 10.1.2.3"
`)
	return a.serve("udp", syscall.SIGTERM, "unbound", "-c", conf)
}

func (a *arena) serveRedis() func() {
	return a.serve("tcp", syscall.SIGTERM, "redis-server", "--port", "4242", "--bind", "127.0.0.1",
		"--save", "", "--appendonly", "no", "--dir", a.dir(), "--io-threads", "1")
}

// servePostgres runs as its user, since it refuses to be root.
func (a *arena) servePostgres() func() {
	u, err := user.Lookup("postgres")
	must(a.b, err)
	as := func(argv ...string) []string {
		return append([]string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups"}, argv...)
	}
	dir := filepath.Join(a.dir(), "data")
	bin := postgresBin(a.b)
	a.server.Shell(fmt.Sprintf("install -d -o %s -g %s -m 700 %s", u.Uid, u.Gid, dir))
	a.server.Shell(strings.Join(as(bin+"/initdb", "-D", dir, "-U", "postgres", "-A", "trust", "--no-sync"), " "))
	end := a.serve("tcp", syscall.SIGINT, as(bin+"/postgres", "-D", dir, "-h", "127.0.0.1", "-p", "4242", "-F",
		"-c", "unix_socket_directories=", "-c", "autovacuum=off")...)
	a.server.Shell(pgbench + " -i -q 2>&1")
	return end
}

// postgresBin is where Debian has the server's programs: by version.
func postgresBin(b *testing.B) string {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	must(b, err)
	if len(found) == 0 {
		b.Fatal("no PostgreSQL in /usr/lib/postgresql: run make packages")
	}
	return found[len(found)-1]
}

const pgbench = "PGUSER=postgres PGDATABASE=postgres PGHOST=127.0.0.1 PGPORT=4242 pgbench"

// selects has pgbench read 1,500 rows, each in a transaction of its own, and returns how long one takes.
func (a *arena) selects() map[string]float64 {
	out := a.client.Shell(strings.Join(onBenchCPU("env", pgbench, "-S", "-n", "-t", "1500"), " "))
	m := regexp.MustCompile(`tps = ([0-9.]+) \(without`).FindStringSubmatch(out)
	if m == nil {
		a.b.Fatalf("pgbench printed %s", out)
	}
	return map[string]float64{"p50": inverse(a.b, m[1])}
}

// gets has redis-benchmark get a key 5,000 times, from its usual 50 connections, and returns how long one takes.
func (a *arena) gets() map[string]float64 {
	argv := onBenchCPU("redis-benchmark", "-p", "4242", "-t", "get", "-n", "5000", "--csv")
	out := a.client.Shell(strings.Join(argv, " "))
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 2 || rows[1][0] != "GET" {
		a.b.Fatalf("redis-benchmark printed %s", out)
	}
	return map[string]float64{"p50": inverse(a.b, rows[1][1])}
}

func inverse(b *testing.B, number string) float64 {
	x, err := strconv.ParseFloat(number, 64)
	must(b, err)
	return 1 / x
}

// asked has a client of ours ask a server.
func (a *arena) asked(client string, n int) duel {
	c := start(a.b, a.client, client, benchCPU)
	defer c.end()
	return a.fight(func() map[string]float64 {
		measured := c.do(a.b, n)
		if client != "keeper" {
			a.forget()
		}
		return measured
	})
}

// BenchmarkPrograms measures how many requests programs answer that much work on localhost is done with.
func BenchmarkPrograms(b *testing.B) {
	arenas := map[string]*arena{"default": newDefaultArena(b), "port": newPortArena(b, 100)}
	programs := []struct {
		metric string
		serve  func(*arena) func()
		fight  func(*arena) duel
	}{
		{"nginx-new", (*arena).serveNginx, func(a *arena) duel { return a.asked("fetcher", 300) }},
		{"nginx-kept", (*arena).serveNginx, func(a *arena) duel { return a.asked("keeper", 600) }},
		{"dnsmasq", (*arena).serveDnsmasq, func(a *arena) duel { return a.asked("asker-short", 600) }},
		{"unbound", (*arena).serveUnbound, func(a *arena) duel { return a.asked("asker-short", 600) }},
		{"redis", (*arena).serveRedis, func(a *arena) duel { return a.fight(a.gets) }},
		{"pgbench", (*arena).servePostgres, func(a *arena) duel { return a.fight(a.selects) }},
	}
	for b.Loop() {
		for name, a := range arenas {
			for _, p := range programs {
				a.wake(false)
				end := p.serve(a)
				a.wake(true)
				p.fight(a).report(b, p.metric+"/"+name, "p50", true)
				end()
			}
		}
	}
}
