package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: go test -bench . ./internal/e2e | go run ./internal/figures FILE TABLE…")
		os.Exit(2)
	}
	if err := run(io.TeeReader(os.Stdin, os.Stdout), os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, path string, names []string) error {
	tables := map[string]string{"machine": machine()} // before the benchmarks make a load
	wanted, err := named(names)
	if err != nil {
		return err
	}
	found, err := parse(in)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for _, t := range wanted {
		if tables[t.name], err = t.render(found); err != nil {
			return err
		}
	}
	text, err := replace(string(old), tables)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// named returns the tables with these names.
func named(names []string) ([]table, error) {
	var list []table
	for _, name := range names {
		at := slices.IndexFunc(allTables, func(t table) bool { return t.name == name })
		if at < 0 {
			return nil, fmt.Errorf("there is no table %q", name)
		}
		list = append(list, allTables[at])
	}
	return list, nil
}

// metrics are figures by the names that benchmarks give them.
type metrics map[string]float64

// metric is one in a benchmark's line, which tabs divide.
var metric = regexp.MustCompile(`^ *([0-9.e+-]+) ([^ ]+)$`)

// parse reads what go test prints. It fails where a test failed, or none ended well.
func parse(in io.Reader) (metrics, error) {
	found, passed := metrics{}, false
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := lines.Text()
		passed = passed || strings.HasPrefix(line, "ok ")
		if strings.HasPrefix(line, "FAIL") {
			return nil, fmt.Errorf("the benchmarks failed")
		}
		for field := range strings.SplitSeq(line, "\t") {
			if m := metric.FindStringSubmatch(field); m != nil {
				if value, err := strconv.ParseFloat(m[1], 64); err == nil {
					found[m[2]] = value
				}
			}
		}
	}
	if !passed && lines.Err() == nil {
		return nil, fmt.Errorf("no benchmark passed")
	}
	return found, lines.Err()
}

// replace puts tables between their marks. Each must have its place.
func replace(text string, tables map[string]string) (string, error) {
	for name, table := range tables {
		begin := "<!-- table " + name + " -->\n"
		before, rest, ok := strings.Cut(text, begin)
		_, after, closed := strings.Cut(rest, "<!-- end -->")
		if !ok || !closed {
			return "", fmt.Errorf("there is no place for the table %q: write %s<!-- end -->", name, begin)
		}
		text = before + begin + "\n" + table + "\n<!-- end -->" + after
	}
	return text, nil
}

// machine says where the figures are from.
func machine() string {
	var b strings.Builder
	b.WriteString("| | |\n|---|---|\n")
	for _, row := range [][2]string{
		{"commit", output("git", "describe", "--always", "--dirty", "--exclude=*")},
		{"date", time.Now().UTC().Format("2006-01-02")},
		{"kernel", output("uname", "-sr")},
		{"processor", fmt.Sprintf("%s, %d cores", field("/proc/cpuinfo", "model name"), runtime.NumCPU())},
		{"memory", field("/proc/meminfo", "MemTotal")},
		{"load before", load()},
		{"Go", runtime.Version()},
		{"nft", output("nft", "--version")},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	return b.String()
}

// output is what a command says, or that it failed.
func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown: " + err.Error()
	}
	return strings.TrimSpace(string(out))
}

// field is what a file of /proc says behind a word and a colon.
func field(path, name string) string {
	data, _ := os.ReadFile(path)
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// load is how many processes ran or wanted to, in the last minute.
func load() string {
	data, _ := os.ReadFile("/proc/loadavg")
	one, _, _ := strings.Cut(string(data), " ")
	return one
}
