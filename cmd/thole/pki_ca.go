package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"thole/datapath/pki"
)

func newPKIInit(proc *process) *cobra.Command {
	var dir, name string
	var days int
	cmd := &cobra.Command{
		Use:   "init --pki CADIR [--name NAME] [--days DAYS]",
		Short: "Make the fleet's CA",
		Long: `Init makes the CA of a fleet in a directory of its own: its key (ca.key), which
never leaves the directory, its certificate (ca.crt), which all nodes need, and an
empty revocation list (ca.crl). Whoever can read the key can impersonate any node,
with any label: keep the directory off the nodes, and make a backup of it.

To change from one CA to the next, make the next one in another directory, let the
nodes trust both ("thole pki install --ca old/ca.crt --ca new/ca.crt"), renew
their certificates ("thole pki renew --from old --pki new"), install these, and
last let the nodes trust the new one alone.`,
		Example: "  thole pki init --pki /root/fleet\n  thole pki init --pki /root/fleet-2 --name fleet --days 1825",
		Args:    noArguments,
		RunE: func(*cobra.Command, []string) error {
			validity, err := validFor(days)
			if err != nil {
				return err
			}
			ca, err := pki.InitCA(dir, name, validity)
			if err != nil {
				return failed(proc, "making a CA", err)
			}
			defer ca.Close()
			return say(proc.stdout, "made the CA %s, until %s; nodes need %s\n",
				ca.Name(), validity.NotAfter.Format(time.DateOnly), filepath.Join(dir, "ca.crt"))
		},
	}
	caPKIFlag(cmd, &dir)
	cmd.Flags().StringVar(&name, "name", "thole", "the first part of the CA's `NAME`")
	noFileCompletion(cmd, "name")
	daysFlag(cmd, &days, 3650)
	return cmd
}

func newPKIIssue(proc *process) *cobra.Command {
	var dir string
	var days int
	var scope scopeFlags
	cmd := &cobra.Command{
		Use:   "issue --pki CADIR [--grant KEY=VALUE,…]… [--require KEY=VALUE]… --address CIDR… [--days DAYS] REQUEST",
		Short: "Answer a node's request with a certificate",
		Long: `Issue makes a certificate from a node's request, a file or "-", and writes it to
standard output. Issue also prints the node's name and the key's fingerprint:
compare them with those that "thole pki request" printed on the node.

These options, not the request, say what the node may assert:

  --grant app=web,db    the node's workloads may have app=web or app=db
  --grant 'env=prod-*'  env, with any value that begins with prod-
  --grant 'tier=*'      tier, with any value
  --require team=a      all the node's workloads have team=a; other nodes add it
  --address 192.0.2.1   the node connects from here; or a network, or "any"

If one label of a workload is not granted, other nodes refuse all labels of this
workload. Label keys are exact: they cannot contain wildcards. Without --grant, a
node may assert its required labels only.

A certificate is part of handshakes: the shorter it is, the more labels fit.`,
		Example: `  thole pki issue --pki /root/fleet --grant app=web,db --grant 'env=*' --require team=a ` +
			`--address 192.0.2.1 n.csr > n.crt
  thole pki issue --pki /root/fleet --grant 'app=*' --address any - < n.csr > n.crt`,
		Args: oneArgument,
		RunE: func(_ *cobra.Command, args []string) error {
			validity, err := validFor(days)
			if err != nil {
				return err
			}
			scope, err := scope.over(pki.Scope{})
			if err != nil {
				return fmt.Errorf("issuing a certificate: %w", err)
			}
			request, err := readPEM(proc, args[0])
			if err != nil {
				return err
			}
			ca, err := openCA(proc, "issuing a certificate", dir)
			if err != nil {
				return err
			}
			defer ca.Close()
			data, id, err := ca.IssueTo(request, scope, validity)
			if err != nil {
				return failed(proc, "issuing a certificate for "+args[0], err)
			}
			return delivered(proc, data, id)
		},
	}
	caPKIFlag(cmd, &dir)
	scope.add(cmd)
	daysFlag(cmd, &days, 90)
	return cmd
}

type renewOptions struct {
	dir, from, csr string
	days           int
	scope          scopeFlags
}

func newPKIRenew(proc *process) *cobra.Command {
	var o renewOptions
	cmd := &cobra.Command{
		Use: "renew --pki CADIR [--from CADIR] [--csr REQUEST] [--grant …]… [--require …]… [--address …]… [--days " +
			"DAYS] CERTIFICATE",
		Short: "Issue a certificate again, with new dates",
		Long: `Renew issues a certificate (a file or "-") again, with new dates and a new serial
number: for the same node and key, with the same grants, required labels and
addresses. Each of --grant, --require and --address replaces all values of the old
certificate. With --csr the certificate is for the key of that request, which the
node makes with "thole pki request --new-key".

The old certificate stays valid until it expires. If the new one grants less,
revoke the old one when the new one is installed.

With --from, another CA issued the certificate: the one that this CA replaces.`,
		Example: `  thole pki renew --pki /root/fleet web-1.crt > new.crt
  thole pki renew --pki /root/fleet --grant app=web --days 30 web-1.crt > new.crt
  thole pki renew --pki /root/fleet-2 --from /root/fleet web-1.crt > new.crt`,
		Args: oneArgument,
		RunE: func(_ *cobra.Command, args []string) error { return renew(proc, o, args[0]) },
	}
	caPKIFlag(cmd, &o.dir)
	cmd.Flags().StringVar(&o.from, "from", "", "the `CADIR` of the CA that issued the certificate, if it is another CA")
	cmd.Flags().StringVar(&o.csr, "csr", "", "issue the certificate for the key of this `REQUEST`, a file")
	dirNames(cmd, "from")
	fileNames(cmd, "csr", "csr")
	o.scope.add(cmd)
	daysFlag(cmd, &o.days, 90)
	return cmd
}

