// Package vm holds the tests that want a machine of their own: a stock Debian kernel with systemd as pid 1, in qemu.
//
//	make test-vm ──► test.sh ──► image.sh   a root file system from Debian's packages, kept in ~/.cache/thole-vm
//	                         └─► run.sh     one VM for each kernel, in which the tests of this package run as root
//
// The tests have the build tag vm. They change the machine that they run in, and run nowhere else. With run.sh, any
// package's tests run in the VM, beside systemd or without it.
package vm
