package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bulk is to send 64 MiB over a connection that stands; the seconds are measured until the
// server has read them all.
var bulk = game{server: roleSink, client: roleSource, n: 64 << 20}

// BenchmarkBulk measures the throughput of TCP over loopback, as ratios to namespaces
// without Thole.
func BenchmarkBulk(b *testing.B) {
	thole, conntrack, nothing := competeForThroughput(b, bulk)
	reportRatio(b, "bulk/nothing", 0, nothing, thole) // of speeds, not of times
	reportRatio(b, "bulk/conntrack", 0, conntrack, thole)
	report(b, "MB/s-bulk", perSecond(thole, float64(bulk.n)/1e6))
}

// datagrams is to send 10,000 datagrams of 32 bytes to a socket that has room for them; the
// seconds are measured. A packet is delivered within the call that sends it.
var datagrams = game{server: roleReceiver, client: roleSender, n: 10_000, arrives: true}

// BenchmarkDatagrams measures how many small UDP packets arrive in a second.
func BenchmarkDatagrams(b *testing.B) {
	thole, conntrack, nothing := competeForThroughput(b, datagrams)
	reportRatio(b, "datagrams/nothing", 0, nothing, thole)
	reportRatio(b, "datagrams/conntrack", 0, conntrack, thole)
	report(b, "packets/s-datagrams", perSecond(thole, float64(datagrams.n)))
}

func competeForThroughput(b *testing.B, g game) (thole, conntrack, nothing *contestant) {
	thole = newContestant(b, g, enforceDefault)
	conntrack = newContestant(b, g, onlyConntrack)
	nothing = newContestant(b, g, func(*node) {})
	for b.Loop() {
		compete(b, g, thole, conntrack, nothing)
	}
	return thole, conntrack, nothing
}

// perSecond are the rates at which that much was done in each round.
func perSecond(c *contestant, amount float64) []float64 {
	rates := c.column(0)
	for i := range rates {
		rates[i] = amount / rates[i]
	}
	return rates
}

const bulkAddress = "127.0.0.1:4242"

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

// receiveDatagrams takes what has come, for each line.
func receiveDatagrams() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		return err
	}
	if err := unix.Bind(fd, benchAddress); err != nil {
		return err
	}
	buf := make([]byte, 64)
	return drained(func() (n int) {
		for {
			if _, err := unix.Read(fd, buf); err != nil {
				return n
			}
			n++
		}
	})
}

// sendDatagrams sends from one socket.
func sendDatagrams() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, benchAddress); err != nil {
		return err
	}
	data := make([]byte, 32)
	return play(func(n int) ([]float64, error) {
		began := time.Now()
		for range n {
			if _, err := unix.Write(fd, data); err != nil {
				return nil, err
			}
		}
		return []float64{time.Since(began).Seconds()}, nil
	})
}
