# Everything a person runs from a fresh checkout. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup demo test bench lint fuzz clean
.DELETE_ON_ERROR:

# ip, tc, nft, bpftool and nginx are there, whatever PATH the caller came with.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

VENV := .venv
STAMP := $(VENV)/.m2m-installed
COMPILED := $(wildcard m2m/datapath/*.pyx m2m/datapath/*.pxd m2m/bpf/*.c m2m/bpf/*.h \
                       kmod/core/*.h m2m/datapath/*.h)

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(STAMP) ## install what is missing (root), make .venv, build everything
	@.ci/install-packages

demo: setup ## run a service chain in a lab of network namespaces (root)
	@$(VENV)/bin/m2m-lab demo

test: setup ## run every test; those that cannot run say why
	@$(VENV)/bin/python -m pytest

bench: setup ## measure against plain forwarding (root)
	@$(VENV)/bin/m2m-lab bench

lint: setup ## check style, types and C headers
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@for header in $(wildcard kmod/core/*.h m2m/datapath/*.h); do \
	    echo "#include \"$$header\"" | clang -fsyntax-only -Wall -Wextra -Werror -Ikmod -I. -xc - \
	        || exit 1; \
	done

fuzz: setup ## fuzz the translation core for FUZZ_SECONDS (600)
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-600} $(VENV)/bin/python -m pytest tests/core -k fuzz

clean: ## remove what was built, .venv included
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f m2m/datapath/_*.c m2m/datapath/_*.so m2m/bpf/*.o
	find m2m tests -name __pycache__ -prune -exec rm -rf {} +

# Python sources are used in place, so only what is compiled makes a new installation necessary.
$(STAMP): pyproject.toml setup.py .ci/apt-packages .ci/install-packages $(COMPILED)
	@.ci/install-packages
	@/usr/bin/python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "M2M needs Python 3.11 or newer; /usr/bin/python3 is " + sys.version.split()[0])'
	@test -x $(VENV)/bin/pip || /usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@
