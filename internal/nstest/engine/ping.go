package engine

import (
	"bufio"
	"net"
	"strings"
	"time"

	"thole/internal/nstest"
)

// patience is for what takes a tenth of a second on an idle machine.
const patience = 20 * time.Second

// pings asks the engine at a socket whether it is up. While it starts it accepts connections and lets them wait.
func pings(socket string) bool {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(nstest.Patience(patience)))
	if _, err := conn.Write([]byte("GET /_ping HTTP/1.0\r\n\r\n")); err != nil {
		return false
	}
	status, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && strings.Contains(status, " 200 ")
}
