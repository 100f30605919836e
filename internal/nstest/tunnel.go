package nstest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// A tunnel keeps packets in queues of its own, where no frame on lo comes behind them. WireGuard does: a packet waits
// for a worker that encrypts it, for one that sends it, and at the other end for one that decrypts it (linux:
// drivers/net/wireguard/queueing.h). Packets of one peer keep their order. So a datagram that was sent through the
// tunnel after another packet arrives after it.
type tunnel struct {
	there, back *beacon
	end         func() error
}

// Tunnel makes a Barrier of either host hold for what goes through a tunnel between them that keeps the order of
// packets. The addresses are inside the tunnel, of either family. What is unlabelled must get through. The function
// that is returned undoes it: it must be called before the tunnel is removed.
func Tunnel(a *Host, addrA string, b *Host, addrB string) (undo func()) {
	a.t.Helper()
	inA, toA, err := tunnelEnd(a, addrA)
	if err != nil {
		a.t.Fatalf("nstest: tunnel: %v", err)
	}
	inB, toB, err := tunnelEnd(b, addrB)
	if err != nil {
		a.t.Fatalf("nstest: tunnel: %v", errors.Join(err, unix.Close(inA)))
	}
	t := &tunnel{
		there: &beacon{out: inA, in: inB, to: toB},
		back:  &beacon{out: inB, in: inA, to: toA},
		end:   sync.OnceValue(func() error { return errors.Join(unix.Close(inA), unix.Close(inB)) }),
	}
	for _, h := range []*Host{a, b} {
		h.mu.Lock()
		h.tunnels = append(h.tunnels, t)
		h.mu.Unlock()
	}
	a.OnEnd(t.end)
	return func() {
		a.t.Helper()
		for _, h := range []*Host{a, b} {
			h.mu.Lock()
			h.tunnels = slices.DeleteFunc(slices.Clone(h.tunnels), func(other *tunnel) bool { return other == t })
			h.mu.Unlock()
		}
		if err := t.end(); err != nil {
			a.t.Errorf("nstest: tunnel: %v", err)
		}
	}
}

// tunnelEnd opens a socket of UDP at an address of the host, and returns where it is.
func tunnelEnd(h *Host, addr string) (fd int, at unix.Sockaddr, err error) {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return -1, nil, err
	}
	enterErr := h.Do(func() { fd, at, err = boundUDP(ip) })
	if err := errors.Join(enterErr, err); err != nil {
		return -1, nil, fmt.Errorf("socket at %s: %w", addr, err)
	}
	return fd, at, nil
}

func boundUDP(ip netip.Addr) (fd int, at unix.Sockaddr, err error) {
	family := unix.AF_INET6
	at = &unix.SockaddrInet6{Addr: ip.As16()}
	if ip.Is4() {
		family = unix.AF_INET
		at = &unix.SockaddrInet4{Addr: ip.As4()}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	err = receiveTimeout(fd)
	if err == nil {
		err = unix.Bind(fd, at)
	}
	if err == nil {
		at, err = unix.Getsockname(fd)
	}
	if err != nil {
		return -1, nil, errors.Join(err, unix.Close(fd))
	}
	return fd, at, nil
}

// drain returns when what was sent before has passed the tunnel, and so has what it caused.
func (t *tunnel) drain(lo *beacon) error {
	for range crossings / 2 {
		for _, way := range []*beacon{t.there, t.back} {
			if err := way.cross(); err != nil {
				return fmt.Errorf("a datagram did not pass the tunnel: %w", err)
			}
			if err := lo.drain(); err != nil {
				return err
			}
		}
	}
	return nil
}
