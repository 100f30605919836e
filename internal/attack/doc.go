// SPDX-License-Identifier: Apache-2.0

// Package attack holds tests that try to break Thole with real sockets: as a
// labelled process, as an unlabelled one, with CAP_NET_RAW, as a user of thole run,
// and as a machine outside. Each test is one attack and passes when the defence
// holds; its comment tells the attack in a sentence. broken_test.go has the attacks
// that succeed today. The package has no code of its own.
package attack
