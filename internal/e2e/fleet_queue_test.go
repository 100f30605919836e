package e2e

import (
	"strings"
	"testing"

	"thole/internal/nstest"
)

// Packets get to userspace as doctor and status say, which is as the kernel has it; and
// where that is by nft's own expression, nft can load the table from its text.
func TestFleetQueue(t *testing.T) {
	a, b := newFleet(t)
	tell(t, a, b)
	table := a.Shell("nft --debug=netlink list table inet thole")
	native := strings.Contains(table, "[ queue num 5448 ]")
	if compat := strings.Contains(table, "[ target name NFQUEUE "); native == compat || nstest.NativeQueue() &&
		!native {
		t.Errorf("by the expression queue: %t, by NFQUEUE of xtables: %t, the kernel must have the expression: %t\n%s",
			native, compat, nstest.NativeQueue(), table)
	}
	doctor, status := "NFQUEUE of nft_compat", "by NFQUEUE of nft_compat"
	if native {
		doctor, status = "nft's expression queue", "by nft's queue"
	}
	for command, want := range map[string]string{" doctor || true": doctor, " status": status} {
		if out := a.Shell(a.thole + command); !strings.Contains(out, want) {
			t.Errorf("thole%s lacks %q:\n%s", command, want, out)
		}
	}
	if !native {
		return
	}
	cmd := a.Command(a.thole, "apply", "--state", "/run/state", "-f", "-", "--dry-run")
	cmd.Stdin = strings.NewReader(cidrAndLabels)
	text, err := cmd.Output()
	must(t, err)
	other := nstest.New(t)
	must(t, other.Nft(string(text)))
	if list := other.Shell("nft --debug=netlink list table inet thole"); !strings.Contains(list, "[ queue num 5448 ]") {
		t.Errorf("nft loaded no rule that queues:\n%s", list)
	}
}
