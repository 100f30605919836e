package fleet

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run works until the context ends. Whatever of the fleet fails, it is tried again: Run returns no error, so that the
// fleet never ends the enforcement of the node.
func (f *Fleet) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return f.watched.Run(ctx) })
	group.Go(func() error { f.follow(ctx); return nil })
	group.Go(func() error { f.sweep(ctx); return nil })
	return group.Wait()
}

// follow has the fleet be as its directory says.
func (f *Fleet) follow(ctx context.Context) {
	defer close(f.stopped)
	defer f.engines.wait()
	for {
		var again <-chan time.Time // never
		if f.shown.Load().error != "" {
			again = time.After(retryPeriod)
		}
		select {
		case <-ctx.Done():
			return
		case <-f.watched.Changed():
			_ = f.refresh(ctx, false) // it is logged, and in the status
		case <-again:
			_ = f.refresh(ctx, false)
		case answer := <-f.reloads:
			answer <- f.refresh(ctx, true) // there is room
		case err := <-f.engines.ended:
			if ctx.Err() == nil {
				f.engines.stopped(err)
				f.show()
			}
		}
	}
}

// Reload reads this node's certificate and trust again. What was proven with a certificate
// that is trusted no more has ended when it returns.
func (f *Fleet) Reload(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case f.reloads <- answer:
	case <-ctx.Done():
		return ctx.Err()
	case <-f.stopped:
		return errors.New("the daemon is stopping")
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-f.stopped:
		return errors.New("the daemon is stopping")
	}
}

// refresh reads the directory, and brings engine and table to what is in force now: where that is the same as before,
// only if it is asked for. The error says what is not as it should be.
func (f *Fleet) refresh(ctx context.Context, asked bool) error {
	changed := f.credentials.read(f.config.Now())
	var replaced, believed error
	if (changed || asked) && f.credentials.trust != nil {
		// The engine first: nothing is opened any more with what was revoked.
		replaced = f.engines.replace(f.credentials.node)
		believed = f.table.Believe(ctx, f.credentials.node, f.credentials.trust)
	}
	f.engines.begin(ctx, f.credentials.node) // after the table: workloads have the labels that the certificate requires
	if failed := errors.Join(replaced, believed); failed != nil {
		f.log.Error("the new certificate and trust are not fully in force", "error", failed)
	} else if node := f.credentials.node; node != nil && (changed || asked) {
		message := "certificate or trust changed"
		if asked {
			message = "certificate and trust were read"
		}
		f.log.Info(message, "node", node.Identity.Node, "until", node.Identity.NotAfter)
	}
	f.show()
	return errors.Join(f.credentials.err, f.engines.failed, replaced, believed)
}

// show publishes what there is, and logs when it is degraded for another reason than before.
func (f *Fleet) show() {
	now := &fleetView{node: f.credentials.node, engine: f.engines.current}
	var reasons []string
	if err := f.credentials.err; err != nil {
		reasons = append(reasons, err.Error())
	}
	if err := f.engines.failed; err != nil {
		now.failed = err.Error()
		reasons = append(reasons, now.failed)
	}
	now.error = strings.Join(reasons, "; ")
	before := f.shown.Swap(now)
	switch {
	case before != nil && before.error == now.error:
	case now.error != "":
		f.log.Error("the fleet is degraded", "reason", now.error)
	case before != nil:
		f.log.Info("the fleet is not degraded any more")
	}
}
