# make            build bin/thole
# make test       install what tests need from Debian's packages, run everything but what is long by nature
# make demo       the story as a terminal session, in namespaces of its own
# make test-vm    the tests that want systemd, and those of traffic between nodes, in VMs with Debian's kernels
# make bench      what Thole costs, into the tables of docs/PERFORMANCE.md: on an idle machine, some 40 minutes
# make bench-local, bench-programs, bench-node   its parts: one's tables only, at most 15 minutes each
# make soak       a million random cases, and 5,000 through the kernel: some 7 minutes, at most 20
# make soak-long  the other long tests: some two hours
# make fuzz       a minute each of random policy files, tokens, statements, packets, ICMP errors, handshakes,
#                 grants, certificates and netlink messages
# make lint       gofmt, vet, staticcheck, errorlint
# make install    bin/thole, man pages, completion, systemd's units → $(PREFIX)

PREFIX  ?= /usr/local
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Debian packages of the tests and the demo. Nothing is started by their installation: policy-rc.d forbids it.
# A Docker engine that is there is never replaced.
PACKAGES = nftables iproute2 iptables util-linux curl iperf3 tshark nginx-light haproxy dnsmasq-base ncat conntrack procps busybox-static \
	unbound bind9-dnsutils postgresql redis-server openssh-server openssh-client chrony podman slirp4netns $(shell command -v dockerd >/dev/null || echo docker.io)

# What the virtual machines need beside these.
VM_PACKAGES = qemu-system-x86 mmdebstrap e2fsprogs

.PHONY: build test test-race test-vm demo bench bench-local bench-programs bench-node soak soak-long lint fuzz install packages clean

build:
	$(GO) build -trimpath -ldflags "-X main.version=$(VERSION)" -o bin/thole ./cmd/thole

packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing Debian packages for the tests:" $$missing; \
	  [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d && made=1; }; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  install="apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends"; \
	  $$install $$missing >/dev/null 2>&1 || { apt-get -o DPkg::Lock::Timeout=300 update -q >/dev/null && $$install $$missing >/dev/null; }; \
	  status=$$?; [ -z "$$made" ] || rm -f /usr/sbin/policy-rc.d; exit $$status; \
	fi

test: packages build
	THOLE_MUST=1 $(GO) test -p 1 -timeout 30m ./...

test-vm: PACKAGES += $(VM_PACKAGES)
test-vm: packages
	internal/vm/test.sh $(VM_KERNELS)

# Not the packages whose tests only drive programs: those are built without the detector.
test-race: packages
	THOLE_MUST=1 $(GO) test -p 1 -race $$($(GO) list ./... | grep -v -e /internal/e2e -e /internal/attack -e /internal/legit)

demo: packages build
	@docs/story.sh bin/thole

# Each part writes its own tables. The machine's table is from the last part.
BENCH = THOLE_MUST=1 $(GO) test -timeout 30m -run '^$$' -benchtime 1x
FIGURES = $(GO) run ./internal/figures docs/PERFORMANCE.md

bench: bench-local bench-programs bench-node

bench-local: packages
	$(BENCH) -bench 'Connect|Traffic' ./internal/bench | $(FIGURES) connect steps traffic

bench-programs: packages
	$(BENCH) -bench Programs ./internal/bench | $(FIGURES) programs

bench-node: packages
	$(BENCH) -bench . ./internal/e2e | $(FIGURES) fleet syn flooded scale scale-cpu scale-ratio daemon

soak: packages
	THOLE_MUST=1 $(GO) test -timeout 20m -run Agree ./compiler -args -cases 1000000
	THOLE_MUST=1 $(GO) test -timeout 20m -run Agree ./internal/e2e -args -samples 5000

soak-long: packages
	THOLE_MUST=1 $(GO) test -timeout 60m -run 'Containers(AreKnown|ThatSend|AreNever)|DockerFails|Restarts' ./internal/e2e -args -starts 200 -restarts 1000 -away 1m
	THOLE_MUST=1 $(GO) test -timeout 20m -count 1 -v -run PodmanContainersAreKnown ./internal/e2e -args -podman-starts 100
	THOLE_MUST=1 $(GO) test -timeout 20m -count 1 -v -run SilentConnectionsOfOneUser ./internal/e2e -args -silent 40
	THOLE_MUST=1 $(GO) test -timeout 30m -count 1 -v -run UserAtAllLimits ./internal/e2e -args -greedy 20
	THOLE_MUST=1 $(GO) test -timeout 20m -count 1 -v -run RevocationUnderTraffic ./internal/e2e -args -connections 10000
	THOLE_MUST=1 $(GO) test -timeout 20m -count 1 -v -run KilledAtRandom ./internal/daemon -args -kills 300
	THOLE_MUST=1 $(GO) test -timeout 20m -count 1 -v -run 'Chaos|MendedSoon' ./internal/daemon -args -chaos 10m -flushes 500 -soon 100ms
	THOLE_MUST=1 $(GO) test -timeout 30m -count 1 -v -run Mixes ./internal/daemon -args -mixes 10000
	$(GO) test -timeout 20m -run Explore ./datapath/handshake -args -deep

# FUZZTIME=1h make fuzz: an hour each
FUZZTIME ?= 60s
FUZZ = compiler/policy:FuzzParse compiler/policy:FuzzWords datapath/token:FuzzToken datapath/token:FuzzStatement \
	datapath/packet:FuzzPacket datapath/packet:FuzzQuote datapath/pki:FuzzGrants datapath/pki:FuzzVerify \
	datapath/handshake:FuzzStep internal/nlmsg:FuzzAttributes internal/nlmsg:FuzzMessages
fuzz:
	@for f in $(FUZZ); do \
	  echo "== $$f"; $(GO) test -run '^$$' -fuzz "^$${f#*:}\$$" -fuzztime $(FUZZTIME) ./$${f%:*} || exit 1; \
	done

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "make lint: run gofmt -w"; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags vm ./internal/vm
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 -tags vm ./...
	$(GO) run github.com/polyfloyd/go-errorlint@v1.8.0 ./...

install: build
	install -D bin/thole $(DESTDIR)$(PREFIX)/bin/thole
	bin/thole man $(DESTDIR)$(PREFIX)/share/man/man1
	mkdir -p $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	bin/thole completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/thole
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system packaging/systemd/*.slice
	sed 's,/usr/local/,$(PREFIX)/,' packaging/systemd/thole.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/thole.service

clean:
	rm -rf bin
