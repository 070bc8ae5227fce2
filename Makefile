# Two habits matter: `make demo` and `make test`. Both set themselves up. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test quick slow test-gpu test-lowest lint docs pictures bench pipelines hashes images cluster-test clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"retune needs Python 3.11 or newer, this is {v[0]}.{v[1]}; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what is pinned in constraints.txt (a few minutes, once)"
	$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what is pinned in constraints.txt (a few minutes, once)"
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.all

demo: $(VENV)/.all ## run a whole small study, from raw data to a promoted adapter (1 to 2 minutes on 2 idle cores)
	$(BIN)/retune run examples/01-first-study/study.yaml

# A worker a core; each takes 2 to 3 GB with the programs that its tests start.
WORKERS ?= $(shell $(BIN)/python -c 'from retune import cores; print(max(2, min(cores.available(), 8)))')
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
test: $(VENV)/.dev ## run every test (WORKERS=4: in so many processes at once)
	$(PYTEST)

E2E ?= tests/e2e
# LOAD names the command that gives the nodes an image, one call an image, e.g. LOAD='kind load docker-image'.
cluster-test: $(VENV)/.dev ## run tests/e2e on the cluster of KUBECONFIG (docs/cluster-tests.md: RETUNE_E2E_REGISTRY, RETUNE_E2E_OWN, LOAD, ...)
	@test -n "$(KUBECONFIG)" || { echo "make cluster-test needs a cluster with Katib: set KUBECONFIG, see docs/cluster-tests.md" >&2; exit 1; }
	$(if $(LOAD),set -e; for name in suggestion train; do $(LOAD) retune-$$name:$(TAG); done)
	RETUNE_E2E_TAG=$(TAG) $(BIN)/python -m pytest $(E2E) -m cluster

quick: $(VENV)/.dev ## run the tests that take seconds
	$(PYTEST) -m "not slow"

slow: $(VENV)/.dev ## run every test, and write anew which ones `make quick` leaves out (tests/slow.txt)
	mkdir -p build && rm -f build/measured.jsonl
	RETUNE_TESTS_MEASURE=$(CURDIR)/build/measured.jsonl $(PYTEST); test $$? -le 1
	$(BIN)/python -m tests.slow build/measured.jsonl

test-gpu: $(VENV)/.dev ## run what trains and scores on this machine's GPU, Llama-2-7B's shape among it, and print its peaks
	$(BIN)/python -m pytest -s tests/training/test_on_gpu.py
	$(BIN)/python -m pytest -n 4 --dist loadfile tests/training tests/trials tests/evaluation --deselect tests/training/test_on_gpu.py

