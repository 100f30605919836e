package e2e

import (
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// serveConnectsAt listens; for each line it accepts and closes what waits.
func serveConnectsAt(at unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, at); err != nil {
		return err
	}
	if err := unix.Listen(fd, 1024); err != nil {
		return err
	}
	return drained(func() (n int) {
		for {
			conn, _, err := unix.Accept(fd)
			if err != nil {
				return n
			}
			unix.Close(conn)
			n++
		}
	})
}

// connectTimesTo connects n times and returns the median and the 99th percentile, in µs.
func connectTimesTo(to unix.Sockaddr, n int) ([]float64, error) {
	times := make([]time.Duration, n)
	for i := range times {
		var err error
		if times[i], err = connectOnce(to); err != nil {
			return nil, err
		}
	}
	slices.Sort(times)
	us := func(t time.Duration) float64 { return float64(t) / float64(time.Microsecond) }
	return []float64{us(times[n/2]), us(times[n*99/100])}, nil
}

// connectOnce times a connect. It closes with a reset, so that ports are not used up.
func connectOnce(to unix.Sockaddr) (time.Duration, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	start := time.Now()
	if err := unix.Connect(fd, to); err != nil {
		return 0, err
	}
	took := time.Since(start)
	return took, unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}
