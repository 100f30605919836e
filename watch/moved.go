package watch

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"thole/internal/condition"
	"thole/watch/cgroupfs"
)

const (
	maxMoved   = 64        // commands that are remembered
	movedShown = time.Hour // for how long it is told that a command was ended
)

// A movedCommand is a command of thole run that another program moved into a cgroup that is none of thole run's.
type movedCommand struct {
	run     Run
	to      string    // the cgroup where it was found
	ended   time.Time // by --kill-on-move; zero: it lives
	failure error     // why it could not be ended
}

// movedCommands are remembered in the order in which they were found. The lock of Scopes guards them.
type movedCommands struct {
	list    []movedCommand
	dropped int  // how many were forgotten because there were more than maxMoved
	news    bool // one was found since conditions was called
}

// look is called when no process is in the scope of a run any more. If its command lives, another program has moved it.
// (Until a process that ends is a zombie, the kernel still names its old cgroup. A command that asked for labels again
// is in another scope.)
func (m *movedCommands) look(s *Scopes, run Run, now time.Time) {
	command := run.Command
	known := func(c movedCommand) bool { return c.run.Command == command }
	if !command.Lives() || slices.ContainsFunc(m.list, known) {
		return
	}
	to, err := s.root.OfProcess(command.PID)
	if err != nil || to == "" || strings.HasPrefix(to, cgroupfs.TholeSlice+"/") || !command.Lives() {
		return
	}
	moved := movedCommand{run: run, to: to}
	if run.KillOnMove {
		moved.ended, moved.failure = now, command.Kill()
	}
	m.list, m.news = append(m.list, moved), true
	if len(m.list) > maxMoved {
		m.drop()
	}
}

// drop forgets the oldest command of the user who has most, so that no user hides the commands of others.
func (m *movedCommands) drop() {
	of := map[uint32]int{}
	most := m.list[0].run.UID
	for _, c := range m.list {
		if of[c.run.UID]++; of[c.run.UID] > of[most] {
			most = c.run.UID
		}
	}
	oldest := slices.IndexFunc(m.list, func(c movedCommand) bool { return c.run.UID == most })
	m.list = slices.Delete(m.list, oldest, oldest+1)
	m.dropped++
}

// conditions says which commands live outside their scope, and which were ended.
func (m *movedCommands) conditions(now time.Time) (found []condition.Condition) {
	m.list = slices.DeleteFunc(m.list, func(c movedCommand) bool {
		if c.ended.IsZero() || c.failure != nil {
			return !c.run.Command.Lives()
		}
		return now.Sub(c.ended) > movedShown
	})
	m.news = false
	for _, c := range m.list {
		found = append(found, condition.Condition{
			Code: condition.RunMoved, Where: c.run.Cgroup.Path, Text: c.String(),
		})
	}
	if len(m.list) == 0 {
		m.dropped = 0
	}
	if m.dropped > 0 {
		found = append(found, condition.Condition{Code: condition.RunMoved, Text: fmt.Sprintf(
			"Thole remembers %d moved commands at most, and forgot %d", maxMoved, m.dropped)})
	}
	return found
}

func (c movedCommand) String() string {
	text := fmt.Sprintf("another program moved the command (process %d) into the cgroup %s", c.run.Command.PID, c.to)
	switch {
	case c.failure != nil:
		return fmt.Sprintf("%s. It was to be ended (--kill-on-move), which failed: %v", text, c.failure)
	case !c.ended.IsZero():
		return text + ". It was ended (--kill-on-move)"
	default:
		return fmt.Sprintf("%s: what it does there does not have the labels %s. su, runuser -l and sudo -i move "+
			"themselves. `thole run --kill-on-move` ends such a command", text, c.run.Labels)
	}
}