# torch's oldest version beside the other packages as they are pinned; on Linux a download of 3 GB. The table of architectures is
# that of the pinned versions, so its test is left out.
LOWEST := .venv-lowest
test-lowest: $(VENV)/.dev ## run the tests of training and decoding with the oldest torch that pyproject.toml takes
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check --quiet install "torch==$(shell sed -n 's/^train = .*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml).*"
	$(BIN)/python -c 'import site; print(*site.getsitepackages(), "$(CURDIR)/src", sep="\n")' > $$($(LOWEST)/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz-the-rest.pth
	$(LOWEST)/bin/python -m pytest -n 2 --dist loadfile tests/training tests/trials tests/evaluation/decoding --ignore tests/training/test_architectures.py

lint: $(VENV)/.dev ## ruff, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## write the generated pages anew: docs/cli.md, examples/study.schema.json, the table of charts/retune/README.md
	$(BIN)/python docs/generate.py
	$(BIN)/python charts/readme.py

# The report's pictures are taken by a browser whose setting is the page's own: light, then dark.
PICTURES := build/pictures
pictures: $(VENV)/.dev ## make the README's pictures anew: docs/pictures/run.svg and report-*.png (needs chromium)
	rm -rf $(PICTURES) && mkdir -p $(PICTURES) && ln -s $(CURDIR)/examples $(PICTURES)/examples
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python docs/record.py docs/pictures/run.svg --folder $(PICTURES) -- \
	  retune run examples/01-first-study/study.yaml
	for scheme in light dark; do chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,1400 \
	  $$(test $$scheme = light || echo --blink-settings=preferredColorScheme=0) --screenshot=docs/pictures/report-$$scheme.png \
	  file://$$(ls -d $(CURDIR)/$(PICTURES)/artifacts/first-study/search-*)/report.html; done

pipelines: $(VENV)/.dev ## compile the KFP components and pipelines anew
	$(BIN)/python -m pipelines

CHECKOV := .venv-checkov/bin/checkov
$(CHECKOV):
	$(PYTHON) -m venv .venv-checkov
	.venv-checkov/bin/pip --disable-pip-version-check --quiet install checkov==3.3.30

.PHONY: checkov
checkov: $(CHECKOV) ## check the rendered chart with checkov; charts/checkov.yaml answers what is as it is (needs helm)
	@mkdir -p build/checkov
	for values in small production; do helm template retune charts/retune --namespace team-a --kube-version 1.31.0 \
	  --api-versions trainer.kubeflow.org/v1alpha1 --values charts/examples/$$values.yaml > build/checkov/$$values.yaml || exit 1; done
	$(CHECKOV) --directory build/checkov --config-file charts/checkov.yaml

bench: $(VENV)/.dev ## measure: trials against transformers.Trainer, benchmarks, suggestions, searches (over an hour)
	$(BIN)/python benchmarks/bench_trial.py
	$(BIN)/python benchmarks/bench_eval.py
	$(BIN)/python benchmarks/bench_suggest.py
	$(BIN)/python benchmarks/bench_objectives.py
	$(BIN)/python benchmarks/bench_search.py

# `make images` takes the first of these that is here. More flags for it, as mounts, go into BUILD_ARGS.
BUILDER ?= $(firstword $(foreach tool,buildah podman docker,$(if $(shell command -v $(tool)),$(tool))))
IMAGES ?= suggestion train eval
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/retune/__init__.py)
TAG ?= $(VERSION)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
SOURCE ?= $(shell git config --get remote.origin.url 2>/dev/null | sed 's|//[^/@]*@|//|')
args = $(foreach name,BASE_IMAGE TORCH_INDEX EXTRAS,$(if $($(name)),--build-arg $(name)=$($(name))))
# Not arguments of the Dockerfiles: buildah 1.28 takes a label from its cache, whatever they say.
labels = $(foreach pair,version=$(VERSION) $(if $(REVISION),revision=$(REVISION)) $(if $(SOURCE),source=$(SOURCE)),--label org.opencontainers.image.$(pair))

hashes: ## write images/cuda.txt and images/hashes.txt: what PyPI's torch brings on Linux, and the hashes of all pinned files (needs uv)
	@command -v uv > /dev/null || { echo "make hashes needs uv; install it, for example with pip" >&2; exit 1; }
	{ echo '# The packages that PyPI'"'"'s torch brings on Linux beyond constraints.txt; written by `make hashes`.'; \
	  sed -n 's/^torch==/&/p' constraints.txt | uv pip compile - --constraint constraints.txt --python-platform x86_64-manylinux_2_28 \
	    --python-version 3.11 --no-header --no-annotate --quiet | grep -vixFf constraints.txt; } > images/cuda.txt
	uv pip compile constraints.txt images/cuda.txt --no-deps --generate-hashes --universal --python-version 3.11 --no-header --quiet -o images/hashes.txt

images: ## build the container images and print their sizes (docs/images.md: BASE_IMAGE, TAG, BUILD_ARGS, ...)
	@test -n "$(BUILDER)" || { echo "make images needs buildah, podman or docker; install one of them" >&2; exit 1; }
	@set -e; for name in $(IMAGES); do \
	  $(BUILDER) build $(if $(findstring buildah,$(BUILDER)),--layers) --file Dockerfile.$$name --tag retune-$$name:$(TAG) \
	    $(args) $(labels) $(BUILD_ARGS) .; \
	done
	@$(BUILDER) images --format '{{.$(if $(findstring buildah,$(BUILDER)),Name,Repository)}}:{{.Tag}}  {{.Size}}' | grep -E '(^|/)retune-[a-z]+:$(TAG) '

clean: ## remove the virtual environment and everything a study wrote here
	rm -rf $(VENV) artifacts mlflow.db mlartifacts local_outputs
