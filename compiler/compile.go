package compiler

import (
	"slices"
	"strings"

	"thole/compiler/policy"
	"thole/ruleset"
)

// Options are the settings of a table that no policy holds.
type Options struct {
	Deny  DenyMode
	Epoch uint16 // 1 to MaxEpoch; 0 is taken as 1

	// Comments says that elements get comments: whose they are, and which policy says
	// so. They are for Text, and cost more than all the rest.
	Comments bool
}

// A DenyMode says how a denied connection is answered.
type DenyMode uint8

// The modes. DenyDefault resets or answers sources on this node and is silent to all others.
const (
	DenyDefault DenyMode = iota
	DenyDrop
	DenyReject
)

// Input is all that a table depends on.
type Input struct {
	Policies []policy.Policy
	// at most one of a cgroup path or address; of containers, those that Admit made of these policies
	Workloads []policy.Workload

	// Parents are cgroups below which there are containers alone. What is below one
	// and is neither a workload nor unlabelled is not known yet: it reaches nobody and
	// nobody reaches it, silently, so that TCP tries again.
	Parents    []policy.Cgroup
	Unlabelled []policy.Unlabelled
	Bridges    []policy.Bridge

	Fleet   *Fleet // nil: there are no other nodes
	Remotes []policy.Remote

	Options Options
	Numbers Numbers // of the table that is loaded; the zero value for a fresh one
}

// Result is what Compile makes. Take changes it; what Allows, ClassOf, Classes and
// Selected are answered from never changes, so that they may be asked meanwhile.
type Result struct {
	Table    ruleset.Table
	Numbers  Numbers
	Warnings []Warning
	Remotes  []uint32 // the number of the class of each of Input.Remotes

	// Again: a number is given that somebody else had in this epoch. The table needs the next epoch.
	Again bool

	classes *classes
	members members // of these, as they are now
}

// A Class are the workloads that no policy of the set can tell apart.
type Class struct {
	Number    uint32
	Workloads []string        // names, ascending
	Labels    []policy.Labels // the distinct user labels of its workloads
	Ingress   []string        // names of the enforced policies that isolate it, per direction
	Egress    []string
}

// A Warning is something that is valid and probably not meant.
type Warning struct {
	Position policy.Position
	Message  string
}

// Compile turns policies and workloads into a table. Equal input gives an equal
// table, whatever its order. It fails only where a limit is exceeded; the error
// names the limit.
func Compile(in Input) (Result, error) {
	policies := slices.SortedFunc(slices.Values(in.Policies), func(a, b policy.Policy) int {
		return strings.Compare(a.Name, b.Name)
	})
	unfiltered := addressed(in.Workloads)
	in.Workloads = slices.DeleteFunc(slices.Clone(in.Workloads), func(w policy.Workload) bool {
		return w.Kind == policy.KindAddress
	})

	cs := classify(policies, in)
	numbers, err := cs.number(in.Numbers)
	if err != nil {
		return Result{}, err
	}
	again := numbers.free(in.Numbers, max(in.Options.Epoch, 1))
	r := Result{
		Table:    cs.lower(in),
		Numbers:  numbers,
		Again:    again,
		Warnings: append(unfiltered, warnings(policies, cs)...),
		classes:  cs,
		members:  membersOf(cs, in),
	}
	for _, at := range cs.remoteClass {
		r.Remotes = append(r.Remotes, cs.remotes[at].number)
	}
	return r, nil
}

// classify divides workloads, addresses and ports into classes.
func classify(policies []policy.Policy, in Input) *classes {
	cs := &classes{
		addresses:    classifyAddresses(policies),
		ports:        classifyPorts(policies),
		matchers:     map[*policy.Rule]*matcher{},
		labelIndexes: map[string]*labelIndex{},
	}
	cs.classifyWorkloads(policies, byIdentity(in.Workloads))
	if in.Fleet != nil {
		cs.classifyRemotes(in.Remotes)
	}
	cs.fillDockets()
	for i := range cs.workloads {
		if c := &cs.workloads[i]; !cs.reachesItself(c) {
			c.numbers = make([]uint32, len(c.members))
		}
	}
	return cs
}

// byIdentity returns workloads in an order that does not depend on theirs.
func byIdentity(workloads []policy.Workload) []*policy.Workload {
	list := make([]*policy.Workload, len(workloads))
	for i := range workloads {
		list[i] = &workloads[i]
	}
	slices.SortFunc(list, func(a, b *policy.Workload) int { return strings.Compare(identity(a), identity(b)) })
	return list
}

// ClassOf returns the class of a workload that r was compiled of, without its workloads
// and labels.
func (r *Result) ClassOf(w *policy.Workload) Class {
	at, ok := r.compiled().classOf(w)
	if !ok {
		return Class{}
	}
	c := &r.classes.workloads[at]
	return Class{Number: c.number, Ingress: isolating(c.policies, ingress), Egress: isolating(c.policies, egress)}
}

// Len is how many classes of workloads there are.
func (r *Result) Len() int {
	if cs := r.compiled(); cs != nil {
		return len(cs.workloads)
	}
	return 0
}

// compiled returns r's classes, nil where there is no Result yet.
func (r *Result) compiled() *classes {
	if r == nil {
		return nil
	}
	return r.classes
}

// Classes returns the classes of workloads that r was compiled of, by number.
func (r *Result) Classes(workloads []policy.Workload) []Class {
	at := map[uint32]int{} // in list
	var list []Class
	seen := map[uint32]map[string]bool{}
	for _, w := range byIdentity(workloads) {
		if w.Kind == policy.KindAddress {
			continue
		}
		c := r.ClassOf(w)
		i, known := at[c.Number]
		if !known {
			i = len(list)
			at[c.Number], seen[c.Number], list = i, map[string]bool{}, append(list, c)
		}
		list[i].Workloads = append(list[i].Workloads, w.Name)
		if s := w.Labels.String(); !seen[c.Number][s] {
			seen[c.Number][s] = true
			list[i].Labels = append(list[i].Labels, w.Labels)
		}
	}
	for i := range list {
		slices.Sort(list[i].Workloads)
	}
	slices.SortFunc(list, func(a, b Class) int { return int(a.Number) - int(b.Number) })
	return list
}

// Selected returns how many of the workloads, of which r was compiled, each policy
// selects.
func (r *Result) Selected(workloads []policy.Workload) map[string]int {
	sizes := map[int]int{}
	for i := range workloads {
		if at, ok := r.compiled().classOf(&workloads[i]); ok {
			sizes[at]++
		}
	}
	selected := map[string]int{}
	for at, n := range sizes {
		for _, p := range r.classes.workloads[at].policies {
			selected[p.Name] += n
		}
	}
	return selected
}

func isolating(policies []*policy.Policy, d direction) []string {
	var names []string
	for _, p := range policies {
		if sideOf(p, d).Isolates && !p.Audit {
			names = append(names, p.Name)
		}
	}
	return names
}
