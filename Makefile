# Every target is one real command; `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .cache/demo-weights
WEIGHTS ?= $(DEMO)
SMOKE := tests/server/test_stream.py tests/server/test_launcher.py tests/server/test_wrong_input.py \
	tests/server/test_cancel.py tests/server/test_text_in.py tests/server/test_registered_voices.py \
	tests/unit/test_packed.py tests/client
# These compute and need no Triton, so two run side by side, the slowest first; the others wait for servers, which share
# the cores.
COMPUTING := tests/models tests/loadtest_gpu tests/docs/test_readme_build.py tests/unit \
	tests/contract/test_configs.py tests/contract/test_repository.py
# Serving needs no torch. Building and testing use the CPU build of this version, a tenth of the default build's size.
# CI, which tests the models with Python 3.11, uses the default build if the CPU build is unavailable.
TORCH := torch==2.13.0
CPU_ONLY := --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15
TENSORRT_RTX := tensorrt-rtx-cu12==1.7.1.116
SIZE ?= full
PIP := $(BIN)/pip install -qq --disable-pip-version-check

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/.cpu $(DEMO)/manifest.json ## start Triton, stream one sentence to demo.wav, stop
	@$(BIN)/cosyserve demo --weights $(DEMO) -o demo.wav

.PHONY: serve
serve: $(VENV)/.cpu $(DEMO)/manifest.json ## serve the demo weights on 127.0.0.1:8001 (gRPC) and :8002 (metrics)
	$(BIN)/cosyserve serve --weights $(DEMO)

.PHONY: gateway
gateway: $(VENV)/.gateway ## page and OpenAI's speech endpoint on 127.0.0.1:8080, for a running `make serve`
	$(BIN)/cosyserve-gateway

.PHONY: test
test: check ## all checks and tests: units, models, contracts, clients, end to end on the real Triton
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(COMPUTING)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(COMPUTING))

.PHONY: unit
unit: $(VENV)/.dev ## tests of single modules, with fakes: seconds
	$(BIN)/python -m pytest tests/unit

.PHONY: pythons
pythons: ## demo and smoke tests with every Python from 3.11 to 3.13 on this machine
	$(PYTHON) tests/pythons.py

.PHONY: smoke
smoke: $(VENV)/.smoke ## tests of the real server that need no torch, as in `make pythons`
	$(BIN)/python -m pytest $(SMOKE)

.PHONY: check
check: $(VENV)/.dev ## ruff, mypy, rendered configurations, generated tables: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then echo mypy; $(BIN)/mypy; else echo "mypy skipped: it needs torch"; fi
	$(BIN)/cosyserve-build configs --check
	$(BIN)/cosyserve-build docs --check

.PHONY: format
format: $(VENV)/.dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: configs
configs: $(VENV)/.dev ## render model_repository/ from the contracts
	$(BIN)/cosyserve-build configs

.PHONY: docs
docs: $(VENV)/.dev ## generate the tables of docs/ from the code
	$(BIN)/cosyserve-build docs

.PHONY: manifests
manifests: ## render deploy/rendered from the overlays; needs kubectl
	@for overlay in cpu gpu gpu-mig; do \
		kubectl kustomize deploy/overlays/$$overlay > deploy/rendered/$$overlay.yaml; done

.PHONY: measure
measure: $(VENV)/.dev $(DEMO)/manifest.json ## streaming figures: recomputation, last chunk, long text, overhead
	$(BIN)/python loadtest/lab/measure.py --weights $(DEMO)

.PHONY: bench
bench: $(VENV)/.dev ## load test of a running `make serve`: .cache/bench.json and bench.png
	@mkdir -p .cache
	$(BIN)/cosyserve bench --concurrency 1,2,4 --json --png .cache/bench.png > .cache/bench.json

.PHONY: loadtest
loadtest: $(VENV)/.dev ## Locust users against a running `make serve`; thresholds set the exit code
	$(BIN)/locust -f loadtest/locustfile.py --headless --users 4 --run-time 30s --stop-timeout 60s

.PHONY: soak
soak: $(VENV)/.dev $(DEMO)/manifest.json ## 2,000 short utterances, a third cancelled: flat memory, gauges at zero, no leaks
	$(BIN)/python loadtest/lab/soak.py --weights $(DEMO)

