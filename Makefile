# make demo     the whole workflow on synthetic data and tiny models
# make smollm2  a real chat model of 135M weights, distilled on a CPU (docs/examples.md)
# make test     the tests, at most 10 minutes on 2 cores
# make test-all    the slow tests, too; not those of Slurm
# make test-slurm  the workflow on a two-node Slurm that it starts; needs root and Slurm (tests/slurm/up.sh)
# make status   what is done and what is to do; ARGS="--configfile FILE --directory DIR" as for snakemake; with
#               ARGS="--profile slurm …" its jobs in Slurm's queue, too
# make serve    an exported model by the OpenAI API: MODEL=output/export/… [PORT=8000], until Ctrl-C
# make cache    teacher answers that are kept, and who uses them; ARGS="prune …" removes what is not used (README.md)
# make docs     the documentation as a searchable site in site/; sets up .venv-docs instead of .venv
# All of them set up .venv first, where it is not there yet or requirements.txt has changed.

PYTHON ?= python3
ARGS ?=
PORT ?= 8000
DEMO := --profile local --configfile config/demo.yaml --directory runs/demo
SMOLLM2 := --profile local --configfile config/smollm2.yaml --directory runs/smollm2

.PHONY: demo smollm2 test test-all test-slurm status serve cache docs setup
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

setup: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: Python 3.11 or newer is needed, found " + sys.version.split()[0] + "; name another with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	.venv/bin/python workflow/scripts/write_config_reference.py
	touch $@

demo: setup
	source .venv/bin/activate
	python workflow/scripts/make_demo_data.py --out runs/demo
	snakemake $(DEMO)
	snakemake $(DEMO) --report report.html --quiet all
	python workflow/scripts/print_scores.py --scores runs/demo/output/report/metrics.csv
	echo
	echo "The report: runs/demo/report.html (scores alone: runs/demo/output/report/metrics.csv)"

# Paths of a configuration are relative to the run's folder, so that the questions are copied there.
smollm2: setup
	source .venv/bin/activate
	mkdir -p runs/smollm2/examples
	cp -r examples/questions runs/smollm2/examples/
	python workflow/scripts/fetch_smollm2.py --out runs/smollm2/models/smollm2
	snakemake $(SMOLLM2)
	snakemake $(SMOLLM2) --report report.html --quiet all
	python workflow/scripts/print_scores.py --scores runs/smollm2/output/report/metrics.csv
	echo
	echo "The report: runs/smollm2/report.html (scores alone: runs/smollm2/output/report/metrics.csv)"

test: setup
	source .venv/bin/activate
	python -m pytest

test-all: setup
	source .venv/bin/activate
	python -m pytest -m ""

test-slurm: setup
	source .venv/bin/activate
	python -m pytest --numprocesses 0 tests/slurm

status: setup
	@source .venv/bin/activate
	python workflow/scripts/status.py --profile local $(ARGS)

serve: setup
	@[ -n "$(MODEL)" ] || { echo "error: name an exported model, MODEL=output/export/…" >&2; exit 1; }
	source .venv/bin/activate
	python workflow/scripts/serve_model.py --model "$(MODEL)" --port $(PORT)

cache: setup
	@source .venv/bin/activate
	python workflow/scripts/cache.py $(ARGS)

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	echo "The documentation: site/index.html (for the search: python3 -m http.server --directory site)"

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.txt
	touch $@
