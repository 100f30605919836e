// SPDX-License-Identifier: Apache-2.0

// Package pki says which nodes belong to the fleet, and what each of them may assert.
//
// The fleet has a CA, a key that stays with whoever runs the fleet. A node makes a
// key of its own, which stays there, and a request; the CA answers with a certificate.
// What comes in: a certificate and the time. What goes out: an Identity, the node's
// name, its public key, the labels that it may assert and the addresses at which it
// may speak; or one of the errors of this package, each of them a reason to refuse.
//
// Authority, Trust, Identity, Scope and Grants are values; they know neither clock nor
// files. Load, Install, Request and the CADir are the thin edge: they read and write
// the directories of a node and of the CA. Nothing here listens, dials or logs, and
// nothing falls back to something weaker.
//
// # The certificate
//
// X.509 v3 in DER, at most MaxCertificate bytes, signed by the CA itself: there are no
// intermediate CAs. Keys and signatures are Ed25519, nothing else is read.
//
//	field                 value
//	serialNumber          8 bytes at most, positive; random
//	issuer                the CA's subject
//	validity              ±ClockSkew at both ends; never longer than the CA's
//	subject               the common name alone: the node's name, which is the label thole/node
//	subjectPublicKeyInfo  Ed25519
//	keyUsage              critical: digitalSignature
//	extKeyUsage           1.3.6.1.4.1.1414025036.2, alone
//	basicConstraints      critical: no CA
//	scope                 critical: 1.3.6.1.4.1.1414025036.1, see below
//
// Other extensions are ignored if they are not critical and refused if they are. The
// bytes around the signed part are fixed, so a certificate has one encoding only.
//
// The object identifiers are below a private enterprise number that nobody has:
// 1414025036 is "THOL". IANA gives numbers out one by one and was at some 65,000 in
// 2025; an identifier below 2.25 (an UUID) would need no such reasoning, but has an
// arc of 128 bits, which Go's parser refuses.
//
// # The scope
//
//	Scope     ::= SEQUENCE { grants    SEQUENCE OF Grant,
//	                         require   SEQUENCE OF Label,
//	                         addresses SEQUENCE SIZE (1..MAX) OF Network }
//	Grant     ::= SEQUENCE SIZE (2..MAX) OF UTF8String   -- the key, then its values, ascending
//	Label     ::= SEQUENCE SIZE (2) OF UTF8String        -- the key, then its value
//	Network   ::= OCTET STRING (SIZE (5 | 17))           -- address 4 or 16, prefix length 1
//
//	offset (app=db,web; env=*; require team=a; 192.0.2.1)
//	 0  30 32                                    Scope
//	 2    30 1a                                  grants
//	 4      30 0e 0c 03 "app" 0c 02 "db" 0c 03 "web"
//	20      30 08 0c 03 "env" 0c 01 "*"
//	30    30 0b                                  require
//	32      30 09 0c 04 "team" 0c 01 "a"
//	43    30 07                                  addresses
//	45      04 05 c0 00 02 01 20                 192.0.2.1/32
//
// A value is exact, or a prefix and "*", or "*" alone: any. No label value that can be
// granted exactly contains a "*". Keys are exact. Grants and required labels are
// ascending by key, no key is in both, values and networks are ascending; everything is
// there once. So a scope has one encoding only, and no other is read. Without grants a
// node asserts nothing but what it is required to. A node may speak from anywhere only
// if 0.0.0.0/0 and ::/0 say so.
//
// # The revocation list
//
// An X.509 CRL, signed by the CA, numbered, at most maxListSize bytes: the serials of all
// certificates of this CA that hold no more. A list with another extension than its
// number and the CA's key identifier is refused: it may be only a part of the whole.
// Lists do not expire; a node keeps the newest that it was given (Trust.Follows).
//
// # The directories
//
//	a node's                             the CA's
//	node.key   0600  its key             ca.key  0600  its key
//	next.key   0600  the next one        ca.crt        its certificate
//	node.crt         its certificate     ca.crl        its list
//	trust.pem        the CAs, each       issued/SERIAL.crt
//	                 with its list       what it issued
//
// Files are PEM and replaced at once, under a lock (flock) on the directory, which Load
// takes too. Who is not root or the caller owns nothing in them; only the owner may
// write there, and only the owner may read a key.
package pki
