# make demo    the main job, shown
# make test    the whole ladder of tests
# make bench   against the kernel's loop, kublk and qemu-nbd
# make help    the rest

GO      ?= go
# Names of hack/vm: the oldest that README promises, and the newest there is; or series.
KERNELS ?= oldest newest
GOFLAGS := -buildvcs=false
export GOFLAGS

.PHONY: all build failpoints install uninstall setup demo test lint unit race single fuzz vm boot soak bench clean help
all: build

help:
	@echo 'build  bin/holdfast and bin/holdfast-serve'
	@echo 'install, uninstall  the program, its units and rules, below DESTDIR and PREFIX ($(PREFIX))'
	@echo 'setup  install the Debian packages that demo, test and bench use (root)'
	@echo 'demo   serve an image, keep a file system on it, check everything'
	@echo 'test   $(RUNGS): under 15 minutes on two processors'
	@echo 'lint   gofmt, go vet, staticcheck'
	@echo 'unit   go test ./..., rootless and fast'
	@echo 'race   the same under the race detector'
	@echo 'single the same, of what runs side by side, with GOMAXPROCS=1'
	@echo 'fuzz   a burst of each fuzz target (FUZZTIME=$(FUZZTIME))'
	@echo 'vm     the driver and the devices on real kernels (KERNELS="$(KERNELS)")'
	@echo 'boot   systemd as process 1: kill the manager and servers, shut down, boot again (KERNELS="$(KERNELS)")'
	@echo 'soak   the whole story, ROUNDS=$(ROUNDS) times: GlusterFS dies below a target; the server'
	@echo '       killed KILLS=$(KILLS) times under load (KERNELS="$(KERNELS)")'
	@echo 'bench  benchmarks, native and in a VM; results in build/bench'

# CGO stays off: one static binary, and process-wide prctl needs it so.
build:
	CGO_ENABLED=0 $(GO) build -o bin/holdfast ./cmd/holdfast
	CGO_ENABLED=0 $(GO) build -o bin/holdfast-serve ./cmd/holdfast-serve

# Units name the program by its path. Nothing is started: see docs/systemd.md.
DESTDIR ?=
PREFIX  ?= /usr/local
SBINDIR ?= $(PREFIX)/sbin
LIBDIR  ?= $(PREFIX)/lib
DOCDIR  ?= $(PREFIX)/share/doc/holdfast
UNITS    = holdfast.service holdfast.socket holdfast-device@.service holdfast.target holdfast.slice holdfast-shutdown.service
WANTED   = $(LIBDIR)/systemd/system/shutdown.target.wants/holdfast-shutdown.service
INSTALLED = $(SBINDIR)/holdfast $(SBINDIR)/holdfast-serve $(UNITS:%=$(LIBDIR)/systemd/system/%) $(WANTED) $(LIBDIR)/udev/rules.d/59-holdfast.rules \
	$(LIBDIR)/modules-load.d/holdfast.conf $(LIBDIR)/modprobe.d/holdfast.conf \
	$(PREFIX)/share/bash-completion/completions/holdfast $(PREFIX)/share/zsh/site-functions/_holdfast
NAMED = sed 's|/usr/local/sbin/|$(SBINDIR)/|g; s|/usr/local/share/doc/holdfast|$(DOCDIR)|g'
PUT = install -D -m 644 /dev/stdin
install: build
	install -D -m 755 bin/holdfast $(DESTDIR)$(SBINDIR)/holdfast
	install -D -m 755 bin/holdfast-serve $(DESTDIR)$(SBINDIR)/holdfast-serve
	for u in $(UNITS); do $(NAMED) systemd/$$u | $(PUT) $(DESTDIR)$(LIBDIR)/systemd/system/$$u || exit 1; done
	install -d $(DESTDIR)$(dir $(WANTED))
	ln -sf ../$(notdir $(WANTED)) $(DESTDIR)$(WANTED)
	$(NAMED) systemd/59-holdfast.rules | $(PUT) $(DESTDIR)$(LIBDIR)/udev/rules.d/59-holdfast.rules
	$(PUT) <systemd/modules-load.conf $(DESTDIR)$(LIBDIR)/modules-load.d/holdfast.conf
	$(PUT) <systemd/modprobe.conf $(DESTDIR)$(LIBDIR)/modprobe.d/holdfast.conf
	bin/holdfast completion bash | $(PUT) $(DESTDIR)$(PREFIX)/share/bash-completion/completions/holdfast
	bin/holdfast completion zsh | $(PUT) $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_holdfast
	install -d $(DESTDIR)$(DOCDIR)
	install -m 644 README.md LICENSE docs/*.md $(DESTDIR)$(DOCDIR)

# Devices, records and settings stay.
uninstall:
	rm -f $(INSTALLED:%=$(DESTDIR)%)
	rm -rf $(DESTDIR)$(DOCDIR)

PACKAGES = $(shell sed 's/\#.*//' hack/packages hack/vm/packages)
setup:
	@missing=; for p in $(PACKAGES); do \
		dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
		apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; fi

