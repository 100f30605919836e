package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/daemon"
	"thole/internal/doctor"
	"thole/internal/printable"
)

// evil has what terminals act on: an escape sequence, a bell, a carriage return and a tab, what some take for a line
// end, a change of the writing's direction, a tag, and bytes that are no UTF-8. evilLine has a line that looks like one
// of Thole's, too.
const (
	evil     = "evil\x1b[31m\a\r\t\v\u0085\u2028\u202e\x7f\U000e0041\xff\x9b\\\"end"
	evilLine = evil + "\nthole: all is well"
	evilCell = `evil\x1b[31m\a\r\t\v\u0085\u2028\u202e\x7f\U000e0041\xff\x9b\\"end`
)

func TestEscape(t *testing.T) {
	for _, test := range []struct{ in, cell, line, text string }{
		{"", "", "", ""},
		{`plain "quoted" ä→−`, `plain "quoted" ä→−`, `plain "quoted" ä→−`, `plain "quoted" ä→−`},
		{`a\b`, `a\\b`, `a\b`, `a\b`},
		{`\"`, `\\"`, `\"`, `\"`},
		{"a\nb\n", `a\nb\n`, `a\nb\n`, "a\nb\n"},
		{"\x1b[2J", `\x1b[2J`, `\x1b[2J`, `\x1b[2J`},
		{"\u202eabc", `\u202eabc`, `\u202eabc`, `\u202eabc`},
		{"\xff", `\xff`, `\xff`, `\xff`},
		{"\ufffd", "\ufffd", "\ufffd", "\ufffd"},
		{evil, evilCell, strings.ReplaceAll(evilCell, `\\`, `\`), strings.ReplaceAll(evilCell, `\\`, `\`)},
	} {
		got := []string{printable.Cell(test.in), printable.Line(test.in), printable.Text(test.in)}
		if diff := cmp.Diff([]string{test.cell, test.line, test.text}, got); diff != "" {
			t.Errorf("%q: cell, line, text (-want +got)\n%s", test.in, diff)
		}
		back, err := strconv.Unquote(`"` + strings.ReplaceAll(got[0], `"`, `\"`) + `"`)
		if err != nil || back != test.in {
			t.Errorf("%q: the cell is read back as %q, %v", test.in, back, err)
		}
	}
	if got, want := printable.Script("\ttable \x1b\n"), "\ttable \\x1b\n"; got != want {
		t.Errorf("a script: got %q, want %q", got, want)
	}
}

// JSON and YAML keep the value, and are as harmless for a terminal.
func TestValuesOfJSONAndYAML(t *testing.T) {
	want := map[string]string{"key": strings.ToValidUTF8(evilLine, "\ufffd"), "plain": "ä"}
	for name, form := range map[string]struct {
		write func(*bytes.Buffer) error
		read  func([]byte, any) error
	}{
		"json": {func(b *bytes.Buffer) error { return printable.WriteJSON(b, want) }, json.Unmarshal},
		"yaml": {func(b *bytes.Buffer) error { return printable.WriteYAML(b, want) }, yaml.Unmarshal},
		"json log": {func(b *bytes.Buffer) error {
			log := slog.New(slog.NewJSONHandler(printable.LogWriter{Writer: b}, nil))
			log.Info("", "key", want["key"], "plain", "ä")
			return nil
		}, json.Unmarshal},
	} {
		var b bytes.Buffer
		if err := form.write(&b); err != nil {
			t.Fatal(err)
		}
		checkHarmless(t, name, b.String())
		var got map[string]string
		if err := form.read(b.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, b.String())
		}
		maps := map[string]string{"key": got["key"], "plain": got["plain"]}
		if diff := cmp.Diff(want, maps); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// checkHarmless fails the test if output has anything but printable text and line ends.
func checkHarmless(t *testing.T, what, output string) {
	t.Helper()
	for line := range strings.Lines(output) {
		line = strings.TrimSuffix(line, "\n")
		if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%s: the terminal would get %q", what, line)
		}
		if strings.HasPrefix(line, "thole: all is well") {
			t.Errorf("%s: a line is forged:\n%s", what, output)
		}
	}
}

// evilDaemon answers with nothing but what is hostile.
func evilDaemon(t *testing.T, refuse bool) (socket string) {
	t.Helper()
	labels := map[string]string{evil: evil, "app": evilLine}
	list := []string{evilLine, evil}
	found := []condition.Condition{{Code: condition.ScopeRefused, Where: evilLine, Text: evil}}
	warnings := []api.Message{{Where: evilLine, Text: evil}}
	sources := map[string]policy.Source{evil: evil, "app": evilLine}
	workload := api.Workload{Name: evilLine, Namespace: evil, Kind: evil, Labels: labels, Facts: labels,
		Sources: sources, State: evilLine, Missing: []condition.Code{evilLine}, Cgroup: evilLine, Networks: list,
		Ingress: list, Egress: list, Position: evilLine}
	whose := api.Ownership{Workload: &workload, Why: evilLine}
	answers := map[string]any{
		"/v1/status": api.Status{
			ProcessStatus: api.ProcessStatus{Version: evil}, Enforcing: true,
			SetStatus:   api.SetStatus{Source: api.SourceDirectory, Directory: evil},
			DriftStatus: api.DriftStatus{Mended: 1, LastMended: &api.Mending{Program: evilLine, PID: 1}},
			Ended:       1,
			Docker:      &api.DockerStatus{Host: evil, Error: evil},
			Fleet: &api.FleetStatus{Node: evil, Error: evil, Networks: []string{evil}, Required: []string{evil},
				Refused: map[string]uint64{evil: 1}},
			LastError: &api.Failure{Text: evil},
			Findings:  api.Findings{Problems: found, Notices: found, Warnings: warnings},
			Counters:  map[string]api.Counter{evilLine: {}},
		},
		"/v1/workloads": []api.Workload{workload},
		"/v1/policies":  []api.Policy{{Name: evilLine, Position: evilLine}},
		"/v1/classes": []api.Class{
			{Workloads: list, Labels: []map[string]string{labels}, Ingress: list, Egress: list},
		},
		"/v1/unlabelled": api.Listeners{Listeners: []api.Socket{{Protocol: evil, Local: evilLine, Cgroup: evilLine}}},
		"/v1/owner": api.OwnerResponse{
			Process: &api.OwnedProcess{PID: 1, Program: evilLine, Cgroup: evilLine, Ownership: whose},
			Sockets: []api.OwnedSocket{{Ownership: whose,
				Socket: api.Socket{Protocol: evil, Local: evilLine, Remote: evilLine, CgroupID: 1}}},
		},
		"/v1/apply": api.ApplyResponse{Changed: true, Diff: evil, Table: "table inet thole # " + evil + "\n",
			Warnings: warnings, Problems: found, Notices: found},
		"/v1/arm":    api.ApplyResponse{},
		"/v1/disarm": api.DisarmResponse{Error: evil, StateDir: evil}, // not stored: nothing is removed then
		"/v1/run":    api.RunResponse{Name: evil},
	}
	socket = filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[r.URL.Path]
		if refuse {
			w.WriteHeader(http.StatusForbidden)
			answer = map[string]string{"error": evil}
		}
		_ = json.NewEncoder(w).Encode(answer)
	})}
	go server.Serve(listener) //nolint:errcheck // it ends with the test
	t.Cleanup(func() { _ = server.Close() })
	return socket
}

// TestNothingHostileIsPrinted drives every command with hostile answers of the daemon, arguments and files. New
// commands must be added here.
func TestNothingHostileIsPrinted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), evilLine)
	bad, good := filepath.Join(dir, "a"+evilLine+".yaml"), filepath.Join(dir, "b.yaml")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	policy := "apiVersion: thole/v1\nkind: Policy\nmetadata: {name: a}\n" +
		"spec: {selector: {matchLabels: {app: nobody}}}\n"
	workload := "apiVersion: thole/v1\nkind: Workload\nmetadata: {name: w, labels: {app: web}}\n" +
		"spec: {cgroup: \"evil\u202e\xc2\xad/x\"}\n"
	for file, text := range map[string]string{bad: "kind: \"a\\eb\"\n", good: policy, dir + "/w.yaml": workload} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	calls := map[string][][]string{
		"thole": {{evil}, {"--" + evilLine}},
		"thole apply": {{"-f", good}, {"-f", good, "--dry-run"}, {"-f", bad}, {"-f", dir}, {"-f", dir + "/no"},
			{"-f", good, "--dry-run", "--inventory", dir + "/w.yaml"}, {"-f", good, "--dry-run", "--inventory", bad},
			{evil}, {}},
		"thole arm":            {{}, {evil}},
		"thole cleanup":        {{}, {evil}},
		"thole completion":     {{evil}},
		"thole daemon":         {{"--fleet", evil}, {"--log-format", evil}, {"--log-level", evil}},
		"thole doctor":         {{evil}}, // its findings are in TestFindingsAreEscaped
		"thole get":            {{evil}},
		"thole get unlabelled": {{}, {"-o", "wide"}, {"-o", "json"}, {"-o", "yaml"}, {evil}},
		"thole man":            {{good + "/" + evilLine}},
		"thole owner":          {{"1"}, {":5432"}, {evil}, {"1.2.3.4:" + evil}, {":5432", "-o", "json"}},
		"thole pki":            {{evil}},
		"thole pki init": {{"--pki", good + "/x"}, {"--pki", dir + "/ca", "--name", evil},
			{"--pki", dir + "/ca2"}},
		"thole pki install": {{"--pki", dir + "/node", bad}, {"--pki", dir + "/node", "--ca", dir + "/no"}},
		"thole pki issue": {{"--pki", dir + "/no", "--address", evil, bad},
			{"--pki", dir + "/no", "--address", "any", bad}},
		"thole pki renew":   {{"--pki", dir + "/no", bad}, {"--pki", dir, "--days", evil, bad}},
		"thole pki request": {{"--pki", dir + "/node", "--node", evil}},
		"thole pki revoke":  {{"--pki", dir + "/no", evil}},
		"thole pki show":    {{"--pki", dir + "/no"}, {bad}, {dir + "/no"}},
		"thole run": {{"--label", evil, "true"}, {"--label", "a=b", evilLine},
			{"--label", "a=b", "--name", evil, "true"}},
		"thole status":  {{}, {evil}},
		"thole version": {{}, {evil}},
	}
	for _, kind := range []string{"workloads", "policies", "classes"} {
		calls["thole get "+kind] = [][]string{{}, {"-o", "wide"}, {"-o", "yaml"}, {evilLine},
			{printable.Cell(evilLine)}, {"nobody" + evil}}
	}
	proc, _, _ := testProcess()
	for _, cmd := range commands(newRoot(proc)) {
		if path := cmd.CommandPath(); calls[path] == nil && path != "thole doctor probe" {
			t.Errorf("%s is not tested here", path)
		}
	}
	socket, refusing := evilDaemon(t, false), evilDaemon(t, true)
	for path, tails := range calls {
		for _, tail := range tails {
			for _, at := range []string{socket, refusing, filepath.Join(dir, "no.sock")} {
				args := slices.Concat(strings.Fields(path)[1:], withSocket(path, at), tail)
				if at == filepath.Join(dir, "no.sock") && needsDaemon(path) {
					continue // it would look at the machine instead
				}
				checkCommand(t, args)
			}
		}
	}
	for _, word := range []string{"", evil} {
		for _, kind := range []string{"workloads", "policies", "classes"} {
			checkCommand(t, []string{"__complete", "get", kind, "--socket", socket, word})
		}
	}
}

// withSocket is the option for commands that have it.
func withSocket(path, socket string) []string {
	if needsDaemon(path) || slices.Contains([]string{"thole run", "thole status"}, path) {
		return []string{"--socket", socket}
	}
	return nil
}

func needsDaemon(path string) bool {
	return path == "thole owner" || path == "thole apply" || path == "thole arm" || path == "thole cleanup" ||
		strings.HasPrefix(path, "thole get ")
}

func checkCommand(t *testing.T, args []string) {
	t.Helper()
	proc, stdout, stderr := testProcess(args...)
	proc.uid = 1 // so that there are hints to try sudo
	proc.getenv = func(string) string { return os.Getenv("PATH") }
	proc.exec = func(path string, _, _ []string) error {
		return &fs.PathError{Op: "exec", Path: path, Err: errors.New(evil)}
	}
	execute(context.Background(), proc)
	checkHarmless(t, fmt.Sprintf("%q, stdout", args), strings.ReplaceAll(stdout.String(), "\t", " "))
	checkHarmless(t, fmt.Sprintf("%q, stderr", args), stderr.String())
}

func TestFindingsAreEscaped(t *testing.T) {
	proc, stdout, _ := testProcess()
	proc.terminal = true
	err := writeFindings(proc, []doctor.Finding{
		{Check: "x", Status: doctor.Warning, Found: evil, Follows: evil, Mend: evilLine},
	})
	if err != nil {
		t.Fatal(err)
	}
	const colour, plain = "\x1b[33m", "\x1b[0m"
	if strings.Count(stdout.String(), colour) != 1 {
		t.Errorf("the warning has not its colour: %q", stdout)
	}
	checkHarmless(t, "doctor", strings.NewReplacer(colour, "", plain, "").Replace(stdout.String()))
}

func TestCertificatesAreEscaped(t *testing.T) {
	proc, stdout, _ := testProcess()
	all := []pki.Summary{{Kind: evil, Name: evilLine, State: evil, Serial: evil, Issuer: evilLine, Key: evil,
		Require: map[string]string{evil: evilLine}}}
	for _, output := range []string{"table", "wide", "json", "yaml"} {
		stdout.Reset()
		if err := writeSummaries(proc, all, output); err != nil {
			t.Fatal(err)
		}
		checkHarmless(t, output, stdout.String())
	}
	if err := writeCleanup(proc.stdout, daemon.CleanupResult{Stay: []string{evil}}); err != nil {
		t.Fatal(err)
	}
	checkHarmless(t, "cleanup", stdout.String())
}

// The daemon's log, in both formats and with hostile keys, values and messages.
func TestLogIsEscaped(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		log, err := newLogger(&b, format, "info")
		if err != nil {
			t.Fatal(err)
		}
		log.Info(evilLine, evil, evilLine, "error", errors.New(evilLine), "labels", []string{evilLine})
		checkHarmless(t, format, b.String())
		if strings.Count(b.String(), "\n") != 1 {
			t.Errorf("%s: more than one line: %q", format, b.String())
		}
	}
}
