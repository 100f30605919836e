package e2e

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"thole/internal/daemon"
	"thole/internal/nstest"
)

// scratch is where the program is built; TestMain removes it.
var scratch string

// tholeBinary builds the program once for all tests.
var tholeBinary = sync.OnceValues(func() (string, error) {
	var err error
	if scratch, err = os.MkdirTemp("", "thole-e2e-"); err != nil {
		return "", err
	}
	path := filepath.Join(scratch, "thole")
	out, err := exec.Command("go", "build", "-o", path, "thole/cmd/thole").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// A machine is a host with a daemon.
type machine struct {
	*nstest.Host
	t      testing.TB
	thole  string
	daemon *nstest.Process
}

// newMachine starts a daemon on a new host and waits until it enforces.
func newMachine(t *testing.T, args ...string) *machine {
	t.Helper()
	m := bareMachine(t)
	m.start(args...)
	return m
}

// bareMachine is a machine whose daemon was not started yet.
func bareMachine(t *testing.T) *machine {
	t.Helper()
	thole, err := tholeBinary()
	must(t, err)
	return &machine{Host: nstest.New(t), t: t, thole: thole}
}

func (m *machine) start(args ...string) {
	m.t.Helper()
	m.daemon = m.In("daemon").Start(m.thole, append([]string{"daemon", "--state", "/run/state"}, args...)...)
	nstest.WaitFor(m.t, 10*time.Second, "the daemon to enforce", func() bool {
		out, _ := m.Command(m.thole, "status", "-o", "json").Output() // it fails where there is a problem to tell of
		var status daemon.Status
		return json.Unmarshal(out, &status) == nil && status.Enforcing
	})
}

// run is thole run to its end, from an unlabelled cgroup.
func (m *machine) run(label string, command ...string) (string, error) {
	out, err := m.Command(m.thole, append([]string{"run", "--label", label, "--"}, command...)...).CombinedOutput()
	return string(out), err
}

// apply loads policies, or returns the error.
func (m *machine) apply(yaml string) error {
	m.t.Helper()
	cmd := m.Command(m.thole, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(yaml)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// A process that sends in its first instructions, 200 times, while both cores are
// busy: what is forbidden never arrives, what is allowed always does.
func TestNothingLeavesBeforeTheLabelsHold(t *testing.T) {
	m := newMachine(t)
	sender := filepath.Join(t.TempDir(), "sender")
	must(t, os.WriteFile(sender, firstInstruction(localhost, then{}, 4001, 4002), 0o755))
	busy := m.In("busy")
	for range 2 {
		busy.Start("sh", "-c", "while :; do :; done")
	}
	// The receivers are labelled by hand: the same labels as the sender, and others.
	friend := m.labelledProbe("friend", "app=web")
	other := m.labelledProbe("other", "app=db")
	forbidden := other.OpenUDP("udp", "127.0.0.1:4001")
	expected := friend.OpenUDP("udp", "127.0.0.1:4002")
	const starts = 200
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range starts / 8 {
				if out, err := m.run("app=web", sender); err != nil {
					t.Errorf("a start: %v: %s", err, out)
				}
			}
		})
	}
	all.Wait()
	m.Barrier()
	if n := len(forbidden.Received()); n != 0 {
		t.Errorf("%d forbidden packets of %d starts arrived", n, starts)
	}
	if n := len(expected.Received()); n != starts {
		t.Errorf("%d of %d allowed packets arrived", n, starts)
	}
	nstest.WaitFor(t, 10*time.Second, "empty cgroups to be removed", func() bool {
		return strings.Count(m.Shell("ls /sys/fs/cgroup/thole.slice"), ".scope") <= 2
	})
}

// labelledProbe starts a probe and has the daemon take its process in.
func (m *machine) labelledProbe(name, label string) *nstest.Probe {
	m.t.Helper()
	return m.labelled(name, label).Probe(name)
}

// then is what a program does when it has sent.
type then struct {
	linger time.Duration // before it ends
	again  bool          // it does not end, but sends again
}

// firstInstruction is a program for linux/amd64 whose first instructions make a
// socket and send one datagram to each port of an address.
func firstInstruction(to [4]byte, next then, ports ...uint16) []byte {
	code := []byte{
		0xbf, 2, 0, 0, 0, // mov edi, AF_INET
		0xbe, 2, 0, 0, 0, // mov esi, SOCK_DGRAM
		0x31, 0xd2, // xor edx, edx
		0xb8, 41, 0, 0, 0, // mov eax, SYS_socket
		0x0f, 0x05, // syscall
		0x89, 0xc3, // mov ebx, eax
	}
	sending := len(code)
	for _, port := range ports {
		code = append(code,
			0x89, 0xdf, // mov edi, ebx
			0x68, 0x7f, 0, 0, 1, // push 127.0.0.1 (the upper half of the push is sign: 0)
			0x48, 0xb8, 2, 0, byte(port>>8), byte(port), to[0], to[1], to[2], to[3], // mov rax, sockaddr_in
			0x50,             // push rax
			0x49, 0x89, 0xe0, // mov r8, rsp
			0x41, 0xb9, 16, 0, 0, 0, // mov r9d, 16
			0x48, 0x89, 0xe6, // mov rsi, rsp
			0xba, 4, 0, 0, 0, // mov edx, 4
			0x45, 0x31, 0xd2, // xor r10d, r10d
			0xb8, 44, 0, 0, 0, // mov eax, SYS_sendto
			0x0f, 0x05, // syscall
			0x85, 0xc0, // test eax, eax: the result is not looked at
		)
	}
	code = append(code, 0x31, 0xff, 0x31, 0xf6, 0xba) // xor edi, edi; xor esi, esi; mov edx, milliseconds
	code = binary.LittleEndian.AppendUint32(code, uint32(next.linger.Milliseconds()))
	code = append(code, 0xb8, 7, 0, 0, 0, 0x0f, 0x05) // mov eax, SYS_poll; syscall
	if next.again {
		code = append(code, 0xe9) // jmp, counted from the next instruction
		code = binary.LittleEndian.AppendUint32(code, uint32(sending-len(code)-4))
	}
	code = append(code,
		0x31, 0xff, // xor edi, edi
		0xb8, 60, 0, 0, 0, // mov eax, SYS_exit
		0x0f, 0x05, // syscall
	)
	return elf(code)
}

var localhost = [4]byte{127, 0, 0, 1}

// elf wraps code for linux/amd64 in the least that can be executed (elf(5)).
func elf(code []byte) []byte {
	const base, header = 0x400000, 64 + 56
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	le := binary.LittleEndian
	b = le.AppendUint16(b, 2)  // ET_EXEC
	b = le.AppendUint16(b, 62) // EM_X86_64
	b = le.AppendUint32(b, 1)  // version
	b = le.AppendUint64(b, base+header)
	b = le.AppendUint64(b, 64) // program headers
	b = le.AppendUint64(b, 0)  // no sections
	b = le.AppendUint32(b, 0)  // flags
	for _, n := range []uint16{64, 56, 1, 64, 0, 0} {
		b = le.AppendUint16(b, n)
	}
	b = le.AppendUint32(b, 1) // PT_LOAD
	b = le.AppendUint32(b, 5) // readable, executable
	for _, n := range []uint64{0, base, base, uint64(header + len(code)), uint64(header + len(code)), 0x1000} {
		b = le.AppendUint64(b, n)
	}
	return append(b, code...)
}
