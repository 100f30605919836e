package daemon

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"thole/internal/nstest"
)

// A footprint is what a daemon takes, after a garbage collection.
type footprint struct {
	goroutines, files int
	heap, resident    int // bytes
}

// footprintLine is how a daemon logs it.
const footprintLine = "footprint %d of goroutines=%d files=%d heap=%d resident=%d"

// reportFootprints logs what this process takes, each time that it gets SIGUSR1.
func reportFootprints(log *slog.Logger) {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGUSR1)
	for n := 1; ; n++ {
		<-asked
		runtime.GC()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		files, _ := os.ReadDir("/proc/self/fd")
		log.Info(fmt.Sprintf(footprintLine, n, runtime.NumGoroutine(), len(files), mem.HeapAlloc, resident()))
	}
}

// resident returns this process's memory that no file backs, in bytes.
func resident() (bytes int) {
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "RssAnon: %d kB", &bytes); err == nil {
			return bytes << 10
		}
	}
	return 0
}

// footprint asks the daemon what it takes.
func (m *machine) footprint() (f footprint) {
	m.t.Helper()
	said := func() (n int) {
		log := m.log.String()
		line, _, whole := strings.Cut(log[max(0, strings.LastIndex(log, "footprint ")):], "\n")
		if !whole {
			return 0
		}
		_, _ = fmt.Sscanf(line, footprintLine, &n, &f.goroutines, &f.files, &f.heap, &f.resident)
		return n
	}
	before := said()
	if err := m.daemon.Process.Signal(syscall.SIGUSR1); err != nil {
		m.t.Fatal(err)
	}
	nstest.WaitFor(m.t, patience, "what the daemon takes", func() bool { return said() > before })
	return f
}

// mayGrowTo fails the test where a later footprint is larger by more than chance.
func (f footprint) mayGrowTo(t *testing.T, later footprint) {
	t.Helper()
	for _, of := range []struct {
		what                 string
		before, after, slack int
	}{
		{"goroutines", f.goroutines, later.goroutines, 8},
		{"files", f.files, later.files, 8},
		{"bytes of heap", f.heap, later.heap, 2<<20 + f.heap/5},
		{"bytes of memory", f.resident, later.resident, 8<<20 + f.resident/5}, // the collector lets it vary
	} {
		if of.after > of.before+of.slack {
			t.Errorf("%s: %d, and %d before: want at most %d more", of.what, of.after, of.before, of.slack)
		}
	}
}
