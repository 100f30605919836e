package refusal

import (
	"strconv"
	"strings"
)

// A Reason is why something is refused. It is an error, made without allocating; where there is more to say, it is
// wrapped together with the cause.
type Reason uint8

// The reasons, by the package that refuses.
const (
	// token: bytes and keys of tokens and statements, in the order in which they are looked for
	BadLength       Reason = iota + 1 // too short, too long, or lengths that do not add up
	BadVersion                        // another version of the protocol
	BadType                           // another type of token than asked for
	BadCapabilities                   // a reserved bit is set
	BadSuite                          // another suite of algorithms
	BadLifetime                       // zero or more than MaxLifetime, or a time beyond all calendars
	NoLabels                          // nothing is asserted
	BadLabel                          // an empty key, control characters, or not UTF-8
	LabelOrder                        // keys are not strictly ascending
	ReservedLabel                     // thole/* never crosses the wire
	BadCertificate                    // the verifier refuses the certificate; its error is wrapped
	Reflected                         // our own statement or ephemeral key
	BadSignature                      // not signed by the certificate's key
	NotYetValid                       // begins more than MaxSkew from now
	Expired                           // ended more than MaxSkew ago, or the certificate did
	WrongAddress                      // the certificate does not let the node speak from there
	NotGranted                        // the certificate does not grant the labels; its error is wrapped
	LowOrder                          // an ephemeral key of low order: the secret would be known to all
	BadM1                             // C does not have the key
	BadM2                             // S does not have the key
	BadM3                             // C does not have the key, or answers another connection

	// packet: packets
	Truncated       // shorter than one of its lengths says
	BadHeader       // a header that contradicts itself
	Fragment        // a fragment: the kernel puts them together before the queue
	Routed          // a routing header that is not at its end
	TooManyHeaders  // more than maxExtensions extension headers
	NotTCP          // another protocol
	NotError        // ICMP, but no error
	BadQuote        // an ICMP error that quotes no TCP header
	BadChecksum     // of IPv4, TCP or ICMP
	BadOptions      // TCP options whose lengths do not add up
	BadOption       // our option, with another length, version, or type
	DuplicateOption // our option twice
	WrongPacket     // the operation is not for such a packet
	Signed          // TCP-MD5 or TCP-AO signs what would be changed
	NoRoom          // the TCP options leave no room for ours

	// peers: what is known of other nodes
	Unknown      // a statement that is not known, or none of this workload
	OverBudget   // to verify it would take more processor time than its source has
	TrustChanged // the trusted CAs or their lists changed while it was verified

	// handshake: the state of a connection
	Misplaced    // a token on a packet of another kind
	Unexpected   // no such packet belongs into this state
	Simultaneous // two connects that meet
	Busy         // T1, while another connection of these ports is pending
	Stale        // it is for another connection of these ports
	Forgotten    // nothing is known of its connection: a restart, or too late
	Unproven     // data before its proof
	Denied       // by this node's policy
	NotWanted    // T1 for a socket without labels
	NoThole      // the peer answered as a machine without Thole
	Full         // a pool of the table
	OverQuota    // a node, an address or a workload has too many pending

	// datapath: the daemon has no class for what was proven
	TooMany  // as many classes are in use as there may be, in all or of one node
	TooOften // the node makes the table change too often
	endOfReasons
)

// reasons are the names of the counters.
var reasons = [endOfReasons]string{
	BadLength: "token/bad-length", BadVersion: "token/bad-version", BadType: "token/bad-type",
	BadCapabilities: "token/bad-capabilities", BadSuite: "token/bad-suite", BadLifetime: "token/bad-lifetime",
	NoLabels: "token/no-labels", BadLabel: "token/bad-label", LabelOrder: "token/label-order",
	ReservedLabel: "token/reserved-label", BadCertificate: "token/bad-certificate", Reflected: "token/reflected",
	BadSignature: "token/bad-signature", NotYetValid: "token/not-yet-valid", Expired: "token/expired",
	WrongAddress: "token/wrong-address", NotGranted: "token/not-granted", LowOrder: "token/low-order",
	BadM1: "token/bad-m1", BadM2: "token/bad-m2", BadM3: "token/bad-m3",

	Truncated: "packet/truncated", BadHeader: "packet/bad-header", Fragment: "packet/fragment",
	Routed: "packet/routed", TooManyHeaders: "packet/too-many-headers", NotTCP: "packet/not-tcp",
	NotError: "packet/not-error", BadQuote: "packet/bad-quote", BadChecksum: "packet/bad-checksum",
	BadOptions: "packet/bad-options", BadOption: "packet/bad-option", DuplicateOption: "packet/duplicate-option",
	WrongPacket: "packet/wrong-packet", Signed: "packet/signed", NoRoom: "packet/no-room",

	Unknown: "peers/unknown", OverBudget: "peers/over-budget", TrustChanged: "peers/trust-changed",

	Misplaced: "handshake/misplaced", Unexpected: "handshake/unexpected", Simultaneous: "handshake/simultaneous",
	Busy: "handshake/busy", Stale: "handshake/stale", Forgotten: "handshake/forgotten",
	Unproven: "handshake/unproven", Denied: "handshake/denied", NotWanted: "handshake/not-wanted",
	NoThole: "handshake/no-thole", Full: "handshake/full", OverQuota: "handshake/over-quota",

	TooMany: "datapath/too-many", TooOften: "datapath/too-often",
}

// String names r as the counters do: the package that refuses, and the reason. "token/bad-m1".
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

// Package is the name of the package that refuses: "token".
func (r Reason) Package() string {
	name, _, _ := strings.Cut(r.String(), "/")
	return name
}

func (r Reason) Error() string {
	by := r.Package()
	return what[by] + ": " + strings.TrimPrefix(r.String(), by+"/")
}

// what is refused, by the package that refuses.
var what = map[string]string{
	"token": "refused", "packet": "packet refused", "peers": "statement", "handshake": "handshake",
	"datapath": "classes of other nodes' workloads",
}
