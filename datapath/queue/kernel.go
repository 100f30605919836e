package queue

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// KernelStats are what the kernel knows of a queue.
type KernelStats struct {
	Waiting      uint64 // packets without a verdict
	QueueDropped uint64 // because the queue was full
	UserDropped  uint64 // because the socket's buffer was
}

// ReadKernelStats reads the statistics of a queue in the network namespace of the
// calling thread. It fails if nobody reads the queue.
func ReadKernelStats(number uint16) (KernelStats, error) {
	const path = "/proc/thread-self/net/netfilter/nfnetlink_queue"
	b, err := os.ReadFile(path)
	if err != nil {
		return KernelStats{}, err
	}
	for line := range strings.Lines(string(b)) {
		// number, port id, waiting, copy mode, copy range, queue dropped, user dropped, last id, 1
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != strconv.Itoa(int(number)) {
			continue
		}
		var s KernelStats
		for i, field := range map[int]*uint64{2: &s.Waiting, 5: &s.QueueDropped, 6: &s.UserDropped} {
			if *field, err = strconv.ParseUint(f[i], 10, 64); err != nil {
				return KernelStats{}, fmt.Errorf("%s: %q: %v", path, line, err)
			}
		}
		return s, nil
	}
	return KernelStats{}, fmt.Errorf("queue %d is not in %s: no process reads it", number, path)
}
