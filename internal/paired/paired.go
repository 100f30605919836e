package paired

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// An Interval is a median, and the bounds between which it lies with 95 percent confidence.
type Interval struct{ Low, Median, High float64 }

// Resamples is how many samples the bootstrap draws. The bounds are then stable to about a fiftieth of their
// distance.
const Resamples = 2000

// Median returns the median of values, and its 95 percent bounds by the percentile bootstrap: samples of as many
// values are drawn with replacement, and 2.5 percent of their medians lie beyond each bound. The seed is fixed, so
// that the same values always have the same bounds. There must be a value.
func Median(values []float64) Interval {
	if len(values) == 0 {
		panic("paired: the median of no values")
	}
	sorted := slices.Sorted(slices.Values(values))
	random := rand.New(rand.NewPCG(1, 2))
	medians, counts := make([]float64, Resamples), make([]int, len(sorted))
	for i := range medians {
		clear(counts)
		for range sorted {
			counts[random.IntN(len(sorted))]++
		}
		medians[i] = counted(sorted, counts)
	}
	slices.Sort(medians)
	const beyond = Resamples / 40
	return Interval{Low: medians[beyond], Median: middle(sorted), High: medians[Resamples-1-beyond]}
}

// Ratios divides the values of each pair.
func Ratios(of, to []float64) ([]float64, error) {
	if len(of) != len(to) {
		return nil, fmt.Errorf("pair %d values with %d: must be as many", len(of), len(to))
	}
	ratios := make([]float64, len(of))
	for i := range of {
		ratios[i] = of[i] / to[i]
	}
	return ratios, nil
}

// middle is the median of sorted values.
func middle(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// counted is the median of a sample in which the sorted values occur that often.
func counted(sorted []float64, counts []int) float64 {
	n := len(sorted)
	lower := (n - 1) / 2
	for i, seen := 0, 0; ; i++ {
		if seen += counts[i]; seen > lower {
			if seen > n/2 {
				return sorted[i]
			}
			upper := i + 1
			for counts[upper] == 0 {
				upper++
			}
			return (sorted[i] + sorted[upper]) / 2
		}
	}
}
