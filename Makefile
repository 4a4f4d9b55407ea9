# make demo: 20 faces out of a network, on this machine. make test: the tests. Both set up .venv first if need be.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH  := $(shell grep '^torch==' constraints.txt)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: demo test slow lint docs package clean

demo: $(STAMP)
	$(BIN)/simudy

test: $(STAMP)
	$(PYTEST) -n 2 -m "not slow and not gpu"

slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# The site, in build/site; anything a reader would stumble over ends it with an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 $(BIN)/python -m mkdocs build --quiet

$(VENV)/.docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	touch $@

# The sdist, and a wheel made of it, which is to hold every file that the package needs, and to run
# in a clean environment with whatever versions are current.
package: $(STAMP)
	rm -rf dist
	$(BIN)/python -m pip install --quiet -c constraints.txt build
	$(BIN)/python -m build --outdir dist . > build.log 2>&1 || (cat build.log; exit 1)
	! grep -E "WARNING|[a-z]Warning" build.log
	rm build.log
	$(BIN)/python tests/wheel.py dist
	rm -rf build/clean
	$(PYTHON) -m venv build/clean
	build/clean/bin/python -m pip install --quiet "$(TORCH)"
	build/clean/bin/python -m pip install --quiet dist/*.whl
	build/clean/bin/python -m pip check
	cd build/clean && OMP_NUM_THREADS=1 bin/simudy debug=tiny hydra.run.dir=run

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache runs

# torch by its exact version, and first: a range would bring a CUDA build of several GB.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@
