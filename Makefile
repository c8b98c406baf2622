PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: build test test-all check docs site pictures clean

build: .venv/.installed  ## The embedded default: build out/mini from real weights, verify and show it
	$(BIN)/builder build --cohort mini --out out/mini
	$(BIN)/builder verify out/mini
	$(BIN)/builder report out/mini -o out/mini.html

test: .venv/.dev  ## The fast tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal \
	  -m "not slow and not gpu and not ray and not s3 and not spark"

test-all: .venv/.scale .venv/.moto  ## Every test this machine can run
	$(BIN)/python -m pytest

check: .venv/.dev  ## Lint, format, types, SQL, generated documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar -q queries builder/report/sql
	$(BIN)/python docs/generate.py --check

docs: .venv/.dev  ## Bring the generated parts of the pages up to date
	$(BIN)/python docs/generate.py

site: .venv/.dev  ## The pages of docs/ as a site in out/site; a warning is an error
	$(BIN)/python -m sphinx -q -n -W --keep-going docs out/site

# torch and torchvision go first and alone: their newest versions bring gigabytes of CUDA, and
# every other package accepts what is there.
.venv/.torch: requirements.lock
	$(PYTHON) -m venv .venv
	$(PIP) install -q $$(grep -E '^(torch|torchvision)==' requirements.lock)
	touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(PIP) install -q -c requirements.lock -e '.[build,report]'
	touch $@

.venv/.dev: .venv/.installed
	$(PIP) install -q -c requirements.lock -e '.[dev]'
	touch $@

pictures: build .venv/.dev  ## Draw the pictures of README and docs/ anew; needs chromium
	$(BIN)/python docs/pictures.py out/mini
	$(BIN)/python docs/screenshot.py

.venv/.scale: .venv/.dev
	$(PIP) install -q -c requirements.lock -e '.[ray,spark]'
	touch $@

# An S3 server for tests, apart: it needs a python-dateutil that is older than ours.
.venv/.moto: .venv/.dev
	$(PIP) install -q -c requirements.lock -e '.[s3]'
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/python -m pip --disable-pip-version-check install -q 'moto[server]==5.2.5'
	touch $@

clean:  ## Remove the environment and what was built in out/
	rm -rf .venv out
