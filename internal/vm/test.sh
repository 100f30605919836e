#!/bin/sh
# test.sh [KERNEL...]: run tests in VMs for each kernel, with thole as `make install` installs it:
#
#   machine   this package's, with systemd as pid 1
#   start     this package's about a host on which Thole starts for the first time
#   fleet     those of the traffic between nodes, of packets in userspace and of routes, in other packages; all that make test runs
#             by nft_compat where the kernel has no expression queue is here required to go by that expression
#   attack    those of attacks, of legitimate uses of sockets, and of what they need to know of WireGuard
#
# VM_PART: only one of these. VM_RUN: only tests that match (go test -run). More variables are those of run.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0 VM_TIMEOUT="${VM_TIMEOUT:-3600}"
make -s -C "$here/../.." install DESTDIR="$work/root" PREFIX=/usr/local
go test -C "$here" -c -tags vm -o "$work/vm.test" .
# The earlier program, with which some tests compare.
commit=$(sed -n 's/^const Commit = "\(.*\)"$/\1/p' "$here/../nstest/baseline/baseline.go")
mkdir "$work/earlier"
git -C "$here/../.." archive "$commit" | tar -x -C "$work/earlier"
mkdir -p "$work/root/usr/local/lib"
go build -C "$work/earlier" -trimpath -o "$work/root/usr/local/lib/thole-earlier" ./cmd/thole
"$here/image.sh" >/dev/null

# package PART DIR PATTERN: the tests of a package that match are run in a part.
package() {
	name=$(echo "$2" | tr / -)
	mkdir -p "$work/$1/$name"
	go test -C "$here/../../$2" -c -tags vm -o "$work/$1/$name/test" .
	echo "-test.run ${VM_RUN:-$3}" >"$work/$1/$name/args"
}
package fleet datapath/queue .
package fleet datapath/sockets .
package fleet datapath/packet Kernel
package fleet internal/routes .
# Not what nft 1.0.6 loads: it converts the byte order of one byte of an interval (meta l4proto), which 6.12 refuses.
package fleet ruleset/kernel ". -test.skip Everything|RandomTables"
package fleet internal/e2e Fleet
package attack internal/attack .
package attack internal/legit .
package attack internal/nstest WireGuard
export THOLE_MUST=1 THOLE_QUEUE=native THOLE_SLOWNESS="${THOLE_SLOWNESS:-10}"

part() {
	case $1 in
	machine)
		cd "$work/empty"
		VM_ROOT=$work/root "$here/run.sh" "$work/vm.test" -test.v ${VM_RUN:+-test.run "$VM_RUN"} ;;
	start)
		cd "$work/empty"
		VM_ROOT=$work/root VM_ENV=VM_FIRST_START VM_FIRST_START=1 "$here/run.sh" "$work/vm.test" -test.v ;;
	fleet | attack)
		cd "$work/$1"
		# To the attack tests THOLE_BINARY says whose table they load, as text, which nft 1.0.6 cannot do for 6.12.
		binary=THOLE_BINARY
		[ "$1" = fleet ] || binary=THOLE_BUILT
		export "$binary=/usr/local/bin/thole"
		VM_ROOT=$work/root VM_INIT=sh VM_ENV="THOLE_MUST THOLE_QUEUE $binary THOLE_SLOWNESS" \
			"$here/run.sh" "$here/tests.sh" ;;
	esac
}
failed=
mkdir "$work/empty"
for VM_KERNEL in ${*:-6.1 6.12}; do
	export VM_KERNEL
	for part in ${VM_PART:-machine start fleet attack}; do
		echo "== Debian's kernel $VM_KERNEL, $part ($(date +%T))"
		part "$part" || failed="$failed $VM_KERNEL/$part"
	done
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
echo "== done ($(date +%T))"
