package legit

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/compiler/policy"
	"thole/internal/nstest"
)

// A program is a server on the node's network, and what its clients do with it. Each program is a workload with a label
// app. One client of the program has the same app and is allowed; another client has another app, a third one no label.
type program struct {
	name, app string
	ports     string   // of the policy by port
	needs     []string // what must be installed
	denied    string   // a regular expression: what each command of the client says when it is denied
	serve     func(*installation)
	use       func(*user, string) // of the server at an address
}

// An installation is a program on a host.
type installation struct {
	t      testing.TB
	host   *nstest.Host
	cgroup *nstest.Cgroup // of the server
	dir    string         // empty, and everybody may write there
}

// A user is a client of an installation.
type user struct {
	*installation
	name string
	from *nstest.Cgroup

	ran    int     // how many commands were run
	failed []error // how some of them failed
}

// programAddresses are where all programs listen.
var programAddresses = []string{"127.0.0.1", "::1", "10.0.0.1", "fd00::1"}

func programList() []program {
	get := func(port int, more ...string) func(*user, string) {
		return func(u *user, at string) { u.get(at, port, more...) }
	}
	resolve := func(port int) func(*user, string) { return func(u *user, at string) { u.resolve(at, port) } }
	const refused = "Connection refused"
	return []program{
		{"nginx", "web", "8080/tcp", []string{"nginx", "curl"}, "curl: .7.", serveNginx, get(8080)},
		{"haproxy", "web", "8090/tcp", []string{"haproxy"}, "curl: .7.|not connected", serveHAProxy,
			get(8090, "--tcp-fastopen")},
		{"unbound", "dns", "5300/udp, 5300/tcp", []string{"unbound", "dig"}, unreachable, serveUnbound, resolve(5300)},
		{"dnsmasq", "dns", "53/udp, 53/tcp", []string{"dnsmasq"}, unreachable, serveDnsmasq, resolve(53)},
		{"postgresql", "postgresql", "5432/tcp", []string{postgres("postgres")}, refused, servePostgreSQL,
			usePostgreSQL},
		{"redis", "redis", "6379/tcp", []string{"redis-server", "redis-cli", "redis-benchmark"}, refused,
			serveRedis, useRedis},
		{"openssh", "openssh", "22/tcp", []string{sshd, "ssh", "ssh-keygen"}, refused, serveOpenSSH, useOpenSSH},
		{"chrony", "chrony", "123/udp, 323/udp", []string{"chronyd", "chronyc"},
			"Timeout reached|No suitable source|Cannot talk", serveChrony, useChrony},
	}
}

// Programs that know nothing of labels are used as usual by a client that the policies allow, and do not answer others.
// Without a table they answer all.
func TestPrograms(t *testing.T) {
	for _, p := range programList() {
		nstest.Need(t, p.needs...)
	}
	for _, tt := range []struct {
		name, policies string
		addresses      []string
		others         bool // may be served, too
		admin          bool // nginx's port 8081 may be called by its own client
	}{
		{"no table", "", []string{"127.0.0.1", "fd00::1"}, true, true},
		{"by app", byApp, []string{"10.0.0.1", "::1"}, false, true},
		{"by port", byPort(), []string{"127.0.0.1", "fd00::1"}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := installation{t: t, host: nstest.New(t)}
			i.host.Shell("ip addr add 10.0.0.1/32 dev lo; ip addr add fd00::1/128 dev lo; mkdir /run/sshd; sysctl " +
				"-qw net.ipv4.tcp_fastopen=3")
			if tt.policies != "" {
				enforce(t, i.host, tt.policies)
			}
			var all sync.WaitGroup
			for _, p := range programList() {
				i := i
				i.cgroup, i.dir = i.host.In("thole.slice/"+p.name), sharedDir(t)
				p.serve(&i)
				for _, at := range tt.addresses {
					all.Go(func() { p.check(&i, at, tt.others) })
				}
			}
			all.Wait()
			client := i.user("client", "thole.slice/client-web")
			if client.get("127.0.0.1", 8081); (len(client.failed) == 0) != tt.admin {
				t.Errorf("the client at nginx's port 8081: %v, want answers: %t", client.failed, tt.admin)
			}
		})
	}
}

