package e2e

import (
	"os"
	"regexp"
	"testing"
)

// TestReadmeApply: the README's policy gives the output that the README shows. (make demo runs its story.)
// The numbers of elements are not compared.
func TestReadmeApply(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	must(t, err)
	policy := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(readme)
	shown := regexp.MustCompile(`(?m)^applied: .*$`).Find(readme)
	if policy == nil || shown == nil {
		t.Fatal("the README shows no policy, or no output of thole apply")
	}
	m := newMachine(t)
	m.labelledProbe("nginx", "app=nginx").Listen("tcp", "127.0.0.1:80")
	web := m.labelledProbe("web", "app=web")
	denied(t, "before", web.TCP("127.0.0.1:80"))
	code, out := m.exitStatus(string(policy[1]), "apply", "-f", "-")
	elements := regexp.MustCompile(`[+−]\d+`)
	got, want := elements.ReplaceAllString(out, "N"), elements.ReplaceAllString(string(shown), "N")+"\n"
	if code != 0 || got != want {
		t.Errorf("thole apply: exit status %d\n got %swant %s", code, out, shown)
	}
	allowed(t, "after", web.TCP("127.0.0.1:80"))
}
