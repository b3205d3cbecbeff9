# Targets are the interface: `make demo` and `make test` work on a fresh machine.
# TORCH_INDEX: where torch comes from, such as https://download.pytorch.org/whl/cpu (small) or .../cu126 (GPU).
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := $(shell find p2pllm_native -type f \( -name '*.cpp' -o -name '*.hpp' -o -name '*.py' -o -name '*.toml' -o -name 'CMakeLists.txt' \) -not -path '*/build/*')

.PHONY: demo test test-long venv check bench sim clean

demo: venv
	$(BIN)/p2pllm demo

test: venv
	$(BIN)/python -m pytest -q

# Experiments in more depth, and real processes between network namespaces (root).
test-long: venv
	$(BIN)/python -m pytest -q -m long

venv: $(STAMP)

# torch first and alone: otherwise another package's requirement picks the build with gigabytes of CUDA.
$(STAMP): setup.cfg pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit("p2pllm needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(BIN)/python -m pip install --quiet -c constraints.txt ./p2pllm_native
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,dev,sim]'
	touch $(STAMP)

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typing/api.py
	$(BIN)/lint-imports

bench: venv
	mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks

# Every scenario of the catalogue: sim/results/report.html, and every table and plot of docs/results.md.
sim: venv
	$(BIN)/python -m sim all --out sim/results --markdown docs/results.md

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