// check uses a program at an address from all its clients. Clients that are denied must do the allowed one no harm.
func (p program) check(i *installation, at string, others bool) {
	works := func(name, cgroup string) {
		u := i.user(name, cgroup)
		if p.use(u, at); len(u.failed) > 0 {
			i.t.Errorf("%s at %s, %s client: %v", p.name, at, name, errors.Join(u.failed...))
		}
	}
	works("allowed", "thole.slice/client-"+p.app)
	if others {
		works("other", "thole.slice/other")
		return
	}
	for name, cgroup := range map[string]string{"other": "thole.slice/other", "free": "free"} {
		u := i.user(name, cgroup)
		p.use(u, at)
		if len(u.failed) < u.ran {
			i.t.Errorf("%s at %s answered the %s client: %d of %d commands failed", p.name, at, name, len(u.failed),
				u.ran)
		}
		for _, err := range u.failed {
			if !regexp.MustCompile(p.denied).MatchString(err.Error()) {
				i.t.Errorf("%s at %s, %s client: it failed, but not with %q: %v", p.name, at, name, p.denied, err)
			}
		}
	}
	works("again", "thole.slice/client-"+p.app)
}

const byApp = `apiVersion: thole/v1
kind: Policy
metadata: {name: same-app}
spec:
  selector: {}
  ingress: [{from: [{sameLabels: [app]}]}]
  egress: [{to: [{sameLabels: [app]}]}]
`

// byPort allows each app its programs' ports.
func byPort() string {
	ports := map[string][]string{"other": {"1/tcp"}}
	for _, p := range programList() {
		ports[p.app] = append(ports[p.app], p.ports)
	}
	var docs []string
	for _, app := range slices.Sorted(maps.Keys(ports)) {
		docs = append(docs, fmt.Sprintf(`apiVersion: thole/v1
kind: Policy
metadata: {name: %[1]s}
spec:
  selector: {matchLabels: {app: %[1]s}}
  ingress: [{from: [{sameLabels: [app]}], ports: [%[2]s]}]
  egress: [{to: [{sameLabels: [app]}], ports: [%[2]s]}]
`, app, strings.Join(ports[app], ", ")))
	}
	return strings.Join(docs, "---\n")
}

// enforce makes the cgroups of all programs and clients workloads, and loads the table of the policies.
func enforce(t testing.TB, host *nstest.Host, policies string) {
	t.Helper()
	apps := map[string]string{"other": "other"}
	for _, p := range programList() {
		apps[p.name], apps["client-"+p.app] = p.app, p.app
	}
	var workloads []policy.Workload
	for _, name := range slices.Sorted(maps.Keys(apps)) {
		workloads = append(workloads, workload(host, name, apps[name]))
	}
	must(t, compiled(t, policies, workloads)(host))
}

// sharedDir is a directory of the test's in which every user may write.
func sharedDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o777))
	return dir
}

