# Everything that a person or CI runs here. Each target sets up what it needs: a fresh machine needs make and
# a Python from 3.11, nothing else. What is set up stays below this folder, but for uv's cache.

# All Airflows that are supported, with a beta at the end if there is one. `demo`, `lint` and a plain `make test` use
# the newest that is no beta, and CI runs all end-to-end tests on the oldest and on this one.
AIRFLOWS := 2.11 3.0 3.1 3.2 3.3 3.4
OLDEST := $(firstword $(AIRFLOWS))
NEWEST := 3.3
AIRFLOW ?= $(NEWEST)

# Not one more, but the lowest versions of all that pyproject.toml asks for: make test AIRFLOW=lowest
LOWEST := lowest

# The release that stands for each, the Pythons that it runs on, and the one that is taken if it is there.
RELEASE_2.11 := 2.11.2
RELEASE_3.0 := 3.0.6
RELEASE_3.1 := 3.1.8
RELEASE_3.2 := 3.2.2
RELEASE_3.3 := 3.3.2
RELEASE_3.4 := 3.4.0b2
RELEASE_lowest := 2.11.0
PYTHONS_2.11 := >=3.11,<3.13
PYTHONS_3.0 := >=3.11,<3.13
PYTHONS_3.1 := >=3.11,<3.14
PYTHONS_3.2 := >=3.11,<3.14
PYTHONS_3.3 := >=3.11,<3.14
PYTHONS_3.4 := >=3.11,<3.14
PYTHONS_lowest := >=3.11,<3.13
PYTHON_2.11 := 3.11
PYTHON_3.0 := 3.12
PYTHON_3.1 := 3.13
PYTHON_3.2 := 3.12
PYTHON_3.3 := 3.11
PYTHON_3.4 := 3.13
PYTHON_lowest := 3.11

# Another Python gets a venv of its own.
PYTHON := $(PYTHON_$(AIRFLOW))
VENV = .venvs/airflow-$(AIRFLOW)$(if $(filter-out $(PYTHON_$(AIRFLOW)),$(PYTHON)),-python-$(PYTHON))
BIN = $(VENV)/bin
# uv's only use is speed and --exclude-newer; one that is on the PATH will do, if it is not too old.
UV := $(or $(shell uv venv --help 2>/dev/null | grep -q -e --clear && command -v uv),.venvs/uv/bin/uv)
# Where none fits, uv fetches a Python.
export UV_PYTHON_INSTALL_DIR := $(CURDIR)/.venvs/pythons

export PYTHONUTF8 := 1
unexport PYTHONPATH AIRFLOW_HOME
# Without compiled modules each start of an Airflow process takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help venvs demo demos bench test test-e2e test-cluster test-postgresql test-s3 test-ui screenshots test-all servers test-versions test-stories lint format build check-wheel constraints clean
.DELETE_ON_ERROR:

help:
	@echo "make demo                run the image pipeline on a real Airflow against the simulator"
	@echo "make demo KEEP=1         the same, and leave Airflow's web pages up"
	@echo "make demos               the demo on Airflow $(NEWEST), and on the beta if there is one"
	@echo "make bench               measure the waiting gates beside Airflow's HttpSensor, and write docs/benchmark.md"
	@echo "make bench ARGS='--gates 1 20 --window 20'   a quick look, which writes nothing; --help lists the options"
	@echo "make bench ARGS=--load-only   5000 gates on one triggerer, which make bench ends with; writes docs/load.md"
	@echo "make bench ARGS=--ledger-only   the ledger on PostgreSQL; writes docs/ledger-benchmark.md"
	@echo "make test                unit and integration tests, on Airflow $(AIRFLOW)"
	@echo "make test AIRFLOW=2.11   the same, on another Airflow: $(AIRFLOWS)"
	@echo "make test AIRFLOW=lowest the same, on the lowest versions of all that pyproject.toml asks for"
	@echo "make test PYTHON=3.13    the same, on another Python"
	@echo "make test-e2e            gates in a real Airflow, while everything goes wrong"
	@echo "make test-all            make test and make test-e2e, on every Airflow"
	@echo "make test-versions       make test on every Airflow, without what another one covers"
	@echo "make test-stories        make test-e2e on every Airflow: whole on the oldest and the newest, what differs on others"
	@echo "make venvs               install all these Airflows at once: else each is when it is first used"
	@echo "make test-cluster        gates and spending in a cluster whose parts are killed; installs PostgreSQL and Redis"
	@echo "make test-postgresql     many processes use one ledger, whose database crashes; installs the same"
	@echo "make test-s3             object storage on a real S3 server; on Airflow 2.11 and 3.3 only"
	@echo "make test-ui             Airflow 3.3's web pages in a real browser; installs Chromium and nginx if need be"
	@echo "make screenshots         the same, and put its pictures into docs/images"
	@echo "make lint                ruff, ruff format and mypy strict"
	@echo "make format              let ruff mend what it can"
	@echo "make build               wheel and source distribution, into dist/"
	@echo "make check-wheel         build, install the wheel alone, and look at it through Airflow"
	@echo "make constraints         rewrite .ci/constraints-*.txt"
	@echo "make clean               delete all that these targets made"

demo: $(VENV)/installed
	@$(BIN)/python -m tests.demo $(if $(KEEP),--keep)

# Installs what it compares with, which must not be there when the tests run.
bench: VENV := .venvs/bench
bench: .venvs/bench/installed
	@$(BIN)/python -m tests.benchmarks $(ARGS)

# What the tests then really have is checked: the Python only if one was asked for.
test test-e2e test-cluster test-postgresql test-s3 test-ui screenshots: export EXPECTED_AIRFLOW := $(basename $(RELEASE_$(AIRFLOW)))
test test-e2e test-cluster test-postgresql test-s3 test-ui screenshots: export EXPECTED_PYTHON := $(if $(filter command,$(firstword $(origin PYTHON))),$(PYTHON))

