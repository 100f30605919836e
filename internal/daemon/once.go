package daemon

import (
	"context"
	"errors"
	"fmt"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/enforce"
	"thole/internal/state"
	"thole/ruleset"
	"thole/watch"
	"thole/watch/workload"
)

// ApplyOnce does what a daemon would do with the request, where none runs: it
// compiles the policies and what runs now into the kernel, and keeps the set for
// the daemon that comes. A dry run changes nothing at all.
func ApplyOnce(_ context.Context, config Config, req api.ApplyRequest) (api.ApplyResponse, error) {
	host, err := openHost()
	if err != nil {
		return api.ApplyResponse{}, err
	}
	answer, err := applyOnce(config.withDefaults(), host, req)
	return answer, errors.Join(err, host.close())
}

func applyOnce(config Config, host *host, req api.ApplyRequest) (api.ApplyResponse, error) {
	if req.DryRun {
		return previewOnce(config, host, req)
	}
	lock, err := state.TakeLock(config.Socket, config.State)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer lock.Release() //nolint:errcheck // it ends with the process at the latest
	dir, found, err := openState(config, host)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer found.cgroups.Close() //nolint:errcheck // it was not run, and is not needed any more
	return enforce.ApplyOnce(enforcing(config, host, dir, found.cgroups), req)
}

// previewOnce compiles without a daemon, and without a trace.
func previewOnce(config Config, host *host, req api.ApplyRequest) (api.ApplyResponse, error) {
	dir := state.At(config.State)
	key, err := dir.ReadKey()
	if err != nil {
		return api.ApplyResponse{}, err
	}
	found, err := openSources(config, host, key)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer found.cgroups.Close() //nolint:errcheck // nothing was waited for
	return enforce.ApplyOnce(enforcing(config, host, dir, readOnlyScanner{found.cgroups}), req)
}

// A readOnlyScanner scans without removing empty cgroups.
type readOnlyScanner struct{ cgroups *watch.Cgroups }

func (s readOnlyScanner) Recall(loaded workload.Snapshot) { s.cgroups.Recall(loaded) }

func (s readOnlyScanner) Changes(bindings []policy.Binding) workload.Snapshot {
	return s.Scan(bindings)
}

func (s readOnlyScanner) Runs(bindings []policy.Binding) workload.Snapshot { return s.Scan(bindings) }

func (s readOnlyScanner) Scan(bindings []policy.Binding) workload.Snapshot {
	return s.cgroups.Look(bindings)
}

// CleanupResult says what Cleanup did.
type CleanupResult struct {
	Table bool     // there was a table
	Stay  []string // cgroups of thole run in which processes live: they are unlabelled now, and unharmed
}

// Cleanup removes our table, our local routes and the empty cgroups of thole run. It touches nothing
// else and needs no daemon; one that runs would load the table again.
func Cleanup(context.Context) (CleanupResult, error) {
	host, err := openHost()
	if err != nil {
		return CleanupResult{}, err
	}
	result, err := cleanup(host)
	return result, errors.Join(err, host.close())
}

func cleanup(host *host) (CleanupResult, error) {
	var result CleanupResult
	have, err := host.kernel.Read(enforce.TableName)
	result.Table = have != nil || err != nil
	// What cannot be read may still be deleted: this is the way out.
	if err != nil {
		have = &ruleset.Table{Name: enforce.TableName}
	}
	if have != nil {
		if err := host.kernel.Apply(ruleset.Diff(have, nil)); err != nil {
			return result, fmt.Errorf("removing the table: %w: try `nft delete table inet %s`", err, enforce.TableName)
		}
	}
	result.Stay, err = watch.RemoveEmptyScopes(host.root)
	return result, errors.Join(err, removeRoutes(host.routes))
}
