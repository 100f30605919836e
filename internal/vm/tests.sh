#!/bin/sh
# tests.sh: in the VM, run what test.sh put into the directories here, each the tests of one package: ./NAME/test with the
# arguments in ./NAME/args.
modprobe -a tun || exit 125 # nobody makes its device else
failed=
for dir in */; do
	echo "== ${dir%/}"
	(cd "$dir" && ./test -test.v -test.timeout 60m $(cat args)) || failed="$failed ${dir%/}"
done
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
