#!/bin/sh
# run.sh PROGRAM [ARG...]: run a static program as root in a VM with a stock Debian kernel, print what it printed, and exit
# with its status (125: the VM itself failed). It is made for the go tool:
#
#   CGO_ENABLED=0 go test -p 1 -exec "$PWD/internal/vm/run.sh" ./some/package
#
# The current directory (under go test the package's) is copied to /guest, and the program is run there. Environment:
#
#   VM_KERNEL   6.1 or 6.12 (the default)
#   VM_INIT     systemd (the default), or sh: nothing but the program runs
#   VM_ROOT     a directory that is laid over the guest's root file system
#   VM_ENV      names of variables to pass on
#   VM_TIMEOUT  in seconds (600)
#   VM_LOG      a file that gets the kernel's console
#   VM_SMP, VM_MEM, VM_ACCEL, VM_CPU
#
# AppArmor is off: its tools would only make the guest slower. The guest's disk is thrown away. Needs qemu-system-x86, and what image.sh needs.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
image=$("$here/image.sh")
kernel=$image/${VM_KERNEL:-6.12}
case ${VM_INIT:-systemd} in
systemd) init=/lib/systemd/systemd ;;
sh) init=/usr/local/sbin/vm-sh-init ;;
*) echo "run.sh: VM_INIT is systemd or sh" >&2; exit 125 ;;
esac

# What no test needs and a slow machine waits for.
for unit in dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
	sys-fs-fuse-connections.mount kmod-static-nodes.service systemd-update-utmp.service systemd-random-seed.service \
	e2scrub_reap.service getty.target systemd-pstore.service; do
	masked="${masked:-} systemd.mask=$unit"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
log=${VM_LOG:-$work/console}

# What is to be run. The archive stands on a disk of its own; qemu wants whole sectors, which tar writes.
mkdir -p "$work/in/root" "$work/in/guest"
[ -z "${VM_ROOT:-}" ] || cp -a "$VM_ROOT/." "$work/in/root/"
cp -r . "$work/in/guest/"
cp "$1" "$work/in/guest/.program"
quote() { printf "'%s' " "$(printf %s "$1" | sed "s/'/'\\\\''/g")"; }
{
	printf 'exec env VM_GUEST=1 '
	for v in ${VM_ENV:-}; do eval "value=\${$v-}"; quote "$v=$value"; done
	shift
	printf '/guest/.program '
	for arg; do quote "$arg"; done
} >"$work/in/guest/.cmd"
tar -C "$work/in" --owner=0 --group=0 -cf "$work/in.tar" .

: >"$work/status"
timeout --foreground -k 5 "${VM_TIMEOUT:-600}" qemu-system-x86_64 -nodefaults -no-user-config -display none \
	-accel "${VM_ACCEL:-tcg,thread=multi}" -cpu "${VM_CPU:-max}" -smp "${VM_SMP:-2}" -m "${VM_MEM:-2G}" \
	-kernel "$kernel/vmlinuz" -initrd "$kernel/initrd" \
	-append "console=ttyS0 quiet panic=-1 mitigations=off lsm=landlock,yama vm.init=$init$masked ${VM_APPEND:-}" \
	-drive "file=$image/root.ext4,if=virtio,format=raw,snapshot=on,cache=unsafe" \
	-drive "file=$work/in.tar,if=virtio,format=raw,readonly=on" \
	-serial "file:$log" -serial stdio -serial "file:$work/status" </dev/null &
qemu=$!
trap 'kill $qemu 2>/dev/null || true' INT TERM QUIT HUP # timeout passes it on
wait $qemu || true
status=$(cat "$work/status")
case $status in
'' | *[!0-9]*)
	echo "run.sh: no exit status from the guest; the end of its console:" >&2
	tail -40 "$log" >&2
	exit 125
	;;
esac
exit "$status"
