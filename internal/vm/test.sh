#!/bin/sh
# test.sh [KERNEL...]: run this package's tests in a VM for each kernel, with thole as `make install` installs it.
# VM_RUN: only tests that match (go test -run); more variables are those of run.sh.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CGO_ENABLED=0 VM_TIMEOUT="${VM_TIMEOUT:-1800}"
make -s -C "$here/../.." install DESTDIR="$work/root" PREFIX=/usr/local
go test -C "$here" -c -tags vm -o "$work/vm.test" .
"$here/image.sh" >/dev/null
failed=
mkdir "$work/empty"
cd "$work/empty"
for kernel in ${*:-6.1 6.12}; do
	echo "== Debian's kernel $kernel ($(date +%T))"
	VM_KERNEL=$kernel VM_ROOT=$work/root "$here/run.sh" "$work/vm.test" -test.v ${VM_RUN:+-test.run "$VM_RUN"} || failed="$failed $kernel"
done
[ -z "$failed" ] || { echo "failed on kernel$failed" >&2; exit 1; }
echo "== done ($(date +%T))"
