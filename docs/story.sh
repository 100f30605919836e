#!/bin/bash
# story.sh THOLE: the story of the README as a terminal session, on this machine's kernel but in namespaces of its
# own: own network, own mounts, own cgroup root. Nothing outside them is touched; nothing stays. Each step prints
# what is typed, what is expected and what happened. Exit status 0 only if all that was expected happened.
set -uo pipefail

if [ "${1:-}" != --inside ]; then
  thole=$(readlink -f "${1:-bin/thole}")
  [ -x "$thole" ] || { echo "story: no program $thole: run make build" >&2; exit 1; }
  [ "$(id -u)" = 0 ] || { echo "story: making namespaces needs root" >&2; exit 1; }
  root=$(awk '/ - cgroup2 / && $4 == "/" { print $5; exit }' /proc/self/mountinfo)
  [ -n "$root" ] || { echo "story: no cgroup v2 is mounted" >&2; exit 1; }
  cg=$root/thole-story-$$
  mkdir "$cg" || exit 1
  cleanup() { # ends what is in our own cgroup, and nothing else
    echo 1 >"$cg/cgroup.kill"
    for _ in $(seq 200); do grep -q 'populated 0' "$cg/cgroup.events" && break; sleep 0.02; done
    find "$cg" -depth -type d -exec rmdir {} \;
  }
  trap cleanup EXIT
  ( echo $BASHPID >"$cg/cgroup.procs"
    exec unshare --net --mount --cgroup --propagation private "$0" --inside "$thole" )
  exit
fi

# ---- inside ------------------------------------------------------------------------------------------------------
thole_binary=$2
umount -R -l /sys/fs/cgroup 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
mount -t tmpfs none /var/lib
mount -t tmpfs none /etc/nginx     # a small nginx of our own
mkdir -p /run/bin /var/lib/nginx
ln -s "$thole_binary" /run/bin/thole
PATH=/run/bin:$PATH
ip link set lo up
ip addr add 192.0.2.1/32 dev lo    # the node's own address

site() { # site PORT: a configuration of nginx
  printf 'pid /run/nginx-%s.pid; error_log stderr; events {}\nhttp { access_log off; server { listen %s; listen [::]:%s; return 200 "hello from port %s\\n"; } }\n' "$1" "$1" "$1" "$1" >"/etc/nginx/$1.conf"
}
site 80; site 8080; site 8081

failed=0
started=()
type_() { printf '\n\e[1m# %s\e[0m\n' "$1" | { if [ -t 1 ]; then cat; else sed 's/\x1b\[[0-9]*m//g'; fi; }; }
# show COMMAND…: prints it as it would be typed.
show() {
  local word line='$'
  for word in "$@"; do
    case $word in "&") line+=" &" ;; *[\ \;\&\(\[]*) line+=" '$word'" ;; *) line+=" $word" ;; esac
  done
  printf '%s\n' "$line"
}

# expect succeeds|fails COMMAND…: runs it and holds it against the expectation.
expect() {
  local want=$1 out status began took; shift
  show "$@"
  began=$(date +%s%N)
  out=$("$@" 2>&1); status=$?
  took=$(( ($(date +%s%N) - began) / 1000000 ))
  [ -z "$out" ] || printf '%s\n' "$out"
  local got=succeeds; [ $status = 0 ] || got=fails
  if [ $got = "$want" ] && [ $took -lt 5000 ]; then
    echo "  ok: expected that it $want; it did, in $took ms"
  else
    echo "  WRONG: expected that it $want; status $status after $took ms"; failed=$((failed + 1))
  fi
}

# in_background COMMAND…: starts a server.
in_background() {
  show "$@" "&"
  "$@" >"/run/out-${#started[@]}" 2>&1 &
  started+=($!)
}

# until_true COMMAND…: waits, at most 10 s.
until_true() {
  for _ in $(seq 500); do "$@" >/dev/null 2>&1 && return; sleep 0.02; done
  echo "story: waited 10 s in vain for: $*" >&2; tail -n 5 /run/out-* >&2; exit 1
}
listening() { ss -Hltn "sport = :$1" | grep -q .; }
curl_() { curl -s -S --max-time 5 "$@"; }

