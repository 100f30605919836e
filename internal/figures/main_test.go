package main

import (
	"os"
	"strings"
	"testing"
)

const printed = `goos: linux
BenchmarkOne-2   	  10 workloads, compile  17ms   (of 9: 10ms to 20ms)
       1	  1772141285 ns/op	         1.150 one	         1.057 one:low	` +
	`         1.230 one:high	       112.5 MB/two
PASS
ok  	thole/internal/e2e	35.864s
`

var tables = []table{
	{name: "both", rows: []row{
		{"first", "one", "", atMost(1.05)},
		{"second", "MB/two", "MB", atMost(150)},
		{"third", "one", "", atLeast(0.98)},
		{"fourth", "one", "", aim{}},
	}},
	{name: "bounds", bounds: true, rows: []row{
		{"the upper bound is beyond", "one", "", atMost(1.20)},
		{"the lower bound is within", "one", "", atLeast(1.05)},
		{"the lower bound is beyond", "one", "", atLeast(1.10)},
		{"no bounds", "MB/two", "MB", atMost(150)},
	}},
}

func TestRender(t *testing.T) {
	found, err := parse(strings.NewReader(printed))
	if err != nil {
		t.Fatal(err)
	}
	got, err := tables[0].render(found)
	if err != nil {
		t.Fatal(err)
	}
	want := `| what | median | quartiles | aim | met |
|---|---|---|---|---|
| first | 1.150 | 1.057 to 1.230 | at most 1.05 | **no** |
| second | 112 MB |  | at most 150 | yes |
| third | 1.150 | 1.057 to 1.230 | at least 0.98 | yes |
| fourth | 1.150 | 1.057 to 1.230 |  |  |
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	got, err = tables[1].render(found)
	if err != nil {
		t.Fatal(err)
	}
	want = `| what | median | 95% bounds | aim | met |
|---|---|---|---|---|
| the upper bound is beyond | 1.150 | 1.057 to 1.230 | at most 1.2 | **no** |
| the lower bound is within | 1.150 | 1.057 to 1.230 | at least 1.05 | yes |
| the lower bound is beyond | 1.150 | 1.057 to 1.230 | at least 1.1 | **no** |
| no bounds | 112 MB |  | at most 150 | yes |
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	delete(found, "MB/two")
	if _, err := tables[0].render(found); err == nil || !strings.Contains(err.Error(), "MB/two") {
		t.Errorf("without a metric: %v", err)
	}
}

func TestParseFailures(t *testing.T) {
	for _, text := range []string{"", "PASS\n", strings.Replace(printed, "ok  \t", "FAIL\t", 1)} {
		if _, err := parse(strings.NewReader(text)); err == nil {
			t.Errorf("parsed:\n%s", text)
		}
	}
}

func TestReplace(t *testing.T) {
	const text = "before\n<!-- table a -->\nold\n<!-- end -->\nbetween\n<!-- table b -->\n<!-- end -->\nafter\n"
	got, err := replace(text, map[string]string{"a": "1\n", "b": "2\n"})
	want := "before\n<!-- table a -->\n\n1\n\n<!-- end -->\nbetween\n<!-- table b -->\n\n2\n\n<!-- end -->\nafter\n"
	if err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
	again, err := replace(got, map[string]string{"a": "1\n", "b": "2\n"})
	if err != nil || again != want {
		t.Errorf("a second time: %v, got\n%s", err, again)
	}
	if _, err := replace(text, map[string]string{"c": ""}); err == nil {
		t.Error("a table without a place was written")
	}
}

// The document has a place for each table.
func TestPlaces(t *testing.T) {
	text, err := os.ReadFile("../../docs/PERFORMANCE.md")
	if err != nil {
		t.Fatal(err)
	}
	places := map[string]string{"machine": ""}
	for _, t := range allTables {
		places[t.name] = ""
	}
	if _, err := replace(string(text), places); err != nil {
		t.Error(err)
	}
}

func TestNamed(t *testing.T) {
	got, err := named([]string{"traffic", "connect"})
	if err != nil || len(got) != 2 || got[0].name != "traffic" || got[1].name != "connect" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := named([]string{"trafic"}); err == nil {
		t.Error("a name that no table has was accepted")
	}
}
