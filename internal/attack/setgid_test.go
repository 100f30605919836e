package attack

import (
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"thole/internal/nstest"
)

// setgidMode is SOCKET PROGRAM GROUP, with a request on standard input: the process connects to the daemon, has a child
// keep the connection, and executes a setgid program. When that runs, the child sends the request: the daemon then
// reads the groups of the process that connected. The child writes the answer.
var setgidMode = nstest.Mode{Name: "nstest-setgid", Run: func(args []string) error {
	conn, err := net.Dial("unix", args[0])
	if err != nil {
		return err
	}
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	child := nstest.Reexec(setgidChildMode.Name, args[2])
	child.ExtraFiles = []*os.File{file}
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		return err
	}
	syscall.CloseOnExec(int(os.Stdout.Fd())) // so that it ends with the child
	return syscall.Exec(args[1], []string{args[1], "60"}, nil)
}}

// setgidChildMode is GROUP: descriptor 3 is a connection to the daemon, standard input a request.
var setgidChildMode = nstest.Mode{Name: "nstest-setgid-child", Run: func(args []string) error {
	return askLater(args[0])
}}

// askLater waits until the parent has the group, asks, and writes the answer.
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
	_, err = io.Copy(os.Stdout, conn)
	return err
}
