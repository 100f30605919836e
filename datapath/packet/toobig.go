package packet

import "fmt"

// A TooBigError says that a packet would be too big, with both numbers.
type TooBigError struct {
	Size, Limit int // bytes of the IP packet
}

func (e *TooBigError) Error() string {
	return fmt.Sprintf("a packet of %d bytes; allowed: %d", e.Size, e.Limit)
}
