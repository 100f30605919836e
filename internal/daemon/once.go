package daemon

import (
	"context"
	"errors"
	"fmt"

	"thole/compiler/policy"
	"thole/internal/api"
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
	lock, err := takeLock(config.Socket, config.State)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer lock.release() //nolint:errcheck // it ends with the process at the latest
	parts, err := newParts(config, host)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer parts.cgroups.Close() //nolint:errcheck // it was not run, and is not needed any more
	e := parts.enforcer
	e.once = true
	defer e.state.close()
	if err := parts.enforcer.adopt(); err != nil {
		return api.ApplyResponse{}, err
	}
	e.set, _ = e.lastSet() // a set that cannot be read counts as one with policies
	return e.replace(api.SourceApplied, compilerFiles(req.Files), req.AllowEmpty)
}

// previewOnce compiles without a daemon, and without a trace.
func previewOnce(config Config, host *host, req api.ApplyRequest) (api.ApplyResponse, error) {
	state := &stateDir{dir: config.State}
	key, err := readKey(config.State)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	found, err := openSources(config, host, key)
	if err != nil {
		return api.ApplyResponse{}, err
	}
	defer found.cgroups.Close() //nolint:errcheck // nothing was waited for
	e := &enforcer{
		kernel: host.kernel, dead: host, state: state, log: config.Logger, deny: config.Deny, once: true, now: host.now,
	}
	e.runs = looker{found.cgroups}
	if err := e.adopt(); err != nil {
		return api.ApplyResponse{}, err
	}
	e.set, _ = e.lastSet()
	return e.preview(compilerFiles(req.Files), req.AllowEmpty)
}

// A looker scans without removing empty cgroups.
type looker struct{ cgroups *watch.Cgroups }

func (l looker) Recall(loaded workload.Snapshot) { l.cgroups.Recall(loaded) }

func (l looker) Changes(bindings []policy.Binding) workload.Snapshot { return l.Scan(bindings) }

func (l looker) Scan(bindings []policy.Binding) workload.Snapshot { return l.cgroups.Look(bindings) }

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
	have, err := host.kernel.Read(tableName)
	result.Table = have != nil || err != nil
	// What cannot be read may still be deleted: this is the way out.
	if err != nil {
		have = &ruleset.Table{Name: tableName}
	}
	if have != nil {
		if err := host.kernel.Apply(ruleset.Diff(have, nil)); err != nil {
			return result, fmt.Errorf("removing the table: %w: try `nft delete table inet %s`", err, tableName)
		}
	}
	result.Stay, err = watch.RemoveEmptyScopes(host.root)
	return result, errors.Join(err, removeRoutes(host.routes))
}
