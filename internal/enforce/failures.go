package enforce

import (
	"cmp"
	"time"

	"thole/internal/api"
)

// failures are what failed last and was not mended since, as the status shows it; nil: nothing.
type failures struct {
	table        *api.Failure // a change of the table
	set          *api.Failure // the last set that was offered is invalid
	setStorage   *api.Failure // the set is enforced, and could not be stored
	tableStorage *api.Failure // the table is loaded, and what the next daemon must know of it could not be stored

	retry time.Duration // how long to wait after the next failure of table
}

// first returns the one that the status shows.
func (f *failures) first() *api.Failure { return cmp.Or(f.table, f.set, f.setStorage, f.tableStorage) }

// tableFailed notes that a change of the table failed. The next try is after a while: at most longest.
func (f *failures) tableFailed(now time.Time, err error, longest time.Duration) {
	if f.table == nil {
		f.retry = retryFirst
	} else {
		f.retry = min(2*f.retry, longest)
	}
	f.table = &api.Failure{Time: now, Text: err.Error()}
}

// tableChanged notes that a change of the table succeeded.
func (f *failures) tableChanged() { f.table, f.retry = nil, retryFirst }

// retryIn says how long to wait until a failed change of the table is tried again.
func (f *failures) retryIn(now time.Time) time.Duration { return f.retry - now.Sub(f.table.Time) }
