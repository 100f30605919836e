package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"thole/compiler/policy"
	"thole/internal/api"
	"thole/internal/lookpath"
	kernelprocess "thole/watch/process"
)

func newRun(proc *process) *cobra.Command {
	var labels []string
	var name, socket string
	var killOnMove bool
	cmd := &cobra.Command{
		Use: "run --label KEY=VALUE… [--name NAME] [--kill-on-move] [--socket PATH] [--] " +
			"COMMAND [ARGUMENT…]",
		Short: "Start a command with labels",
		Long: `Run starts a command as a labelled workload. The daemon makes a cgroup, stores
the labels on it and moves the calling process into it. Only then does the
command replace the thole process, with the same signals, terminal and standard
input. Processes that the command starts have the same labels, as long as no
other program moves them into another cgroup. These programs move themselves: on
systemd, "su", "su -l", "runuser -l" and "sudo -i" (by PAM); and container engines
start containers elsewhere. If the command itself was moved, thole status has a
notice; with --kill-on-move, the daemon ends the command and what it started.

Run may not be the command of a systemd unit (ExecStart=), because the unit would
lose its process: give the unit the labels with a Workload document.

Users other than root need a LabelGrant document that allows the labels.

The command begins at the first word that is not an option, or after "--". Without
a "--" before the command, a "--" directly after the command's name is dropped, as
in "thole run --label=app=nginx curl -- URL". If the command itself needs this
"--", put another one before the command.

Exit status: that of the command; 127 if the command is not found, 126 if it
cannot be executed, 1 if the daemon refuses or does not answer. In the last three
cases nothing was started.`,
		Example: `  thole run --label app=web nginx -g 'daemon off;'
  thole run -l app=web -l env=dev --name shell /bin/bash
  thole run --label=app=nginx curl -- http://127.0.0.1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return nil
			}
			return try(errors.New("starting a labelled command: no command is given"),
				"thole run --label app=web COMMAND")
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseLabels(labels)
			if err != nil {
				return err
			}
			argv := commandOf(args, cmd.ArgsLenAtDash() >= 0)
			path, err := findCommand(argv[0], proc.getenv("PATH"))
			if err != nil {
				return err
			}
			if err := notOfUnit(proc, argv[0]); err != nil {
				return err
			}
			request := api.RunRequest{Name: name, Labels: set, Command: argv[0], KillOnMove: killOnMove}
			if _, err := api.NewClient(socket).Run(cmd.Context(), request); err != nil {
				return asking("labelling "+argv[0], socket, err)
			}
			return become(proc, path, argv)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "a label, `KEY=VALUE`; may be given several times")
	cmd.Flags().StringVar(&name, "name", "", "the workload's `NAME` in listings (default: the command's)")
	cmd.Flags().BoolVar(&killOnMove, "kill-on-move", false,
		"end the command when another program moves it into another cgroup")
	socketFlag(cmd, &socket)
	noFileCompletion(cmd, "label", "name")
	return cmd
}

// notOfUnit refuses what systemd executes as a unit's own process: moved into a cgroup of thole run, it would escape
// the unit's limits (MemoryMax=) and `systemctl stop`. systemd says by SYSTEMD_EXEC_PID which process that is; others
// inherit the variable (systemd.exec(5)).
func notOfUnit(proc *process, command string) error {
	if proc.getenv("SYSTEMD_EXEC_PID") != strconv.Itoa(proc.pid) {
		return nil
	}
	spec := "unit: NAME.service"
	cgroup := kernelprocess.Cgroup(proc.pid)
	unit := path.Base(cgroup)
	switch {
	case strings.Contains(cgroup, ".service/") && strings.HasSuffix(unit, ".service"):
		spec = "cgroup: " + strings.TrimPrefix(cgroup, "/") // of a user's own service manager
	case strings.HasSuffix(unit, ".service"):
		spec = "unit: " + unit
	}
	return fmt.Errorf("labelling %s: it is the process of a systemd unit (SYSTEMD_EXEC_PID), and would leave the "+
		"unit: neither the unit's limits, such as MemoryMax=, nor `systemctl stop` would affect it. Execute %[1]s "+
		"without `thole run`, and give the unit the labels with a Workload document: spec: {%s}", command, spec)
}

func parseLabels(args []string) (policy.Labels, error) {
	if len(args) == 0 {
		return nil, try(errors.New("starting a labelled command: no label is given"),
			"thole run --label app=web COMMAND")
	}
	labels := policy.Labels{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("reading --label %q: want KEY=VALUE", arg)
		}
		if old, ok := labels[key]; ok && old != value {
			return nil, fmt.Errorf("reading --label %q: %s has the value %q already", arg, key, old)
		}
		labels[key] = value
	}
	return labels, nil
}

// commandOf returns the command's argv. See newRun's Long for what is dropped.
func commandOf(args []string, dashBefore bool) []string {
	if !dashBefore && len(args) > 1 && args[1] == "--" {
		return append([]string{args[0]}, args[2:]...)
	}
	return args
}

func findCommand(name, path string) (string, error) {
	file, err := lookpath.Find(name, path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", exit{exitNotExecutable, fmt.Errorf("finding the command %q: it may not be executed", name)}
	case err != nil:
		return "", exit{exitNotFound, fmt.Errorf("finding the command %q: no such file in PATH", name)}
	}
	return file, nil
}

// become replaces this process by the command. As execvp(3) it hands a file that
// the kernel does not know how to execute to the shell.
func become(proc *process, path string, argv []string) error {
	err := proc.exec(path, argv, proc.environ())
	if errors.Is(err, syscall.ENOEXEC) {
		err = proc.exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), proc.environ())
	}
	return exit{exitNotExecutable, fmt.Errorf("executing %s: %v", path, err)}
}
