package paired

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		name   string
		values []float64
		want   Interval
	}{
		{"one value", []float64{3}, Interval{3, 3, 3}},
		{"equal values", []float64{2, 2, 2, 2}, Interval{2, 2, 2}},
		{"two values", []float64{4, 2}, Interval{2, 3, 4}},
		{"an outlier moves nothing", []float64{1, 1, 1, 1, 1, 1, 1, 1, 1000}, Interval{1, 1, 1}},
	} {
		if got := Median(c.values); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestMedianIsRepeatable(t *testing.T) {
	values := []float64{5, 3, 8, 1, 9, 2}
	before := slices.Clone(values)
	if a, b := Median(values), Median(values); a != b {
		t.Errorf("%v, then %v", a, b)
	}
	if !slices.Equal(values, before) {
		t.Errorf("the values were changed to %v", values)
	}
}

// The bounds of noisy values enclose the true median about as often as they say, and narrow as 1/√n.
func TestMedianEncloses(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	noisy := func(n int) (values []float64) {
		for range n {
			values = append(values, 1+0.1*random.NormFloat64())
		}
		return values
	}
	const experiments = 300
	enclosed := 0
	for range experiments {
		if i := Median(noisy(60)); i.Low <= 1 && 1 <= i.High {
			enclosed++
		}
	}
	if share := float64(enclosed) / experiments; share < 0.90 {
		t.Errorf("%.3f of the intervals enclose the median, want about 0.95", share)
	}
	width := func(i Interval) float64 { return i.High - i.Low }
	if few, many := width(Median(noisy(100))), width(Median(noisy(1600))); few/many < 2 || few/many > 8 {
		t.Errorf("100 values have bounds %.4f apart, and 1,600 %.4f: want about four times less", few, many)
	}
}

func TestRatios(t *testing.T) {
	got, err := Ratios([]float64{1, 6}, []float64{2, 3})
	if err != nil || !slices.Equal(got, []float64{0.5, 2}) {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := Ratios([]float64{1}, nil); err == nil {
		t.Error("values without a partner were accepted")
	}
	if got, _ := Ratios([]float64{0}, []float64{0}); !math.IsNaN(got[0]) {
		t.Errorf("0/0 is %v", got[0])
	}
}
