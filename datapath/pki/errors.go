package pki

import "errors"

// The reasons to refuse a certificate, a list or a label. Errors of this package wrap
// one of them and say what was found.
var (
	ErrMalformed   = errors.New("malformed")
	ErrForeign     = errors.New("from no trusted CA")
	ErrNoKey       = errors.New("no key for the certificate")
	ErrUsage       = errors.New("not made for a node of a fleet")
	ErrNotYetValid = errors.New("not valid yet")
	ErrExpired     = errors.New("expired")
	ErrRevoked     = errors.New("revoked")
	ErrNotGranted  = errors.New("not granted")
	ErrOlderList   = errors.New("older than the installed list")
	ErrPermissions = errors.New("others have access")
)
