package bench

import (
	"bytes"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// pageSize is what a server of HTTP answers with, behind its header.
const pageSize = 1024

var request = []byte("GET / HTTP/1.1\r\nHost: host.test\r\n\r\n")

// fetch gets the page over a connection that stands.
func fetch(fd int, buf []byte) error {
	if err := write(fd, request); err != nil {
		return err
	}
	for got := 0; ; {
		n, err := read(fd, buf[got:])
		if err != nil || n == 0 {
			return fmt.Errorf("the answer ended after %d bytes: %v", got, err)
		}
		got += n
		if end := bytes.Index(buf[:got], []byte("\r\n\r\n")); end >= 0 && got >= end+4+pageSize {
			if !bytes.HasPrefix(buf, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("the answer is %q", buf[:got])
			}
			return nil
		}
	}
}

// fetcher gets a page with a new connection each time, which it closes in order.
func fetcher() (round, error) {
	buf := make([]byte, 4096)
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			fd, err := socket(unix.SOCK_STREAM)
			if err != nil {
				return 0, err
			}
			if err = connect(fd); err == nil {
				err = fetch(fd, buf)
			}
			closeFD(fd)
			return time.Since(began), err
		})
	}, nil
}

// keeper gets pages over one connection.
func keeper() (round, error) {
	buf := make([]byte, 4096)
	fd, err := socket(unix.SOCK_STREAM)
	if err == nil {
		err = connect(fd)
	}
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			err := fetch(fd, buf)
			return time.Since(began), err
		})
	}, err
}
