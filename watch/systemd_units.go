package watch

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// FindUnits returns systemd if FindManager does, else nil.
func FindUnits() Units {
	if FindManager() == nil {
		return nil
	}
	return systemd{}
}

// askPatience is far more than it takes on a slow machine. A scan waits for the answer.
const askPatience = 5 * time.Second

// Ask asks systemd by a connection of its own, as Start does.
func (systemd) Ask(names []string) (UnitList, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	conn, err := dbus.NewSystemdConnectionContext(ctx)
	if err != nil {
		return UnitList{}, err
	}
	defer conn.Close()
	ask := unitQuestion{ctx, conn}
	list := UnitList{Units: map[string]Unit{}}
	if len(names) > 0 {
		// The answers are in the order of the names.
		answers, err := conn.ListUnitsByNamesContext(ctx, names)
		if err != nil {
			return UnitList{}, err
		}
		if len(answers) != len(names) {
			return UnitList{}, fmt.Errorf("it was asked for %d units, and answered %d", len(names), len(answers))
		}
		for i, answer := range answers {
			if list.Units[names[i]], err = ask.unit(answer); err != nil {
				return UnitList{}, fmt.Errorf("unit %s: %w", names[i], err)
			}
		}
	}
	sockets, err := conn.ListUnitsByPatternsContext(ctx, nil, []string{"*.socket"})
	if err != nil {
		return UnitList{}, err
	}
	for _, s := range sockets {
		socket, err := ask.socket(s.Name)
		if err != nil {
			return UnitList{}, fmt.Errorf("unit %s: %w", s.Name, err)
		}
		list.Sockets = append(list.Sockets, socket)
	}
	return list, nil
}

// A unitQuestion asks for properties of units (org.freedesktop.systemd1(5)).
type unitQuestion struct {
	ctx  context.Context
	conn *dbus.Conn
}

func (q unitQuestion) unit(of dbus.UnitStatus) (Unit, error) {
	if of.LoadState == "not-found" {
		return Unit{}, nil
	}
	unit := Unit{Name: of.Name, Ran: of.ActiveState != "inactive"}
	if !unit.Ran {
		left, err := property[uint64](q, of.Name, "Unit", "InactiveExitTimestamp") // 0: never
		if err != nil {
			return Unit{}, err
		}
		unit.Ran = left != 0
	}
	if !strings.HasSuffix(of.Name, ".service") {
		return unit, nil
	}
	kind, err := property[string](q, of.Name, "Service", "Type")
	if err == nil && kind == "oneshot" {
		unit.Leaves, err = property[bool](q, of.Name, "Service", "RemainAfterExit")
	}
	return unit, err
}

func (q unitQuestion) socket(name string) (SocketUnit, error) {
	starts, err := property[[]string](q, name, "Unit", "Triggers")
	if err != nil {
		return SocketUnit{}, err
	}
	accept, err := property[bool](q, name, "Socket", "Accept")
	return SocketUnit{Name: name, Starts: starts, Accept: accept}, err
}

// property asks for one property of a unit.
func property[T any](q unitQuestion, unit, kind, name string) (value T, err error) {
	answer, err := q.conn.GetUnitTypePropertyContext(q.ctx, unit, kind, name)
	if err != nil {
		return value, fmt.Errorf("asking for %s: %w", name, err)
	}
	value, ok := answer.Value.Value().(T)
	if !ok {
		return value, fmt.Errorf("its %s is %s", name, answer.Value)
	}
	return value, nil
}
