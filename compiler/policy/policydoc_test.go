package policy

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"thole/compiler/policy/strict"
)

const policyDoc = "../../docs/POLICY.md"

func readPolicyDoc(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(policyDoc)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPolicyDocBlocks: what a reader copies from the document is valid.
func TestPolicyDocBlocks(t *testing.T) {
	doc := readPolicyDoc(t)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatchIndex(doc, -1)
	if len(blocks) < 4 {
		t.Fatalf("%d blocks of YAML, want at least 4", len(blocks))
	}
	for _, b := range blocks {
		// Blank lines before the text make the error's line that of the document.
		padding := strings.Repeat("\n", strings.Count(doc[:b[2]], "\n"))
		docs, err := parseEither(File{policyDoc, []byte(padding + doc[b[2]:b[3]])})
		if err != nil {
			t.Error(err)
		}
		if len(docs.Policies)+len(docs.Bindings)+len(docs.Grants) == 0 && !docs.Settings.Given() && err == nil {
			t.Errorf("a block without documents: %s", doc[b[2]:b[3]])
		}
	}
}

// parseEither parses an inventory as one.
func parseEither(f File) (Documents, error) {
	if strings.Contains(string(f.Data), "labelSources") {
		return ParseInventory(f)
	}
	return Parse([]File{f})
}

// A docRow is a row of one of the document's tables of keys.
type docRow struct{ section, key, example string }

// docRows returns the rows of the tables whose head is "key | example | meaning", or
// "example | meaning".
func docRows(doc string) []docRow {
	var rows []docRow
	section, columns := "", 0
	code := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(doc) {
		line = strings.TrimSpace(line)
		cells := strings.Split(line, "|")
		switch {
		case strings.HasPrefix(line, "#"):
			section = strings.TrimLeft(line, "# ")
		case line == "| key | example | meaning |":
			columns = 2
		case line == "| example | meaning |":
			columns = 1
		case !strings.HasPrefix(line, "|"):
			columns = 0
		case columns > 0 && !strings.HasPrefix(line, "|--"):
			row := docRow{section: section, example: code.FindStringSubmatch(cells[columns])[1]}
			if columns == 2 {
				row.key = code.FindStringSubmatch(cells[1])[1]
			}
			rows = append(rows, row)
		}
	}
	return rows
}

// TestPolicyDocKeys: the document's tables have the keys of the decoder, all and no others.
func TestPolicyDocKeys(t *testing.T) {
	var known, told []string
	for _, s := range []strict.Shape{
		documentShape, metadataShape, workloadMetadataShape, policyShape, denyShape, ingressRuleShape, egressRuleShape,
		peerShape, selectorShape, expressionShape, grantShape, workloadShape, composeShape, settingsShape,
		identityLabelsShape,
	} {
		known = append(known, s.Keys...)
	}
	for _, r := range docRows(readPolicyDoc(t)) {
		if r.key != "" {
			told = append(told, r.key)
		}
	}
	if diff := cmp.Diff(sortedOnce(known), sortedOnce(told)); diff != "" {
		t.Errorf("keys (-decoder +document):\n%s", diff)
	}
}

// TestPolicyDocICMP: the document names the ICMP types that there are, all and no others.
func TestPolicyDocICMP(t *testing.T) {
	var known, told []string
	for _, i := range ICMPTypes {
		known = append(known, "icmp/"+i.Name)
	}
	told = regexp.MustCompile(`icmp/[a-z-]+`).FindAllString(readPolicyDoc(t), -1)
	if diff := cmp.Diff(sortedOnce(known), sortedOnce(told)); diff != "" {
		t.Errorf("ICMP types (-compiler +document):\n%s", diff)
	}
}

func sortedOnce(words []string) []string {
	words = slices.Clone(words)
	slices.Sort(words)
	return slices.Compact(words)
}

// docFrames make a document of a row's example, by the section of its table.
var docFrames = map[string]func(r docRow) string{
	"The document": func(r docRow) string {
		if slices.Contains(workloadMetadataShape.Keys, r.key) {
			return workloadNamed(r)
		}
		rest := []string{"apiVersion: thole/v1", "kind: Policy", "metadata: {name: a}",
			"spec: {selector: {}, egress: []}"}
		return strings.Join(beside(r, rest), "\n")
	},
	"Policy": func(r docRow) string {
		return policyWith(strings.Join(beside(r, []string{"selector: {}", "ingress: []"}), "\n"))
	},
	"Rules": func(r docRow) string {
		direction := map[string]string{"from": "ingress", "to": "egress", "ports": "egress"}[r.key]
		return policyWith("selector: {}\n" + direction + ": [{" + r.example + "}]")
	},
	"Peers": func(r docRow) string {
		return frames["cidr"]("{" + r.example + "}")
	},
	"Selectors": func(r docRow) string {
		term := map[string]string{"key": "operator: Exists", "operator": "key: a",
			"values": "key: a, operator: In"}[r.key]
		if term != "" {
			return policyWith("ingress: []\nselector: {matchExpressions: [{" + term + ", " + r.example + "}]}")
		}
		return policyWith("ingress: []\nselector: {" + r.example + "}")
	},
	"Ports": func(r docRow) string { return frames["port"](r.example) },
	"LabelGrant": func(r docRow) string {
		rest := map[string]string{"users": "labels: {a: [b]}", "groups": "require: {a: b}", "labels": "users: [a]",
			"require": "groups: [a]"}
		return frames["grant"](r.example + "\n" + rest[r.key])
	},
	"Settings": func(r docRow) string {
		if slices.Contains(identityLabelsShape.Keys, r.key) {
			return frames["settings"]("metadata: {name: settings}\nspec: {identityLabels: {" + r.example + "}}")
		}
		return frames["settings"]("metadata: {name: settings}\nspec: {" + r.example + "}")
	},
	"Inventories": func(r docRow) string {
		return frames["workload"]("metadata: {name: a, labels: {app: b, tier: c}, " + r.example + "}\nspec: {user: a}")
	},
	"Workload": func(r docRow) string {
		if rest := map[string]string{"project": "service: a", "service": "project: a"}[r.key]; rest != "" {
			r.example = "compose: {" + r.example + ", " + rest + "}"
		}
		return frames["workload"]("metadata: {name: a, labels: {a: b}}\nspec: {" + r.example + "}")
	},
}

// beside returns the entries of a mapping with the one of r's key replaced by its example.
func beside(r docRow, entries []string) []string {
	rest := slices.DeleteFunc(entries, func(e string) bool { return strings.HasPrefix(e, r.key+":") })
	return append(rest, r.example)
}

// workloadNamed is a Workload with an example of metadata.
func workloadNamed(r docRow) string {
	metadata := strings.Join(beside(r, []string{"name: a", "labels: {a: b}"}), ", ")
	return frames["workload"]("metadata: {" + metadata + "}\nspec: {user: a}")
}

// TestPolicyDocExamples: the examples of the tables are valid where they belong.
func TestPolicyDocExamples(t *testing.T) {
	for _, r := range docRows(readPolicyDoc(t)) {
		frame, ok := docFrames[r.section]
		if !ok {
			t.Errorf("a table in the section %q", r.section)
			continue
		}
		if _, err := parseEither(File{r.section, []byte(frame(r))}); err != nil {
			t.Errorf("%s: %v\n%s", r.example, err, frame(r))
		}
	}
}