.PHONY: chaos
chaos: $(VENV)/.dev $(DEMO)/manifest.json ## fault injection: kills, stops, signals, misbehaving callers
	$(BIN)/python loadtest/lab/chaos.py --weights $(DEMO)

.PHONY: quality
quality: $(VENV)/.dev $(DEMO)/manifest.json ## word error rate and signal defects by setting: WEIGHTS="DIR ..." SOURCE="slt rms"
	@mkdir -p .cache
	$(BIN)/python loadtest/lab/quality.py --weights $(WEIGHTS) --source $(SOURCE) --json .cache/quality.json

.PHONY: check-extras
check-extras: ## have pip resolve the extra of GPU servers, without installing it: PYTHON=python3.12
	@$(PYTHON) -m venv .cache/extras
	@.cache/extras/bin/pip install --disable-pip-version-check --dry-run --quiet --report .cache/extras/report.json '.[gpu]'
	@$(PYTHON) -c "import json; found = json.load(open('.cache/extras/report.json'))['install']; \
		print(*sorted(each['metadata']['name'] + '==' + each['metadata']['version'] for each in found), sep='\n')"

.PHONY: check-tensorrt
check-tensorrt: $(VENV)/.dev ## build TensorRT-RTX plans of versions 2 and 3 for two kinds of GPU, without one: SIZE=full
	@$(PIP) $(TENSORRT_RTX)
	@for version in 2 3; do folder=.cache/tensorrt/$(SIZE)-$$version; \
		[ -f $$folder/manifest.json ] \
			|| { $(BIN)/cosyserve-build synth-bundle $$folder-bundle --version $$version --size $(SIZE) \
				&& $(BIN)/cosyserve-build prepare $$folder-bundle $$folder; } || exit 1; \
		for gpu in sm89 sm120; do \
			$(BIN)/cosyserve-build engines $$folder --precision fp16 --rtx $$gpu || exit 1; done; done

.PHONY: demo-voice
demo-voice: $(VENV)/.dev ## train the demo voice again: hours, needs flite and a C compiler; resumes if interrupted
	@$(PIP) -e '.[voice]'
	$(BIN)/cosyserve-build demo-voice .cache/demo-voice demo/voice.tar.xz

.PHONY: clean
clean: ## remove the environment and all generated files
	rm -rf $(VENV) .cache demo.wav

$(VENV)/bin/python:
	@$(PYTHON) python_backends/cosyserve/supported.py
	@echo "making an environment in $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu: pyproject.toml | $(VENV)/bin/python
	@echo "installing the server's packages (150 MB)"
	@$(PIP) -e '.[cpu]'
	@echo "installing a speech recogniser for the demo (30 MB)"
	@$(PIP) --only-binary=pocketsphinx -e '.[judge]' || echo "no speech recogniser for this Python: the demo runs without it"
	@touch $@

$(VENV)/.gateway: pyproject.toml | $(VENV)/bin/python
	@echo "installing the gateway (60 MB)"
	@$(PIP) -e '.[gateway]'
	@touch $@

$(VENV)/.smoke: pyproject.toml | $(VENV)/.cpu
	@echo "installing the packages of the smoke tests (5 MB)"
	@$(PIP) -e '.[cpu,test]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing torch for CPUs (200 MB)"
	@extras=build,dev; $(PIP) $(CPU_ONLY) $(TORCH)+cpu 2>/dev/null \
		|| { [ -n "$$CI" ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && $(PIP) $(TORCH); } \
		|| { extras=dev; echo "no CPU build of torch for this Python: tests that need torch are skipped"; }; \
	echo "installing the packages for building and testing (400 MB)"; $(PIP) -e ".[$$extras]"
	@echo "installing TensorRT-RTX, which builds a plan in the tests (200 MB)"
	@$(PIP) $(TENSORRT_RTX) 2>/dev/null || echo "no TensorRT-RTX for this machine: its tests are skipped"
	@touch $@ $(VENV)/.cpu $(VENV)/.gateway $(VENV)/.smoke

$(DEMO)/manifest.json: demo/voice.tar.xz | $(VENV)/.cpu
	@echo "unpacking the demo voice into $(DEMO)"
	@$(BIN)/cosyserve unpack demo/voice.tar.xz $(DEMO)
	@touch $@
