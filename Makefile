# Everything is set up inside the checkout: .venv holds mmwal as a user would install it, for the demo; .venv-dev holds
# an editable installation with the tools, for tests and checks. Both are brought up to date only when something they
# were made from has changed. Without a C compiler everything works the same, on the pure-Python kernel.

# The interpreter: the first of these that runs, is new enough and can make a virtual environment.
ifndef PYTHON
PYTHON := $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)
endif

USER_ENV := .venv
DEV_ENV := .venv-dev
DEV := $(DEV_ENV)/bin
PIP := bin/python -m pip -qq --disable-pip-version-check

BUILD_FILES := pyproject.toml setup.py $(shell find mmwal -name '*.[ch]')
PACKAGE_FILES := $(shell find mmwal -type f ! -name '*.so' ! -path '*/__pycache__/*')

# The quick suite on two cores; PYTEST_ARGS="-k torn -x" and the like are passed on.
PYTEST := $(DEV)/pytest -q -n 2 --dist worksteal $(PYTEST_ARGS)

.PHONY: help demo test test-slow lint format sanitize reliability reliability-long bench-smoke clean FORCE
.DELETE_ON_ERROR:

help:
	@echo "make demo         install mmwal into .venv and run the demo: load, kill, recover, search"
	@echo "make test         the quick test suite, on two processes"
	@echo "make test-slow    the tests marked slow"
	@echo "make lint         ruff and mypy --strict"
	@echo "make format       let ruff rewrite what it can"
	@echo "make sanitize     the kernel under the address, undefined-behaviour and thread sanitizers"
	@echo "make reliability  the reliability scoreboard, in 20 minutes; reliability-long MINUTES=60 does more of the same"
	@echo "make bench-smoke  benchmarks, small, to see that they run"
	@echo "make clean        remove the environments and everything that was built"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter (now: $(or $(PYTHON),none found)); MMWAL_PURE=1 builds no extension."

# PYTHONSAFEPATH: the demo and its child process use what was installed, not the mmwal folder they are started beside.
demo: $(USER_ENV)/installed
	@PYTHONSAFEPATH=1 $(USER_ENV)/bin/mmwal demo $(DEMO_ARGS)

test: $(DEV_ENV)/installed
	@$(DEV)/python -c "import mmwal; print('kernel in use:', mmwal.kernel_in_use())"
	@$(PYTEST) -m "not slow"

test-slow: $(DEV_ENV)/installed
	@$(PYTEST) -m slow

lint: $(DEV_ENV)/installed
	$(DEV)/ruff check --quiet --output-format concise .
	$(DEV)/ruff format --check --quiet --output-format concise .
	$(DEV)/mypy --strict mmwal

format: $(DEV_ENV)/installed
	$(DEV)/ruff check --fix .
	$(DEV)/ruff format .

sanitize: $(DEV_ENV)/installed
	@PYTHON=$(CURDIR)/$(DEV)/python tools/sanitize.sh

# Temporary files go to this checkout's disk, not to one in memory; the figures to .make/reliability.json.
reliability reliability-long: MINUTES ?= $(if $(filter reliability,$@),18,60)
reliability reliability-long: $(DEV_ENV)/installed
	@$(DEV)/python tools/reliability.py --minutes $(MINUTES) --dir .make --json .make/reliability.json $(RELIABILITY_ARGS)

bench-smoke: $(DEV_ENV)/installed
	@$(DEV)/python benchmarks/append.py --smoke
	@$(DEV)/python benchmarks/commit.py --smoke
	@$(DEV)/python benchmarks/overhead.py --smoke
	@$(DEV)/python benchmarks/opening.py --smoke

clean:
	rm -rf $(USER_ENV) $(DEV_ENV) .make build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find mmwal -name '*.so' -delete

# ---- the two environments

$(USER_ENV)/installed: $(USER_ENV)/created .make/settings .make/package $(BUILD_FILES) $(PACKAGE_FILES)
	@echo "installing mmwal into $(USER_ENV)"
	@$(USER_ENV)/$(PIP) install ".[cli]"
	@touch $@

$(DEV_ENV)/installed: $(DEV_ENV)/created .make/settings $(BUILD_FILES)
	@echo "installing mmwal, editable, and the tools into $(DEV_ENV)"
	@$(DEV_ENV)/$(PIP) install "pip>=25.1"
	@$(DEV_ENV)/$(PIP) install --editable ".[cli]" --group dev
	@touch $@

%/created: .make/interpreter
	@$(PYTHON) -m venv --clear $(@D)
	@touch $@

# ---- what the stamps depend on that is not a file: each is written only when it changes

.make/interpreter: FORCE
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found: set PYTHON=/where/it/is" >&2; exit 1; }
	@$(call write_if_changed,$(PYTHON) -c 'import sys; print(sys.executable, sys.version)')

.make/settings: FORCE
	@$(call write_if_changed,env | grep -E '^(CC|CFLAGS|CPPFLAGS|LDFLAGS|LDSHARED|MMWAL_(PURE|REQUIRE_EXTENSION|STRICT))=' | sort; \
		$${CC:-cc} --version 2>&1 | head -n 1)

.make/package: FORCE
	@$(call write_if_changed,echo $(sort $(PACKAGE_FILES)) | tr ' ' '\n')

write_if_changed = mkdir -p .make && { $(1); } > $@.new; cmp -s $@.new $@ && rm $@.new || mv $@.new $@
