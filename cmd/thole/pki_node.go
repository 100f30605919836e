package main

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"thole/compiler/policy"
	"thole/datapath/pki"
	"thole/internal/printable"
)

func newPKIRequest(proc *process) *cobra.Command {
	var dir, node string
	var next bool
	cmd := &cobra.Command{
		Use:   "request --node NAME [--new-key] [--pki DIR]",
		Short: "Ask for a node's certificate",
		Long: `Request writes a request for a certificate to standard output. If the node has no
key, request makes one, as a file that only its owner can read. The key stays
there. The request is not secret. Request prints the key's fingerprint: compare it
when the certificate is issued.

With --new-key the request is for a new key. The node uses the present key and
certificate until the new certificate is installed.`,
		Example: "  thole pki request --node web-1 > web-1.csr\n  thole pki request --pki /etc/thole/pki --node " +
			"web-1 --new-key > web-1.csr",
		Args: noArguments,
		RunE: func(*cobra.Command, []string) error {
			data, err := pki.Request(dir, node, next)
			if err != nil {
				return failed(proc, "requesting a certificate", err)
			}
			if _, err := proc.stdout.Write(data); err != nil {
				return fmt.Errorf("writing the request: %v", err)
			}
			made, err := pki.Inspect(data, time.Now())
			if err != nil {
				return fmt.Errorf("requesting a certificate: %w", err)
			}
			return say(proc.stderr, "node %s (key %s)\n", made[0].Name, made[0].Key)
		},
	}
	nodePKIFlag(cmd, &dir)
	cmd.Flags().StringVar(&node, "node", "", "the node's `NAME`, which becomes the label thole/node")
	cmd.Flags().BoolVar(&next, "new-key", false, "request a certificate for a new key")
	noFileCompletion(cmd, "node")
	if err := cmd.MarkFlagRequired("node"); err != nil {
		panic(err) // there is no such flag
	}
	return cmd
}

func newPKIInstall(proc *process) *cobra.Command {
	var dir string
	var cas, lists []string
	cmd := &cobra.Command{
		Use:   "install [--ca FILE]… [--crl FILE]… [--pki DIR] [CERTIFICATE]",
		Short: "Install a node's certificate, its CAs, or a revocation list",
		Long: `Install verifies the given files and puts them into the node's directory, all of
them or none. A running daemon uses them within a second, without a restart or a
signal. "-" is standard input.

CERTIFICATE replaces the present one. Its key must be in the directory, and a
trusted CA must have issued it.

--ca gives the CAs that the node trusts from now on: one, or two (--ca twice, or
both in one file) while the fleet changes from one CA to the next. --crl gives a
CA's revocation list; a list older than the installed one is refused.`,
		Example: `  thole pki install --ca ca.crt web-1.crt
  thole pki install --crl ca.crl
  thole pki install --ca old/ca.crt --ca new/ca.crt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && cas == nil && lists == nil {
				return try(errors.New("installing: nothing is given"), cmd.CommandPath()+" --help")
			}
			if len(args) == 0 {
				return nil
			}
			return oneArgument(cmd, args)
		},
		RunE: func(_ *cobra.Command, args []string) error {
			delivery, err := readDelivery(proc, args, cas, lists)
			if err != nil {
				return err
			}
			if _, err := pki.Install(dir, delivery, time.Now()); err != nil {
				return failedNode(proc, "installing", dir, err)
			}
			return show(proc, dir, "table")
		},
	}
	nodePKIFlag(cmd, &dir)
	cmd.Flags().StringArrayVar(&cas, "ca", nil, "trust the CA of this certificate, a `FILE`; may be given twice")
	cmd.Flags().StringArrayVar(&lists, "crl", nil, "a CA's revocation list, a `FILE`; may be given twice")
	fileNames(cmd, "ca", "crt", "pem")
	fileNames(cmd, "crl", "crl", "pem")
	return cmd
}

func readDelivery(proc *process, certificate, cas, lists []string) (d pki.Delivery, err error) {
	if d.Certificate, err = readPEMs(proc, certificate); err != nil {
		return d, err
	}
	if d.CAs, err = readPEMs(proc, cas); err != nil {
		return d, err
	}
	d.Lists, err = readPEMs(proc, lists)
	return d, err
}

func newPKIShow(proc *process) *cobra.Command {
	var dir, output string
	cmd := &cobra.Command{
		Use:   "show [--pki DIR] [-o FORMAT] [FILE…]",
		Short: "Show certificates, CAs and revocation lists",
		Long: `Show lists the contents of the directory of a node or a CA: the node's certificate
and the CAs that it trusts, or all certificates that the CA issued. With FILE it
shows the contents of these files (certificates, requests, revocation lists, or
"-") without verifying them.

Exit status: 1 if the node's certificate is missing or not valid now.`,
		Example: "  thole pki show\n  thole pki show --pki /root/fleet -o wide\n  thole pki show web-1.csr -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return show(proc, dir, output)
			}
			var all []pki.Summary
			for _, path := range args {
				data, err := readPEM(proc, path)
				if err != nil {
					return err
				}
				found, err := pki.Inspect(data, time.Now())
				if err != nil {
					return fmt.Errorf("reading %s: %w", path, err)
				}
				all = append(all, found...)
			}
			return writeSummaries(proc, all, output)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"crt", "csr", "crl", "pem"}, cobra.ShellCompDirectiveFilterFileExt
		},
	}
	cmd.Flags().StringVar(&dir, "pki", defaultPKI, "the `DIR` of a node or a CA")
	dirNames(cmd, "pki")
	outputFlag(cmd, &output, "table", "wide", "json", "yaml")
	return cmd
}

