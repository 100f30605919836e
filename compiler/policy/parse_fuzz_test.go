package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"gopkg.in/yaml.v3"
)

// seed adds every example, good and bad, to a corpus.
func seed(f *testing.F, add func(data []byte)) {
	f.Helper()
	good, err := filepath.Glob("../../policies/*.yaml")
	if err != nil || len(good) == 0 {
		f.Fatalf("no policies (%v)", err)
	}
	for _, name := range good {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		add(data)
	}
	add(inventoryFile().Data)
	for kind, frame := range frames {
		archive, err := txtar.ParseFile("testdata/bad/" + kind + ".txtar")
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range archive.Files {
			if filepath.Ext(file.Name) != ".error" {
				add([]byte(frame(string(file.Data))))
			}
		}
	}
}

// FuzzParse: whatever the file, Parse ends soon, and either names a place inside it
// or returns documents that say the same when they are written and read again.
func FuzzParse(f *testing.F) {
	seed(f, func(data []byte) { f.Add(data) })
	f.Fuzz(func(t *testing.T, data []byte) {
		files := []File{{"f.yaml", data}}
		start := time.Now()
		docs, err := Parse(files)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("took %v for %d bytes", took, len(data))
		}
		if err != nil {
			checkPosition(t, files, err)
			return
		}
		again, err := Parse([]File{{"again.yaml", write(t, docs)}})
		if err != nil {
			t.Fatalf("%v in\n%s", err, write(t, docs))
		}
		if diff := cmp.Diff(docs, again, sayTheSame); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
	})
}

// FuzzWords: the same for the words of a policy, which a fuzzer of whole files hardly
// reaches. Their printed form, where they have one, is read back as the same value.
func FuzzWords(f *testing.F) {
	for _, s := range []string{
		"80/tcp", "8000-8100/udp", "icmp/echo-request", "tcp", "10.0.0.0/8", "::ffff:0:0/96", "fe80::1%eth0/64",
		"::1/128",
		"example.com/key", "nginx.service", "a/b*/c", "1000", "alice", "getty@tty1.service", "a-b.slice", "192.0.2.1",
		"thole/node", "com.docker.x", "A_b.c-D", "-a", "a-", "a/b/c", "", "Example.com/a", "a..b", "ä", "a b", "a\n",
		"x*", "*",
		strings.Repeat("a", 63), strings.Repeat("a", 64), strings.Repeat("a", 253) + "/a", strings.Repeat("a", 254) +
			"/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := parsePort(s); err == nil {
			if again, err := parsePort(p.String()); err != nil || again != p {
				t.Errorf("port %q is %v, which is %v (%v)", s, p, again, err)
			}
		}
		if p, err := parsePrefix(s); err == nil {
			if again, err := parsePrefix(p.String()); err != nil || again != p {
				t.Errorf("network %q is %v, which is %v (%v)", s, p, again, err)
			}
		}
		for _, check := range []func(string) error{CheckName, checkLabelKey, CheckUserLabelKey, checkCgroup,
			checkAccount, checkContainer} {
			if err := check(s); err != nil && err.Error() == "" {
				t.Errorf("%q: an error that says nothing", s)
			}
		}
		if CheckName(s) == nil && CheckUserLabelValue(s) != nil {
			t.Errorf("the name %q is no label value", s)
		}
		// They stand in certificates and on command lines, too, without quotes.
		for _, check := range []func(string) error{CheckName, CheckUserLabelKey, CheckUserLabelValue} {
			if check(s) == nil && strings.ContainsFunc(s, isUnusual) {
				t.Errorf("%q is a word", s)
			}
		}
	})
}

