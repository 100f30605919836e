package packet

import (
	"fmt"
	"strconv"
)

// A Reason is why a packet is refused. It is an error, made without allocating.
type Reason uint8

// The reasons.
const (
	Truncated       Reason = iota + 1 // shorter than one of its lengths says
	BadHeader                         // a header that contradicts itself
	Fragment                          // a fragment: the kernel puts them together before the queue
	Routed                            // a routing header that is not at its end
	TooManyHeaders                    // more than maxExtensions extension headers
	NotTCP                            // another protocol
	NotError                          // ICMP, but no error
	BadQuote                          // an ICMP error that quotes no TCP header
	BadChecksum                       // of IPv4, TCP or ICMP
	BadOptions                        // TCP options whose lengths do not add up
	BadOption                         // our option, with another length, version, or type
	DuplicateOption                   // our option twice
	WrongPacket                       // the operation is not for such a packet
	Signed                            // TCP-MD5 or TCP-AO signs what would be changed
	NoRoom                            // the TCP options leave no room for ours
	endOfReasons
)

var reasons = [endOfReasons]string{
	Truncated: "truncated", BadHeader: "bad-header", Fragment: "fragment", Routed: "routed",
	TooManyHeaders: "too-many-headers", NotTCP: "not-tcp", NotError: "not-error", BadQuote: "bad-quote",
	BadChecksum: "bad-checksum", BadOptions: "bad-options", BadOption: "bad-option",
	DuplicateOption: "duplicate-option",
	WrongPacket:     "wrong-packet", Signed: "signed", NoRoom: "no-room",
}

// String names r as metrics do.
func (r Reason) String() string {
	if r < endOfReasons && reasons[r] != "" {
		return reasons[r]
	}
	return "reason-" + strconv.Itoa(int(r))
}

func (r Reason) Error() string { return "packet refused: " + r.String() }

// A TooBigError says that a packet would be too big, with both numbers.
type TooBigError struct {
	Size, Limit int // bytes of the IP packet
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("a packet of %d bytes; allowed: %d", e.Size, e.Limit)
}
