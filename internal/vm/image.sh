#!/bin/sh
# image.sh: make what the test VM boots, unless it is there already: Debian bookworm with systemd and Docker, and its stock
# kernels. Prints the directory, in which are
#
#   root.ext4              the root file system, with the modules of all kernels
#   KERNEL/vmlinuz,initrd  KERNEL is 6.1 (Debian's default) or 6.12 (from its security or backports archive)
#
# It is made in THOLE_VM_CACHE (~/.cache/thole-vm), under a name that changes with this file; older ones are removed.
# Nothing is installed. Needs root, mmdebstrap, busybox-static, e2fsprogs, and Debian's archive.
set -eu

packages=systemd,systemd-sysv,libpam-systemd,dbus,udev,kmod,iproute2,nftables,iptables,conntrack,procps
packages=$packages,docker.io,nginx-light,haproxy,curl,ncat,iperf3,tshark,busybox-static,openssl,wireguard-tools,nfs-kernel-server,libnfs-utils
packages=$packages,unbound,bind9-dnsutils,dnsmasq-base,postgresql-15,redis-server,openssh-server,chrony,podman,catatonit,sudo
kernels="6.1=linux-image-cloud-amd64 6.12=linux-image-6.12-cloud-amd64"

here=$(cd "$(dirname "$0")" && pwd)
cache=${THOLE_VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thole-vm}
out=$cache/$(cat "$here/image.sh" "$here"/guest/* | sha256sum | cut -c1-16)
[ ! -e "$out/root.ext4" ] || { echo "$out"; exit; }

work=$cache/making.$$
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/image"
root=$work/root

echo "making the test VM's root file system from Debian's packages, once, in $cache" >&2
# unpack OUT KERNEL=PACKAGE...: a hook of mmdebstrap, since it knows the tree's archive and keys.
cat >"$work/unpack" <<'EOF'
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
cd "$1"; shift
for k; do
	package=$(apt-cache depends "${k#*=}" | awk '/Depends:/ {print $2; exit}')
	apt-get -q download "$package"
	dpkg-deb -x "$package"_*.deb "${k%=*}"
	rm "$package"_*.deb
done
EOF
mkdir "$work/unpacked"
mmdebstrap --quiet --mode=root --variant=essential --include="usr-is-merged,$packages" \
	--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
	--aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
	--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
	--customize-hook="sh $work/unpack $work/unpacked $kernels" \
	bookworm "$root" >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; exit 1; }

# What a guest does at its start, and nothing by itself: tests start what they need.
chroot "$root" systemctl -q disable docker.service docker.socket containerd.service nginx.service \
	nftables.service conntrackd.service haproxy.service nfs-server.service rpcbind.service rpcbind.socket \
	nfs-client.target nfs-blkmap.service \
	unbound.service postgresql.service redis-server.service ssh.service chrony.service podman.socket podman.service podman-restart.service 2>/dev/null || true
rm -f "$root"/etc/systemd/system/timers.target.wants/*
install "$here/guest/run" "$root/usr/local/sbin/vm-run"
install "$here/guest/sh-init" "$root/usr/local/sbin/vm-sh-init"
install -m 644 "$here/guest/vm-test.service" "$root/etc/systemd/system/vm-test.service"
chroot "$root" systemctl -q enable vm-test.service
echo vm >"$root/etc/hostname"
printf '127.0.0.1 localhost vm\n::1 localhost\n' >"$root/etc/hosts"
chroot "$root" useradd -m -s /bin/bash -u 1000 alice
chroot "$root" useradd -m -s /bin/bash -u 1001 bob

# initrd NAME VERSION: a RAM disk that finds the root file system and goes there.
initrd() {
	r=$work/initrd-$1
	mkdir -p "$r/bin" "$r/dev" "$r/proc" "$r/sys" "$r/root" "$r/modules"
	cp "$(command -v busybox)" "$r/bin/busybox"
	install "$here/guest/initrd-init" "$r/init"
	for module in virtio_pci virtio_blk; do
		chroot "$root" modprobe -S "$2" --show-depends "$module" | awk '$1 == "insmod" {print $2}'
	done | awk '!seen[$0]++' | while read -r file; do
		name=$(basename "${file%.xz}")
		case $file in *.xz) busybox xzcat "$root$file" ;; *) cat "$root$file" ;; esac >"$r/modules/$name"
		echo "/modules/$name" >>"$r/modules/list"
	done
	(cd "$r" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$work/image/$1/initrd"
}
for k in $kernels; do
	name=${k%=*}
	tree=$work/unpacked/$name
	version=$(basename "$tree"/boot/vmlinuz-* | sed s/vmlinuz-//)
	mkdir "$work/image/$name"
	cp "$tree"/boot/vmlinuz-* "$work/image/$name/vmlinuz"
	mkdir -p "$root/usr/lib/modules"
	mv "$tree"/*lib/modules/"$version" "$root/usr/lib/modules/" # /lib, or /usr/lib in what Debian makes later
	chroot "$root" depmod "$version"
	initrd "$name" "$version"
done

mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0 -m 0 -L root -d "$root" "$work/image/root.ext4" 3G
find "$cache" -mindepth 1 -maxdepth 1 ! -path "$work" -exec rm -rf {} +
mv "$work/image" "$out"
echo "$out"
