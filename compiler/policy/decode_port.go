package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"thole/compiler/policy/strict"
)

const allowedPorts = `"80/tcp", "8000-8100/udp", tcp, udp, sctp, icmp, icmp/echo-request`

// port reads one entry of a rule's ports.
func (d *decoder) port(n strict.Node) Port {
	switch n.Kind {
	case strict.KindInt:
		d.Fail(n.Pos, "%s is %s, without a protocol; allowed: %q, %q", n.Path, n.Describe(), n.Text+"/tcp", n.Text+
			"/udp")
		return Port{}
	case strict.KindMapping:
		d.Fail(n.Pos, "%s is a mapping; allowed: text, %q", n.Path, fromKubernetes(n))
		return Port{}
	}
	return strict.Parsed(d.Decoder, n, allowedPorts, parsePort)
}

// fromKubernetes turns a port of a Kubernetes NetworkPolicy, {protocol, port,
// endPort}, into ours, for a message.
func fromKubernetes(n strict.Node) string {
	protocol, from, to := "tcp", "80", ""
	for _, f := range n.Fields {
		switch f.Key {
		case "protocol":
			protocol = strings.ToLower(f.Value.Text)
		case "port":
			from = f.Value.Text
		case "endPort":
			to = "-" + f.Value.Text
		}
	}
	if _, err := parsePort(from + to + "/" + protocol); err != nil {
		return "80/tcp"
	}
	return from + to + "/" + protocol
}

// parsePort reads "80/tcp", "8000-8100/udp", "tcp", "udp", "sctp", "icmp" and
// "icmp/echo-request".
func parsePort(s string) (Port, error) {
	before, after, slash := strings.Cut(s, "/")
	switch {
	case s == "sctp":
		return Port{Protocol: SCTP}, nil
	case s == "icmp":
		return Port{Protocol: ICMP}, nil
	case s == "tcp" || s == "udp":
		return Port{Protocol: transports[s], From: 1, To: 65535}, nil
	case before == "icmp" && slash:
		return parseICMP(after)
	case transports[after] != 0 && slash:
		return parseNumbers(before, transports[after])
	}
	return Port{}, fmt.Errorf("invalid port %s%s: must be %s", strict.Quote(s), meantPort(before, after), allowedPorts)
}

// transports are the protocols that have ports to choose.
var transports = map[string]Protocol{"tcp": TCP, "udp": UDP}

// meantPort guesses what somebody meant who wrote before/after.
func meantPort(before, after string) string {
	before, after = strings.ToLower(before), strings.ToLower(after)
	switch {
	case after == "sctp":
		return " (the ports of sctp are not distinguished)"
	case transports[after] != 0:
		return fmt.Sprintf(" (did you mean %q?)", before+"/"+after)
	case transports[before] != 0 && after != "":
		return fmt.Sprintf(" (did you mean %q?)", after+"/"+before)
	case strings.HasPrefix(before, "icmp") && after == "":
		return ` (did you mean "icmp"?)`
	case before == "ping":
		return ` (did you mean "icmp/echo-request"?)`
	case after == "":
		return strict.DidYouMean(before, []string{"tcp", "udp", "sctp", "icmp"})
	}
	return ""
}

// parseNumbers reads a port number, or two with "-" between them.
func parseNumbers(s string, p Protocol) (Port, error) {
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	from, to := parseNumber(first), parseNumber(last)
	switch {
	case from == 0 || to == 0:
		return Port{}, fmt.Errorf("invalid port number or range %s: must be 1 to 65535, as 80 or 8000-8100",
			strict.Quote(s))
	case from > to:
		return Port{}, fmt.Errorf("%s ends before it begins; allowed: %d-%d", strict.Quote(s), to, from)
	}
	return Port{Protocol: p, From: from, To: to}, nil
}

// parseNumber returns a port number, or 0 if s is none.
func parseNumber(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '0' {
		return 0
	}
	return uint16(n)
}

// parseICMP reads the name of an ICMP type. A number is none, because it would mean
// one thing in ICMP and another in ICMPv6.
func parseICMP(name string) (Port, error) {
	names := make([]string, len(ICMPTypes))
	for i, t := range ICMPTypes {
		names[i] = t.Name
		if name == strconv.Itoa(int(t.V4)) {
			return Port{}, fmt.Errorf("invalid ICMP type %s: must be %q", strict.Quote(name), "icmp/"+t.Name)
		}
	}
	if !slices.Contains(names, name) {
		return Port{}, fmt.Errorf("invalid ICMP type %s%s: must be one of %s", strict.Quote(name),
			strict.DidYouMean(name, names),
			strings.Join(names, ", "))
	}
	return Port{Protocol: ICMP, ICMPType: name}, nil
}
