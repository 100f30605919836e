package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkReconcile measures how soon the table is what a fresh compile makes when
// Docker answers again. There are 50 containers; while it was away, half of them were
// restarted, so that they have other cgroups, and those on the bridge other ports.
func BenchmarkReconcile(b *testing.B) {
	const containers, rounds = 50, 9
	h := newHarbour(b, containers)
	var took []time.Duration
	for b.Loop() {
		for range rounds {
			h.proxy.down()
			each(containers/2, func(name string) { h.engine.Docker("restart", "-t=0", name) })
			if h.stale() == "" {
				b.Fatal("the table is fresh although Docker is away")
			}
			began := time.Now()
			h.proxy.up()
			for !h.connected(containers) {
				if time.Since(began) > time.Minute {
					b.Fatal("the containers are not known")
				}
			}
			took = append(took, time.Since(began))
			if diff := h.stale(); diff != "" {
				b.Fatalf("not fresh: %s", diff)
			}
		}
	}
	slices.Sort(took)
	n := len(took)
	b.ReportMetric(took[n/2].Seconds()*1000, "ms/return")
	fmt.Printf("Docker's return to a fresh table, %d containers: %v   (fastest %v, slowest %v of %d)\n",
		containers, took[n/2].Round(time.Millisecond), took[0].Round(time.Millisecond),
		took[n-1].Round(time.Millisecond), n)
}

// connected reports whether the table knows the containers as they run now, those on
// bridges with their addresses. It is asked again and again: so by one request.
func (h *harbour) connected(containers int) bool {
	known := 0
	for _, w := range h.workloads("container") {
		if w.Facts["thole/network"] == "host" || len(w.Networks) == 1 {
			known++
		}
	}
	return known == containers+1 // with the probe's
}
