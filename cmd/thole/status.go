package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/daemon"
	"thole/internal/printable"
)

func newStatus(proc *process) *cobra.Command {
	var output, socket string
	cmd := &cobra.Command{
		Use:   "status [-o FORMAT] [--socket PATH]",
		Short: "Say whether the daemon enforces, and what is wrong",
		Long: `Status prints what the daemon reports: since when it runs, which policy set is
active, how many workloads it knows, what is wrong, and the table's counters.

A problem needs an administrator. A notice is something that a user can cause
alone, with "thole run" or an image, or it says that nothing runs which a document
names; it changes no exit status. -o json shows the codes of problems and notices;
docs/OPERATIONS.md lists them.

Exit status: 0 if the daemon enforces, its last change succeeded, and there is no
problem; 1 if not, or if no daemon answers. The table in the kernel is in force
without a daemon, too; "thole doctor" says whether it is loaded.`,
		Example: "  thole status\n  thole status -o json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			s, err := api.NewClient(socket).Status(ctx)
			if errors.Is(err, api.ErrNoDaemon) && daemon.StateDisarmed(stateOf(cmd, daemon.DefaultState, socket)) {
				return try(fmt.Errorf("asking for the status: no daemon answers at %s, and Thole is disarmed: a "+
					"daemon that starts enforces nothing",
					socket), "thole arm")
			}
			if err != nil {
				return asking("asking for the status", socket, err)
			}
			if output == "json" {
				err = printable.WriteJSON(proc.stdout, s)
			} else {
				err = writeStatus(proc.stdout, s)
			}
			if err == nil && !s.Healthy() {
				return exit{code: exitFailed}
			}
			return err
		},
	}
	outputFlag(cmd, &output, "text", "json")
	socketFlag(cmd, &socket)
	return cmd
}

func writeStatus(w io.Writer, s api.Status) error {
	rows := [][]string{
		{"daemon", fmt.Sprintf("%s, process %d, since %s", s.Version, s.PID, s.Started.Format(time.DateTime))},
		{"enforcing", enforcing(s)},
		{"policies", fmt.Sprintf("%d, %s", s.Policies, source(s))},
		{"workloads", fmt.Sprintf("%d in %s; %d of thole run", s.Workloads, plural(s.Classes, "class", "classes"),
			s.Runs)},
	}
	rows = append(rows, []string{"connections", connections(s.Connections)}, []string{"answers", answers(s.Answers)})
	for _, b := range s.Bounds {
		rows = append(rows, []string{"bound", bound(b)})
	}
	rows = append(rows, []string{"decoys", decoys(s.LocalRoutes)})
	if s.Docker != nil {
		rows = append(rows, []string{"docker", dockerState(*s.Docker)})
	}
	if s.Fleet != nil {
		rows = append(rows, fleetRows(s.Fleet)...)
	}
	if s.Mended > 0 {
		rows = append(rows, []string{"mended", mended(s)})
	}
	if s.Ended+s.EndedUnknown > 0 {
		rows = append(rows, []string{"ended", ended(s)})
	}
	if s.LastError != nil {
		rows = append(rows, []string{"error", fmt.Sprintf("%s: %s", s.LastError.Time.Format(time.DateTime),
			s.LastError.Text)})
	}
	for _, p := range s.Problems {
		rows = append(rows, []string{"problem", withPlace(p.Where, p.Text)})
	}
	for _, n := range s.Notices {
		rows = append(rows, []string{"notice", withPlace(n.Where, n.Text)})
	}
	for _, p := range s.Warnings {
		rows = append(rows, []string{"warning", withPlace(p.Where, p.Text)})
	}
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		rows = append(rows, []string{name, fmt.Sprintf("%d packets", s.Counters[name].Packets)})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		// The second and later lines of a text are aligned with its first.
		fmt.Fprintf(t, "%s\t%s\n", printable.Line(row[0]), strings.ReplaceAll(printable.Text(row[1]), "\n", "\n\t"))
	}
	return t.Flush()
}

// withPlace is a message with its place, which has one line.
func withPlace(where, text string) string {
	if where == "" {
		return text
	}
	return printable.Line(where) + ": " + text
}

// connections is about the daemon's socket.
func connections(c api.ConnectionStatus) string {
	return fmt.Sprintf("%d now, %d at most; limits: %d for each user, %d in total; "+
		"%d evicted, %d refused, %d closed as silent",
		c.Now, c.Most, c.MaxPerUser, c.Max, c.Evicted, c.Refused, c.Silent)
}