func renew(proc *process, o renewOptions, path string) error {
	const what = "renewing a certificate"
	validity, err := validFor(o.days)
	if err != nil {
		return err
	}
	data, err := readPEM(proc, path)
	if err != nil {
		return err
	}
	ca, err := openCA(proc, what, o.dir)
	if err != nil {
		return err
	}
	defer ca.Close()
	old, err := oldIdentity(proc, ca, o.from, data)
	if err != nil {
		return failed(proc, what+", "+path, err)
	}
	scope, err := o.scope.over(old.Scope())
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	var request []byte
	if o.csr != "" {
		if request, err = readPEM(proc, o.csr); err != nil {
			return err
		}
	}
	issued, id, err := ca.Renew(old, request, scope, validity)
	if err != nil {
		return failed(proc, what, err)
	}
	return delivered(proc, issued, id)
}

// oldIdentity reads the certificate to renew, which must not be revoked.
func oldIdentity(proc *process, ca *pki.CADir, from string, data []byte) (*pki.Identity, error) {
	if from != "" {
		last, err := openCA(proc, "reading the last CA", from)
		if err != nil {
			return nil, err
		}
		defer last.Close()
		ca = last
	}
	id, err := ca.Read(data)
	if err != nil {
		return nil, err
	}
	return id, ca.CheckRevoked(id)
}

func newPKIRevoke(proc *process) *cobra.Command {
	var dir, node string
	cmd := &cobra.Command{
		Use:   "revoke --pki CADIR {SERIAL|CERTIFICATE… | --node NAME}",
		Short: "Revoke certificates",
		Long: `Revoke puts certificates on the CA's revocation list, ca.crl: those with these
serial numbers, those in these files, or all of a node. This cannot be undone.

The list is not copied to the nodes. Install it on every node ("thole pki install
--crl"). Within a second, without a restart or a signal, the node's daemon refuses
the certificate, and connections that were proven with it end at their next
packet. A node never accepts an older list.`,
		Example: `  thole pki revoke --pki /root/fleet web-1.crt
  thole pki revoke --pki /root/fleet --node web-1
  thole pki revoke --pki /root/fleet 4b0e6f2d9c8a7153`,
		Args: func(cmd *cobra.Command, args []string) error {
			if (len(args) > 0) == (node != "") {
				return try(errors.New("revoking: want serial numbers, files with certificates, or --node NAME"),
					cmd.CommandPath()+" --help")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := openCA(proc, "revoking", dir)
			if err != nil {
				return err
			}
			defer ca.Close()
			serials, err := serialsOf(proc, ca, node, args)
			if err != nil {
				return failed(proc, "revoking", err)
			}
			before := ca.ListNumber()
			number, err := ca.Revoke(serials, time.Now())
			if err != nil {
				return failed(proc, "revoking", err)
			}
			if number == before {
				return say(proc.stdout, "all of them are on list %d already\n", number)
			}
			list := filepath.Join(dir, "ca.crl")
			return say(proc.stdout, "made list %d, %s; on every node: thole pki install --crl ca.crl\n", number, list)
		},
	}
	caPKIFlag(cmd, &dir)
	cmd.Flags().StringVar(&node, "node", "", "all certificates of the node with this `NAME`")
	noFileCompletion(cmd, "node")
	return cmd
}

// serialsOf returns the numbers of the certificates that are named: of this CA, as a
// number that it never gave would revoke nothing, silently.
func serialsOf(proc *process, ca *pki.CADir, node string, args []string) ([]pki.Serial, error) {
	issued, err := ca.Issued()
	if err != nil {
		return nil, err
	}
	known := make(map[pki.Serial]bool)
	var serials []pki.Serial
	for _, i := range issued {
		known[i.Serial] = true
		if i.Node == node {
			serials = append(serials, i.Serial)
		}
	}
	if node != "" && serials == nil {
		return nil, fmt.Errorf("no certificate was issued to a node %s", node)
	}
	for _, arg := range args {
		serial, err := serialOf(proc, ca, known, arg)
		if err != nil {
			return nil, err
		}
		serials = append(serials, serial)
	}
	return serials, nil
}

func serialOf(proc *process, ca *pki.CADir, known map[pki.Serial]bool, arg string) (pki.Serial, error) {
	serial, err := pki.ParseSerial(arg)
	switch {
	case err == nil && known[serial]:
		return serial, nil
	case err == nil:
		return serial, fmt.Errorf("no certificate %s was issued here", arg)
	}
	if _, statErr := os.Stat(arg); statErr != nil && arg != "-" {
		return serial, fmt.Errorf("%q is neither a file nor a serial number of 16 hexadecimal digits", arg)
	}
	data, err := readPEM(proc, arg)
	if err != nil {
		return serial, err
	}
	id, err := ca.Read(data)
	if err != nil {
		return serial, fmt.Errorf("%s: %w", arg, err)
	}
	return id.Serial, nil
}
