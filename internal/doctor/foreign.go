package doctor

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// An offence is something that another program's rules do and that Thole minds.
type offence int

const (
	setsMark offence = iota
	readsMark
	skipsConntrack
)

// An offender is a place with such rules: "table ip mangle, chain PREROUTING".
type offender struct {
	offence offence
	place   string
}

// foreignRules looks for other programs' rules that set or read the conntrack mark,
// which Thole uses as a whole, or keep packets out of conntrack. It only reads.
func foreignRules(ctx context.Context, ours string) []Finding {
	offenders, err := nftOffenders(ours)
	offenders = append(offenders, legacyOffenders(ctx)...)
	mark := Finding{Check: "conntrack mark", Status: OK, Found: "no other program uses it"}
	track := Finding{Check: "untracked packets", Status: OK, Found: "no other program makes any"}
	if err != nil {
		const follows = "another program may use the conntrack mark and confuse Thole"
		return []Finding{mark.warning("rules could not be listed: "+err.Error(), follows,
			"nft list ruleset | grep 'ct mark'")}
	}
	if places := placesOf(offenders, setsMark); places != "" {
		mark = mark.warning("also set by "+places,
			"these rules change the mark of connections, which are then denied or, if the mark happens to be a "+
				"number of Thole's, allowed",
			"remove these rules, or keep the connections of labelled workloads away from them")
	} else if places := placesOf(offenders, readsMark); places != "" {
		mark = mark.warning("also read by "+places,
			"Thole is not affected; these rules see Thole's marks",
			"check what these rules do with marks that they did not set")
	}
	if places := placesOf(offenders, skipsConntrack); places != "" {
		track = track.warning("made by "+places,
			"packets that these rules match have no conntrack mark: labelled workloads cannot send or receive them",
			"remove these rules, or narrow them")
	}
	return []Finding{mark, track}
}

func placesOf(offenders []offender, o offence) string {
	var places []string
	for _, by := range offenders {
		if by.offence == o && !slices.Contains(places, by.place) {
			places = append(places, by.place)
		}
	}
	return strings.Join(places, "; ")
}

func nftOffenders(ours string) ([]offender, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("listing chains: %v", err)
	}
	var offenders []offender
	for _, chain := range chains {
		if chain.Table.Name == ours && chain.Table.Family == nftables.TableFamilyINet {
			continue
		}
		rules, err := conn.GetRules(chain.Table, chain)
		if err != nil {
			return nil, fmt.Errorf("listing %s: %v", placeOf(chain), err)
		}
		for _, rule := range rules {
			for _, e := range rule.Exprs {
				if o, ok := offenceOf(e); ok {
					offenders = append(offenders, offender{o, placeOf(chain)})
				}
			}
		}
	}
	return offenders, nil
}

func offenceOf(e expr.Any) (offence, bool) {
	switch e := e.(type) {
	case *expr.Ct:
		if e.Key != expr.CtKeyMARK {
			return 0, false
		}
		if e.Register == 0 { // none to load into: it sets (expr/ct.go does not read SourceRegister)
			return setsMark, true
		}
		return readsMark, true
	case *expr.Target: // of iptables-nft
		switch e.Name {
		case "CONNMARK":
			return setsMark, true
		case "NOTRACK":
			return skipsConntrack, true
		case "CT":
			return skipsConntrack, notrackFlag(e.Info)
		}
	case *expr.Match:
		return readsMark, e.Name == "connmark"
	case *expr.Notrack:
		return skipsConntrack, true
	}
	return 0, false
}

// notrackFlag reads the first field of struct xt_ct_target_info: 2 bytes of flags,
// host-endian, of which bit 0 is XT_CT_NOTRACK.
func notrackFlag(info xt.InfoAny) bool {
	data, ok := info.(*xt.Unknown)
	return ok && len(*data) >= 2 && binary.NativeEndian.Uint16(*data)&1 != 0
}

func placeOf(c *nftables.Chain) string {
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyINet:   "inet",
		nftables.TableFamilyIPv4:   "ip",
		nftables.TableFamilyIPv6:   "ip6",
		nftables.TableFamilyARP:    "arp",
		nftables.TableFamilyNetdev: "netdev",
		nftables.TableFamilyBridge: "bridge",
	}
	name := func(s string) string { return strings.ReplaceAll(s, "\n", `\n`) } // of any characters, by other programs
	return fmt.Sprintf("table %s %s, chain %s", families[c.Table.Family], name(c.Table.Name), name(c.Name))
}

// legacyOffenders asks iptables-legacy-save, but only where the kernel says that
// there are legacy tables: the program would make them otherwise.
func legacyOffenders(ctx context.Context) []offender {
	var offenders []offender
	for _, program := range []string{"iptables", "ip6tables"} {
		names, err := os.ReadFile("/proc/net/" + strings.Replace(program, "tables", "_tables_names", 1))
		if err != nil {
			continue // the module is not loaded
		}
		for _, table := range strings.Fields(string(names)) {
			rules, err := exec.CommandContext(ctx, program+"-legacy-save", "-t", table).Output()
			if err != nil {
				continue
			}
			place := program + "-legacy, table " + table
			offenders = append(offenders, legacyRules(string(rules), place)...)
		}
	}
	return offenders
}

func legacyRules(rules, place string) []offender {
	var offenders []offender
	for pattern, o := range map[string]offence{
		"-j CONNMARK ":  setsMark,
		"-m connmark ":  readsMark,
		"-j NOTRACK":    skipsConntrack,
		"-j CT --notra": skipsConntrack,
	} {
		if strings.Contains(rules, pattern) {
			offenders = append(offenders, offender{o, place})
		}
	}
	return offenders
}