// write is the inverse of Parse.
func write(t *testing.T, docs Documents) []byte {
	t.Helper()
	var text []byte
	add := func(kind string, metadata, spec any) {
		data, err := yaml.Marshal(map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": metadata,
			"spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		text = append(append(text, "---\n"...), data...)
	}
	for _, p := range docs.Policies {
		add(kindPolicy, map[string]any{"name": p.Name}, writePolicy(p))
	}
	for _, g := range docs.Grants {
		spec := map[string]any{"users": g.Users, "groups": g.Groups, "labels": g.Labels, "require": g.Require}
		if len(g.Labels) == 0 {
			delete(spec, "labels")
		}
		if len(g.Require) == 0 {
			delete(spec, "require")
		}
		add(kindGrant, map[string]any{"name": g.Name}, spec)
	}
	for _, b := range docs.Bindings {
		metadata := map[string]any{"name": b.Name, "labels": b.Labels}
		if b.Namespace != "" {
			metadata["namespace"] = b.Namespace
		}
		add(kindWorkload, metadata, writeBinding(b))
	}
	if docs.Settings.Given() {
		add(kindSettings, map[string]any{"name": settingsName}, writeSettings(docs.Settings))
	}
	return text
}

func writeSettings(s Settings) map[string]any {
	spec, labels := map[string]any{}, map[string]any{}
	for key, patterns := range map[string][]string{"include": s.Include, "exclude": s.Exclude} {
		if patterns != nil {
			labels[key] = patterns
		}
	}
	if len(labels) > 0 {
		spec["identityLabels"] = labels
	}
	if s.TrustImages != nil {
		spec["trustImages"] = s.TrustImages
	}
	return spec
}

func writePolicy(p Policy) map[string]any {
	spec := map[string]any{"selector": writeSelector(p.Selector)}
	deny := make(map[string]any)
	if p.Audit {
		spec["enforcement"] = "audit"
	}
	for direction, side := range map[string]Side{"ingress": p.Ingress, "egress": p.Egress} {
		peers := map[string]string{"ingress": "from", "egress": "to"}[direction]
		if side.Isolates {
			spec[direction] = writeRules(side.Allow, peers)
		}
		if side.Deny != nil {
			deny[direction] = writeRules(side.Deny, peers)
		}
	}
	if len(deny) > 0 {
		spec["deny"] = deny
	}
	return spec
}

func writeRules(rules []Rule, peers string) []any {
	list := make([]any, len(rules))
	for i, r := range rules {
		m := make(map[string]any)
		if r.Peers != nil {
			var items []any
			for _, p := range r.Peers {
				items = append(items, writePeer(p))
			}
			m[peers] = items
		}
		if r.Ports != nil {
			var items []string
			for _, p := range r.Ports {
				items = append(items, p.String())
			}
			m["ports"] = items
		}
		list[i] = m
	}
	return list
}

func writePeer(p Peer) map[string]any {
	switch {
	case p.Workloads != nil:
		return map[string]any{"workloads": writeSelector(*p.Workloads)}
	case p.SameLabels != nil && p.SameLabels.All:
		return map[string]any{"sameLabels": "all"}
	case p.SameLabels != nil:
		return map[string]any{"sameLabels": p.SameLabels.Keys}
	case p.Unlabelled:
		return map[string]any{"unlabelled": true}
	case p.CIDR != nil && len(p.CIDR.Except) > 0:
		return map[string]any{"cidr": p.CIDR.Prefix.String(), "except": p.CIDR.Except}
	case p.CIDR != nil:
		return map[string]any{"cidr": p.CIDR.Prefix.String()}
	default:
		return map[string]any{"any": p.Any}
	}
}

func writeSelector(s Selector) map[string]any {
	var items []any
	for _, r := range s.Requirements {
		m := map[string]any{"key": r.Key, "operator": string(r.Operator)}
		if r.Values != nil {
			m["values"] = r.Values
		}
		items = append(items, m)
	}
	if items == nil {
		return map[string]any{}
	}
	return map[string]any{"matchExpressions": items}
}

func writeBinding(b Binding) map[string]any {
	switch {
	case b.Unit != "":
		return map[string]any{"unit": b.Unit}
	case b.User != "":
		return map[string]any{"user": b.User}
	case b.Cgroup != "":
		return map[string]any{"cgroup": b.Cgroup}
	case b.Container != "":
		return map[string]any{"container": b.Container}
	default:
		return map[string]any{"address": b.Address.String()}
	}
}

// isUnusual reports whether a character is in no word of a policy.
func isUnusual(r rune) bool { return r <= ' ' || r > '~' || r == '\'' || r == '*' }
