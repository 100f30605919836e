package kernel

import (
	"strings"
	"testing"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"thole/internal/nlmsg"
	"thole/ruleset"
)

// foreignRules are rules of nft that are not of the IR's language, and what is said
// of them.
var foreignRules = []struct{ rule, why string }{
	{"counter accept", "counter: not of this language"},
	{"ct state { new, established } accept", "lookup: not of this language"},
	{"ip saddr 10.0.0.0/8 accept", "payload: not of this language"},
	{"ip6 saddr fd00::/9 accept", "bitwise: a value of 16 bytes for ip6 saddr"},
	{"udp length 80 accept", "payload: not of this language"},
	{"ip ttl 1 accept", "payload: not of this language"},
	{"meta length > 100 accept", "meta: not of this language"},
	{"ct reply ip daddr 10.0.0.1 accept", "ct: not of this language"},
	{"ct mark < 5 accept", "cmp: not of this language"},
	{"ct mark <= 5 accept", "cmp: not of this language"},
	{"meta mark set ct mark xor 0xff accept", "meta: not of this language"},
	{"ct mark set ct mark ^ 1 accept", "ct: not of this language"},
	{"ct mark set ct mark << 1 accept", "bitwise: a value of 0 bytes for ct mark"},
	{"ct mark & 1 == 1 ct mark != @marks accept", "lookup: not of this language"},
	{"socket wildcard 1 accept", "socket: not of this language"},
	{"fib saddr . iif oif missing drop", "fib: not of this language"},
	{"limit rate 10/second accept", "immediate: limits something else than a log"},
	{"limit rate 10/second", "limits something else than a log"},
	{"limit rate over 10/second log", "limit: not of this language"},
	{"limit rate 10/minute log", "limit: not of this language"},
	{"limit rate over 10/second burst 9 packets log", "limit: not of this language"},
	{"limit rate 10 bytes/second log", "limit: not of this language"},
	{"log group 1", "log: not of this language"},
	{"log level debug", "log: not of this language"},
	{"log flags all", "log: not of this language"},
	{"reject with icmpx port-unreachable", "reject: not of this language"},
	{"reject with icmp port-unreachable", "reject: not of this language"},
	{"queue num 1-2", "queue: not of this language"},
	{"tcp option maxseg size 1000 accept", "exthdr: not of this language"},
	{"quota 1 mbytes drop", "quota: not of this language"},
	{"update @seen { ip saddr } accept", "dynset: not of this language"},
	{"continue", "immediate: verdict -1"},
}

func TestForeignRules(t *testing.T) {
	h, c := open(t)
	for _, test := range foreignRules {
		script := "table inet thole\ndelete table inet thole\ntable inet thole {\n" +
			"\tset marks {\n\t\ttype mark\n\t}\n" +
			"\tset seen {\n\t\ttype ipv4_addr\n\t\tflags dynamic\n\t}\n" +
			"\tchain c {\n\t\t" + test.rule + "\n\t\taccept\n\t}\n}\n"
		if err := h.Nft(script); err != nil {
			if strings.Contains(err.Error(), "No such file or directory") {
				t.Logf("this kernel has no %q", test.rule)
				continue
			}
			t.Errorf("%s: %v", test.rule, err)
			continue
		}
		got := mustRead(t, c).Chains[0].Rules
		foreign, ok := got[0].Statements[0].(ruleset.Foreign)
		if !ok || len(got) != 2 || len(got[0].Statements) != 1 {
			t.Errorf("%s: was read as %v", test.rule, got)
			continue
		}
		if foreign.Description != test.why {
			t.Errorf("%s: got %q, want %q", test.rule, foreign.Description, test.why)
		}
	}
}

// foreignObjects are what else somebody may put into our table.
var foreignObjects = []struct{ name, script string }{
	{"a set with a timeout", "add set inet thole x { type ipv4_addr; timeout 1m; }"},
	{"a set of another type", "add set inet thole x { type ether_addr; elements = { 2:2:2:2:2:2 } }"},
	{"a map to addresses", "add map inet thole x { type mark : ipv4_addr; }"},
	{"a map to objects", "add map inet thole x { type mark : counter; }"},
	{"a set that counts", "add set inet thole x { type mark; counter; elements = { 1 } }"},
	{"a catch-all element", "add map inet thole in { type mark . mark . classid : verdict; }\nadd map inet thole x " +
		"{ type mark : verdict; elements = { * : accept } }"},
	{"a chain that drops", "add chain inet thole x { type filter hook input priority 0; policy drop; }"},
	{"a chain of another type", "add chain inet thole x { type nat hook output priority 0; }"},
	{"a chain on a device", `add chain inet thole x { type filter hook ingress device "lo" priority 0; }`},
	{"a policy changed", "add chain inet thole inp { type filter hook input priority 10; policy drop; }"},
	{"a set and a rule", "add set inet thole x { type mark; }\nadd rule inet thole settle meta mark @x accept"},
	{"a rule in between", "insert rule inet thole outp accept"},
	{"an element gone", "delete element inet thole icmp6 { 128 }"},
	{"all elements gone", "flush map inet thole in"},
	{"all rules gone", "flush table inet thole"},
	{"a quota", "add quota inet thole x { 1 mbytes }"},
	{"a flowtable", "add flowtable inet thole x { hook ingress priority 0; devices = { lo }; }"},
	{"asleep", "add table inet thole { flags dormant; }"},
	{"gone", "delete table inet thole"},
}

// TestForeignObjects lets somebody else change the table: what is wrong is seen, and
// mended by one change.
func TestForeignObjects(t *testing.T) {
	h, c := open(t)
	want := everything(h)
	mustApply(t, c, nil, &want)
	for _, test := range foreignObjects {
		t.Run(test.name, func(t *testing.T) {
			if err := h.Nft(test.script + "\n"); err != nil {
				if strings.Contains(err.Error(), "Operation not supported") ||
					strings.Contains(err.Error(), "No such file") {
					t.Logf("this kernel has none: %v", err)
					return
				}
				t.Fatal(err)
			}
			change := ruleset.Diff(mustRead(t, c), &want)
			t.Logf("\n%s", change)
			if change.Empty() {
				t.Fatal("nothing was seen")
			}
			if err := c.Apply(change); err != nil {
				t.Fatal(err)
			}
			checkTable(t, "mended", mustRead(t, c), want)
		})
	}
}

// TestDecodeRange reads a range as nft writes it since 1.1.1.
func TestDecodeRange(t *testing.T) {
	var list nlmsg.Attributes
	exprs := []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: 8},
		bigEndian(4, 8),
		&expr.Range{Op: expr.CmpOpEq, Register: 8, FromData: []byte{0, 0, 0, 1}, ToData: []byte{0, 0, 1, 0}},
	}
	if err := exprAttrs(&list, inet, exprs); err != nil {
		t.Fatal(err)
	}
	got := decodeRule(list.Nested(unix.NFTA_RULE_EXPRESSIONS), nil)
	v := ruleset.Span(1, 256)
	want := ruleset.Match{Left: ruleset.Expr{Field: ruleset.CtMark}, Op: ruleset.InRange, From: v.From, To: v.To}
	if len(got.Statements) != 1 || got.Statements[0] != ruleset.Statement(want) {
		t.Errorf("got %+v", got)
	}
}
