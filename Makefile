# Every target sets up its own virtual environment in .venv when there is none; needs only Python 3.11+ and a C compiler.
# `make help` prints the targets: the text after two number signs behind each.
#
#   make test PYTHON=python3.13                     another interpreter, in an environment of its own (.venv-python3.13)
#   make test WITH="torch==2.13.0"                  packages to install besides, so that the tests that need them run
#   make test ARGS="-k sampler -x"                  arguments for pytest
#   make test JOBS=0                                in one process, as --pdb needs it

PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
WITH ?=
ARGS ?=
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Install the requirements of an extra, from a file, as they have spaces; the extra itself would compile everything again.
define install_extra
	$(BIN)/python -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' $(1) > $(VENV)/$(1).txt
	$(PIP) install -r $(VENV)/$(1).txt $(2)
endef

# The suite is in two processes, as the machines it is for have two cores; whoever has done takes of what the other has left.
IN_PROCESSES := --numprocesses $(JOBS) --dist worksteal

SOURCES := $(shell find annbatch -name '*.pyx' -o -name '*.pxd' -o -name '*.h')

# A copy of the sources without what was compiled.
define in_copy
	rm -rf $(VENV)/$(1) && mkdir $(VENV)/$(1)
	cp -r .ci setup.py pyproject.toml README.md CHANGELOG.md CONTRIBUTING.md licenses annbatch tests benchmarks docs $(VENV)/$(1)/
	find $(VENV)/$(1)/annbatch \( -name '*.so' -o -name '*.c' \) -delete
endef

.DEFAULT_GOAL := help
.PHONY: demo test test-slow test-debug sanitize lint format bench bench-quick versus compare docs test-integration clean help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/built  ## build a collection from real cells, train a classifier on it, show what came out
	$(BIN)/annbatch demo $(ARGS)

test: $(VENV)/test  ## the tests, without those marked slow: under six minutes on two cores
	$(BIN)/python -m pytest -m "not slow" $(IN_PROCESSES) $(ARGS)

test-slow: $(VENV)/test  ## long statistical and stress tests: damage, kills, ranks, full disks
	$(BIN)/python -m pytest -m slow $(ARGS)

# The same tests with bounds checks on, in a copy of the sources, so that the modules that were built here stay as they are.
test-debug: $(VENV)/test  ## the tests with bounds checks on in the kernels
	$(call in_copy,debug)
	cd $(VENV)/debug && export ANNBATCH_CYTHON_DEBUG=1 PYTHONPATH="$(CURDIR)/$(VENV)/debug" && \
	../bin/python setup.py --quiet build_ext --inplace && ../bin/python -m pytest -m "not slow" $(IN_PROCESSES) -p no:cacheprovider $(ARGS)

lint: $(VENV)/dev $(VENV)/test  ## ruff, cython-lint, mypy, codespell, the order of imports: what every change must pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint annbatch
	$(BIN)/mypy
	$(BIN)/codespell annbatch tests benchmarks docs README.md CHANGELOG.md
	$(BIN)/python -m pytest -q tests/test_house.py

# Without network: whatever the pages need is in the checkout. A dead link inside is an error.
docs: $(VENV)/docs  ## the documentation site, in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html $(ARGS)

# scvi-tools in an environment of its own; its current release needs Python 3.12: make test-integration PYTHON=python3.12
test-integration: $(VENV)/built  ## scvi-tools, unmodified, over our files (PYTHON=python3.12 or later)
	$(call install_extra,test)
	$(call install_extra,scvi)
	$(BIN)/python -m pytest tests/integration/test_scvi.py $(ARGS)

format: $(VENV)/dev  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench  ## the asv suites
	cd benchmarks && ../$(BIN)/asv machine --yes && ASV_PYTHONPATH=$(CURDIR) ../$(BIN)/asv run --python=same --set-commit-hash $$(git rev-parse HEAD) $(ARGS)

# Each benchmark once, on small data, to see that it still runs.
bench-quick: $(VENV)/bench  ## each benchmark once, on small data, to see that it still runs
	$(BIN)/python -m benchmarks.quick $(ARGS)

# Side by side with other loaders, each in an environment of its own. Needs Python 3.12 (for the others), half an hour, and
# torch: make versus WITH="torch==2.13.0" ARGS="--python python3.12"
versus: $(VENV)/bench $(VENV)/test  ## side by side with other loaders: data, runs, table and plot (half an hour)
	$(BIN)/python -m benchmarks.versus --out docs/versus --write README.md --write docs/performance.md $(ARGS)

# Needs Python 3.12 for the others, ten minutes when their environments are made, and torch for none of ours.
compare: $(VENV)/bench  ## every loader that could be had on one task: speed, memory, shuffle quality (ten minutes)
	$(BIN)/python -m benchmarks.versus.public --out docs/comparison --write docs/comparison.md $(ARGS)

# The tests of kernels and storage under the address and undefined-behaviour sanitizers, in a copy, too. What they find ends
# pytest at once, so their words must not be captured with its output.
sanitize: $(VENV)/test  ## tests of kernels and storage under the address and undefined-behaviour sanitizers
	$(call in_copy,sanitize)
	cd $(VENV)/sanitize && export ANNBATCH_CYTHON_DEBUG=1 ANNBATCH_SANITIZE=1 PYTHONPATH="$(CURDIR)/$(VENV)/sanitize" && \
	../bin/python setup.py --quiet build_ext --inplace && \
	LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	../bin/python -m pytest -q -p no:cacheprovider --capture=sys tests/samplers/test_rle.py tests/storage $(ARGS)

$(VENV)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or later, or pass PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; pass PYTHON=/path/to/python3.11 or later" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "error: no C compiler found; install one (Debian: apt-get install build-essential; macOS: xcode-select --install)" >&2; exit 1; }
	@$(PYTHON) -c 'import sysconfig, pathlib, sys; sys.exit(not (pathlib.Path(sysconfig.get_paths()["include"]) / "Python.h").exists())' || { echo "error: the C headers of $(PYTHON) are missing (Debian: apt-get install python3-dev)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip
	$(PIP) install "setuptools>=77" "Cython>=3.1" "numpy>=2" wheel
	@$(PIP) install "blosc2>=4" || echo "no blosc2 wheel for this platform: its codecs will be decoded through numcodecs"
	touch $@

# Editable, without build isolation: what was compiled is what the checked-out sources say.
$(VENV)/built: $(VENV)/python pyproject.toml setup.py $(SOURCES)
	$(PIP) install --no-build-isolation --editable .
	touch $@

$(VENV)/test: $(VENV)/built
	$(call install_extra,test,$(WITH))
	touch $@

$(VENV)/dev: $(VENV)/built
	$(call install_extra,dev)
	touch $@

$(VENV)/docs: $(VENV)/built
	$(call install_extra,docs)
	touch $@

$(VENV)/bench: $(VENV)/built
	$(call install_extra,bench)
	touch $@

clean:  ## remove everything that was built here
	rm -rf .venv* build dist docs/_build *.egg-info
	find annbatch \( -name "*.so" -o -name "*.c" \) -delete