# On a kernel with ublk here, else in a VM that has one.
demo: setup build
	@if [ -e /dev/ublk-control ] || modprobe ublk_drv 2>/dev/null; then \
		hack/demo/demo.sh; \
	else \
		echo 'This kernel has no ublk: the demo runs in a VM.'; \
		$(GO) run ./hack/vm -- hack/demo/demo.sh; \
	fi

# The ladder. What runs natively waits now and then, so two rungs run at a time; the guests of
# vm take both processors. At the end stands what took how long, and last what a failure is about.
NATIVE = race unit lint fuzz single
RUNGS  = $(NATIVE) vm
test: SHELL = /bin/bash
test: setup
	@rm -rf build/rungs; mkdir -p build/rungs; \
	$(MAKE) --no-print-directory -j2 $(NATIVE:%=rung-%) && $(MAKE) --no-print-directory rung-vm; code=$$?; \
	echo; for r in $(RUNGS); do \
		if read -r took failed 2>/dev/null <build/rungs/$$r; then \
			case $$failed in 0) word=ok;; *) word=FAILED;; esac; printf '%-7s %5d s  %s\n' $$r $$took $$word; fi; done; \
	printf '%-7s %5d s\n' 'in all' $$SECONDS; \
	for r in $(RUNGS); do \
		if read -r took failed 2>/dev/null <build/rungs/$$r && [ $$failed != 0 ]; then \
			printf '\n%s:\n' "$$r failed"; case $$r in \
			vm) tail -n 21;; \
			*) grep -E -e '--- FAIL|^FAIL|^panic: |DATA RACE|_test\.go:[0-9]+: |running tests:|^\s+Test\S+ \(|^[^ ]+\.go:[0-9]+:[0-9]+: |Error [0-9]+$$' | tail -n 18;; \
			esac <build/rungs/$$r.log; fi; done; exit $$code
rung-%: SHELL = /bin/bash
rung-%: .SHELLFLAGS = -o pipefail -c
rung-%:
	@$(MAKE) --no-print-directory $* 2>&1 | tee build/rungs/$*.log | sed -u 's/^/$*: /'; code=$$?; \
	echo "$$SECONDS $$code" >build/rungs/$*; exit $$code

lint:
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "gofmt: $$files"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

# For what hangs: a slow machine is given its time.
PATIENT = -timeout 30m
unit:
	HOLDFAST_TOOLS=required $(GO) test $(PATIENT) ./...

race:
	CGO_ENABLED=1 $(GO) test $(PATIENT) -race -short ./...

single:
	GOMAXPROCS=1 $(GO) test $(PATIENT) -short ./ploop/... ./ublk/... ./standby ./server/... ./state ./sysfs ./manager/...

