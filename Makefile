# The everyday loop. PYTHON may name another interpreter that has the test dependencies.
PYTHON ?= $(shell test -x .venv/bin/python && echo .venv/bin/python || echo python3)

.PHONY: check gates fast format
check: gates fast

gates:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy
	$(PYTHON) -m importlinter.cli lint

fast:
	$(PYTHON) -m pytest -q -n 4 -m "not system and not vllm and not slow"

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .
