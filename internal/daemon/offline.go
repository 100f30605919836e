package daemon

import (
	"errors"
	"fmt"
	"slices"

	"thole/compiler"
	"thole/compiler/inventory"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/enforce"
	"thole/internal/policyset"
	"thole/internal/state"
	"thole/watch"
	"thole/watch/cgroupfs"
	"thole/watch/docker"
)

// sources find the workloads that run. The daemon, one apply without a daemon, and the listings below all use them.
type sources struct {
	scopes  *watch.Scopes
	docker  *docker.Docker // nil: it is not followed
	cgroups *watch.Cgroups // to be run or closed
}

// openSources asks Docker once for the running containers. It needs of the host the cgroup tree and the manager only.
// The key verifies the labels of "thole run".
func openSources(config Config, host *host, key []byte) (sources, error) {
	scopes, err := watch.NewScopes(host.root, key, host.manager)
	if err != nil {
		return sources{}, err
	}
	docker, err := newDocker(config, host)
	if err != nil {
		return sources{}, err
	}
	cgroups, err := watch.NewCgroups(host.root, scopes, engineOf(docker))
	if err != nil {
		return sources{}, err
	}
	cgroups.AskUnits(host.units)
	askOnce(docker)
	return sources{scopes, docker, cgroups}, nil
}

// A Listing is what "thole get" shows. The numbers of its classes are not those of the loaded table.
type Listing struct {
	Workloads []api.Workload
	Policies  []api.Policy
	Classes   []api.Class
}

// List computes, where no daemon runs, what the last policy set says about the workloads that run now. It changes
// nothing, and needs no access to the kernel's tables. The loaded table may be older.
func List(config Config) (Listing, error) {
	config = config.withDefaults()
	dir := state.At(config.State)
	set, ok, err := dir.Policies()
	if err != nil {
		return Listing{}, fmt.Errorf("the last policy set: %w", err)
	}
	if !ok {
		set = policyset.Default()
	}
	key, err := dir.ReadKey()
	if err != nil {
		return Listing{}, err
	}
	root, err := cgroupfs.OpenRoot()
	if err != nil {
		return Listing{}, err
	}
	found, err := openSources(config, &host{root: root, manager: watch.FindManager(), units: watch.FindUnits()}, key)
	if err != nil {
		return Listing{}, err
	}
	snapshot := found.cgroups.Look(set.Docs.Bindings)
	workloads, unlabelled := set.Docs.Identify(snapshot.Workloads, snapshot.Unlabelled)
	result, err := compiler.Compile(compiler.Input{Policies: set.Docs.Policies, Settings: set.Docs.Settings,
		Workloads: workloads})
	if err = errors.Join(err, found.cgroups.Close()); err != nil {
		return Listing{}, err
	}
	v := enforce.Describe(set.Docs.Policies, workloads, unlabelled, &result)
	listing := Listing{Workloads: v.Workloads(), Policies: v.Policies(), Classes: v.Classes()}
	for i := range listing.Workloads {
		listing.Workloads[i].Class = 0 // that of the loaded table is not known
	}
	return listing, nil
}

// An Inventory is the input of PlanInventory: policies, and a file of Workload documents in place of the workloads
// that run.
type Inventory struct {
	Policies   []policy.File
	Workloads  policy.File
	Deny       compiler.DenyMode
	AllowEmpty bool
}

// An InventoryPlan is what would be loaded for an inventory.
type InventoryPlan struct {
	Table    string        `json:"table"` // an nft script
	Classes  []api.Class   `json:"classes"`
	Warnings []api.Message `json:"warnings"`
}

// ErrNotWorkload says that an inventory has documents of another kind than Workload.
var ErrNotWorkload = errors.New("it has documents that are not of kind Workload")

// PlanInventory compiles policies for workloads that are only written down. It reads nothing but its input.
func PlanInventory(in Inventory) (InventoryPlan, error) {
	set, err := policyset.Parse(api.SourceApplied, in.Policies)
	if err == nil {
		set, err = set.After(policyset.Default(), in.AllowEmpty)
	}
	if err != nil {
		return InventoryPlan{}, fmt.Errorf("reading policies: %w", err)
	}
	workloads, err := inventoryWorkloads(in.Workloads, &set.Docs)
	if err != nil {
		return InventoryPlan{}, fmt.Errorf("reading the inventory: %w", err)
	}
	workloads, _ = set.Docs.Identify(workloads, nil)
	result, err := compiler.Compile(compiler.Input{
		Policies:  set.Docs.Policies,
		Settings:  set.Docs.Settings,
		Workloads: workloads,
		Options:   compiler.Options{Deny: in.Deny, Comments: true},
	})
	if err != nil {
		return InventoryPlan{}, fmt.Errorf("compiling policies: %w", err)
	}
	plan := InventoryPlan{
		Table: result.Table.Text(), Classes: []api.Class{}, Warnings: enforce.Messages(result.Warnings),
	}
	for _, c := range result.Classes(workloads) {
		plan.Classes = append(plan.Classes, enforce.Class(c))
	}
	return plan, nil
}

// inventoryWorkloads returns the workloads of an inventory, and those of Workload documents beside the policies.
func inventoryWorkloads(file policy.File, set *policy.Documents) ([]policy.Workload, error) {
	docs, err := policy.ParseInventory(file)
	if err != nil {
		return nil, err
	}
	if len(docs.Policies) > 0 || len(docs.Grants) > 0 || docs.Settings.Given() {
		return nil, fmt.Errorf("%s: %w", file.Name, ErrNotWorkload)
	}
	docs.Settings = set.Settings
	if err := docs.CheckLabels(); err != nil {
		return nil, err
	}
	return inventory.Workloads(slices.Concat(set.Bindings, docs.Bindings))
}

// StateOf returns the state directory of the last daemon that had this socket since the machine was started, "" if
// there was none or it is not known.
func StateOf(socket string) string { return state.PathOf(socket) }

// DisarmState disarms where no daemon answers: the next one that uses this state directory loads nothing.
func DisarmState(dir string) error { return state.At(dir).Disarm() }

// StateDisarmed reports whether it is so.
func StateDisarmed(dir string) bool {
	since, err := state.At(dir).Disarmed()
	return err == nil && !since.IsZero()
}

// ArmState takes that back. ok is false if it was not disarmed.
func ArmState(dir string) (ok bool, err error) { return state.At(dir).Arm() }