// file writes a file and returns its path.
func (i *installation) file(name, content string) string {
	i.t.Helper()
	path := filepath.Join(i.dir, name)
	must(i.t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// listening waits until sockets listen at all addresses.
func (i *installation) listening(network string, ports ...int) {
	i.t.Helper()
	for _, port := range ports {
		nstest.WaitFor(i.t, 20*time.Second, fmt.Sprintf("a socket at port %d/%s", port, network), func() bool {
			return i.host.Shell(fmt.Sprintf("ss -Hln --%s 'sport = :%d'", network, port)) != ""
		})
	}
}

// user makes a client.
func (i *installation) user(name, cgroup string) *user {
	return &user{installation: i, name: name, from: i.host.In(cgroup)}
}

// run runs a command as the client. Its error is in failed.
func (u *user) run(stdin, name string, args ...string) (out string, ok bool) {
	u.ran++
	out, err := u.try(stdin, name, args...)
	if err != nil {
		u.failed = append(u.failed, err)
	}
	return out, err == nil
}

func (u *user) try(stdin, name string, args ...string) (string, error) {
	cmd := u.from.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	late := time.AfterFunc(nstest.Patience(40*time.Second), func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s %q: %w: %s", name, args, err, out.String())
	}
	return out.String(), nil
}

// seconds is a patience of so many seconds, for a command.
func seconds(n time.Duration) string {
	return fmt.Sprint(int(nstest.Patience(n * time.Second).Seconds()))
}

// expect runs a command as the client; its output must contain a text so many times.
func (u *user) expect(times int, text, stdin, name string, args ...string) bool {
	out, ok := u.run(stdin, name, args...)
	if got := strings.Count(out, text); ok && got != times {
		u.failed = append(u.failed, fmt.Errorf("%s %q: %d times %q, want %d: %q", name, args, got, text, times, out))
		ok = false
	}
	return ok
}

// serveNginx starts two workers, with sockets of their own, to which the kernel gives connections with data only.
func serveNginx(i *installation) {
	listen := "listen 127.0.0.1:8081;"
	for _, at := range programAddresses {
		listen += fmt.Sprintf("\n\t\tlisten %s deferred reuseport;", hostPort(at, 8080))
	}
	conf := fmt.Sprintf("user root; worker_processes 2; daemon off; pid %s/pid; events {}\n", i.dir)
	conf += "http {\n\taccess_log off;\n"
	for _, what := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		conf += fmt.Sprintf("\t%s_temp_path %s/%[1]s;\n", what, i.dir)
	}
	conf += fmt.Sprintf("\tserver {\n\t\t%s\n\t\treturn 200 'from nginx\n';\n\t}\n}\n", listen)
	i.cgroup.Start("nginx", "-e", "stderr", "-c", i.file("nginx.conf", conf))
	i.listening("tcp", 8080, 8081)
}

// serveHAProxy starts a proxy before nginx.
func serveHAProxy(i *installation) {
	conf := `
global
	maxconn 500
defaults
	mode http
	timeout connect 100s
	timeout client 100s
	timeout server 100s
frontend all
	default_backend nginx
backend nginx
	server nginx 127.0.0.1:8080
`
	for _, at := range programAddresses {
		bind := fmt.Sprintf("\tbind %s defer-accept tfo\n", hostPort(at, 8090))
		conf = strings.Replace(conf, "\tdefault_backend", bind+"\tdefault_backend", 1)
	}
	i.cgroup.Start("haproxy", "-db", "-f", i.file("haproxy.cfg", conf))
	i.listening("tcp", 8090)
}

// get asks for pages: three on one connection, and ten on connections of their own at the same time, which more is for.
func (u *user) get(at string, port int, more ...string) {
	url := "http://" + hostPort(at, port)
	u.expect(1, "connects: 1", "", "curl", "-sS", "-m", seconds(15), "-w", "connects: %{num_connects}\n", url+"/[1-3]")
	u.expect(10, "from nginx", "", "curl",
		append(more, "-sS", "-m", seconds(15), "-H", "Connection: close", "-Z", "--parallel-immediate", url+
			"/[1-10]")...)
}

// serveUnbound starts two threads with sockets of their own.
func serveUnbound(i *installation) {
	conf := fmt.Sprintf(`
server:
	num-threads: 2
	so-reuseport: yes
	port: 5300
	access-control: 0.0.0.0/0 allow
	access-control: ::0/0 allow
	do-daemonize: no
	username: ""
	chroot: ""
	directory: %[1]s
	pidfile: %[1]s/pid
	use-syslog: no
	module-config: "iterator"
	local-zone: "example.test." redirect
	local-data: "example.test. TXT answered"
remote-control:
	control-enable: no
`, i.dir)
	for _, at := range programAddresses {
		conf = strings.Replace(conf, "\tport", "\tinterface: "+at+"\n\tport", 1)
	}
	i.cgroup.Start("unbound", "-d", "-c", i.file("unbound.conf", conf))
	i.listening("udp", 5300)
	i.listening("tcp", 5300)
}

// serveDnsmasq starts a name server that asks unbound.
func serveDnsmasq(i *installation) {
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv", "--user=root",
		"--pid-file=", "--bind-interfaces", "--cache-size=0", "--server=127.0.0.1#5300"}
	for _, at := range programAddresses {
		args = append(args, "--listen-address="+at)
	}
	i.cgroup.Start("dnsmasq", args...)
	i.listening("udp", 53)
	i.listening("tcp", 53)
}

