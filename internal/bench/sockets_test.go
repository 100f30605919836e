package bench

import (
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var address = &unix.SockaddrInet4{Port: 4242, Addr: [4]byte{127, 0, 0, 1}}

// rawAddress is the same as the kernel wants it. The clients use raw system calls: around others, Go's scheduler
// may hand the processor over, which costs more than what is measured.
var rawAddress = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: 4242>>8 | 4242&0xff<<8, Addr: [4]byte{127, 0, 0, 1}}

func call(trap, a, b, c uintptr) (int, error) {
	n, _, errno := unix.RawSyscall(trap, a, b, c)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func socket(kind uintptr) (int, error) {
	return call(unix.SYS_SOCKET, unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
}

func connect(fd int) error {
	_, err := call(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&rawAddress)), unsafe.Sizeof(rawAddress))
	return err
}

func write(fd int, data []byte) error {
	_, err := call(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
	return err
}

func read(fd int, data []byte) (int, error) {
	return call(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&data[0])), uintptr(len(data)))
}

func closeFD(fd int) { _, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func setInt(fd, level, option, value int) error {
	v := int32(value)
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&v)), unsafe.Sizeof(v), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// abort closes a connection with a reset, so that ports are not used up.
func abort(fd int) {
	l := unix.Linger{Onoff: 1}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
	closeFD(fd)
}

func listen(flags int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|flags, 0)
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(unix.Bind(fd, address), unix.Listen(fd, 4096))
}

type round = func(n int) (map[string]float64, error)

// accepter sleeps while clients connect. For each number it closes what waits, and wants it to be as many.
func accepter() (round, error) {
	l, err := listen(unix.SOCK_NONBLOCK)
	return func(want int) (map[string]float64, error) {
		for n := 0; ; n++ {
			fd, _, err := unix.Accept(l)
			switch {
			case err == nil:
				unix.Close(fd)
			case !errors.Is(err, unix.EAGAIN):
				return nil, err
			case n != want:
				return nil, fmt.Errorf("%d connections of %d came", n, want)
			default:
				return nil, nil
			}
		}
	}, err
}

// connecter measures connect alone.
func connecter() (round, error) {
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			fd, err := socket(unix.SOCK_STREAM)
			if err != nil {
				return 0, err
			}
			began := time.Now()
			err = connect(fd)
			took := time.Since(began)
			abort(fd)
			return took, err
		})
	}, nil
}

// forever is a server's round: it never ends. What fails ends the process.
func forever(once func() error) round {
	return func(int) (map[string]float64, error) {
		for {
			if err := once(); err != nil {
				return nil, err
			}
		}
	}
}

// greeter answers the first byte of each connection with one.
func greeter() (round, error) {
	l, err := listen(0)
	buf := make([]byte, 1)
	return forever(func() error {
		fd, err := call(unix.SYS_ACCEPT, uintptr(l), 0, 0)
		if err != nil {
			return err
		}
		if _, err = read(fd, buf); err == nil {
			err = write(fd, buf)
		}
		closeFD(fd)
		return err
	}), err
}

// greeted measures a connect with a byte each way.
func greeted() (round, error) {
	buf := make([]byte, 1)
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			fd, err := socket(unix.SOCK_STREAM)
			if err != nil {
				return 0, err
			}
			began := time.Now()
			if err = connect(fd); err == nil {
				if err = write(fd, buf); err == nil {
					_, err = read(fd, buf)
				}
			}
			took := time.Since(began)
			abort(fd)
			return took, err
		})
	}, nil
}

// answerer sends each datagram back.
func answerer() (round, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, address); err != nil {
		return nil, err
	}
	buf := make([]byte, 512)
	var from unix.RawSockaddrInet4
	return forever(func() error {
		size := uint32(unsafe.Sizeof(from))
		data, who := uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(&from))
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), data, uintptr(len(buf)), 0,
			who, uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			return errno
		}
		_, _, errno = unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), data, n, 0, who, uintptr(size))
		if errno != 0 {
			return errno
		}
		return nil
	}), nil
}