# CI sets SECOND_TRY. What failed is remembered for each target and Airflow.
PYTEST = $(if $(SECOND_TRY),bash .ci/twice) $(BIN)/python -m pytest -o cache_dir=$(VENV)/pytest-cache/$@
# Of a real Airflow, whose logs are too long to be shown.
STORY = $(PYTEST) --numprocesses=0 --show-capture=no

test: $(VENV)/installed
	@$(PYTEST) $(ARGS)

test-e2e: $(VENV)/installed $(if $(filter $(AIRFLOW),$(OLDEST) $(NEWEST)),$(VENV)/installed-s3)
	@$(STORY) --numprocesses=2 tests/e2e $(ARGS)

test-cluster: $(VENV)/installed-cluster
	@bash .ci/find-servers $(BIN)/python postgresql redis
	@$(STORY) tests/cluster $(ARGS)

test-postgresql: $(VENV)/installed-cluster
	@bash .ci/find-servers $(BIN)/python postgresql
	@$(STORY) tests/postgresql $(ARGS)

test-s3: $(VENV)/installed-s3
	@$(PYTEST) --numprocesses=2 tests/s3 $(ARGS)

screenshots: export SCREENSHOTS := docs/images
test-ui screenshots: $(VENV)/installed-fab
	@bash .ci/find-servers $(BIN)/python nginx
	@CHROMIUM="$$(bash .ci/find-browser)" && export CHROMIUM && $(STORY) tests/ui $(ARGS)

# The next four targets are for CI, and make may run their parts side by side. Demos and tests begin when all Airflows
# are installed, so that no two parts install the same one.

# What the cluster and PostgreSQL's tests install when they are run alone.
servers: $(VENV)/installed-cluster
	@bash .ci/find-servers $(BIN)/python postgresql redis

# The demo, on the newest Airflow, and on the beta if there is one.
demos: $(sort demo-$(NEWEST) demo-$(lastword $(AIRFLOWS)))
demo-%: | venvs
	@$(MAKE) --no-print-directory demo AIRFLOW=$*

# The tests on each Airflow, in fewer processes than usual: every process imports Airflow and the tests first, which
# costs as much as hundreds of tests do. The tests that take longest start first.
test-versions: $(addprefix test-on-,$(NEWEST) $(lastword $(AIRFLOWS)) $(AIRFLOWS) $(LOWEST))
test-on-%: | venvs
	@$(MAKE) --no-print-directory test AIRFLOW=$* ARGS="--only-what-differs --numprocesses=2"

# All stories on the newest and the oldest Airflow, and what differs on the others, see tests/versions.py.
# With two jobs, three stories are told at a time: two of the newest Airflow and one of those between. More are too
# many for two cores: Airflow itself misses times then.
BETWEEN := $(filter-out $(OLDEST) $(NEWEST),$(AIRFLOWS))
test-stories: $(addprefix test-e2e-,$(NEWEST) $(BETWEEN) $(OLDEST))
$(BETWEEN:%=test-e2e-%): AT_A_TIME := --numprocesses=1
test-e2e-%:
	@$(MAKE) --no-print-directory test-e2e AIRFLOW=$* ARGS="--only-what-differs $(AT_A_TIME)"

test-all:
	@set -e; for airflow in $(AIRFLOWS); do $(MAKE) --no-print-directory test test-e2e AIRFLOW=$$airflow; done

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

check-wheel: build $(UV)
	bash .ci/check-wheel $(UV) "$(PYTHONS_$(AIRFLOW))" .ci/constraints-$(AIRFLOW).txt

constraints: $(UV)
	$(UV) run --no-project --python ">=3.11" python .ci/constraints.py $(UV) \
		$(foreach airflow,$(AIRFLOWS) $(LOWEST),$(airflow)=$(RELEASE_$(airflow)))

clean:
	rm -rf .venvs .demo .bench dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venvs/uv/bin/uv:
	@echo "Installing uv into .venvs/uv"
	@python3 -m venv .venvs/uv || { echo "python3 cannot make a venv: install the package python3-venv."; exit 1; }
	@.venvs/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

# All of them, for CI.
venvs: $(VENV)/installed
	@for airflow in $(AIRFLOWS) $(LOWEST); do \
		$(MAKE) --no-print-directory .venvs/airflow-$$airflow/installed AIRFLOW=$$airflow || exit 1; done

# pip's and uv's other settings (an index, a proxy) are the machine's own and count.
.venvs/bench/installed: MORE := --group bench
$(VENV)/installed .venvs/bench/installed: pyproject.toml .ci/constraints-$(AIRFLOW).txt | $(UV)
	@test -n "$(RELEASE_$(AIRFLOW))" || { echo "AIRFLOW must be one of $(AIRFLOWS) $(LOWEST), not $(AIRFLOW)."; exit 1; }
	@echo "Installing Airflow $(RELEASE_$(AIRFLOW)) into $(@D): about a minute, the first time"
	@$(UV) venv --quiet --clear --python "$$(bash .ci/find-python $(UV) $(PYTHON) "$(PYTHONS_$(AIRFLOW))")" $(@D)
	@$(UV) pip install --quiet --compile-bytecode --python $(@D)/bin/python \
		--constraints .ci/constraints-$(AIRFLOW).txt apache-airflow --editable ".[ledger,simulator]" --group dev $(MORE)
	@touch $@

$(VENV)/installed-fab $(VENV)/installed-cluster $(VENV)/installed-s3: $(VENV)/installed-%: $(VENV)/installed
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python \
		--constraints .ci/constraints-$(AIRFLOW).txt --group $*
	@touch $@
