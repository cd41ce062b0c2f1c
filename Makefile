# make demo: from nothing to a submission.  make test: what CI runs.  make smoke: its quick part.  make bench: speeds.  make trust: scores.
# make torture: steps killed, damaged and doubled (LONG=1: all of it).  make report: every run of $FOLDWISE_COMPETITION (default: demo) on one page.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# a machine without a network: wheels/ holds what `pip download -d wheels -r requirements.txt -r tests/requirements.txt` got
WHEELS := $(if $(wildcard wheels),--no-index --find-links wheels)

unexport PYTHONDONTWRITEBYTECODE  # every step would compile the package anew

.PHONY: demo test suite smoke torture lint types bench gpu trust report clean app

demo: $(VENV)/installed
	$(RUN) src/00_demo.py
	$(RUN) src/01_preprocess.py --sizes 96
	$(RUN) src/02_train.py --recipe demo --fold all --devices 2
	$(RUN) src/03_metadata.py
	$(RUN) src/04_embed.py --run demo --head svm
	$(RUN) src/05_predict.py --run demo predict.tta=d4
	$(RUN) src/06_blend.py --name blend
	$(RUN) src/00_demo.py --score

# types are checked beside the tests: that is one core's work for a minute
test: lint
	$(MAKE) --jobs 2 types suite

# files side by side, a process a core
suite smoke: $(VENV)/installed-tests
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(if $(filter smoke,$@),-m smoke)

app: $(VENV)/installed
	$(RUN) src/09_app.py

torture: $(VENV)/installed-tests
	FOLDWISE_TORTURE_LONG=$(LONG) $(RUN) -m pytest $(if $(LONG),-s) tests/torture

lint: $(VENV)/installed-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check --quiet .

types: $(VENV)/installed-tests
	$(VENV)/bin/mypy

SLOW := bench/fits.py bench/gpu.py bench/preprocess.py bench/skin1500.py bench/transfer.py bench/speed.py bench/trust.py

# the quick ones; those in SLOW take half an hour and more each, or a GPU: python bench/NAME.py
bench: $(VENV)/installed-tests
	for bench in $(filter-out $(SLOW), $(wildcard bench/*.py)); do echo; echo "== $$bench"; $(RUN) $$bench || exit 1; done

# half an hour: do scores hold on random labels, and intervals where the truth is known?
trust: $(VENV)/installed
	$(RUN) bench/trust.py --csv docs/trust.csv

# all that only a GPU can show, in under nine minutes on one card: tests marked gpu, and docs/gpu.csv
gpu: $(VENV)/installed-tests
	$(RUN) bench/gpu.py

report: $(VENV)/installed
	$(RUN) src/10_report.py

clean:
	rm -rf $(VENV) input/demo input/derived oof/* submissions/*

$(VENV)/installed: requirements.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "Python 3.11 or newer is needed, for example: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $(WHEELS) --requirement requirements.txt
	touch $@

$(VENV)/installed-tests: $(VENV)/installed tests/requirements.txt
	$(VENV)/bin/pip install --quiet $(WHEELS) --requirement tests/requirements.txt
	touch $@