# engine starts a Docker engine of the machine's own packages in here: its state is on our /run, its bridge and its
# firewall rules are in our network. It fails where the machine has none.
engine() {
  local p
  for p in containerd dockerd runc busybox /usr/bin/docker; do command -v $p >/dev/null || return 1; done
  mkdir -p /run/containerd /sys/fs/cgroup/engine /sys/fs/cgroup/docker /etc/docker
  mount -t tmpfs none /etc/docker
  printf 'version = 2\nroot = "/run/containerd-data"\nstate = "/run/containerd"\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\naddress = "/run/containerd/containerd.sock"\n' >/run/containerd.toml
  in_engine containerd --config /run/containerd.toml
  in_engine dockerd --host unix:///run/docker.sock --containerd /run/containerd/containerd.sock --data-root /run/docker-data --exec-opt native.cgroupdriver=cgroupfs
  until_true docker version
  image
}
in_engine() { ( echo $BASHPID >/sys/fs/cgroup/engine/cgroup.procs; exec "$@" >"/run/$1.log" 2>&1 ) & }
docker() { /usr/bin/docker --host unix:///run/docker.sock "$@"; }

# image imports nginx and curl with their libraries: no registry is asked.
image() {
  local root=/run/image f
  mkdir -p $root/{bin,etc/nginx,var/lib/nginx,var/log/nginx,run,tmp}
  cp "$(command -v nginx)" "$(command -v curl)" $root/bin/
  cp /etc/nginx/8081.conf $root/etc/nginx/
  printf 'root:x:0:0::/:\nnobody:x:65534:65534::/:\n' >$root/etc/passwd; printf 'root:x:0:\nnogroup:x:65534:\n' >$root/etc/group
  for f in $(ldd $root/bin/nginx $root/bin/curl | grep -o '/[^ ]*\.so[^ ]*' | sort -u); do install -D "$f" "$root$f"; done
  tar -C $root -c . | docker import - story >/dev/null
}

type_ "1. Start the daemon. The built-in policy is in force: equal labels may connect to each other."
docker_host=off
if engine; then docker_host=unix:///run/docker.sock; else echo "(no Docker engine here: containers are left out)"; fi
in_background thole daemon --docker "$docker_host"
until_true thole status
expect succeeds thole status

type_ "2. A web server with the label app=nginx. It listens on every address of the machine, on port 80."
in_background thole run --label app=nginx nginx -c /etc/nginx/80.conf -g 'daemon off;'
until_true listening 80
expect succeeds thole get workloads

type_ "3. Unlabelled clients do not reach it: they are refused at once, on every address."
expect fails curl -s -S --max-time 5 http://127.0.0.1
expect fails curl -s -S --max-time 5 'http://[::1]'
expect fails curl -s -S --max-time 5 http://192.0.2.1

type_ "5. Clients with the same labels reach it."
expect succeeds thole run --label=app=nginx curl -- -s -S --max-time 5 http://127.0.0.1
expect succeeds thole run --label app=nginx -- curl -s -S --max-time 5 'http://[::1]'
expect succeeds thole run --label app=nginx -- curl -s -S --max-time 5 http://192.0.2.1
expect fails thole run --label app=web -- curl -s -S --max-time 5 http://127.0.0.1

type_ "6. A second server with other labels, and a shell: all commands in it have its labels."
in_background thole run --label app=web nginx -c /etc/nginx/8080.conf -g 'daemon off;'
until_true listening 8080
expect fails curl -s -S --max-time 5 http://127.0.0.1:8080
expect fails thole run --label app=nginx -- curl -s -S --max-time 5 http://127.0.0.1:8080
expect succeeds thole run --label app=web --name shell /bin/bash -c 'curl -s -S --max-time 5 http://127.0.0.1:8080 && (curl -s -S --max-time 5 http://127.0.0.1:8080)'
expect fails thole run --label app=web --name shell /bin/bash -c 'curl -s -S --max-time 5 http://127.0.0.1:80'

type_ "7. Nothing else on the host is affected."
in_background ncat -l -k 9000 --sh-exec 'echo unlabelled and free'
until_true listening 9000
expect succeeds ncat --recv-only 127.0.0.1 9000
expect succeeds nft -t list chain inet thole input

if [ $docker_host != off ]; then
type_ "2, 3, 4, 5 with containers: with --net=host they have no address of their own, and are isolated all the same."
expect succeeds docker run -d --net=host -l app=nginx --name nginx story nginx -c /etc/nginx/8081.conf -g 'daemon off;'
until_true listening 8081
expect succeeds docker inspect -f '{{.HostConfig.NetworkMode}}' nginx
expect fails curl -s -S --max-time 5 http://127.0.0.1:8081
expect succeeds docker run --rm -l app=nginx story curl -s -S --max-time 2 http://172.17.0.1:8081
expect fails docker run --rm -l app=other story curl -s -S --max-time 2 http://172.17.0.1:8081
expect fails docker run --rm story curl -s -S --max-time 2 http://172.17.0.1:8081
expect succeeds docker run --rm --net=host -l app=nginx story curl -s -S --max-time 2 http://127.0.0.1:8081
expect succeeds thole run --label=app=nginx curl -- -s -S --max-time 5 http://127.0.0.1:8081
expect succeeds thole get workloads
fi

type_ "8. A policy: app=web may connect to app=nginx on port 80."
cat >/run/allow.yaml <<'YAML'
apiVersion: thole/v1
kind: Policy
metadata: {name: nginx}
spec:
  selector: {matchLabels: {app: nginx}}
  ingress:
  - from: [{workloads: {matchLabels: {app: web}}}]
    ports: ["80/tcp"]
YAML
show cat /run/allow.yaml; cat /run/allow.yaml
expect succeeds thole apply -f /run/allow.yaml
expect succeeds thole run --label app=web -- curl -s -S --max-time 5 http://127.0.0.1
expect fails thole run --label app=db -- curl -s -S --max-time 5 http://127.0.0.1
expect fails curl -s -S --max-time 5 http://127.0.0.1

type_ "9. An invalid policy changes nothing."
sed 's/ingress/ingres/' /run/allow.yaml >/run/wrong.yaml
expect fails thole apply -f /run/wrong.yaml
expect fails curl -s -S --max-time 5 http://127.0.0.1

type_ "10. The daemon ends: the table stays in force. thole cleanup removes it."
show kill "${started[0]}"; kill "${started[0]}"; wait "${started[0]}" 2>/dev/null
expect fails curl -s -S --max-time 5 http://127.0.0.1
expect succeeds thole cleanup
expect succeeds curl -s -S --max-time 5 http://127.0.0.1

echo
[ $failed = 0 ] && echo "story: all held" || echo "story: $failed steps went wrong"
[ $failed = 0 ]
