# Everything here sets up what it needs, into .venv (and .venv-protos for the code generator).
#
#   make demo         train on handwritten digits with a local cluster
#   make demo-secure  the same with mutual TLS and tokens
#   make test         all tests
#   make check        format, lint, types, generated code, import directions
#   make bench        the benchmarks (needs g++)
#   make protos       generate code from protos/*.proto
#   make format       format the code

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PROTOS := stream link control

# Some containers set this. But tests start hundreds of processes: not each is to compile all modules anew.
unexport PYTHONDONTWRITEBYTECODE

# Nor is each to start a thread per CPU for products of matrices.
test: export OPENBLAS_NUM_THREADS := 1

.PHONY: demo demo-secure test check bench protos check-protos format clean

demo: $(VENV)/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" honcho start

demo-secure: $(VENV)/.installed
	$(BIN)/python -m examples.digits.secure
	PATH="$(CURDIR)/$(BIN):$$PATH" honcho --procfile Procfile.secure start

test: $(VENV)/.installed
	$(BIN)/pytest -m 'not timed' --numprocesses=auto --maxprocesses=8 --dist=worksteal
	$(BIN)/pytest -m timed

check: $(VENV)/.installed check-protos
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layout.py
	$(BIN)/python -m pip --disable-pip-version-check check

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.round_trips
	$(BIN)/python -m benchmarks.round_trips --participants 1000 --workers 1 --modes cohort
	$(BIN)/python -m benchmarks.round_trips --participants 1000 --workers 2 --only Muster
	$(BIN)/python -m benchmarks.round_trips --size 1000000 --participants 50 --modes cohort reduce
	$(BIN)/python -m benchmarks.round_trips --size 1000000 --participants 200 --modes reduce
	$(BIN)/python -m benchmarks.flower --workers 2
	$(BIN)/python -m benchmarks.flower --workers 2 --size 1000000
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.idle_memory
	$(BIN)/python -m benchmarks.reduce_memory --workers 2 --rounds 1
	$(BIN)/python -m benchmarks.reduce_memory --workers 2 --rounds 1 --participants 50 --tensor-bytes 104857600
	$(BIN)/python -m benchmarks.reduce_memory --workers 1 --participants 1 --tensor-bytes 1073741824
	$(BIN)/python -m benchmarks.storm
	$(BIN)/python -m benchmarks.churn
	$(BIN)/python -m benchmarks.gather
	$(BIN)/python -m benchmarks.tls
	$(BIN)/python -m benchmarks.recovery
	$(BIN)/python -m benchmarks.keepalive

format: $(VENV)/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

protos: .venv-protos/.installed
	$(call generate,.)

check-protos: .venv-protos/.installed
	@rm -rf build/protos && mkdir -p build/protos
	@$(call generate,build/protos)
	@for file in build/protos/protos/*; do \
		cmp -s $$file protos/$$(basename $$file) || { echo "$$(basename $$file) is out of date: run make protos"; exit 1; }; \
	done
	@echo "generated code is up to date"

# An old generator on purpose: what it generates runs with that version of protobuf and all newer ones.
define generate
.venv-protos/bin/python -m grpc_tools.protoc -I . \
	--plugin=protoc-gen-mypy=.venv-protos/bin/protoc-gen-mypy \
	--plugin=protoc-gen-mypy_grpc=.venv-protos/bin/protoc-gen-mypy_grpc \
	--python_out=$(1) --mypy_out=quiet:$(1) $(PROTOS:%=protos/%.proto) && \
.venv-protos/bin/python -m grpc_tools.protoc -I . \
	--plugin=protoc-gen-mypy_grpc=.venv-protos/bin/protoc-gen-mypy_grpc \
	--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) protos/stream.proto protos/control.proto
endef

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Muster needs Python 3.11 or newer (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv-protos/.installed: Makefile
	$(PYTHON) -m venv .venv-protos
	.venv-protos/bin/pip install --quiet --disable-pip-version-check grpcio-tools==1.71.2 mypy-protobuf==3.7.0
	@touch $@

clean:
	rm -rf $(VENV) .venv-protos build benchmarks/build examples/digits/out
