# Every command a user types. Each is a thin line over a Python command that works without make.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# make takes LANG from the environment too, where it is the user's locale: only `make data LANG=fr` counts.
ifeq ($(origin LANG),command line)
  LANGUAGE_ARG := --lang=$(LANG)
endif
unexport LANG
export UMLS E3C

# The grid of Table 6: runs/<BASE>-<tasks>-s<seed> for each. BASE is the name of the config, with the language.
CONFIG_OF_GRID = $(or $(CONFIG),configs/v1-$(LANG).toml)
DATA_OF_GRID = $(or $(DATA),datasets/$(LANG))
SEEDS ?= 0
BASE = $(patsubst %-$(LANG)-$(LANG),%-$(LANG),$(basename $(notdir $(CONFIG_OF_GRID)))-$(LANG))
SUBSETS = $(if $(LANGUAGE_ARG),mlm ep-lp ep-tc tc-lp all)
GRID = $(foreach seed,$(SEEDS),$(foreach tasks,$(SUBSETS),$(BASE)-$(tasks)-s$(seed)))

.PHONY: help setup demo test lint data train ner check tables ablation evaluate map plot bench bench-levers bench-data \
        clean corpora $(GRID:%=score/%)
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

$(READY): requirements.txt requirements-dev.txt requirements-plot.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

setup: $(READY) ## the Python environment in .venv

demo: $(READY) ## all of it on synthetic data, in minutes: no licence, no GPU
	rm -rf demo
	$(PY) tests/sample.py demo/sample
	$(PY) data.py build configs/demo.toml
	$(PY) kgi.py configs/demo.toml
	$(PY) finetune.py demo/kgi-fr configs/demo.toml --out demo/results/pretrained
	$(PY) finetune.py demo/kgi-fr configs/demo.toml --out demo/results/untrained --untrained
	@$(PY) tests/closing.py demo

test: $(READY) ## the tests
	$(PY) -m pytest -q

lint: $(READY) ## ruff, check and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

data: $(READY) ## LANG=fr [UMLS=dir] [E3C=dir] [TOKENIZER=dir] [EXCLUDE=dir] [CONFIG=file] [ARGS=..]: a data set
	@$(PY) data.py build $(CONFIG) $(LANGUAGE_ARG) $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") $(if $(EXCLUDE),--exclude "$(EXCLUDE)") $(ARGS)

train: $(READY) ## [RANKS=4] [CONFIG=configs/v1-fr.toml] [ARGS=..]: pre-training into runs/
	@$(VENV)/bin/torchrun --nproc_per_node $(or $(RANKS),1) kgi.py $(CONFIG) $(ARGS)

check: $(READY) ## CORPUS=meddocan DATA=dir [ARGS="--dataset datasets/es"]: what a corpus holds, what is lost
	@$(PY) finetune.py --check "$(CORPUS)" --data "$(DATA)" $(ARGS)

ner: $(READY) ## CHECKPOINT=runs/kgi-fr CORPUS=e3c DATA=dir [ARGS=..]: one-shot NER
	@$(PY) finetune.py $(CHECKPOINT) --corpus "$(CORPUS)" --data "$(DATA)" $(ARGS)

tables: $(READY) ## [ARGS=--paper]: Tables 2, 3, 4, 6, 9, 10, 11 and what encoders know, from results/
	@$(PY) finetune.py --tables $(ARGS)

ablation: $(GRID:%=score/%) ## LANG=fr [CONFIG=file] [DATA=dataset] [SEEDS="0 1 2"] [RUNS=4] [CORPORA="e3c=dir ..."]: Table 6
	@test -n "$(GRID)" || { echo "make ablation needs LANG=fr (or en, es ...)"; exit 1; }
	@test -n "$(CORPORA)" || echo "no CORPORA: nothing was fine-tuned"
	@$(PY) finetune.py --tables

# Each command itself decides what is left to do and refuses other settings than before; results older than the model
# are made again.
$(GRID:%=score/%): score/%: corpora
	@run="$*"; run="$${run#$(BASE)-}"; $(if $(RANKS),$(VENV)/bin/torchrun --nproc_per_node $(RANKS),$(PY)) kgi.py \
	  $(CONFIG_OF_GRID) configs/ablation-$${run%-s*}.toml --data "$(DATA_OF_GRID)" --seed "$${run##*-s}" \
	  --out "runs/$*" $(ARGS)
	@for c in $(CORPORA); do \
	  out="results/$*/$${c%%=*}"; test $${c%%=*} != e3c || out="$$out-$(LANG)"; \
	  runs=$$($(PY) -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["runs"]))' $$out/scores.json 2>&- || echo 0); \
	  test $$runs -ge $(or $(RUNS),1) && test $$out/scores.json -nt runs/$*/model.safetensors || \
	    $(PY) finetune.py runs/$* $(CONFIG_OF_GRID) --corpus "$${c%%=*}" --data "$${c#*=}" --runs $(or $(RUNS),1) --out "$$out" || exit 1; \
	done
	@test results/$*/knowledge-$(notdir $(DATA_OF_GRID)).json -nt runs/$*/model.safetensors || \
	  $(PY) kgi.py --evaluate runs/$* --data "$(DATA_OF_GRID)"

corpora: $(READY)
	@for c in $(CORPORA); do $(PY) finetune.py --check "$${c%%=*}" --data "$${c#*=}" > /dev/null || exit 1; done

evaluate: $(READY) ## CHECKPOINT="runs/kgi-fr other" [DATA=dataset]: held-out pairs and synonyms
	@$(PY) kgi.py --evaluate $(CHECKPOINT) $(if $(DATA),--data "$(DATA)") $(ARGS)

map: $(READY) ## CHECKPOINT=runs/kgi-fr [DATA=dataset]: a picture of its terms by semantic group
	@$(PY) kgi.py --map $(CHECKPOINT) $(if $(DATA),--data "$(DATA)") $(ARGS)

plot: $(READY) ## RUN="runs/a runs/b" [ARGS="--out x.png"]: loss and accuracy over the steps, as a picture
	@$(PY) kgi.py plot $(RUN) $(ARGS)

bench: $(READY) ## [ARGS="--sizes 6x384 --repeat 3"]: training speed beside the paper's batching, in one run
	$(PY) tests/bench.py train $(ARGS)

bench-levers: $(READY) ## [ARGS="--sizes 6x384"]: what each part of that brings
	$(PY) tests/bench.py train --levers $(ARGS)

bench-data: $(READY) ## [ARGS=--repeat 3]: the build at the full size of 2022AB, beside its floor
	$(PY) tests/bench.py data $(ARGS)

clean: ## removes the demo and caches, keeps data sets, runs and results
	rm -rf demo .cache curves.png .pytest_cache .ruff_cache __pycache__ */__pycache__
