package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"thole/datapath/pki"
)

// defaultPKI is the directory of a node's key and certificate.
const defaultPKI = "/etc/thole/pki"

// maxPKIFile bounds the files that are given on the command line.
const maxPKIFile = 4 << 20

func newPKI(proc *process) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pki COMMAND",
		Short: "Keys and certificates of the fleet's nodes",
		Long: `Pki makes what nodes need to prove their workloads' labels to each other: a CA for
the fleet, and for each node a key and a certificate. The certificate says which
labels the node may assert, and from which addresses it may connect.

Keys stay where they were made: the CA's key in the CA's directory, a node's key
on the node. Only requests, certificates and revocation lists are copied, and none
of them is secret.

A running daemon uses what is installed within a second, without a restart, and
connections that are still allowed go on. If the files cannot be used, labelled
connections between nodes do not open; connections within the node are not
affected.`,
		Example: `  thole pki init --pki /root/fleet
  thole pki request --node web-1 > web-1.csr
  thole pki issue --pki /root/fleet --grant app=web --address 192.0.2.1 web-1.csr > web-1.crt
  thole pki install --ca ca.crt web-1.crt
  thole pki show`,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newPKIInit(proc),
		newPKIInstall(proc),
		newPKIIssue(proc),
		newPKIRenew(proc),
		newPKIRequest(proc),
		newPKIRevoke(proc),
		newPKIShow(proc),
	)
	return cmd
}

func nodePKIFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "pki", defaultPKI, "the `DIR` with the node's key and certificate")
	dirNames(cmd, "pki")
}

// caPKIFlag has no default: a CA does not live beside a node's key.
func caPKIFlag(cmd *cobra.Command, dir *string) {
	cmd.Flags().StringVar(dir, "pki", "", "the `CADIR` with the CA's key and certificates")
	dirNames(cmd, "pki")
	if err := cmd.MarkFlagRequired("pki"); err != nil {
		panic(err) // there is no such flag
	}
}

func daysFlag(cmd *cobra.Command, days *int, standard int) {
	cmd.Flags().IntVar(days, "days", standard, "how many `DAYS` the certificate is valid")
	noFileCompletion(cmd, "days")
}

// validFor returns the validity that begins now.
func validFor(days int) (pki.Validity, error) {
	const most = 36500 // a hundred years: time.Duration ends at 292
	if days < 1 || days > most {
		return pki.Validity{}, fmt.Errorf("reading --days %d: want 1 to %d", days, most)
	}
	return pki.For(time.Now(), time.Duration(days)*24*time.Hour), nil
}

// readPEM reads a file, or standard input for "-".
func readPEM(proc *process, path string) ([]byte, error) {
	in := proc.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("reading a file: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxPKIFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading a file: %v", err)
	}
	if len(data) > maxPKIFile {
		return nil, fmt.Errorf("reading %s: it has more than %d bytes", path, maxPKIFile)
	}
	return data, nil
}

// readPEMs reads several files as one; nil if there are none.
func readPEMs(proc *process, paths []string) ([]byte, error) {
	var all []byte
	for _, path := range paths {
		data, err := readPEM(proc, path)
		if err != nil {
			return nil, err
		}
		all = append(append(all, data...), '\n')
	}
	return all, nil
}

// openCA adds to the error how a CA is made.
func openCA(proc *process, what, dir string) (*pki.CADir, error) {
	ca, err := pki.OpenCA(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, try(fmt.Errorf("%s: there is no CA in %s: %w", what, dir, err), "thole pki init --pki "+dir)
	}
	if err != nil {
		return nil, failed(proc, what, err)
	}
	return ca, nil
}

// failed says what was being done, and to whom it would be allowed.
func failed(proc *process, what string, err error) error {
	err = fmt.Errorf("%s: %w", what, err)
	if errors.Is(err, fs.ErrPermission) {
		return asRoot(proc, err)
	}
	return err
}

// failedNode adds how a node's directory is made, and what is missing there.
func failedNode(proc *process, what, dir string, err error) error {
	err = failed(proc, what, err)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, statErr := os.Stat(dir); errors.Is(statErr, fs.ErrNotExist) {
		return try(err, "thole pki request --pki "+dir+" --node NAME > NAME.csr")
	}
	return try(err, "thole pki install --pki "+dir+" --ca ca.crt NAME.crt")
}

// scopeFlags are what a certificate says that a person decides.
type scopeFlags struct{ grants, require, addresses []string }

func (s *scopeFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.grants, "grant", nil, "labels that may be asserted, `KEY=VALUE,…`; a value may end in *; "+
		"may be given several times")
	f.StringArrayVar(&s.require, "require", nil, "a label of all workloads of the node, `KEY=VALUE`; may be given "+
		"several times")
	f.StringArrayVar(&s.addresses, "address", nil, "where the node may connect from: an address, a `CIDR`, or any; "+
		"may be given several times")
	noFileCompletion(cmd, "grant", "require", "address")
}

// over returns base with the parts that flags give.
func (s *scopeFlags) over(base pki.Scope) (pki.Scope, error) {
	var err error
	if s.grants != nil && err == nil {
		base.Grants, err = pki.ParseGrants(s.grants)
	}
	if s.require != nil && err == nil {
		base.Require, err = pki.ParseRequire(s.require)
	}
	if s.addresses != nil && err == nil {
		base.Addresses, err = pki.ParseAddresses(s.addresses)
	}
	return base, err
}

// labelRoom is what a handshake has for the certificate and a workload's labels.
const labelRoom = 1042

// delivered writes a new certificate and, for people, what it says.
func delivered(proc *process, data []byte, id *pki.Identity) error {
	if _, err := proc.stdout.Write(data); err != nil {
		return fmt.Errorf("writing the certificate: %v", err)
	}
	made, err := pki.Inspect(data, time.Now())
	if err != nil {
		return fmt.Errorf("reading the new certificate: %w", err)
	}
	row := summaryRow(made[0])
	return say(proc.stderr, `node %s (key %s) may assert: %s
required of it: %s
it may connect from: %s
certificate %s, until %s: %d bytes, which leave %d for a workload's labels
`, id.Node, made[0].Key, cmp.Or(row[5], "nothing"), cmp.Or(row[6], "nothing"), row[7],
		id.Serial, row[4], made[0].Bytes, labelRoom-made[0].Bytes)
}
