package nlmsg

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netfilterHeader is the size of the header behind that of netlink in messages of netfilter
// (linux/netfilter/nfnetlink.h, struct nfgenmsg):
//
//	offset  size  meaning
//	0       1     family
//	1       1     version: 0
//	2       2     resource, big-endian: a queue's number, or the subsystem of a batch
const netfilterHeader = 4

// NetfilterType returns the type of a message of a subsystem (unix.NFNL_SUBSYS_*).
func NetfilterType(subsystem, message uint16) netlink.HeaderType {
	return netlink.HeaderType(subsystem<<8 | message)
}

// A NetfilterHeader is what the header of a message of netfilter says.
type NetfilterHeader struct {
	Family   uint8
	Resource uint16
}

// Netfilter returns a request to netfilter.
func Netfilter(typ netlink.HeaderType, flags netlink.HeaderFlags, h NetfilterHeader, a Attributes) netlink.Message {
	data := make([]byte, 0, netfilterHeader+len(a))
	data = binary.BigEndian.AppendUint16(append(data, h.Family, unix.NFNETLINK_V0), h.Resource)
	return netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   append(data, a...),
	}
}

// ParseNetfilter returns the header and the attributes of a message of netfilter.
func ParseNetfilter(m netlink.Message) (h NetfilterHeader, a Attributes, err error) {
	if len(m.Data) < netfilterHeader {
		return h, nil, fmt.Errorf("a message of netfilter has %d bytes: must be at least %d", len(m.Data),
			netfilterHeader)
	}
	h = NetfilterHeader{Family: m.Data[0], Resource: binary.BigEndian.Uint16(m.Data[2:])}
	a, err = Parse(m.Data[netfilterHeader:])
	return h, a, err
}
