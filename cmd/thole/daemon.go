package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"thole/internal/daemon"
	"thole/internal/printable"
)

// daemonOptions are the flags of "thole daemon".
type daemonOptions struct {
	policies, state, socket string
	docker                  string
	fleet                   []string
	pki                     string
	queue                   uint16
	deny                    string
	localRoutes             bool
	builtIn                 string
	logFormat, logLevel     string
}

func newDaemon(proc *process) *cobra.Command {
	var o daemonOptions
	cmd := &cobra.Command{
		Use:   "daemon [--policies DIR] [--docker HOST] [--deny HOW] [--log-format FORMAT] [--log-level LEVEL]",
		Short: "Follow policies and workloads, and keep the table up to date",
		Long: `Daemon compiles the policies for the running workloads into one nftables table.
It follows workloads and policies: each change of them is a small change of the
table, in one transaction. It adopts the table that an earlier daemon left.

With --policies the daemon follows a directory: when its *.yaml and *.yml files
have not changed for a moment, they become the active set. An invalid file changes
nothing. Without --policies the active set is the one that "thole apply" loaded
last, or the built-in policy: workloads with equal labels may connect to each
other, and all workloads may connect to the outside.

The daemon follows Docker's containers at the socket that the docker command uses
(DOCKER_HOST, the current context, /var/run/docker.sock), or at --docker HOST.
HOST may also be the socket of root's Podman, unix:///run/podman/podman.sock. The
daemon follows one engine. While the engine does not answer, the containers that
the daemon knows stay in the table.

With --fleet, nodes prove labels to each other: connections of labelled workloads
to and from these networks carry their labels, signed with the certificate in the
directory --pki. Other nodes need these options, too. Connections with a proof are
judged by label, all others by address.

The daemon watches --pki: a new certificate, key, CA or revocation list is in
force within a second. If the directory or its files are missing or unusable, the
daemon starts and enforces this node. The fleet is degraded until the files are
usable: "thole status" says why, and labelled connections to and from other nodes
do not open.

With --local-routes the daemon puts routes over lo in front of the kernel's own
routes, for each address of this node. Then a socket that is bound to lo cannot
receive packets for another socket on its port (docs/SECURITY.md, decoys). This
node no longer reaches sockets that are bound to another device, and these do not
reach this node. The routes have the protocol number 212. A daemon without the
option, and "thole cleanup", remove them.

Signals: SIGHUP reads the directories of --policies and --pki at once. The daemon
follows both without the signal, too; it reads its options only when it starts.
SIGTERM and SIGINT end the daemon; the table stays in force. "thole cleanup"
removes it.

Exit status: 0 if a signal ended it; 1 if it could not start or continue.`,
		Example: `  sudo thole daemon
  sudo thole daemon --policies /etc/thole/policies --log-format json`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDaemon(cmd.Context(), proc, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.policies, "policies", "", "follow the policy files in this `DIR`")
	dirNames(cmd, "policies")
	choiceFlag(cmd, &o.builtIn, "default", "", "`HOW` the built-in policy works while it is active; auto: as before, "+
		"and after the first start as audit if labelled workloads ran already", "auto", "enforce", "audit")
	dockerFlag(cmd, &o.docker)
	f.StringSliceVar(&o.fleet, "fleet", nil, "networks of the other nodes (`CIDR`), with which labels are "+
		"exchanged; may be given several times")
	f.StringVar(&o.pki, "pki", defaultPKI, "with --fleet: the `DIR` with this node's certificate and the CAs that "+
		"it trusts, see thole pki")
	dirNames(cmd, "pki")
	f.Uint16Var(&o.queue, "queue", daemon.DefaultQueue, "with --fleet: the `NUMBER` of the NFQUEUE for handshakes "+
		"between nodes")
	stateFlag(cmd, &o.state)
	socketFlag(cmd, &o.socket)
	denyFlag(cmd, &o.deny)
	f.BoolVar(&o.localRoutes, "local-routes", false,
		"route packets of this node to its own addresses over lo only: closes decoys")
	choiceFlag(cmd, &o.logFormat, "log-format", "", "the log's `FORMAT`", "text", "json")
	choiceFlag(cmd, &o.logLevel, "log-level", "", "the lowest `LEVEL` that is logged", "info", "debug", "warn", "error")
	return cmd
}

func runDaemon(ctx context.Context, proc *process, o daemonOptions) error {
	log, err := newLogger(proc.stderr, o.logFormat, o.logLevel)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)

	networks, err := parseFleet(o.fleet)
	if err != nil {
		return err
	}
	d, err := daemon.New(daemon.Config{
		Fleet:    networks,
		PKI:      o.pki,
		Queue:    o.queue,
		Policies: o.policies,
		Default:  o.builtIn,
		State:    o.state,
		Socket:   o.socket,
		Docker:   o.docker,
		Deny:     denyMode(o.deny),
		Routes:   o.localRoutes,
		Version:  buildOf(debug.ReadBuildInfo()).short(),
		Logger:   log,
	})
	if err != nil {
		return asRoot(proc, fmt.Errorf("starting the daemon: %w", err))
	}
	var reloads sync.WaitGroup
	defer reloads.Wait()
	defer stop()
	reloads.Go(func() { reloadOn(ctx, hangup, d, log) })
	tellSystemd(log, systemd.SdNotifyReady) // the table is loaded, and requests wait in the socket
	reloads.Go(func() { <-ctx.Done(); tellSystemd(log, systemd.SdNotifyStopping) })
	if err := d.Run(ctx); err != nil {
		return fmt.Errorf("running the daemon: %w", err)
	}
	return nil
}

// parseFleet reads the networks of --fleet.
func parseFleet(words []string) ([]netip.Prefix, error) {
	var networks []netip.Prefix
	for _, word := range words {
		p, err := netip.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("reading --fleet %q: %v", word, err)
		}
		networks = append(networks, p.Masked())
	}
	return networks, nil
}

// reloadOn has the daemon read its policies, and its certificate and trust, again at each signal.
func reloadOn(ctx context.Context, signals <-chan os.Signal, d *daemon.Daemon, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			tellSystemd(log, systemd.SdNotifyReloading+"\n"+systemd.SdNotifyMonotonicUsec())
			if err := d.Reload(ctx); err != nil {
				log.Error("reload failed: the previous policies, certificate and trust stay in force", "error", err)
			}
			tellSystemd(log, systemd.SdNotifyReady)
		}
	}
}

// tellSystemd tells the service manager how far we are, if it started us (sd_notify(3)).
func tellSystemd(log *slog.Logger, state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		log.Warn("notifying systemd failed", "state", state, "error", err)
	}
}

func newLogger(out io.Writer, format, level string) (*slog.Logger, error) {
	var least slog.Level
	if err := least.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("reading --log-level %q: %v", level, err)
	}
	options := &slog.HandlerOptions{Level: least}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(printable.LogWriter{Writer: out}, options)), nil
	}
	return slog.New(slog.NewTextHandler(out, options)), nil
}
