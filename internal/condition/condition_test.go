package condition

import (
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// problems returns the codes of all problems, ascending.
func problems() []Code {
	return []Code{
		BindingOverlap, BindingUnresolved, BridgeShared, CertificateContradicts, CgroupsUnreadable, CgroupsUnwatched,
		ContainerNotJudged, ContainerParentShared, ContainerRefused, ContainerUnknown, ContainerUnprotected,
		CountersUnreadable, DefaultAudited,
		Disarmed, DockerAway, EndedDropped, EndedUnknown, FleetDegraded, LocalRoutesFailed, NoPolicies, PatternChurn,
		PatternFull, PKIUnwatched, ScopeRefused,
		SocketExposed, SocketsUnlisted, StateUnreadable, UnitNotCovered, UnitsUnknown,
	}
}

// docs/OPERATIONS.md lists each code once, as what it is.
func TestDocumented(t *testing.T) {
	data, err := os.ReadFile("../../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\| (problem|notice) \\|")
	found := map[string][]Code{}
	for _, match := range row.FindAllStringSubmatch(string(data), -1) {
		found[match[2]] = append(found[match[2]], Code(match[1]))
	}
	for kind, want := range map[string][]Code{"problem": problems(), "notice": Notices()} {
		if diff := cmp.Diff(want, found[kind]); diff != "" {
			t.Errorf("%ss in docs/OPERATIONS.md (-code +docs)\n%s", kind, diff)
		}
		if !slices.IsSorted(want) {
			t.Errorf("the %ss are not in ascending order: %v", kind, want)
		}
	}
}

func TestSplit(t *testing.T) {
	problems, notices := Split([]Condition{{Code: ImageLabel, Text: "a"}, {Code: DockerAway, Text: "b"},
		{Code: ImageLabel, Text: "c"}})
	if diff := cmp.Diff([]Condition{{Code: DockerAway, Text: "b"}}, problems); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Condition{{Code: ImageLabel, Text: "a"}, {Code: ImageLabel, Text: "c"}},
		notices); diff != "" {
		t.Error(diff)
	}
}