// unreachable is what dig says over TCP, and over UDP.
const unreachable = "connection refused|host unreachable|permission denied"

// resolve asks for names: eight over UDP, and four over TCP, on one connection and on others.
func (u *user) resolve(at string, port int) {
	dig := func(times int, options ...string) {
		args := append(options, "@"+at, "-p", fmt.Sprint(port), "+short", "+tries=1", "+time="+seconds(5))
		for i := range times {
			args = append(args, fmt.Sprintf("%s-%d.example.test", u.name, i), "TXT")
		}
		u.expect(times, "answered", "", "dig", args...)
	}
	dig(8, "+notcp")
	dig(4, "+tcp", "+keepopen")
	dig(4, "+tcp")
}

// nobody is the user that PostgreSQL, which refuses to be root, runs as.
const nobody = 65534

// postgres is the path of one of PostgreSQL's programs.
func postgres(program string) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + program)
	if len(found) == 0 {
		return "/usr/lib/postgresql/VERSION/bin/" + program
	}
	return found[len(found)-1]
}

func servePostgreSQL(i *installation) {
	data := filepath.Join(i.dir, "data")
	server := &user{installation: i, from: i.cgroup.As(nobody)}
	_, err := server.try("", postgres("initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions")
	must(i.t, err)
	must(i.t, os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("host all all all trust\n"), 0o644))
	server.from.Start(postgres("postgres"), "-D", data, "-F", "-k", "", "-h", strings.Join(programAddresses, ","))
	nstest.WaitFor(i.t, 20*time.Second, "PostgreSQL", func() bool {
		_, err = server.try("", postgres("pgbench"), "-h", "127.0.0.1", "-U", "postgres", "-i", "-q", "postgres")
		return err == nil
	})
}

// usePostgreSQL asks a query, and runs transactions on connections that are kept and on new ones.
func usePostgreSQL(u *user, at string) {
	bench := func(text string, more ...string) {
		args := append(more, "-h", at, "-U", "postgres", "-n", "-c", "4", "-j", "2", "postgres")
		u.expect(1, text, "", postgres("pgbench"), args...)
	}
	u.expect(1, "42", "", postgres("psql"), "-h", at, "-U", "postgres", "-XAtc", "select 6 * 7", "postgres")
	bench("processed: 100/100", "-t", "25")
	bench("processed: 20/20", "-C", "-S", "-t", "5")
}

func serveRedis(i *installation) {
	args := append([]string{"--bind"}, programAddresses...)
	args = append(args, "--port", "6379", "--save", "", "--dir", i.dir, "--protected-mode", "no")
	i.cgroup.Start("redis-server", args...)
	i.listening("tcp", 6379)
}

