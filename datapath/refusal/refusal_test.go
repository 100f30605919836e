package refusal

import (
	"fmt"
	"strings"
	"testing"
)

// Each reason has a name of its own, that of a package and of itself, and an error.
func TestReasonsHaveNames(t *testing.T) {
	names := map[string]bool{}
	for r := Reason(1); r < endOfReasons; r++ {
		by, name, _ := strings.Cut(r.String(), "/")
		if reasons[r] == "" || names[r.String()] || what[by] == "" || name == "" {
			t.Errorf("reason %d has no name of its own: %s", r, r)
		}
		names[r.String()] = true
	}
	if got := endOfReasons.String(); got != fmt.Sprintf("reason-%d", endOfReasons) {
		t.Error(got)
	}
	for r, want := range map[Reason]string{
		BadM1: "refused: bad-m1", NotTCP: "packet refused: not-tcp", Unknown: "statement: unknown",
		Busy: "handshake: busy", TooMany: "classes of other nodes' workloads: too-many",
	} {
		if got := r.Error(); got != want {
			t.Errorf("%s: %q, want %q", r, got, want)
		}
	}
}
