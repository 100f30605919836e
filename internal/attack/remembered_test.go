package attack

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// What both sides allow is remembered until the next epoch: that it is, that no more passes by it, and what happens
// when there is no more room.

const byPort = `apiVersion: thole/v1
kind: Policy
metadata: {name: db}
spec:
  selector: {matchLabels: {app: db}}
  ingress: [{from: [{workloads: {matchLabels: {app: web}}}], ports: [80/tcp, 80/udp]}]
  egress: []
`

// judged is the set of what is remembered, and what is in it.
func (s *scene) judged() (name, elements string) {
	s.t.Helper()
	sets := regexp.MustCompile(`judged_[0-9]+`).FindAllString(s.Shell("nft -t list sets inet"), -1)
	if len(sets) != 1 {
		s.t.Fatalf("the sets of what was judged are %v, want one", sets)
	}
	_, elements, _ = strings.Cut(s.Shell("nft list set inet thole "+sets[0]), "elements = {")
	return sets[0], elements
}

func TestRemembered(t *testing.T) {
	s := newScene(t, byPort)
	l, u := s.db.listen("127.0.0.1:80"), s.db.udp("127.0.0.1:80")
	other, otherUDP := s.db.listen("127.0.0.1:81"), s.db.udp("127.0.0.1:81")
	back := s.web.listen("127.0.0.1:82")
	first, elements := s.judged()
	if elements != "" {
		t.Fatalf("before anything was judged there is: %s", elements)
	}
	passes := func(when string) {
		t.Helper()
		for range 2 {
			allowed(t, "TCP "+when, reaches(s.web, "", "127.0.0.1:80", l))
			allowed(t, "TCP of another one "+when, reaches(s.web2, "", "127.0.0.1:80", l))
			allowed(t, "UDP "+when, reachesUDP(s.web, "", "127.0.0.1:80", u))
			denied(t, "TCP to another port "+when, reaches(s.web, "", "127.0.0.1:81", other))
			denied(t, "TCP from the port to another "+when, reaches(s.web, "127.0.0.2:80", "127.0.0.1:81", other))
			denied(t, "UDP to another port "+when, reachesUDP(s.web, "", "127.0.0.1:81", otherUDP))
			denied(t, "TCP of something unlabelled "+when, reaches(s.free, "", "127.0.0.1:80", l))
			denied(t, "UDP of something unlabelled "+when, reachesUDP(s.free, "", "127.0.0.1:80", u))
			denied(t, "TCP the other way "+when, reaches(s.db, "", "127.0.0.1:82", back))
		}
	}
	passes("at first")
	if _, elements = s.judged(); strings.Count(elements, " tcp . 80 ") != 1 ||
		strings.Count(elements, " udp . 80 ") != 1 || strings.Contains(elements, ". 81 ") {
		t.Errorf("remembered is %s; want port 80 of TCP and UDP, and nothing else", elements)
	}

	s.enforce(closedDB)
	if second, elements := s.judged(); second == first || elements != "" {
		t.Errorf("the next epoch begins with %s: %s", second, elements)
	}
	denied(t, "TCP behind a revocation", reaches(s.web, "", "127.0.0.1:80", l))
	denied(t, "UDP behind a revocation", reachesUDP(s.web, "", "127.0.0.1:80", u))

	// As much is remembered as there is room for. The rest is judged each time.
	s.enforce(byPort)
	last, _ := s.judged()
	const room = 65536
	var all strings.Builder
	fmt.Fprintf(&all, "add element inet thole %s { ", last)
	for port := range room {
		fmt.Fprintf(&all, "0x9999 . 5448:1 . sctp . %d, ", port)
	}
	must(t, s.Nft(all.String()+"}"))
	passes("without room")
	if out := s.Shell("nft list counter inet thole judged_full"); strings.Contains(out, "packets 0 ") {
		t.Errorf("what is not remembered is not counted: %s", out)
	}
}