// useRedis sends one command, a thousand at once, and many from several connections, and waits for what another client
// pushes.
func useRedis(u *user, at string) {
	key := u.name + at
	cli := func(u *user, text, stdin string, args ...string) bool {
		return u.expect(1, text, stdin, "redis-cli", append([]string{"-h", at}, args...)...)
	}
	waiter := u.installation.user(u.name, u.from.Path())
	var waits sync.WaitGroup
	waits.Go(func() { cli(waiter, "pushed", "", "blpop", "list"+key, seconds(15)) })
	cli(u, "errors: 0, replies: 1000", strings.Repeat("INCR n"+key+"\r\n", 1000), "--pipe")
	if cli(u, "OK", "", "set", key, "value") { // redis-benchmark never gives up
		u.expect(1, "requests per second", "",
			"redis-benchmark", "-h", at, "-n", "2000", "-c", "10", "-P", "16", "-q", "-t", "get")
	}
	cli(u, "1", "", "rpush", "list"+key, "pushed")
	waits.Wait()
	u.ran, u.failed = u.ran+waiter.ran, append(u.failed, waiter.failed...)
}

const sshd = "/usr/sbin/sshd"

func serveOpenSSH(i *installation) {
	for _, name := range []string{"host", "user"} {
		_, err := i.user(name, "").try("", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f",
			filepath.Join(i.dir, name))
		must(i.t, err)
	}
	conf := fmt.Sprintf("HostKey %[1]s/host\nAuthorizedKeysFile %[1]s/user.pub\nStrictModes no\n", i.dir)
	conf += "PidFile none\nMaxStartups 100\n"
	i.cgroup.Start(sshd, "-D", "-e", "-f", i.file("sshd_config", conf))
	i.listening("tcp", 22)
}

// useOpenSSH runs a command, and another one through a port of the client's that is forwarded to the server.
func useOpenSSH(u *user, at string) {
	port := fmt.Sprint(2200 + len(at)*10 + len(u.name)) // another one for each
	control := filepath.Join(u.dir, "control"+port)
	ssh := func(times int, text, port, to string, more ...string) bool {
		args := append([]string{"-F", "none", "-i", filepath.Join(u.dir, "user"), "-p", port, "-o", "BatchMode=yes",
			"-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", to}, more...)
		return u.expect(times, text, "hello", "ssh", args...)
	}
	if !ssh(1, "HELLO", "22", at, "tr a-z A-Z") {
		return
	}
	ssh(0, "rror", "22", at, "-M", "-S", control, "-f", "-N", "-o", "ExitOnForwardFailure=yes",
		"-L", "127.0.0.1:"+port+":"+hostPort(at, 22))
	ssh(1, "HELLO", port, "127.0.0.1", "tr a-z A-Z")
	ssh(1, "xit request sent", "22", at, "-S", control, "-O", "exit")
}

// serveChrony starts a server that gives away this machine's time, and sets no clock.
func serveChrony(i *installation) {
	conf := fmt.Sprintf("local stratum 8\nallow all\ncmdallow all\nbindcmdaddress 0.0.0.0\nbindcmdaddress ::\n"+
		"bindcmdaddress /\npidfile %s/pid\n", i.dir)
	i.cgroup.Start("chronyd", "-x", "-d", "-u", "root", "-f", i.file("chrony.conf", conf))
	i.listening("udp", 123, 323)
}

// useChrony measures the server's time, and asks the server for its state.
func useChrony(u *user, at string) {
	wait := seconds(2) // when it is denied, that is how long it waits
	if u.from.Path() == "/thole.slice/client-chrony" {
		wait = seconds(15)
	}
	conf := u.file("client-"+u.name+at,
		fmt.Sprintf("server %s iburst maxsamples 1\nport 0\ncmdport 0\nbindcmdaddress /\n"+
			"pidfile %s/pid-%s-%[1]s\n", at, u.dir, u.name))
	u.expect(1, "System clock wrong by", "", "chronyd", "-Q", "-t", wait, "-u", "root", "-f", conf)
	u.expect(1, "7F7F0101", "", "chronyc", "-n", "-h", at, "tracking")
}

// hostPort joins an address and a port.
func hostPort(at string, port int) string {
	if strings.Contains(at, ":") {
		at = "[" + at + "]"
	}
	return fmt.Sprintf("%s:%d", at, port)
}
