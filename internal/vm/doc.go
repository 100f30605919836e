// SPDX-License-Identifier: Apache-2.0

// Package vm holds the tests that want a machine of their own: a stock Debian kernel with systemd as pid 1, in qemu.
//
//	make test-vm ──► test.sh ──► image.sh   a root file system from Debian's packages, kept in ~/.cache/thole-vm
//	                         └─► run.sh     for each kernel a VM with systemd, in which the tests of this package
//	                                        run as root, and one without, in which tests.sh runs those of other
//	                                        packages that hand packets to userspace: between nodes, and the
//	                                        datapath's own
//
// The latter are the same as in make test. There they go by nft_compat if the kernel is built so; here they must go by
// nft's expression queue (THOLE_QUEUE=native), and have ten times the patience (THOLE_SLOWNESS), for the processors are
// emulated. What they assert is the same, but for four: TestFleetCaptures does not judge the packets of a form in which
// TCP sent something again; TestFleetFaultyNetwork has fewer connections at a time; the daemons of
// TestFleetKilledInTheHandshake are killed in one handshake after another; and TestFleetFlooded makes a tenth of the
// calls, and goes on until the flood, which is slow to begin, was refused. test.sh leaves out what nft 1.0.6 cannot
// load on 6.12, and says why.
//
// This package's tests have the build tag vm. They change the machine that they run in, and run nowhere else. With
// run.sh, any package's tests run in the VM, beside systemd or without it.
package vm
