package doctor

import (
	"errors"

	"thole/ruleset"
	"thole/ruleset/kernel"
)

// with loads a table, uses it and deletes it.
func with(conn *kernel.Conn, table ruleset.Table, use func() error) (err error) {
	if err := conn.Apply(ruleset.Diff(nil, &table)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Delete(table.Name)) }()
	return use()
}
