package compiler

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"thole/compiler/chains"
	"thole/compiler/classes"
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
type DenyMode = chains.DenyMode

// The modes. DenyDefault resets or answers sources on this node and is silent to all others.
const (
	DenyDefault = chains.DenyDefault
	DenyDrop    = chains.DenyDrop
	DenyReject  = chains.DenyReject
)

// Input is all that a table depends on.
type Input struct {
	Policies []policy.Policy
	Settings policy.Settings // say which labels of other nodes' workloads count

	// at most one of a cgroup path or address; as Documents.Identify returned them for these policies and Settings
	Workloads []policy.Workload

	// Parents are cgroups below which there are containers alone. What is below one
	// and is neither a workload nor unlabelled is not known yet: it reaches nobody and
	// nobody reaches it, silently, so that TCP tries again. Where no policy is enforced, nothing is closed.
	Parents    []policy.Cgroup
	Unlabelled []policy.Unlabelled
	Bridges    []policy.Bridge

	Fleet   *Fleet // nil: there are no other nodes
	Remotes []policy.Remote

	Options Options
	Numbers Numbers // of the table that is loaded; the zero value for a fresh one
}

// Result is what Compile makes, and Change changes. Allows, ClassOf, Classes and Selected may be asked meanwhile.
type Result struct {
	Table    ruleset.Table
	Numbers  Numbers
	Warnings []Warning
	Remotes  []uint32 // the number of the class of each of Input.Remotes

	SharedNetworks []SharedNetwork // by the cgroup of the owner; no Change changes them

	// Again: a number is given that somebody else had in this epoch. The table needs the next epoch.
	Again bool

	mu       *sync.RWMutex // guards what follows
	classes  *classes.Set
	lowering *lowering
	taken    map[uint32]bool // numbers of classes of this node, and of members
	// takenRemotes are those of classes of other nodes.
	takenRemotes map[uint32]bool
	unfiltered   []Warning
}

// A Class are the workloads that no policy of the set can tell apart.
type Class struct {
	Number    uint32
	Divided   bool            // its members may not reach each other, and have numbers of their own
	Selected  bool            // by an enforced policy
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

	remotes := in.Remotes
	if in.Fleet == nil {
		remotes = nil
	}
	workloads := byIdentity(in.Workloads)
	cs, of := classes.New(policies, &in.Settings, workloads, remotes)
	members := make([]member, len(workloads))
	for i, w := range workloads {
		members[i] = member{Workload: w, class: of[i]}
	}
	namespaces := namespacesOf(cs, members, in.Unlabelled)
	numbers, err := numberClasses(cs, members, namespaces, in.Numbers)
	if err != nil {
		return Result{}, err
	}
	again := numbers.free(in.Numbers, max(in.Options.Epoch, 1))
	r := Result{Numbers: numbers, Again: again, SharedNetworks: sharedNetworks(namespaces), mu: &sync.RWMutex{},
		classes: cs, unfiltered: unfiltered}
	r.lowering, r.Table = lower(in, policies, cs, members, namespaces)
	r.takeNumbers(members)
	r.describeClasses()
	return r, nil
}

// describeClasses finds what is to be said of the classes that there are.
func (r *Result) describeClasses() {
	r.Warnings = slices.Concat(r.unfiltered, r.lowering.warnings())
	r.Remotes = make([]uint32, len(r.classes.Remotes))
	for i, c := range r.classes.Remotes {
		r.Remotes[i] = c.Number
	}
}

func (r *Result) takeNumbers(members []member) {
	r.taken = make(map[uint32]bool, len(members)+len(r.classes.Workloads))
	for _, c := range r.classes.Workloads {
		r.taken[c.Number] = true
	}
	for _, c := range r.classes.Namespaces {
		r.taken[c.Number] = true
	}
	for i := range members {
		if members[i].memberNumber != 0 {
			r.taken[members[i].memberNumber] = true
		}
	}
	r.takenRemotes = make(map[uint32]bool, len(r.classes.Remotes))
	for _, c := range r.classes.Remotes {
		r.takenRemotes[c.Number] = true
	}
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
	if r == nil || r.classes == nil {
		return Class{}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	c := r.classes.ClassOf(w)
	if c == nil {
		return Class{}
	}
	return Class{Number: c.Number, Divided: c.Divided, Selected: c.Selected(), Ingress: c.Isolating(classes.Ingress),
		Egress: c.Isolating(classes.Egress)}
}

// Len is how many classes of workloads there are.
func (r *Result) Len() int {
	if r == nil || r.classes == nil {
		return 0
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.classes.Workloads)
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
	selected := map[string]int{}
	if r == nil || r.classes == nil {
		return selected
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	sizes := map[*classes.Class]int{}
	for i := range workloads {
		if c := r.classes.ClassOf(&workloads[i]); c != nil {
			sizes[c]++
		}
	}
	for c, n := range sizes {
		for _, p := range c.Policies {
			selected[p.Name] += n
		}
	}
	return selected
}

// identity names a workload uniquely among those of one node; of another, by its labels
// and address.
func identity(w *policy.Workload) string {
	if w.Cgroup.Path == "" {
		return w.Name + " " + proven(w).String()
	}
	return w.Cgroup.Path
}

// proven returns the labels of a workload of another node, those that do not count on this one as well: all that its
// node proved, by which it is told from others.
func proven(w *policy.Workload) policy.Labels {
	all := maps.Clone(w.Labels)
	for key, value := range w.Facts {
		if key != policy.NodeFact {
			all[key] = value
		}
	}
	return all
}
