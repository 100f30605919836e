#!/bin/sh
# tests.sh: in the VM, run what test.sh put into the directories here, each the tests of one package: ./NAME/test with the
# arguments in ./NAME/args.
modprobe -a tun || exit 125 # nobody makes its device else
# What tests make links of. Loaded amid them, a module once hung an emulated 6.1.
modprobe -a veth bridge vxlan ipip ip_gre ip6_gre sit wireguard || exit 125
failed=
for dir in */; do
	echo "== ${dir%/}"
	(cd "$dir" && ./test -test.v -test.timeout 60m $(cat args)) || failed="$failed ${dir%/}"
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
