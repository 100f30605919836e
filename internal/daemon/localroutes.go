package daemon

import (
	"fmt"
	"log/slog"

	"thole/internal/api"
	"thole/internal/condition"
	"thole/internal/enforce"
	"thole/internal/routes"
)

// openRoutes opens table local. Where that fails, all that is asked of it fails, and the rest is enforced.
func openRoutes() routes.Table {
	table, err := routes.Open()
	if err != nil {
		return noRoutes{err}
	}
	return table
}

// noRoutes is a table of routes that could not be opened.
type noRoutes struct{ err error }

func (n noRoutes) List() ([]routes.Route, error) { return nil, n.err }
func (n noRoutes) Apply(routes.Change) error     { return n.err }
func (n noRoutes) Wait() error                   { return n.err }
func (n noRoutes) Close() error                  { return nil }

// keepRoutes makes the local routes that the daemon is to keep, or removes those of an earlier daemon. While Thole is
// disarmed there are none. What fails is in the status.
func keepRoutes(config Config, host *host, e *enforce.Enforcer) *routes.Keeper {
	wanted := func() bool { return config.Routes && e.View().Status().Disarmed == nil }
	keeper := routes.NewKeeper(host.routes, wanted, config.Logger)
	_ = keeper.Sync()
	return keeper
}

// removeRoutes removes all local routes that a daemon made.
func removeRoutes(table routes.Table) error {
	never := func() bool { return false }
	if err := routes.NewKeeper(table, never, slog.New(slog.DiscardHandler)).Sync(); err != nil {
		return fmt.Errorf("removing local routes: %w: try `ip route flush table local proto %d; "+
			"ip -6 route flush table local proto %[2]d`", err, routes.Protocol)
	}
	return nil
}

func apiLocalRoutes(s routes.State) api.LocalRoutesStatus {
	status := api.LocalRoutesStatus{On: s.On, Addresses: s.Addresses}
	if s.Err != nil {
		status.Error = s.Err.Error()
	}
	return status
}

func localRoutesConditions(s routes.State) []condition.Condition {
	if s.Err == nil {
		return nil
	}
	text := fmt.Sprintf("--local-routes: not all addresses of this node are routed over lo, so decoys are possible: %v",
		s.Err)
	if !s.On {
		text = fmt.Sprintf("local routes of an earlier daemon may not be removed: %v", s.Err)
	}
	return []condition.Condition{{Code: condition.LocalRoutesFailed, Text: text}}
}