// show prints what is in a directory; a node's certificate that does not hold is an error.
func show(proc *process, dir, output string) error {
	now := time.Now()
	all, err := pki.Summarize(dir, now)
	if err != nil {
		return failedNode(proc, "reading "+dir, dir, err)
	}
	if err := writeSummaries(proc, all, output); err != nil {
		return err
	}
	if pki.IsCA(dir) {
		return nil
	}
	if _, err := pki.Load(dir, now); err != nil {
		return failedNode(proc, "reading "+dir, dir, err)
	}
	return nil
}

func writeSummaries(proc *process, all []pki.Summary, output string) error {
	switch output {
	case "json":
		return printable.WriteJSON(proc.stdout, all)
	case "yaml":
		return printable.WriteYAML(proc.stdout, all)
	}
	header := []string{"KIND", "NAME", "STATE", "SERIAL", "UNTIL", "GRANTS", "REQUIRE", "ADDRESSES"}
	if output == "wide" {
		header = append(header, "ISSUER", "BYTES", "KEY")
	}
	rows := make([][]string, len(all))
	for i, s := range all {
		rows[i] = summaryRow(s)[:len(header)]
	}
	return printable.WriteTable(proc.stdout, header, rows)
}

func summaryRow(s pki.Summary) []string {
	serial, until := s.Serial, ""
	if s.Revoked != nil {
		serial = fmt.Sprintf("%d(%d revoked)", s.Number, *s.Revoked)
	}
	if !s.NotAfter.IsZero() {
		until = s.NotAfter.UTC().Format(time.RFC3339)
	}
	networks := make([]string, len(s.Addresses))
	for i, p := range s.Addresses {
		networks[i] = p.String()
	}
	return []string{
		s.Kind, s.Name, strings.ReplaceAll(s.State, " ", "-"), serial, until,
		strings.ReplaceAll(s.Grants.String(), " ", ";"), policy.Labels(s.Require).String(), strings.Join(networks, ","),
		cmp.Or(s.Issuer, "-"), strconv.Itoa(s.Bytes), s.Key,
	}
}
