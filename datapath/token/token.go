package token

import (
	"encoding/binary"
	"thole/datapath/refusal"
)

// Version is the protocol's version: of tokens, statements and the TCP option.
const Version = 1

// A Type says which token it is, also in the TCP option.
type Type uint8

// The types.
const (
	TypeShortT1 Type = iota + 1
	TypeFullT1
	TypeShortT2
	TypeFullT2
	TypeT3
)

// Sizes in bytes. Full tokens have their statement's size on top.
const (
	ShortT1Size = 68
	FullT1Size  = 22
	ShortT2Size = 52
	FullT2Size  = 38
	T3Size      = 20 // P in the documents: sequence numbers are shifted by it

	headerSize = 4
	macSize    = 16
)

// A Nonce is drawn at random for each connection by either side.
type Nonce [16]byte

// A Fingerprint names a statement: the first 16 bytes of its hash.
type Fingerprint [16]byte

// A MAC is an HMAC-SHA-256, cut.
type MAC [macSize]byte

// A ShortT1 opens a connection between nodes that hold each other's statements.
type ShortT1 struct {
	Client, Server Fingerprint
	Nonce          Nonce
	M1             MAC
}

// A FullT1 opens a connection to who may not hold the client's statement.
type FullT1 struct {
	Nonce     Nonce
	Statement []byte // for ParseStatement; of a parsed token: part of its input
}

// A ShortT2 answers for a statement that the client holds.
type ShortT2 struct {
	Nonce  Nonce
	Server Fingerprint
	M2     MAC
}

// A FullT2 answers with the server's statement.
type FullT2 struct {
	Nonce     Nonce
	Statement []byte // for ParseStatement; of a parsed token: part of its input
	M2        MAC
}

// A T3 is the client's proof.
type T3 struct {
	M3 MAC
}

// Append appends t's bytes to b.
func (t *ShortT1) Append(b []byte) []byte {
	b = appendHeader(b, TypeShortT1)
	b = append(b, t.Client[:]...)
	b = append(b, t.Server[:]...)
	b = append(b, t.Nonce[:]...)
	return append(b, t.M1[:]...)
}

// ParseShortT1 parses all of b.
func ParseShortT1(b []byte) (t ShortT1, err error) {
	if err = parseHeader(b, TypeShortT1); err != nil {
		return ShortT1{}, err
	}
	if len(b) != ShortT1Size {
		return ShortT1{}, refusal.BadLength
	}
	copy(t.Client[:], b[4:])
	copy(t.Server[:], b[20:])
	copy(t.Nonce[:], b[36:])
	copy(t.M1[:], b[52:])
	return t, nil
}

// Append appends t's bytes to b. The statement is one that Sign or ParseStatement
// made, so its length fits.
func (t *FullT1) Append(b []byte) []byte {
	b = appendHeader(b, TypeFullT1)
	b = append(b, t.Nonce[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Statement)))
	return append(b, t.Statement...)
}

// ParseFullT1 parses all of b. It does not look into the statement.
func ParseFullT1(b []byte) (t FullT1, err error) {
	if err = parseHeader(b, TypeFullT1); err != nil {
		return FullT1{}, err
	}
	if t.Statement, err = statementAt(b, FullT1Size, 0); err != nil {
		return FullT1{}, err
	}
	copy(t.Nonce[:], b[4:])
	return t, nil
}

// Append appends t's bytes to b.
func (t *ShortT2) Append(b []byte) []byte {
	b = appendHeader(b, TypeShortT2)
	b = append(b, t.Nonce[:]...)
	b = append(b, t.Server[:]...)
	return append(b, t.M2[:]...)
}

// ParseShortT2 parses all of b.
func ParseShortT2(b []byte) (t ShortT2, err error) {
	if err = parseHeader(b, TypeShortT2); err != nil {
		return ShortT2{}, err
	}
	if len(b) != ShortT2Size {
		return ShortT2{}, refusal.BadLength
	}
	copy(t.Nonce[:], b[4:])
	copy(t.Server[:], b[20:])
	copy(t.M2[:], b[36:])
	return t, nil
}

// Append appends t's bytes to b. The statement is one that Sign or ParseStatement
// made, so its length fits.
func (t *FullT2) Append(b []byte) []byte {
	b = appendHeader(b, TypeFullT2)
	b = append(b, t.Nonce[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Statement)))
	b = append(b, t.Statement...)
	return append(b, t.M2[:]...)
}

// ParseFullT2 parses all of b. It does not look into the statement.
func ParseFullT2(b []byte) (t FullT2, err error) {
	if err = parseHeader(b, TypeFullT2); err != nil {
		return FullT2{}, err
	}
	if t.Statement, err = statementAt(b, FullT1Size, macSize); err != nil {
		return FullT2{}, err
	}
	copy(t.Nonce[:], b[4:])
	copy(t.M2[:], b[len(b)-macSize:])
	return t, nil
}

// Append appends t's bytes to b.
func (t *T3) Append(b []byte) []byte {
	return append(appendHeader(b, TypeT3), t.M3[:]...)
}

// ParseT3 parses all of b: what follows the proof in its packet is the application's
// and cut off before.
func ParseT3(b []byte) (t T3, err error) {
	if err = parseHeader(b, TypeT3); err != nil {
		return T3{}, err
	}
	if len(b) != T3Size {
		return T3{}, refusal.BadLength
	}
	copy(t.M3[:], b[4:])
	return t, nil
}

// appendHeader appends version, type and capabilities. No capability is defined: all bits are zero.
func appendHeader(b []byte, t Type) []byte { return append(b, Version, byte(t), 0, 0) }

func parseHeader(b []byte, want Type) error {
	switch {
	case len(b) < headerSize:
		return refusal.BadLength
	case b[0] != Version:
		return refusal.BadVersion
	case b[1] != byte(want):
		return refusal.BadType
	case b[2] != 0 || b[3] != 0:
		return refusal.BadCapabilities
	}
	return nil
}

// statementAt returns the statement that begins at offset, behind its length, and
// after which exactly so many bytes follow.
func statementAt(b []byte, offset, after int) ([]byte, error) {
	if len(b) < offset {
		return nil, refusal.BadLength
	}
	n := int(binary.BigEndian.Uint16(b[offset-2:]))
	if n < minStatement || n > MaxStatement || len(b) != offset+n+after {
		return nil, refusal.BadLength
	}
	return b[offset : offset+n : offset+n], nil
}
