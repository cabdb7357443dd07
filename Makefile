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
# Serving never needs torch; building and testing take the plain CPU build of this version, a tenth of the other's size.
# CI, which tests the models with Python 3.11, takes the other where it cannot have that one.
TORCH := torch==2.13.0
CPU_ONLY := --extra-index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15
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
gateway: $(VENV)/.gateway ## page and OpenAI's speech endpoint on 127.0.0.1:8080, of a running `make serve`
	$(BIN)/cosyserve-gateway

.PHONY: test
test: check ## everything: units, models, contracts, clients and end to end on the real Triton
	$(BIN)/python -m pytest

.PHONY: unit
unit: $(VENV)/.dev ## modules by themselves, on fakes: seconds
	$(BIN)/python -m pytest tests/unit

.PHONY: pythons
pythons: ## demo and tests of the real server with every Python from 3.11 to 3.13 on this machine
	$(PYTHON) tests/pythons.py

.PHONY: smoke
smoke: $(VENV)/.smoke ## tests of the real server that need no torch: what `make pythons` runs with each Python
	$(BIN)/python -m pytest $(SMOKE)

.PHONY: check
check: $(VENV)/.dev ## ruff, mypy, rendered configurations and tables: seconds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if $(BIN)/python -c 'import torch' 2>/dev/null; then echo mypy; $(BIN)/mypy; else echo "no mypy: it needs torch"; fi
	$(BIN)/cosyserve-build configs --check
	$(BIN)/cosyserve-build docs --check

.PHONY: format
format: $(VENV)/.dev ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: configs
configs: $(VENV)/.dev ## render the model repository of the source from the contracts
	$(BIN)/cosyserve-build configs

.PHONY: docs
docs: $(VENV)/.dev ## make the tables of docs/ that repeat what the code says
	$(BIN)/cosyserve-build docs

.PHONY: manifests
manifests: ## render deploy/rendered from the overlays; needs kubectl
	@for overlay in cpu gpu gpu-mig; do \
		kubectl kustomize deploy/overlays/$$overlay > deploy/rendered/$$overlay.yaml; done

.PHONY: measure
measure: $(VENV)/.dev $(DEMO)/manifest.json ## streaming figures: recomputation, last chunk, long text, overhead
	$(BIN)/python loadtest/measure.py --weights $(DEMO)

.PHONY: bench
bench: $(VENV)/.dev ## what listeners hear under load, of a running `make serve`: .cache/bench.json and bench.png
	@mkdir -p .cache
	$(BIN)/cosyserve bench --concurrency 1,2,4 --json --png .cache/bench.png > .cache/bench.json

.PHONY: loadtest
loadtest: $(VENV)/.dev ## Locust users against a running `make serve`; thresholds set the exit code
	$(BIN)/locust -f loadtest/locustfile.py --headless --users 4 --run-time 30s --stop-timeout 60s

.PHONY: soak
soak: $(VENV)/.dev $(DEMO)/manifest.json ## 2,000 short utterances, a third cut off: flat memory, gauges at zero, nothing left
	$(BIN)/python loadtest/soak.py --weights $(DEMO)

.PHONY: chaos
chaos: $(VENV)/.dev $(DEMO)/manifest.json ## kills, stops, signals, bad callers: the next utterance has the same samples
	$(BIN)/python loadtest/chaos.py --weights $(DEMO)

.PHONY: quality
quality: $(VENV)/.dev $(DEMO)/manifest.json ## words misheard and faults by setting: WEIGHTS="DIR ..." SOURCE="slt rms"
	@mkdir -p .cache
	$(BIN)/python loadtest/quality.py --weights $(WEIGHTS) --source $(SOURCE) --json .cache/quality.json

.PHONY: demo-voice
demo-voice: $(VENV)/.dev ## teach the demo voice anew: hours, needs flite and a C compiler; goes on where it stopped
	@$(PIP) -e '.[voice]'
	$(BIN)/cosyserve-build demo-voice .cache/demo-voice demo/voice.tar.xz

.PHONY: clean
clean: ## remove the environment and everything made
	rm -rf $(VENV) .cache demo.wav

$(VENV)/bin/python:
	@$(PYTHON) python_backends/cosyserve/supported.py
	@echo "making an environment in $(VENV) ($$($(PYTHON) --version))"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu: pyproject.toml | $(VENV)/bin/python
	@echo "installing what the server needs (150 MB)"
	@$(PIP) -e '.[cpu]'
	@echo "installing a recogniser that listens to the demo (30 MB)"
	@$(PIP) --only-binary=pocketsphinx -e '.[judge]' || echo "no recogniser for this Python: the demo speaks without"
	@touch $@

$(VENV)/.gateway: pyproject.toml | $(VENV)/bin/python
	@echo "installing the gateway (60 MB)"
	@$(PIP) -e '.[gateway]'
	@touch $@

$(VENV)/.smoke: pyproject.toml | $(VENV)/.cpu
	@echo "installing what the smoke tests need (5 MB)"
	@$(PIP) -e '.[cpu,test]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	@echo "installing torch for CPUs (200 MB)"
	@extras=build,dev; $(PIP) $(CPU_ONLY) $(TORCH)+cpu 2>/dev/null \
		|| { [ -n "$$CI" ] && $(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && $(PIP) $(TORCH); } \
		|| { extras=dev; echo "no CPU build of torch for this Python: what needs torch is not tested"; }; \
	echo "installing what building and testing need (400 MB)"; $(PIP) -e ".[$$extras]"
	@touch $@ $(VENV)/.cpu $(VENV)/.gateway $(VENV)/.smoke

$(DEMO)/manifest.json: demo/voice.tar.xz | $(VENV)/.cpu
	@echo "unpacking the demo voice into $(DEMO)"
	@$(BIN)/cosyserve unpack demo/voice.tar.xz $(DEMO)
	@touch $@
