package doctor

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/internal/api"
	"thole/internal/exposure"
	"thole/internal/nstest"
	"thole/ruleset"
)

func TestMain(m *testing.M) { nstest.Main(m) }

func TestComplete(t *testing.T) {
	for status, want := range map[Status]bool{OK: true, Warning: true, Missing: false, Unknown: false} {
		if got := Complete([]Finding{{Status: OK}, {Status: status}}); got != want {
			t.Errorf("with one finding %q: got %v, want %v", status, got, want)
		}
	}
}

func TestParseRelease(t *testing.T) {
	for release, want := range map[string][2]int{
		"6.18.44-fc-v595":   {6, 18},
		"6.1.0-13-amd64":    {6, 1},
		"5.10.0":            {5, 10},
		"6.12":              {6, 12},
		"not a version":     {0, 0},
		"4.18.0-553.el8_10": {4, 18},
	} {
		major, minor := parseRelease(release)
		if got := [2]int{major, minor}; got != want {
			t.Errorf("%q: got %v, want %v", release, got, want)
		}
	}
}

func TestDelegates(t *testing.T) {
	for mountinfo, want := range map[string]bool{
		"35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n": true,
		"41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n":                       false,
		"41 31 0:38 / /nsdelegate rw,relatime - cgroup2 nsdelegate rw\n":                               false,
		"36 24 0:31 / /sys/fs/cgroup rw - cgroup cgroup rw,nsdelegate\n":                               false,
		"": false,
	} {
		if got := delegates(mountinfo); got != want {
			t.Errorf("%q: %t, want %t", mountinfo, got, want)
		}
	}
}

