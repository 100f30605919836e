package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"thole/internal/api"
	"thole/internal/holder"
)

// An unlabelled listener is one that belongs to no workload.
type unlabelled struct {
	api.Socket
	Processes []holder.Process `json:"processes"` // that have it, as far as the caller may know
}

func unlabelledListing() listing[unlabelled] {
	return listing[unlabelled]{
		kind: "unlabelled listeners",
		columns: []column[unlabelled]{
			{"PROTOCOL", false, func(u unlabelled) string { return u.Protocol }},
			{"LISTENS", false, func(u unlabelled) string { return u.Local }},
			{"PROCESS", false, processes},
			{"CGROUP", false, func(u unlabelled) string { return u.Cgroup }},
			{"UID", true, func(u unlabelled) string { return strconv.FormatUint(uint64(u.UID), 10) }},
			{"ID", true, func(u unlabelled) string { return strconv.FormatUint(u.CgroupID, 10) }},
		},
	}
}

func processes(u unlabelled) string {
	var list []string
	for _, p := range u.Processes {
		list = append(list, fmt.Sprintf("%d/%s", p.PID, p.Program))
	}
	return strings.Join(list, ",")
}

func newGetUnlabelled(proc *process) *cobra.Command {
	var output, socket string
	cmd := &cobra.Command{
		Use:   "unlabelled [-o FORMAT] [--socket PATH]",
		Short: "List listeners that belong to nobody",
		Long: `Get unlabelled lists the listeners of TCP and the unconnected sockets of UDP that
belong to no workload: no policy restricts what reaches them. They are those of
the daemon's network namespace, so not those inside containers on a bridge. CGROUP
is the cgroup in which a socket was made; it is empty if that is gone.

PROCESS is known to root, and to the user whose process it is. "thole owner" says
why a listener is unlabelled.

Exit status: 0; 1 if there are more sockets than are looked at.`,
		Example: "  sudo thole get unlabelled\n  sudo thole get unlabelled -o json",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
			defer cancel()
			answer, err := api.NewClient(socket).Unlabelled(ctx)
			if err != nil {
				return asking("listing unlabelled listeners", socket, err)
			}
			items, err := withProcesses(answer.Listeners)
			if err != nil {
				return err
			}
			if err := unlabelledListing().write(proc, items, output); err != nil {
				return err
			}
			if !answer.Complete {
				return errors.New("listing unlabelled listeners: there are more sockets than are looked at, so some " +
					"may be missing")
			}
			return nil
		},
	}
	outputFlag(cmd, &output, "table", "wide", "json", "yaml")
	socketFlag(cmd, &socket)
	return cmd
}

func withProcesses(listeners []api.Socket) ([]unlabelled, error) {
	inodes := map[uint32]bool{}
	for _, s := range listeners {
		inodes[s.Inode] = true
	}
	holders, err := holder.Of(inodes)
	if err != nil {
		return nil, err
	}
	items := make([]unlabelled, len(listeners))
	for i, s := range listeners {
		items[i] = unlabelled{s, nonNil(holders[s.Inode])}
	}
	return items, nil
}