// answers is about what "thole get" was answered with.
func answers(a api.AnswerStatus) string {
	return fmt.Sprintf("%d made for a new state of the table, %d sent as they were made before", a.Made, a.Kept)
}

// bound is one limit, and how near it is.
func bound(b api.Bound) string {
	text := fmt.Sprintf("%s: %d of %d", b.Name, b.Now, b.Max)
	if b.Beyond > 0 {
		text += fmt.Sprintf("; %d times beyond", b.Beyond)
	}
	return text
}

// decoys says whether a socket that is bound to lo may be judged in the place of another.
func decoys(r api.LocalRoutesStatus) string {
	switch {
	case !r.On:
		return "open (closed by thole daemon --local-routes)"
	case r.Error != "":
		return "open: --local-routes failed"
	}
	return fmt.Sprintf("closed by --local-routes, for %s; open for IPv6 link-local addresses",
		plural(r.Addresses, "address", "addresses"))
}

func enforcing(s api.Status) string {
	switch {
	case s.Disarmed != nil:
		return fmt.Sprintf("no: disarmed since %s", s.Disarmed.Format(time.DateTime))
	case !s.Enforcing:
		return "no"
	}
	return fmt.Sprintf("yes, epoch %d, since %s", s.Epoch, s.Applied.Format(time.DateTime))
}

func ended(s api.Status) string {
	text := fmt.Sprintf("%d cgroups that sockets may outlive", s.Ended)
	if s.EndedUnknown > 0 {
		text += fmt.Sprintf("; %d older ones are unknown: packets of their sockets are discarded", s.EndedUnknown)
	}
	return text
}

func mended(s api.Status) string {
	text := fmt.Sprintf("%d times, after another program had changed the table", s.Mended)
	switch m := s.LastMended; {
	case m == nil:
		return text
	case m.PID == 0:
		return fmt.Sprintf("%s; last at %s", text, m.Time.Format(time.DateTime))
	default:
		return fmt.Sprintf("%s; last at %s, by %q (process %d)", text, m.Time.Format(time.DateTime), m.Program, m.PID)
	}
}

func dockerState(d api.DockerStatus) string {
	state := "connected"
	if !d.Connected {
		state = "away"
	}
	return fmt.Sprintf("%s, %s since %s; %d containers known", d.Host, state, d.Since.Format(time.DateTime),
		d.Containers)
}

// fleetRows are about other nodes.
func fleetRows(f *api.FleetStatus) [][]string {
	node := "degraded: the certificate cannot be used, so labelled connections to and from other nodes do not open"
	if f.Node != "" {
		node = fmt.Sprintf("node %s, certificate until %s", f.Node, f.Until.Format(time.DateTime))
	}
	if len(f.Required) > 0 {
		node += ", requires " + strings.Join(f.Required, " ")
	}
	rows := [][]string{{"fleet", node + "; others in " + strings.Join(f.Networks, ", ")}}
	by := "nft's queue"
	if !f.Queue.Native {
		by = "NFQUEUE of nft_compat"
	}
	if !f.Queue.Running {
		by += ", not read"
	}
	rows = append(rows,
		[]string{"queue", fmt.Sprintf("%d, by %s: %d packets, %d waiting; %d dropped, %d lost", f.Queue.Number, by,
			f.Queue.Packets, f.Queue.Waiting, f.Queue.Dropped, f.Queue.Full+f.Queue.Overruns)},
		[]string{"peers", fmt.Sprintf("%d statements, %d pairs, %d addresses proven, %d places without Thole; %d of "+
			"%d classes",
			f.Known["statements"], f.Known["pairs"], f.Known["proven-addresses"], f.Known["plain-places"], f.Classes,
			f.MaxClasses)},
		[]string{"handshakes", fmt.Sprintf("%d proven; pending: %d of this node, %d of known keys, %d of strangers",
			f.Events["proven"],
			f.Pending["connects"], f.Pending["proven-key"], f.Pending["strangers"])})
	for _, reason := range slices.Sorted(maps.Keys(f.Refused)) {
		rows = append(rows, []string{"refused", fmt.Sprintf("%s: %d", reason, f.Refused[reason])})
	}
	return rows
}

func source(s api.Status) string {
	from := ""
	switch s.Source {
	case api.SourceDirectory:
		from = "of " + s.Directory
	case api.SourceApplied:
		from = `given by "thole apply"`
	}
	switch {
	case from == "" && s.Default != "":
		return "the default set, which only records"
	case from == "":
		return "the default set"
	case s.BuiltIn:
		return "the default set, beside the documents " + from
	}
	return from
}
