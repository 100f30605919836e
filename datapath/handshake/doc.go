// SPDX-License-Identifier: Apache-2.0

// Package handshake is the state machine of the signed handshake: what becomes of each
// packet that the queue hands over, and of the connection that it belongs to.
//
// Comes in: the state of one connection, a Conn, which is a value, and an Event: a
// packet with where it was met. Goes out: the next Conn and an Action: a verdict, by
// which of package packet's operations the packet is rewritten, what mark it gets, and
// what else is to be sent. Step is the one transition function. There is no clock, no
// netlink, no goroutine and no randomness in it; statements and their keys come by
// Statements, the policy by Policy. Table, a bounded map of Conns with deadlines, is
// beside it, and the one thing here that changes in place.
//
// It never delivers data: that is for the kernel, which holds back what a pending
// connection's client sends until a packet comes with the mark that only a proof that
// was verified gets. So to forget a Conn is always safe, and what happens to a
// connection that one side forgot is part of the machine.
//
// # The machine
//
// c is the client's initial number, P the size of T3. A connection has a Conn on both
// nodes, each in a state of its own side:
//
//	client   kernel's SYN: T1 on it             SYN-ACK without a token: reset it,
//	         ┌──────────────┐                   the SYN again without T1
//	         │              ▼                ┌────────────────────────────► Plain
//	      Closed ──────► Offered ────────────┤                              (nothing is
//	         │            │    ▲ SYN again:  │ T2 good, allowed:             rewritten)
//	         │            │    │ T1 full     │ taken off; mark pending
//	         │            └────┘             ├────────────► Proving ──┐ seq c+1: T3 on it
//	         │                               │                  ▲     │ T2 again: taken off
//	         │                               │ T2 good, denied: └─────┘ SYN again: T1 full
//	         │                               ▼ both kernels get a reset
//	         │                             Closed
//	         │ no labels, or the peer is known to have no Thole
//	         └────────────────────────────────────────────────────────────► Plain
//
//	server   SYN with a good T1:                 kernel's SYN-ACK: T2 on it
//	         taken off; mark pending             (full once for each T1 full, else short)
//	      Closed ──────────────────► Received ───────────────────► Answered ──┐ T1 again:
//	         ▲                         ▲    │                       │  │  ▲   │ as before
//	         │                         └────┘                       │  │  └───┘
//	         │               T1, also of another c                  │  │ client's RST in the window,
//	         │                                                      │  │ kernel's RST, kernel's
//	         │ T3 good: taken off; mark proven                      │  │ SYN-ACK for another c
//	         └──────────────────────────────────────────────────────┴──┘
//
// From every state, a deadline leads to Closed (Table.Expire), and on the client a SYN with
// another c to Offered or Plain: the own kernel is believed. A token that fails changes
// no state. That a connection is proven stands in conntrack's mark alone: the server
// forgets it with the proof, and the client when time is up.
//
// TestExplore visits all that two such machines, their kernels and a network that loses,
// repeats and reorders can come to. A connection that no daemon's restart meets ends
// established, whatever is lost. One that a restart meets before its proof was verified
// is established or reset; only where the client says nothing, or the server's kernel
// used SYN cookies, may it be that its own timers have to notice.
//
// What else there is, by who met what:
//
//	T3 that proves nothing here: another c, a bad MAC,     taken off, marked unproven: the kernel takes the data
//	Closed (also: proven before)                           if the connection was proven, else it comes again:
//	Unproven data, server                                  dropped; if Closed, its sender gets a reset, for no
//	                                                       proof can come any more: this daemon was restarted
//	SYN-ACK of the kernel, server is Closed                a reset in its place, which ends an open connection, and
//	                                                       lets a connect that still waits begin anew
//	the same for another c, Received                       T2 on it: the client's node will not know it, and reset it
//	T2, client is Closed                                   the server gets a reset; so does the client's kernel, by
//	                                                       one that only ends an open connection: this daemon was
//	                                                       restarted, a connect's next SYN begins anew
//	T2 that acknowledges another SYN                       the server gets a reset (the port is used again)
//	T1, client's state (two connects that meet)            dropped: neither side is let in, both connects time out
//	T1 of another c, Answered                              dropped; the next SYN-ACK finds out whether the old
//	                                                       connection is still wanted
//	T1 for a socket without labels, or for none            as is: this node answers as one without Thole
//	SYN-ACK without a token, client                        Offered: falls back, if it acknowledges what was sent.
//	                                                       Plain: as is; if the policy denies the address, both
//	                                                       kernels get a reset. Proving, the same numbers (the
//	                                                       server's kernel defers accept): as is. Else dropped
//	anything but SYN-ACK and RST of a pending server       dropped: a challenge would tell the client's node that
//	                                                       the proof was taken
//	SYN again, client is Plain as was remembered           T1 on it: somebody with labels may listen there now
//	RST for the client, ack c + 1 − P                      shifted; any other as is, the kernel judges its numbers
//	ICMP error that quotes a number as it was sent         shifted; any other as is
//
// Fast Open's data and option never leave (package packet). With SYN cookies the
// server's number s differs from one SYN-ACK to the next; nothing here depends on it.
// With TCP_DEFER_ACCEPT the first ACK may carry data; so may any packet with seq c + 1.
// The first data behind an ACK with T3 goes without: T3 is on its way, and to send a part
// of a segment again at once looks to others like a network that reorders. If T3 was
// lost, the data is dropped and comes again, with T3.
//
// # What is decided here, and why
//
// T1 short can be sent again by who saw it, from any port, while both ephemeral keys
// live. No nonces are remembered for that: it comes from an address of the node that it
// names, takes a place in that node's quota only, and the SYN-ACK that it causes goes to
// that node, which resets it. Who can read T1 can read the sequence numbers with it, and
// end each of the node's connections without our help.
//
// T1 short has to name a statement of the workload that listens at that port, now or
// before its keys turned over (Statements.Named): labels of another workload of the
// same node would mislead the client's policy.
//
// That a place (address and port) has no Thole is remembered, since to find out costs a
// round trip. It may be wrong by now: a workload with labels listens there, and its node
// drops a SYN without a token. So the kernel's next SYN of that connection carries T1
// again; and where nobody listens (a reset), the next connection's.
//
// The client uses a statement for T1 short until a minute before its lifetime is over,
// counted by its own monotonic clock from when it came (Answered of package peers): the
// server's clock may be wrong by MaxSkew, and keys are dropped soon after.
package handshake
