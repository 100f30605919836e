package token

import "strconv"

// A Reason is why a token or a statement is refused. It is an error, made without
// allocating; where there is more to say it is wrapped together with the cause.
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
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
	endOfReasons
)

var reasons = [endOfReasons]string{
	BadLength: "bad-length", BadVersion: "bad-version", BadType: "bad-type", BadCapabilities: "bad-capabilities",
	BadSuite: "bad-suite", BadLifetime: "bad-lifetime", NoLabels: "no-labels", BadLabel: "bad-label",
	LabelOrder: "label-order", ReservedLabel: "reserved-label", BadCertificate: "bad-certificate",
	Reflected: "reflected", BadSignature: "bad-signature", NotYetValid: "not-yet-valid", Expired: "expired",
	WrongAddress: "wrong-address", NotGranted: "not-granted", LowOrder: "low-order",
	BadM1: "bad-m1", BadM2: "bad-m2", BadM3: "bad-m3",
}

// String names r as metrics do.
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func (r Reason) Error() string { return "refused: " + r.String() }
