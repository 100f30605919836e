package fleet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/datapath/refusal"
)

// learns is a table that learns everything, and what it learned.
type learns map[string]uint32

func (l learns) Class(r policy.Remote) (uint32, bool) { class, ok := l[r.Node]; return class, ok }

func (l learns) Learn(_ context.Context, r policy.Remote) error {
	l[r.Node] = uint32(len(l) + 1)
	return nil
}

func (l learns) Forget(context.Context) {}

func (l learns) Believe(context.Context, *pki.Node, *pki.Trust) error { return nil }

// How often a node makes the table change is bounded, for each by itself.
func TestRemotesRate(t *testing.T) {
	clock := time.Unix(1_800_000_000, 0)
	f := &Fleet{table: learns{}, rates: map[string]*rate.Limiter{}, config: Config{Now: func() time.Time {
		return clock
	}}}
	allowed := func(node string) (n int) {
		for range 2 * remotesBurst {
			if f.mayMeet(node) {
				n++
			}
		}
		return n
	}
	if n := allowed("a"); n != remotesBurst {
		t.Errorf("%d at once", n)
	}
	if _, err := f.class(policy.Remote{Node: "a"}); !errors.Is(err, refusal.TooOften) {
		t.Errorf("and one more: %v", err)
	}
	clock = clock.Add(time.Second)
	if n := allowed("a"); n != remotesPerSecond {
		t.Errorf("%d in the second after", n)
	}
	if n := allowed("b"); n != remotesBurst {
		t.Errorf("another node: %d at once", n)
	}
	clock = clock.Add(time.Hour)
	for i := range 2 * maxRemoteBuckets {
		f.mayMeet(fmt.Sprint("node-", i))
		clock = clock.Add(time.Second)
	}
	if n := len(f.rates); n > maxRemoteBuckets {
		t.Errorf("the rates of %d nodes are known", n)
	}
	first, err := f.class(policy.Remote{Node: "c"})
	if err != nil || first == 0 {
		t.Errorf("a node that was idle: class %d, %v", first, err)
	}
	for range 2 * remotesBurst {
		if again, err := f.class(policy.Remote{Node: "c"}); again != first || err != nil {
			t.Fatalf("what is known costs nothing: class %d, %v", again, err)
		}
	}
}
