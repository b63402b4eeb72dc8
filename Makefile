# Everything works on a machine that has only Python >= 3.11, pip and make.
PYTHON ?= python3
VENV := .venv
UV := $(VENV)/bin/uv

.PHONY: table1 test check lint bench clean

table1: $(VENV)/installed
	$(VENV)/bin/python reproduce.py table1

test: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadfile

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

check: lint test

bench: $(VENV)/installed-dev
	$(VENV)/bin/python benchmarks/everything.py

clean:
	rm -rf $(VENV) build *.egg-info

# uv installs in seconds what pip installs in minutes. Byte code is compiled at once: without it,
# where PYTHONDONTWRITEBYTECODE is set, every one of a table's jobs would compile torch again.
$(VENV)/bin/uv:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet uv

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(UV) pip install --python $(VENV)/bin/python --compile-bytecode -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/uv
	$(UV) pip install --python $(VENV)/bin/python --compile-bytecode -c constraints.txt -e ".[dev]"
	touch $@
