# Everything a person runs from a fresh checkout. `make help` lists it.
.DEFAULT_GOAL := help
VM_PARTS := vm-module vm-scenarios
VM_MORE_PARTS := vm-more-scenarios vm-traffic vm-dkms
.PHONY: help setup demo test kmod test-vm vm-build $(VM_PARTS) test-vm-more $(VM_MORE_PARTS) test-vm-ebpf test-vm-debug model soak faults handovers proxies bench bench-vm bench-splice \
        lint fuzz clean libpcap install-libpcap uninstall-libpcap refresh-libpcap install-sockets uninstall-sockets
.DELETE_ON_ERROR:

# ip, tc, nft, bpftool and nginx are there, whatever PATH the caller came with.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

VENV := .venv
VM_KERNEL := linux-image-amd64
VM_TESTS := tests/datapath tests/netns/test_hold.py tests/netns/test_agent_chain.py
VM_KMOD_TESTS := tests/kmod tests/datapath tests/netns/test_kernel_datapath.py \
                 tests/netns/test_kernel_lan.py tests/netns/test_kernel_hold.py
VM_SCENARIOS := demo replace insert remove
VM_MORE := drain contend gateway process-move balance
VM := tests/vm/boot.py --kernel $(VM_KERNEL)
SCENARIOS := $(VENV)/bin/python tests/vm/scenarios.py
STAMP := $(VENV)/.m2m-installed
COMPILED := $(foreach kind,pyx pxd pxi,$(wildcard m2m/*.$(kind) m2m/*/*.$(kind))) \
    $(wildcard m2m/bpf/*.c m2m/bpf/*.h kmod/core/*.h m2m/datapath/*.h) \
    $(wildcard nf_adapters/*/*.pyx nf_adapters/*/*.h nf_adapters/sockets/preload.c)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## install what is missing (root), make .venv, build everything
	@.ci/install-packages

demo: setup ## run a service chain in a lab of network namespaces (root)
	@$(VENV)/bin/m2m-lab demo

test: setup ## run every test; those that cannot run say why
	@$(VENV)/bin/python -m pytest

kmod: ## build kmod/m2m.ko for Debian's kernels (in ~/.cache/m2m, nothing is installed)
	@kmod/build

# As many machines as there are processors, each with one part, the longest first; what it says comes when it
# is through.
SIDE_BY_SIDE = $(MAKE) --no-print-directory --keep-going --output-sync --jobs $$(nproc)
test-vm: setup ## run tests of the module, and the lab's scenarios with it, on VM_KERNEL, in virtual machines (root)
	@echo "$(words $(VM_PARTS)) machines, $$(nproc) at once: $(VM_PARTS)"
	@$(SIDE_BY_SIDE) $(VM_PARTS)

test-vm-more: setup ## more of both, and DKMS, which takes longer (root)
	@echo "$(words $(VM_MORE_PARTS)) machines, $$(nproc) at once: $(VM_MORE_PARTS)"
	@$(SIDE_BY_SIDE) $(VM_MORE_PARTS)

$(VM_PARTS) $(VM_MORE_PARTS): vm-build
vm-build: setup
	@kmod/build --headers $(VM_KERNEL:linux-image-%=linux-headers-%)

vm-scenarios: PLAYED = $(VM_SCENARIOS)
vm-more-scenarios: PLAYED = $(VM_MORE)
vm-scenarios vm-more-scenarios:
	@$(VM) --accel kvm:counted --time-limit 3600 -- tests/vm/with-module $(SCENARIOS) $(PLAYED)

vm-traffic: TESTS = $(filter tests/netns/%,$(VM_KMOD_TESTS))
vm-module: TESTS = $(filter-out tests/netns/%,$(VM_KMOD_TESTS))
vm-traffic vm-module:
	@$(VM) -- tests/vm/with-module $(VENV)/bin/python -m pytest --timeout 600 $(TESTS) -k kmod

# What runs in no kernel is the same on each.
test-vm-ebpf: setup ## run VM_TESTS, of the other datapath, on VM_KERNEL, in a virtual machine (root)
	@$(VM) -- $(VENV)/bin/python -m pytest --timeout 600 $(VM_TESTS) -k "not fake and not naming"

vm-dkms:
	@built=$$(tests/vm/dkms $(VM_KERNEL:linux-image-%=linux-headers-%)) && \
	    $(VM) -- env M2M_KMOD=$$built tests/vm/with-module true

# Which datapath is taken (test_choose) needs a kernel that has both.
test-vm-debug: setup ## the same for the module alone, on a kernel of its own that finds mistakes (root)
	@kernel=$$(tests/vm/debug-kernel) && \
	for tests in $(VM_KMOD_TESTS); do \
	    tests/vm/boot.py --time-limit 3600 --kernel $$kernel -- tests/vm/with-module \
	        $(VENV)/bin/python -m pytest --timeout 1200 $$tests -k "kmod and not choose" || exit 1; \
	done

model: setup ## prove the rules by which a live chain is changed, with spin
	@$(VENV)/bin/python -m tests.model.prove

soak: setup ## open and close 100 000 sessions through a chain; nothing may stay (root)
	@M2M_HEAVY=1 $(VENV)/bin/python -m pytest tests/netns/test_soak.py \
	    tests/unit/test_agent_sessions.py::test_many_sessions_leave_nothing

faults: setup ## kill agents at each step of a change of a chain, in every mode (root)
	@M2M_HEAVY=1 $(VENV)/bin/python -m pytest tests/netns/test_change_faults.py

handovers: setup ## 2 GB and an SSH session through 100 handovers (root)
	@M2M_HEAVY=1 $(VENV)/bin/python -m pytest tests/netns/test_handover.py

proxies: setup ## 500 clients at once through Squid with two workers, and other proxies (root)
	@M2M_HEAVY=1 $(VENV)/bin/python -m pytest tests/netns/test_real_proxies.py

libpcap: ## build the libpcap that shows supersessions, into ~/.cache/m2m
	@patches/libpcap/build

# ldconfig takes directories in the order of these files' names, and the system's own last.
install-libpcap: ## have every program of this host use it (root); uninstall-libpcap undoes it
	@built=$$(patches/libpcap/build) && install -d /usr/local/lib/m2m && \
	    install -m 644 $$built/libpcap.so.0.8 $$built/libpcap.so.1 /usr/local/lib/m2m
	@echo /usr/local/lib/m2m >/etc/ld.so.conf.d/000-m2m-libpcap.conf
	@ldconfig

uninstall-libpcap: ## programs use the system's libpcap again (root)
	@rm -rf /usr/local/lib/m2m /etc/ld.so.conf.d/000-m2m-libpcap.conf
	@ldconfig

# Only a library in the system's own folder with the set-uid bit is loaded into processes that have changed
# their user, as Squid's workers have (ld.so(8)). It cannot be executed.
SOCKETS := libm2m-sockets.so
SYSTEM_LIBRARIES = /usr/lib/$(shell gcc -print-multiarch)

install-sockets: setup ## have m2m-nf serve proxies whose workers change their user too (root)
	@install -m 4644 nf_adapters/sockets/$(SOCKETS) $(SYSTEM_LIBRARIES)/$(SOCKETS)

uninstall-sockets: ## take it out again (root); do so before proxies that use it are started anew
	@rm -f $(SYSTEM_LIBRARIES)/$(SOCKETS)

refresh-libpcap: ## write the patches anew for the release that is built; try Debian's newest
	@patches/libpcap/build --refresh
	@patches/libpcap/build --newest

bench: setup ## measure against plain forwarding (root)
	@$(VENV)/bin/m2m-lab bench

bench-vm: setup ## what the module costs, in a virtual machine: Figure 10, and forwarding beside plain (root)
	@kmod/build --headers $(VM_KERNEL:linux-image-%=linux-headers-%)
	@$(VENV)/bin/python tests/vm/costs.py --accel counted --kernel $(VM_KERNEL)
	@tests/vm/boot.py --accel counted --kernel $(VM_KERNEL) -- tests/vm/with-module \
	    $(VENV)/bin/m2m-lab bench --quick throughput

bench-splice: setup ## goodput after a proxy has left beside a path without one, in a virtual machine (root)
	@$(VM) --accel counted -- $(VENV)/bin/m2m-lab run proxy-removal

lint: setup ## check style, types and C headers
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@for header in $(wildcard kmod/core/*.h kmod/uapi/*.h m2m/datapath/*.h nf_adapters/*/*.h); do \
	    echo "#include \"$$header\"" | clang -fsyntax-only -Wall -Wextra -Werror -Ikmod -Im2m/datapath -I. \
	        -D_GNU_SOURCE -Wno-unused-function -xc - \
	        || exit 1; \
	done

fuzz: setup ## fuzz the translation core and the restoring of captures for FUZZ_SECONDS (600)
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(VENV)/bin/python -m pytest tests/core -k fuzz

clean: ## remove what was built, .venv included
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f m2m/_*.c m2m/_*.so m2m/*/_*.c m2m/*/_*.so m2m/bpf/*.o
	rm -f nf_adapters/*/_*.c nf_adapters/*/*.so
	find m2m nf_adapters tests -name __pycache__ -prune -exec rm -rf {} +

# Python sources are used in place, so only what is compiled makes a new installation necessary.
$(STAMP): pyproject.toml setup.py .ci/apt-packages .ci/install-packages $(COMPILED)
	@.ci/install-packages
	@/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "M2M needs Python 3.11 or newer; /usr/bin/python3 is " + sys.version.split()[0])'
	@test -x $(VENV)/bin/pip || /usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check --use-pep517 -e '.[test,bench,skb]'
	@touch $@
