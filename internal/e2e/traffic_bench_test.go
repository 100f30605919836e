package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"time"
)

// serveBulk takes a connection, and answers so many bytes, as a number before them says, with
// one byte.
func serveBulk(at string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	go func() {
		conn, err := l.Accept()
		for buf := make([]byte, 256<<10); err == nil; {
			err = takeBulk(conn, buf)
		}
		if !errors.Is(err, io.EOF) {
			println("sink:", err.Error())
			os.Exit(1)
		}
	}()
	return drained(func() int { return 0 })
}

func takeBulk(conn net.Conn, buf []byte) error {
	if _, err := io.ReadFull(conn, buf[:8]); err != nil {
		return err
	}
	for left := binary.BigEndian.Uint64(buf); left > 0; {
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	_, err := conn.Write([]byte{0})
	return err
}

// sendBulk sends over one connection, in each round as many bytes as it is told.
func sendBulk(to string) error {
	conn, err := net.Dial("tcp", to)
	if err != nil {
		return err
	}
	buf := make([]byte, 256<<10)
	return play(func(n int) ([]float64, error) {
		began := time.Now()
		if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(n))); err != nil {
			return nil, err
		}
		for ; n > 0; n -= len(buf) {
			if _, err := conn.Write(buf[:min(n, len(buf))]); err != nil {
				return nil, err
			}
		}
		_, err := io.ReadFull(conn, buf[:1])
		return []float64{time.Since(began).Seconds()}, err
	})
}