// query asks for the address of host.test (RFC 1035, 4).
var query = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x04test\x00\x00\x01\x00\x01")

// ask sends the query and waits for what comes back.
func ask(fd int, buf []byte) error {
	err := write(fd, query)
	if err == nil {
		_, err = read(fd, buf)
	}
	return err
}

// flows are how many sockets a long asker has.
const flows = 8

// asker asks from a few sockets that stay.
func asker() (round, error) {
	fds, buf := make([]int, flows), make([]byte, 512)
	for i := range fds {
		var err error
		if fds[i], err = socket(unix.SOCK_DGRAM); err != nil {
			return nil, err
		}
		if err := connect(fds[i]); err != nil {
			return nil, err
		}
	}
	i := 0
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			fd := fds[i%flows]
			i++
			began := time.Now()
			err := ask(fd, buf)
			return time.Since(began), err
		})
	}, nil
}

// shortAsker asks from a new socket each time, as name resolution does.
func shortAsker() (round, error) {
	buf := make([]byte, 512)
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			fd, err := socket(unix.SOCK_DGRAM)
			if err != nil {
				return 0, err
			}
			if err = connect(fd); err == nil {
				err = ask(fd, buf)
			}
			closeFD(fd)
			return time.Since(began), err
		})
	}, nil
}

// receiver has room for many datagrams. For each number it takes what has come, and wants it to be as many.
func receiver() (round, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, 64)
	return func(want int) (map[string]float64, error) {
		for n := 0; ; n++ {
			_, err := read(fd, buf)
			switch {
			case err == nil:
			case !errors.Is(err, unix.EAGAIN):
				return nil, err
			case n != want*volley:
				return nil, fmt.Errorf("%d datagrams of %d came", n, want*volley)
			default:
				return nil, nil
			}
		}
	}, errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20), unix.Bind(fd, address))
}

// volley is how many datagrams are sent between two looks at the clock.
const volley = 10

// sender sends volleys of datagrams of 32 bytes from one socket. Each is delivered within the call that sends it.
func sender() (round, error) {
	fd, err := socket(unix.SOCK_DGRAM)
	if err == nil {
		err = connect(fd)
	}
	data := make([]byte, 32)
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			for range volley {
				if err := write(fd, data); err != nil {
					return 0, err
				}
			}
			return time.Since(began), nil
		})
	}, err
}

const bulkPiece = 1 << 20

// roomy gives a socket room for pieces, so that whoever sends one need not wait within it.
func roomy(fd int) error {
	return errors.Join(setInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16*bulkPiece),
		setInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16*bulkPiece))
}

// sink reads pieces from one connection, and measures that.
func sink() (round, error) {
	l, err := listen(0)
	buf := make([]byte, 256<<10)
	conn := -1
	return func(n int) (map[string]float64, error) {
		if conn < 0 {
			if conn, err = call(unix.SYS_ACCEPT, uintptr(l), 0, 0); err != nil {
				return nil, err
			}
		}
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			for left := bulkPiece; left > 0; {
				n, err := read(conn, buf[:min(left, len(buf))])
				if err != nil || n == 0 {
					return 0, errors.Join(err, errors.New("the connection ended"))
				}
				left -= n
			}
			return time.Since(began), nil
		})
	}, errors.Join(err, roomy(l))
}

// source sends pieces over one connection, and measures that.
func source() (round, error) {
	fd, err := socket(unix.SOCK_STREAM)
	if err == nil {
		err = errors.Join(roomy(fd), connect(fd))
	}
	piece := make([]byte, bulkPiece)
	return func(n int) (map[string]float64, error) {
		return timed(n, func() (time.Duration, error) {
			began := time.Now()
			err := write(fd, piece)
			return time.Since(began), err
		})
	}, err
}