func TestLegacyRules(t *testing.T) {
	const rules = `*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
-A PREROUTING -p udp -j CT --notrack
COMMIT
`
	got := legacyRules(rules, "iptables-legacy, table mangle")
	slices.SortFunc(got, func(a, b offender) int { return int(a.offence) - int(b.offence) })
	want := []offender{{setsMark, "iptables-legacy, table mangle"}, {skipsConntrack, "iptables-legacy, table mangle"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(offender{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestForeignRules has other programs' rules named by what they do, and ours left out.
func TestForeignRules(t *testing.T) {
	nstest.Need(t, "root", "nft")
	for _, test := range []struct {
		name, script string
		want         []offender
	}{
		{"none", ``, nil},
		{"harmless", `table ip nat {
			chain pre { type nat hook prerouting priority -100; tcp dport 80 redirect to :8080; }
		}`, nil},
		{"our own", `table inet thole { chain c { ct mark set 1; }; }`, nil},
		{"sets the mark", `table ip wg { chain c { meta mark set ct mark; ct mark set meta mark; }; }`, []offender{
			{setsMark, "table ip wg, chain c"}, {readsMark, "table ip wg, chain c"},
		}},
		{
			"sets it by a map", `table inet lb {
				map m { type inet_service : mark; }
				chain c { ct mark set tcp dport map @m; }
			}`,
			[]offender{{setsMark, "table inet lb, chain c"}},
		},
		{"untracked", `table ip6 raw { chain c { udp dport 53 notrack; }; }`,
			[]offender{{skipsConntrack, "table ip6 raw, chain c"}}},
		{
			"ours in another family is not ours", `table ip thole { chain c { ct mark 1 accept; }; }`,
			[]offender{{readsMark, "table ip thole, chain c"}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			host := nstest.New(t)
			if err := host.Nft(test.script); err != nil {
				t.Fatal(err)
			}
			var got []offender
			var err error
			if e := host.Do(func() { got, err = nftOffenders("thole") }); e != nil || err != nil {
				t.Fatal(e, err)
			}
			slices.SortFunc(got, func(a, b offender) int { return int(a.offence) - int(b.offence) })
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(offender{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestIPTables has the rules of iptables-nft named.
func TestIPTables(t *testing.T) {
	nstest.Need(t, "root", "iptables-nft")
	host := nstest.New(t)
	host.Shell(`iptables-nft -t mangle -A OUTPUT -j CONNMARK --save-mark
iptables-nft -t raw -A PREROUTING -p udp -j CT --notrack`)
	var findings []Finding
	if err := host.Do(func() { findings = foreignRules(t.Context(), "thole") }); err != nil {
		t.Fatal(err)
	}
	for i, place := range []string{"table ip mangle, chain OUTPUT", "table ip raw, chain PREROUTING"} {
		if f := findings[i]; f.Status != Warning || !strings.Contains(f.Found, place) {
			t.Errorf("got %+v, want a warning that names %s", f, place)
		}
	}
}

func TestFeaturesSayWhatFollows(t *testing.T) {
	seen := map[string]bool{}
	for _, f := range features(ruleset.CgroupValue("thole-doctor-1", 7), 1) {
		if f.name == "" || f.found == "" || f.follows == "" || f.needs == "" || len(f.rules) == 0 {
			t.Errorf("%q: a field is empty", f.name)
		}
		if seen[f.name] {
			t.Errorf("%q is there twice", f.name)
		}
		seen[f.name] = true
	}
}

// TestProbe runs the probe as Examine does: in a namespace and a cgroup of its own.
func TestProbe(t *testing.T) {
	host := nstest.New(t)
	cmd := host.In("thole-doctor-test").Command("/proc/self/exe", "-test.run=^TestProbeHere$", "-test.v")
	cmd.Env = append(os.Environ(), "THOLE_PROBE_HERE=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
	if list := host.NftList(); strings.Contains(list, tableName) {
		t.Errorf("the probe left its table:\n%s", list)
	}
}

// TestProbeRefuses keeps the probe's tables out of the namespace of its caller.
func TestProbeRefuses(t *testing.T) {
	if findings, err := Probe(t.Context()); err == nil {
		t.Errorf("it was tried out in the namespace of the caller: %+v", findings)
	}
}

// TestProbeHere is what TestProbe starts.
func TestProbeHere(t *testing.T) {
	if os.Getenv("THOLE_PROBE_HERE") == "" {
		return // TestProbe is the test
	}
	findings, err := Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		t.Logf("%s: %s: %s", f.Check, f.Status, f.Found)
		if f.Status != OK {
			t.Errorf("%+v", f)
		}
	}
}

func TestSocketListing(t *testing.T) {
	host := nstest.New(t)
	var got Finding
	if e := host.Do(func() {
		socket, err := net.ListenUDP("udp6", &net.UDPAddr{IP: net.IPv6loopback})
		if err != nil {
			t.Error(err)
			return
		}
		defer socket.Close()
		got = socketListing()
	}); e != nil || got.Status != OK {
		t.Errorf("%+v, %v", got, e)
	}
}

func TestExposedSockets(t *testing.T) {
	port := api.ExposedPort{Reason: exposure.MixedDevices, Protocol: "udp", Port: 53, Text: "a decoy"}
	for _, test := range []struct {
		name   string
		status *api.SocketStatus
		want   []string
	}{
		{"nothing is enforced", nil, nil},
		{"none", &api.SocketStatus{Examined: 7, Complete: true}, []string{"ok: none of 7"}},
		{
			"one", &api.SocketStatus{Examined: 7, Complete: true, Exposed: []api.ExposedPort{port}},
			[]string{"warning: udp port 53: a decoy"},
		},
		{
			"one, and a bound was reached", &api.SocketStatus{Examined: 7, Exposed: []api.ExposedPort{port}},
			[]string{"warning: udp port 53: a decoy", "warning: 7 sockets were examined, not all"},
		},
	} {
		var got []string
		for _, f := range exposedSockets(api.Status{Sockets: test.status}) {
			if f.Check == "decoys" {
				continue
			}
			got = append(got, string(f.Status)+": "+f.Found)
			if f.Status != OK && (f.Follows == "" || f.Mend == "") {
				t.Errorf("%s: %+v says not what follows, or what mends it", test.name, f)
			}
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

func TestDecoys(t *testing.T) {
	for _, test := range []struct {
		routes api.LocalRoutesStatus
		want   Status
	}{
		{api.LocalRoutesStatus{}, OK},
		{api.LocalRoutesStatus{On: true, Addresses: 2}, OK},
		{api.LocalRoutesStatus{On: true, Error: "no memory"}, Warning},
	} {
		if got := decoys(test.routes); got.Status != test.want {
			t.Errorf("%+v: %+v", test.routes, got)
		}
	}
}
