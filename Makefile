# Everything from a fresh checkout:  make demo · make test · make slow · make avx2 · make clean
#
# The environment is .venv in this folder, made with the first Python >= 3.11 found, or with the one
# named on the command line (make test PYTHON=/usr/bin/python3.12). It is made once and brought up to date
# when pyproject.toml or constraints.txt change. `.venv/.installing` marks a set-up in progress: where an
# earlier one was interrupted, the environment is made again.

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
TORCH := $(shell grep '^torch==' constraints.txt)
# AVX512 switched off: in our kernels, in oneDNN (inside torch and OpenVINO), in torch's own loops.
AVX2 := BITLENS_KERNELS_LEVEL=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2
# A test process for each core, each with one thread.
PARALLEL := -n auto --dist worksteal
# Shapes and types of every annotated call are checked, which takes the suite half as long again.
SHAPES := --jaxtyping-packages=bitlens,beartype.beartype
KERNELS := $(wildcard kernels/*.t* kernels/src/* kernels/bitlens_kernels/*.py)

.PHONY: demo test slow avx2 clean
.DEFAULT_GOAL := test

demo: .venv/.ready
	$(BIN)/bitlens demo

test: .venv/.ready-dev
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== pyright"
	@if command -v node >/dev/null 2>&1; then \
	    PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python; \
	else \
	    echo "pyright was NOT run: it needs node, which is not on PATH. Install Node.js to check the types."; \
	fi
	@echo "== pytest"
	@$(BIN)/python -m pytest $(PARALLEL)

slow: .venv/.ready-dev
	@$(BIN)/python -m pytest $(PARALLEL) $(SHAPES)
	@$(BIN)/python -m pytest -m slow $(SHAPES)

avx2: .venv/.ready-dev
	@$(AVX2) $(BIN)/python -m pytest $(PARALLEL)

clean:
	rm -rf .venv build dist demo .pytest_cache .ruff_cache .hypothesis
	find bitlens tests -name __pycache__ -type d -prune -exec rm -rf {} +

# What runs: the package, the extra that reads and writes video, and the native kernels where a C++ compiler is there.
.venv/.ready: pyproject.toml constraints.txt $(KERNELS) $(wildcard .venv/.installing)
	@if [ -e .venv/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    found=; for python in $(or $(PYTHON),python3.11 python3); do \
	        if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "No Python 3.11 or newer was found. Install one, or name it: make test PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "== new environment in .venv: $$($$found --version)"; \
	    rm -rf .venv && $$found -m venv .venv; \
	fi
	@touch .venv/.installing
	@echo "== install $(TORCH)"
	@$(PIP) install "$(TORCH)"
	@echo "== install bitlens[video]"
	@$(PIP) install -c constraints.txt -e '.[video]'
	@if command -v "$${CXX:-c++}" >/dev/null 2>&1; then \
	    echo "== build bitlens-kernels"; \
	    $(PIP) install -c constraints.txt ./kernels || \
	        echo "The native kernels were NOT built (see above); bitlens works without them."; \
	else \
	    echo "The native kernels were NOT built: no C++ compiler (c++) on PATH; bitlens works without them."; \
	fi
	@rm .venv/.installing
	@touch $@

# What tests: every extra and the checkers, on top.
.venv/.ready-dev: .venv/.ready
	@touch .venv/.installing
	@echo "== install bitlens[dev]"
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@rm .venv/.installing
	@touch $@
