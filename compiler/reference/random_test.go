package reference

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"thole/compiler/policy"
	"thole/compiler/reference/policyyaml"
)

// seeded calls check for n random cases, and prints the seed of a failing one.
func seeded(t *testing.T, n uint64, check func(t *testing.T, r *rand.Rand, c Case)) {
	t.Helper()
	for seed := range n {
		r := rand.New(rand.NewPCG(seed, 0))
		check(t, r, Random(r, 1+int(seed%5)))
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func TestRandomDependsOnTheSeedAlone(t *testing.T) {
	seeded(t, 50, func(t *testing.T, _ *rand.Rand, c Case) {
		// Map iteration is what could differ; a clone has other maps.
		if a, b := c.String(), c.clone().String(); a != b {
			t.Error(cmp.Diff(a, b))
		}
	})
	for seed := range uint64(50) {
		a := Random(rand.New(rand.NewPCG(seed, 0)), 4)
		b := Random(rand.New(rand.NewPCG(seed, 0)), 4)
		if diff := cmp.Diff(a.String(), b.String()); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

// TestRandomIsPossible checks what Random promises about its cases.
func TestRandomIsPossible(t *testing.T) {
	seeded(t, 500, func(t *testing.T, _ *rand.Rand, c Case) {
		checkWorkloads(t, c.Workloads)
		for _, s := range selectors(&c) {
			checkSelector(t, *s)
		}
		for _, p := range peers(&c) {
			checkPeer(t, *p)
		}
		for _, connection := range c.Connections {
			checkConnection(t, connection)
		}
	})
}

func checkWorkloads(t *testing.T, workloads []*policy.Workload) {
	places := make(map[any]bool)
	for _, w := range workloads {
		if len(w.Labels) == 0 && w.Kind != policy.KindContainer {
			t.Errorf("%s has no user label, and is no container", describe(w))
		}
		for key := range w.Doubtful {
			_, given := w.Labels[key]
			if _, fact := w.Facts[key]; given || fact {
				t.Errorf("%s has %s twice", describe(w), key)
			}
		}
		if (w.Kind == policy.KindAddress) != w.Address.IsValid() || w.Address.IsValid() == (w.Cgroup.ID != 0) {
			t.Errorf("%s: want an address or a cgroup", describe(w))
		}
		for _, place := range []any{w.Name, w.Address, w.Cgroup.Path, w.Cgroup.ID} {
			if places[place] && !reflect.ValueOf(place).IsZero() {
				t.Errorf("%s: %v is not unique", describe(w), place)
			}
			places[place] = true
		}
	}
}

func checkSelector(t *testing.T, s policy.Selector) {
	if got := sortedRequirements(slices.Clone(s.Requirements)); !cmp.Equal(got, s.Requirements) {
		t.Errorf("requirements %v: want %v", s.Requirements, got)
	}
	for _, r := range s.Requirements {
		if !slices.IsSorted(r.Values) || (r.Values != nil) != (r.Operator == policy.In || r.Operator == policy.NotIn) {
			t.Errorf("requirement %v", r)
		}
	}
}

func checkPeer(t *testing.T, p policy.Peer) {
	if p.SameLabels != nil && !slices.IsSorted(p.SameLabels.Keys) {
		t.Errorf("sameLabels %v", p.SameLabels.Keys)
	}
	if p.CIDR == nil {
		return
	}
	for _, prefix := range append([]netip.Prefix{p.CIDR.Prefix}, p.CIDR.Except...) {
		if prefix != prefix.Masked() || !p.CIDR.Prefix.Overlaps(prefix) || prefix.Bits() < p.CIDR.Prefix.Bits() {
			t.Errorf("prefix %s in %v", prefix, p.CIDR)
		}
	}
}

func checkConnection(t *testing.T, c Connection) {
	if c.From.outside() && c.To.outside() {
		t.Errorf("%s: no end is on this node", c)
	}
	if c.Group.IsValid() && c.To != (Endpoint{}) {
		t.Errorf("%s: a group and a destination", c)
	}
	addresses := []netip.Addr{c.From.Address, c.To.Address, c.Group}
	for _, e := range []Endpoint{c.From, c.To} {
		if e.Workload != nil {
			addresses = append(addresses, e.Workload.Address)
		}
		if e.outside() && !isOutside(e.Address) {
			t.Errorf("%s: %s is not outside", c, e)
		}
	}
	for _, a := range addresses {
		if a.IsValid() && a.Is6() != c.IPv6 {
			t.Errorf("%s: %s is of the other family", c, a)
		}
	}
	if c.Protocol == protocolICMP && c.IPv6 || c.Protocol == protocolICMPv6 && !c.IPv6 {
		t.Errorf("%s: ICMP of the other version", c)
	}
}

// TestRandomReachesEverything counts what random cases are made of.
func TestRandomReachesEverything(t *testing.T) {
	seen := make(map[string]int)
	var connections int
	seeded(t, 1000, func(_ *testing.T, _ *rand.Rand, c Case) {
		countPolicies(seen, c)
		connections += len(c.Connections)
		for _, connection := range c.Connections {
			countConnection(seen, connection)
			countVerdict(seen, c.Set, connection)
			countReasons(seen, c.Policies, connection)
			countDoubt(seen, c, connection)
		}
	})

	for _, what := range expected() {
		if seen[what] == 0 {
			t.Errorf("no case has %s", what)
		}
	}
	for what, percent := range map[string]int{
		"allowed": 15, "denied": 15, "would be denied": 2, "a verdict because of a doubt": 2,
		"a doubtful label beside others": 2, "a workload by doubtful labels alone": 2,
		"an unlabelled container with doubtful labels": 2,
	} {
		if got := 100 * seen[what] / connections; got < percent {
			t.Errorf("%d%% of all connections are %s, want at least %d%%", got, what, percent)
		}
	}
	if t.Failed() || testing.Verbose() {
		for _, what := range slices.Sorted(maps.Keys(seen)) {
			t.Logf("%8d %s", seen[what], what)
		}
	}
}

// expected names all that the counters below can count.
func expected() []string {
	names := []string{
		"allowed", "denied", "would be denied by an egress rule", "would be denied by an ingress rule",
		"would be denied by isolation",
		"audit policy", "selector {}", "rules []", "allow rule", "deny rule", "rule without peers",
		"rule without ports",
		"peer workloads", "peer sameLabels", "peer sameLabels all", "peer unlabelled", "peer cidr", "peer any",
		"except",
		"port tcp", "port udp", "port sctp", "port icmp", "port icmp type", "port range", "every port of a protocol",
		"group range", "prefix 0.0.0.0/0", "prefix ::/0",
		"IPv4", "IPv6", "broadcast", "to itself", "neighbour discovery",
		"always passes",
		"egress denied by a rule", "egress isolated", "egress admitted by a rule", "egress free",
		"ingress denied by a rule", "ingress isolated", "ingress admitted by a rule", "ingress free",
	}
	for _, operator := range []policy.Operator{policy.In, policy.NotIn, policy.Exists, policy.DoesNotExist} {
		names = append(names, "operator "+string(operator))
	}
	for _, protocol := range []int{1, 6, 17, 33, 47, 58, 132, 136} {
		names = append(names, fmt.Sprintf("protocol %d", protocol))
	}
	for kind := policy.KindContainer; kind <= policy.KindAddress; kind++ {
		names = append(names, "kind "+kind.String())
	}
	for _, from := range []string{"workload", "container", "unlabelled", "world"} {
		for _, to := range []string{"workload", "container", "unlabelled", "world", "group"} {
			if from != "world" || to != "world" {
				names = append(names, from+" to "+to)
			}
		}
	}
	return names
}

func countPolicies(seen map[string]int, c Case) {
	count := func(what string, is bool) {
		if is {
			seen[what]++
		}
	}
	for _, w := range c.Workloads {
		count("kind "+w.Kind.String(), true)
	}
	for _, p := range c.Policies {
		count("audit policy", p.Audit)
		count("selector {}", p.Selector.Requirements == nil)
		for _, s := range []policy.Side{p.Ingress, p.Egress} {
			count("rules []", s.Isolates && s.Allow == nil)
			count("allow rule", s.Allow != nil)
			count("deny rule", s.Deny != nil)
		}
	}
	for _, s := range selectors(&c) {
		for _, r := range s.Requirements {
			count("operator "+string(r.Operator), true)
		}
	}
	for _, r := range rules(&c) {
		count("rule without peers", r.Peers == nil)
		count("rule without ports", r.Ports == nil)
		for _, p := range r.Ports {
			count("port tcp", p.Protocol == policy.TCP)
			count("port udp", p.Protocol == policy.UDP)
			count("port sctp", p.Protocol == policy.SCTP)
			count("port icmp", p.Protocol == policy.ICMP && p.ICMPType == "")
			count("port icmp type", p.ICMPType != "")
			count("port range", p.From < p.To)
			count("every port of a protocol", p.From == 1 && p.To == 65535)
		}
	}
	for _, p := range peers(&c) {
		count("peer workloads", p.Workloads != nil)
		count("peer sameLabels", p.SameLabels != nil && !p.SameLabels.All)
		count("peer sameLabels all", p.SameLabels != nil && p.SameLabels.All)
		count("peer unlabelled", p.Unlabelled)
		count("peer any", p.Any)
		if p.CIDR != nil {
			count("peer cidr", true)
			count("except", p.CIDR.Except != nil)
			count("group range", p.CIDR.Prefix.Addr().IsMulticast())
			count("prefix "+p.CIDR.Prefix.String(), p.CIDR.Prefix.Bits() == 0)
		}
	}
}

func countConnection(seen map[string]int, c Connection) {
	sort := func(e Endpoint) string {
		switch {
		case e.onHostNetwork():
			return "workload"
		case e.Workload != nil:
			return "container"
		case e.outside():
			return "world"
		default:
			return "unlabelled"
		}
	}
	from, to := sort(c.From), sort(c.To)
	family := "IPv4"
	if c.IPv6 {
		family = "IPv6"
	}
	if c.Group.IsValid() {
		to = "group"
		if !c.Group.IsMulticast() {
			seen["broadcast"]++
		}
	}
	if c.From.Workload != nil && c.From.Workload == c.To.Workload {
		seen["to itself"]++
	}
	if c.Protocol == protocolICMPv6 && 133 <= c.ICMPType && c.ICMPType <= 137 {
		seen["neighbour discovery"]++
	}
	for _, what := range []string{from + " to " + to, family, fmt.Sprintf("protocol %d", c.Protocol)} {
		seen[what]++
	}
}

func countVerdict(seen map[string]int, s Set, c Connection) {
	v := Judge(s, c)
	if v.Allowed {
		seen["allowed"]++
	} else {
		seen["denied"]++
	}
	if v.WouldDeny == "" {
		return
	}
	seen["would be denied"]++
	c.To = destination(c)
	for _, p := range s.Policies {
		switch {
		case p.Name != v.WouldDeny:
		case egressOf(c).deniedBy(p):
			seen["would be denied by an egress rule"]++
		case ingressOf(c).deniedBy(p):
			seen["would be denied by an ingress rule"]++
		default:
			seen["would be denied by isolation"]++
		}
	}
}

// countDoubt counts connections with ends that have doubtful labels, and those whose verdict is another because of it.
func countDoubt(seen map[string]int, c Case, connection Connection) {
	for _, e := range []Endpoint{connection.From, connection.To} {
		switch {
		case e.Workload == nil || len(e.Workload.Doubtful) == 0:
		case !c.IsWorkload(e.Workload):
			seen["an unlabelled container with doubtful labels"]++
		case onlyDoubtful(identify(c.Set, e.Workload)):
			seen["a workload by doubtful labels alone"]++
		default:
			seen["a doubtful label beside others"]++
		}
	}
	certain := c.clone()
	for _, w := range certain.Workloads {
		for i := 0; cutDoubt(&Case{Workloads: []*policy.Workload{w}}, i); {
			continue
		}
	}
	i := slices.Index(c.Connections, connection)
	if Judge(certain.Set, certain.Connections[i]) != Judge(c.Set, connection) {
		seen["a verdict because of a doubt"]++
	}
}

// TestSettingsMatter counts the cases with a connection whose verdict is another because of what Settings say, or
// because of a label that does not count.
func TestSettingsMatter(t *testing.T) {
	facts := func(drop func(key, value string) bool) func(*Case) {
		return func(d *Case) {
			for _, w := range d.Workloads {
				maps.DeleteFunc(w.Facts, drop)
			}
		}
	}
	without := map[string]func(*Case){
		"included keys":     func(d *Case) { d.Settings.Include = nil },
		"excluded keys":     func(d *Case) { d.Settings.Exclude = nil },
		"trusted images":    func(d *Case) { d.Settings.TrustImages = nil },
		"a tool's label":    facts(func(key, _ string) bool { return !strings.HasPrefix(key, "thole/") }),
		"an unusable value": facts(func(_, value string) bool { return value == policy.UnusableValue }),
	}
	const cases, percent = 500, 1
	seen := map[string]int{}
	seeded(t, cases, func(_ *testing.T, _ *rand.Rand, c Case) {
		for what, edit := range without {
			d := c.clone()
			edit(&d)
			for i := range c.Connections {
				if Judge(d.Set, d.Connections[i]) != Judge(c.Set, c.Connections[i]) {
					seen[what]++
					break
				}
			}
		}
	})
	for what := range without {
		if seen[what] < cases*percent/100 {
			t.Errorf("%s: they matter in %d of %d cases, want at least %d%%", what, seen[what], cases, percent)
		}
	}
	t.Log(seen)
}

// countReasons counts why enforced policies decide as they do.
func countReasons(seen map[string]int, policies []policy.Policy, c Connection) {
	policies, c.To = enforced(policies), destination(c)
	if alwaysPasses(c) {
		seen["always passes"]++
		return
	}
	for direction, half := range map[string]half{"egress": egressOf(c), "ingress": ingressOf(c)} {
		switch isolated := slices.ContainsFunc(policies, half.isolatedBy); {
		case half.denies(policies):
			seen[direction+" denied by a rule"]++
		case !half.allows(policies):
			seen[direction+" isolated"]++
		case isolated:
			seen[direction+" admitted by a rule"]++
		default:
			seen[direction+" free"]++
		}
	}
}

// TestLaws holds Judge to what follows from the sentences together.
func TestLaws(t *testing.T) {
	seeded(t, 500, func(t *testing.T, r *rand.Rand, c Case) {
		shuffled := slices.Clone(c.Policies)
		r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		with := func(policies []policy.Policy) Set { return Set{policies, c.Settings} }
		allEnforced := slices.Clone(c.Policies)
		for i := range allEnforced {
			allEnforced[i].Audit = false
		}
		for _, connection := range c.Connections {
			got := Judge(c.Set, connection)
			law := func(name string, holds bool) {
				if !holds {
					t.Errorf("%s: %s: %s", connection, got, name)
				}
			}
			law("the order of policies says nothing", Judge(with(shuffled), connection) == got)
			law("audit policies change nothing", Judge(with(enforced(c.Policies)), connection).Allowed == got.Allowed)
			law("only what is allowed would be denied", got.Allowed || got.WouldDeny == "")
			// Enforcing a policy may make a container a workload that only doubtful labels make one.
			same := true
			for _, e := range append(connection.From.each(), connection.To.each()...) {
				same = same && (e.Workload == nil || cmp.Equal(identify(with(allEnforced), e.Workload),
					identify(c.Set, e.Workload), cmpopts.EquateComparable(netip.Addr{})))
			}
			if got.Allowed && same {
				law("what would be denied is denied once it is enforced",
					Judge(with(allEnforced), connection).Allowed == (got.WouldDeny == ""))
			}
			law("a named policy is an audit policy", got.WouldDeny == "" ||
				slices.ContainsFunc(c.Policies, func(p policy.Policy) bool {
					return p.Audit && p.Name == got.WouldDeny
				}))
			law("who is no workload may reach who is none",
				mayBeWorkload(connection.From) || mayBeWorkload(connection.To) || got == allowed)
		}
	})
}

func mayBeWorkload(e Endpoint) bool { return e.Workload != nil || e.Namespace != nil }

// TestShrink makes cases small in which a call from outside would be denied: one
// policy that denies or isolates, one workload and the call are left.
func TestShrink(t *testing.T) {
	fails := func(c Case) bool {
		return slices.ContainsFunc(c.Connections, func(connection Connection) bool {
			v := Judge(c.Set, connection)
			return v.WouldDeny != "" && connection.From.outside()
		})
	}
	tried := 0
	seeded(t, 300, func(t *testing.T, _ *rand.Rand, c Case) {
		if !fails(c) {
			return
		}
		tried++
		before := c.String()
		small := Shrink(c, func(d Case) bool {
			if len(d.Policies) > 0 {
				checkRoundTrip(t, d.Policies) // it is still a valid case
			}
			return fails(d)
		})
		if c.String() != before {
			t.Errorf("Shrink changed its argument:\n%s", cmp.Diff(before, c.String()))
		}
		if !fails(small) {
			t.Errorf("does not fail:\n%s", small)
		}
		if len(small.Policies) != 1 || len(small.all()) != 1 || len(small.Connections) != 1 ||
			len(rules(&small)) > 1 || len(selectors(&small)) > 1 {
			t.Errorf("not small:\n%s", small)
		}
	})
	if tried == 0 {
		t.Error("no case was shrunk")
	}
}

func TestString(t *testing.T) {
	c := Case{
		Set: Set{Policies: set(audited(ingress("p", has("app", "web"),
			allow(peersOnly(cidr("192.0.2.0/24", "192.0.2.1/32"))))))},
		Workloads: []*policy.Workload{web, box},
		Connections: []Connection{
			tcp(end(box), end(web), 80),
			icmp(world("2001:db8::1"), end(web), protocolICMPv6, 128),
			toGroup(Endpoint{}, "224.0.0.251"),
		},
	}
	want := `---
apiVersion: thole/v1
kind: Policy
metadata:
    name: p
spec:
    enforcement: audit
    ingress:
        - from:
            - cidr: 192.0.2.0/24
              except:
                - 192.0.2.1/32
    selector:
        matchLabels:
            app: web
# workload web, run cgroup thole.slice/web (1), labels {app=web,env=prod}, doubtful {}, facts {thole/kind=run}
# workload box, address address 172.17.0.2, labels {app=box}, doubtful {}, facts {com.docker.compose.service=box}
# box -> web, 80/tcp over IPv4: allowed, would be denied by p
# 2001:db8::1 -> web, icmpv6 type 128 over IPv6: allowed
# unlabelled -> group 224.0.0.251, 5353/udp over IPv4: allowed
`
	if diff := cmp.Diff(want, c.String()); diff != "" {
		t.Error(diff)
	}
}

// TestRoundTrip: what policyyaml prints, Parse reads as the same policies.
func TestRoundTrip(t *testing.T) {
	seeded(t, 500, func(t *testing.T, _ *rand.Rand, c Case) { checkRoundTrip(t, c.Policies) })
}

func checkRoundTrip(t *testing.T, policies []policy.Policy) {
	text := policyyaml.YAML(policies)
	documents, err := policy.Parse([]policy.File{{Name: "random.yaml", Data: text}})
	if err != nil {
		t.Errorf("%v\n%s", err, text)
		return
	}
	comparePrefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	diff := cmp.Diff(policies, documents.Policies, comparePrefixes, cmpopts.IgnoreTypes(policy.Position{}))
	if diff != "" {
		t.Errorf("(-printed +parsed)\n%s\n%s", diff, text)
	}
}
