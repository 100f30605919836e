package daemon

import (
	"golang.org/x/sys/unix"

	"thole/datapath/sockets"
)

// socketCgroups returns the ids of the cgroups to which the sockets of this network
// namespace belong: those that are bound, connected or listening. The kernel does not
// list others.
func socketCgroups() (map[uint64]bool, error) {
	ids := map[uint64]bool{}
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_UDPLITE, unix.IPPROTO_RAW,
		unix.IPPROTO_SCTP} {
		err := sockets.Dump(protocol, func(s sockets.Socket) bool {
			if s.Cgroup != 0 {
				ids[s.Cgroup] = true
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	return ids, nil
}
