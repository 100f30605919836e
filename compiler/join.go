package compiler

import "thole/compiler/classes"

// Where a class comes or goes, what is written of most others stays as it is. Those of which it may not are written
// anew (classes.Naming).

// A saying is what one class says in one direction.
type saying struct {
	class     *classes.Class
	direction classes.Direction
}

// join enters a class, and writes what it says and what others say of it. Its number is there if it is of another node.
func (s *Step) join(c *classes.Class) {
	l := s.result.lowering
	s.classes = true
	naming := l.classes.Naming(c)
	affected := l.affected(c, &naming, 1)
	s.writing(true, func() { l.writeAll(affected) })
	l.classes.Enter(c, naming)
	l.forgetRanks()
	if c.Remote == nil {
		c.Number = s.nextNumber()
	}
	s.writing(false, func() {
		l.writeAll(affected)
		l.writeClass(c)
	})
}

// part removes a class, what it says and what others say of it.
func (s *Step) part(c *classes.Class) {
	l := s.result.lowering
	s.classes = true
	naming := l.classes.Naming(c)
	affected := l.affected(c, &naming, -1)
	s.writing(true, func() {
		l.writeAll(affected)
		l.writeClass(c)
	})
	for _, rl := range l.classes.Leave(c, naming) {
		delete(l.destinations, rl)
	}
	l.forgetRanks()
	if c.Remote == nil {
		delete(s.result.taken, c.Number)
	}
	s.Numbers.Freed = append(s.Numbers.Freed, c.Number)
	s.writing(false, func() { l.writeAll(affected) })
}

// affected returns what others say that may have to be written anew, where there is one peer more (1) or less (-1). Of
// all else it counts that peer.
func (l *lowering) affected(c *classes.Class, naming *classes.Naming, more int) []saying {
	var list []saying
	for _, o := range l.classes.Workloads {
		if o == c {
			continue
		}
		leads := &l.leads[o.ID]
		for _, d := range [...]classes.Direction{classes.Ingress, classes.Egress} {
			mayTip := min(leads[d], leads[d]+more) <= 0
			if mayTip || naming.Concerns(o, d) {
				list = append(list, saying{o, d})
			} else {
				leads[d] += more
			}
		}
	}
	return list
}

func (l *lowering) writeAll(list []saying) {
	for _, w := range list {
		l.write(w.class, w.direction)
	}
}

// writeClass writes what a class says, but for its members.
func (l *lowering) writeClass(c *classes.Class) {
	if c.Remote != nil {
		l.believe(c)
		return
	}
	l.write(c, classes.Ingress)
	l.write(c, classes.Egress)
	l.leaving(c)
}
