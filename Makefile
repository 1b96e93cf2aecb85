# Two commands do everything on a machine with Python 3.11+, make and git:
#   make repro   set up and run the whole pipeline
#   make test    set up and pass the tests
PYTHON ?= python3
STAGE ?= train
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := $(BIN)/uv pip
export PATH := $(CURDIR)/$(BIN):$(PATH)
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: repro submit test test-slow test-cluster lint format type docs ui lock clean help

help:
	@sed -n '1,3s/^# //p' Makefile; \
	echo "  make ui      MLflow UI over every run"; \
	echo "  make submit  one stage as a job of a cluster: STAGE=train"; \
	echo "  make lint    ruff, mypy, import-linter"; \
	echo "  make format  rewrite the code in its style"; \
	echo "  make docs    the documentation as a site, in build/site"; \
	echo "  make lock    resolve requirements.lock again"; \
	echo "  make clean   remove .venv, data, outputs and every run"; \
	echo "  make test-slow     what is too heavy for make test"; \
	echo "  make test-cluster  two nodes on this machine"

# The lock's own entry for uv is installed by pip, with its hash; uv then installs the rest.
$(READY): requirements.lock pyproject.toml
	@echo "setting up $(VENV) (a few GB, some minutes the first time)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@awk '/^uv==/{p=1} p{print} p&&!/\\$$/{exit}' requirements.lock > $(VENV)/uv.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	@$(UV) install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(UV) install --quiet --python $(BIN)/python --no-deps -e .
	@touch $(READY)

repro: $(READY)
	@dvc repro
	@printf '%s\n' "" "Where to look next:" \
		"  report       outputs/report/index.html" \
		"  predictions  outputs/predictions/overlays" \
		"  every run    make ui" \
		"  your images  $(BIN)/segcore predict IMAGES --model outputs/candidate --out masks/"

submit: $(READY)
	@python -m pipelines.$(STAGE)

test: $(READY)
	OMP_NUM_THREADS=1 pytest -q -n 2 --dist loadfile -m "not slow and not ray and not gpu and not cluster"
	pytest -q -m "ray and not slow and not gpu"

# two Ray nodes in network namespaces; needs root and iproute2
test-cluster: $(READY)
	pytest -q -m "cluster and not slow"

test-slow: $(READY)
	pytest -m slow

lint: $(READY)
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(READY)
	ruff check --fix .
	ruff format .

type: $(READY)
	mypy

docs: $(READY)
	@NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
	@echo "read it: python -m http.server --bind 127.0.0.1 --directory build/site 8001"

# MLflow's pages start on language models in a new browser; this address does not.
ui: $(READY)
	@printf '%s\n' "training runs: http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning"
	@mlflow ui --backend-store-uri sqlite:///mlflow.db

lock: $(READY)
	printf 'torch==2.14.1\ntorchvision==0.29.1\n' > $(VENV)/pins.txt
	$(UV) compile pyproject.toml --extra dev --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --universal --constraint $(VENV)/pins.txt --no-annotate -o requirements.lock

clean:
	rm -rf $(VENV) data outputs mlflow.db mlruns
