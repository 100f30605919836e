package token

import (
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"thole/datapath/refusal"
)

const (
	extractSalt = "thole/1"
	expandLabel = "mac"
	keySize     = sha256.Size
)

// An OwnStatement is a statement of this node with the private half of its ephemeral key. Sign
// makes it.
type OwnStatement struct {
	Statement *Statement
	key       *ecdh.PrivateKey
}

// Keys are what two statements' holders share: one key for each MAC. They are derived
// once for a pair of statements and a direction; 96 bytes, safe for concurrent use.
type Keys struct {
	k1, k2, k3 [keySize]byte
}

// ClientKeys derives the keys for connections that own opens to peer.
func (own *OwnStatement) ClientKeys(peer *Statement) (*Keys, error) {
	return own.derive(peer, own.Statement, peer)
}

// ServerKeys derives the keys for connections that peer opens to own.
func (own *OwnStatement) ServerKeys(peer *Statement) (*Keys, error) {
	return own.derive(peer, peer, own.Statement)
}

func (own *OwnStatement) derive(peer, client, server *Statement) (*Keys, error) {
	// Ephemeral equal, statement not: somebody took our key for his own.
	if peer.hash == own.Statement.hash || peer.Ephemeral == own.Statement.Ephemeral {
		return nil, refusal.Reflected
	}
	public, err := ecdh.X25519().NewPublicKey(peer.Ephemeral[:])
	if err != nil {
		return nil, refusal.BadLength // cannot be: it has 32 bytes
	}
	secret, err := own.key.ECDH(public)
	if err != nil {
		return nil, refusal.LowOrder // the one error of X25519: all zero
	}
	prk, err := hkdf.Extract(sha256.New, secret, []byte(extractSalt))
	if err != nil {
		return nil, err
	}
	out, err := hkdf.Expand(sha256.New, prk, expandLabel+string(client.hash[:])+string(server.hash[:]), 3*keySize)
	if err != nil {
		return nil, err
	}
	return &Keys{[keySize]byte(out), [keySize]byte(out[keySize:]), [keySize]byte(out[2*keySize:])}, nil
}

// A Pair is a statement of this node, one of another node, and the keys that they give
// for one direction. It is never changed once it is made.
type Pair struct {
	Own  *OwnStatement
	Peer *Claim
	Keys *Keys
}

// An Exchange is what the MACs of one connection cover. M1 does not cover the
// server's part.
type Exchange struct {
	Protocol    uint8 // number: 6 TCP, 17 UDP
	ClientNonce Nonce
	ServerNonce Nonce
}

const (
	clientPart = 1 + 1 + 2 + 16
	serverPart = clientPart + 2 + 16
	proofPart  = serverPart + macSize
)

// bytes leaves the capabilities of both sides zero: none is defined.
func (x *Exchange) bytes() (b [proofPart]byte) {
	b[0], b[1] = Version, x.Protocol
	copy(b[4:], x.ClientNonce[:])
	copy(b[clientPart+2:], x.ServerNonce[:])
	return b
}

// M1 is the client's first MAC, in T1 short.
func (k *Keys) M1(x *Exchange) MAC {
	b := x.bytes()
	return mac(&k.k1, b[:clientPart])
}

// M2 is the server's MAC, in T2.
func (k *Keys) M2(x *Exchange) MAC {
	b := x.bytes()
	return mac(&k.k2, b[:serverPart])
}

// M3 is the client's proof, in T3. It covers the server's MAC.
func (k *Keys) M3(x *Exchange, m2 MAC) MAC {
	b := x.bytes()
	copy(b[serverPart:], m2[:])
	return mac(&k.k3, b[:])
}

// VerifyM1 reports in constant time why m is not M1.
func (k *Keys) VerifyM1(x *Exchange, m MAC) error { return verify(k.M1(x), m, refusal.BadM1) }

// VerifyM2 reports in constant time why m is not M2.
func (k *Keys) VerifyM2(x *Exchange, m MAC) error { return verify(k.M2(x), m, refusal.BadM2) }

// VerifyM3 reports in constant time why m is not M3.
func (k *Keys) VerifyM3(x *Exchange, m2, m MAC) error { return verify(k.M3(x, m2), m, refusal.BadM3) }

func verify(want, got MAC, reason refusal.Reason) error {
	if subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return reason
	}
	return nil
}

// mac is HMAC-SHA-256 (RFC 2104) of a short message, cut to 16 bytes. crypto/hmac
// allocates six objects for each packet, or keeps half a kilobyte and a lock for each
// key, and there may be tens of thousands; this needs neither and is as fast. The
// tests hold it against crypto/hmac.
func mac(key *[keySize]byte, message []byte) MAC {
	var inner [sha256.BlockSize + proofPart]byte
	var outer [sha256.BlockSize + sha256.Size]byte
	for i := range sha256.BlockSize {
		inner[i], outer[i] = 0x36, 0x5c
	}
	subtle.XORBytes(inner[:], inner[:], key[:])
	subtle.XORBytes(outer[:], outer[:], key[:])
	n := copy(inner[sha256.BlockSize:], message)
	sum := sha256.Sum256(inner[:sha256.BlockSize+n])
	copy(outer[sha256.BlockSize:], sum[:])
	sum = sha256.Sum256(outer[:])
	return MAC(sum[:macSize])
}
