package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"thole/compiler"
	"thole/compiler/policy"
	"thole/internal/api"
	"thole/policies"
	"thole/watch"
	"thole/watch/cgroupfs"
	"thole/watch/docker"
)

// A survey is what can be known where no daemon runs: what the last policy set says
// about what runs now. What is loaded may be older.
type survey struct {
	policies  []policy.Policy
	workloads []policy.Workload
	classes   []compiler.Class
}

// dockerPatience is how long Docker has to tell what runs.
const dockerPatience = 3 * time.Second

// lookAround makes a survey. It changes nothing.
func lookAround(state string) (survey, error) {
	files, err := lastFiles(state)
	if err != nil {
		return survey{}, err
	}
	docs, err := policy.Parse(files)
	if err != nil {
		return survey{}, fmt.Errorf("the last policy set: %w", err)
	}
	workloads, err := runningNow(state, docs)
	if err != nil {
		return survey{}, err
	}
	result, err := compiler.Compile(compiler.Input{Policies: docs.Policies, Workloads: workloads})
	return survey{docs.Policies, workloads, result.Classes(workloads)}, err
}

// lastFiles reads the policy set that the daemon or "thole apply" kept; the default,
// if there is none.
func lastFiles(state string) ([]policy.File, error) {
	data, err := os.ReadFile(filepath.Join(state, "policies.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return []policy.File{{Name: "same-labels.yaml", Data: policies.Default}}, nil
	}
	if err != nil {
		return nil, err
	}
	var kept struct{ Files []api.File } // of package daemon's storedSet
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, fmt.Errorf("the last policy set: %v", err)
	}
	var files []policy.File
	for _, f := range kept.Files {
		files = append(files, policy.File{Name: f.Name, Data: []byte(f.Data)})
	}
	return files, nil
}

// runningNow returns the workloads that run. Labels of "thole run" are believed
// only with the key that sealed them.
func runningNow(state string, docs policy.Documents) ([]policy.Workload, error) {
	root, err := cgroupfs.OpenRoot()
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(filepath.Join(state, "key"))
	if errors.Is(err, fs.ErrNotExist) {
		key = make([]byte, 32) // no daemon was here: nothing was sealed
	} else if err != nil {
		return nil, err
	}
	scopes, err := watch.NewScopes(root, key, watch.FindManager())
	if err != nil {
		return nil, err
	}
	host, err := docker.FindHost("", os.Getenv)
	if err != nil {
		return nil, err
	}
	engine := docker.New(root, host)
	cgroups, err := watch.NewCgroups(root, scopes, engine)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerPatience)
	defer cancel()
	_ = engine.Load(ctx) // the containers are left out then
	found := cgroups.Look(docs.Bindings)
	workloads, _ := policy.Admit(docs.Policies, found.Workloads, found.Unlabelled)
	return workloads, cgroups.Close()
}

func (s survey) Workloads() []api.Workload {
	var list []api.Workload
	for _, w := range s.workloads {
		item := api.Workload{
			Name:      w.Name,
			Namespace: w.Namespace,
			Kind:      w.Kind.String(),
			Labels:    w.Labels,
			Facts:     w.Facts,
			Doubtful:  w.Doubtful,
			Cgroup:    w.Cgroup.Path,
			ID:        w.Cgroup.ID,
			Position:  w.Position.String(),
		}
		// A class number is the loaded table's: it is not known here.
		item.Ingress, item.Egress = s.isolation(&w)
		list = append(list, item)
	}
	return list
}

// isolation names the enforced policies that isolate a workload, by direction.
func (s survey) isolation(w *policy.Workload) (ingress, egress []string) {
	ingress, egress = []string{}, []string{}
	for _, p := range s.policies {
		if p.Audit || !p.Selector.MayMatch(w) {
			continue
		}
		if p.Ingress.Isolates {
			ingress = append(ingress, p.Name)
		}
		if p.Egress.Isolates {
			egress = append(egress, p.Name)
		}
	}
	return ingress, egress
}

func (s survey) Policies() []api.Policy {
	var list []api.Policy
	for _, p := range s.policies {
		item := api.Policy{
			Name:     p.Name,
			Audit:    p.Audit,
			Ingress:  p.Ingress.Isolates,
			Egress:   p.Egress.Isolates,
			Rules:    len(p.Ingress.Allow) + len(p.Egress.Allow),
			Denies:   len(p.Ingress.Deny) + len(p.Egress.Deny),
			Position: p.Position.String(),
		}
		for i := range s.workloads {
			if p.Selector.MayMatch(&s.workloads[i]) {
				item.Selected++
			}
		}
		list = append(list, item)
	}
	return list
}

func (s survey) Classes() []api.Class {
	var list []api.Class
	for _, c := range s.classes {
		list = append(list, classOf(c))
	}
	return list
}