# A number of runs, not a time: the fuzzer may fail by its own deadline. make soak has more.
FUZZTIME ?= 5000x
fuzz:
	@for p in $$($(GO) list ./...); do \
		for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
			$(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p || exit 1; \
		done; \
	done

# The same program with places to die at: internal/failpoint.
failpoints:
	CGO_ENABLED=0 $(GO) build -tags failpoints -o bin/holdfast-failpoints ./cmd/holdfast
	CGO_ENABLED=0 $(GO) build -tags failpoints -o bin/holdfast-serve-failpoints ./cmd/holdfast-serve

# To save time most cases run on one kernel or the other (HOLDFAST_CASES), and what make unit can
# test as well on none; make soak has all on all. The kernels run side by side, and what needs no two queues with
# one processor: two that are emulated hold each other up when they have to share one. Time is up when no
# test begins or ends any more, and not when the machine is slow.
DRIVER    = ./ublk/... ./server/device
OTHERS    = ./cmd/holdfast ./sysfs/fusefs ./hack/faultfs
CASES_oldest = odd
CASES_newest = even
TESTS     = $(patsubst %,-test %,$(1))
VM_oldest = '-cpus 2 $(call TESTS,./ublk ./ublk/uring ./server/device ./hack/kill ./hack/powercut)' '-cpus 1 $(call TESTS,./cmd/holdfast)'
VM_newest = '-cpus 1 $(call TESTS,./server/device)' '-cpus 2 $(call TESTS,./ublk/... ./hack/kill ./hack/powercut ./hack/story)'
VM_OTHER  = '-cpus 2 $(call TESTS,$(DRIVER) ./hack/kill ./hack/powercut)'
vm: build failpoints
	@mkdir -p build; $(MAKE) --no-print-directory -k -j $(KERNELS:%=vm-%) || { \
		for k in $(KERNELS); do if [ -e build/vm-$$k.failed ]; then tail -n 18 build/vm-$$k.log; fi; done; exit 1; }
vm-%: SHELL = /bin/bash
vm-%: .SHELLFLAGS = -o pipefail -c
vm-%:
	@rm -f build/vm-$*.failed; for a in $(or $(VM_$*),$(VM_OTHER)); do \
		$(GO) run ./hack/vm -kernel $* -env HOLDFAST_CASES=$(CASES_$*) -timeout 40m -stall 10m $$a -- -test.short || exit 1; \
	done 2>&1 | while IFS= read -r l; do printf '%s %4ds  %s\n' $* $$SECONDS "$$l"; done | tee build/vm-$*.log || \
	{ touch build/vm-$*.failed; exit 1; }

# systemd as process 1, our units, reboots.
boot: setup build
	@for k in $(KERNELS); do \
		echo "=== Linux $$k"; \
		for e in '' HOLDFAST_BOOT_CONTROL=1; do \
			$(GO) run ./hack/vm -kernel $$k -timeout 15m -systemd -disk 2G -disk 2G $${e:+-env $$e} -test ./hack/boot || exit 1; \
		done; \
	done

# The scenario of hack/story, many times and in all its variants, and hack/kill at length.
ROUNDS ?= 10
KILLS  ?= 240
SOAKKILL = HOLDFAST_KILLS=$(KILLS) HOLDFAST_VARIANT_KILLS=20 HOLDFAST_DEVICES=64 HOLDFAST_UPGRADES=50 HOLDFAST_STOP=60 \
	HOLDFAST_MANAGER_KILLS=1000 HOLDFAST_MANAGER_DEVICES=8 HOLDFAST_ROLLS=20 HOLDFAST_ROLL_DEVICES=8 HOLDFAST_COST_DEVICES=100 HOLDFAST_OLD_BINARY=$(abspath $(OLD))
# The daemon before devices had servers of their own: what crosses over from it, and what it can't do.
OLDCOMMIT = e9f92d4
OLD       = build/holdfast-$(OLDCOMMIT)
$(OLD):
	rm -rf build/old && mkdir -p build/old && git archive $(OLDCOMMIT) | tar -x -C build/old
	cd build/old && CGO_ENABLED=0 $(GO) build -buildvcs=false -o $(abspath $(OLD)) ./cmd/holdfast
	rm -rf build/old
soak: setup build failpoints $(OLD) boot
	$(MAKE) fuzz FUZZTIME=20000x
	HOLDFAST_POWERCUT_SEEDS=1000 HOLDFAST_FAULT_MATRIX=full $(GO) test -timeout 60m ./ploop/stack
	@for k in $(KERNELS); do \
		echo "=== Linux $$k"; \
		$(GO) run ./hack/vm -kernel $$k -timeout 30m $(call TESTS,$(DRIVER) $(OTHERS)) || exit 1; \
		$(GO) run ./hack/vm -kernel $$k -timeout 60m -env HOLDFAST_CUTS=100 -test ./hack/powercut || exit 1; \
		$(GO) run ./hack/vm -kernel $$k -timeout 20m -tags failpoints -env HOLDFAST_FAILSWITCH=no-durable-room -test ./hack/powercut || exit 1; \
		$(GO) run ./hack/vm -kernel $$k -timeout 40m -env HOLDFAST_ROUNDS=$(ROUNDS) -test ./hack/story || exit 1; \
		$(GO) run ./hack/vm -kernel $$k -timeout 90m $(SOAKKILL:%=-env %) -test ./hack/kill || exit 1; \
	done

bench: setup build
	$(GO) run ./hack/bench native
	$(GO) run ./hack/bench vm

clean:
	rm -rf bin build
