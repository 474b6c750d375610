# make demo: train on an embedded dataset in two minutes.  make test: lint and the whole test suite.
# make demo-segmentation: the same for segmentation, on images that the project draws, with a picture.
# make demo-detection: the same with boxes and masks.
# make quick: lint and the tests to run while writing.
# All create .venv from the requirements on their first call; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV := .venv
WORKERS ?= 2

.PHONY: demo demo-segmentation demo-detection test quick clean

demo: $(VENV)/ready
	$(VENV)/bin/python -m tools.demo

demo-segmentation: $(VENV)/ready
	$(VENV)/bin/python -m tools.demo_segmentation

demo-detection: $(VENV)/ready
	$(VENV)/bin/python -m tools.demo_detection

test: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile

quick: $(VENV)/ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow"

$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/ready-dev: $(VENV)/ready requirements-tools.txt requirements-dev.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
