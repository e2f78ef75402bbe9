# Every command a user types. Each is a thin line over a Python command that works without make.

VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

# make takes LANG from the environment too, where it is the user's locale: only `make data LANG=fr` counts.
ifeq ($(origin LANG),command line)
  LANGUAGE := $(LANG)
endif
unexport LANG
export UMLS E3C

.PHONY: help setup demo demo-links test lint data train ner check list tables ablation evaluate map tag link plot bench bench-gpu bench-data clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

# .ready marks a folder as made here, from before the installation on, and holds the version of torch that was installed.
# Another torch in its place, as a V100 needs, stays when the requirements change.
TORCH_VERSION := $(PY) -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null

$(READY): requirements.txt requirements-dev.txt requirements-plot.txt
	@if [ $(words $(VENV)) != 1 ] || [ -L "$(VENV)" ] || { [ ! -e $@ ] && [ -n "$$(ls -A "$(VENV)" 2>/dev/null)" ]; }; then \
	  echo "'$(VENV)' is a link, has spaces, or is not a folder that make setup has made; remove it, or give another one, such as: VENV=env"; \
	  exit 1; fi
	@$(PY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, and $(PYTHON) is " \
	    + sys.version.split()[0] + "; give another one, such as: make setup PYTHON=python3.11")' && \
	  mkdir -p "$(VENV)" && touch -t 197001020000 $@ && $(PYTHON) -m venv "$(VENV)"; }
	@pin=$$(sed -n 's/^torch==//p' requirements.txt); ours=$$(cat $@); now=$$($(TORCH_VERSION)); keep=''; \
	case "$$now" in "" | "$$pin" | "$$ours") ;; *) keep='\|^torch=='; echo "torch $$now stays" ;; esac; \
	echo "installing the requirements into $(VENV)"; \
	grep -hv "^-r$$keep" $^ | $(PY) -m pip install --quiet --disable-pip-version-check -r /dev/stdin && \
	if [ "$$keep" ]; then touch $@; else echo "$$($(TORCH_VERSION))" >$@; fi

# given-CORPUS as a prerequisite: a command without that variable says how it is called, before anything is installed.
given-%:
	@$(if $($*),:,awk -F ':.*## ' '/^$(firstword $(MAKECMDGOALS)):/ {print "make $(firstword $(MAKECMDGOALS)) needs $*: make $(firstword $(MAKECMDGOALS)) " $$2}' Makefile; exit 1)

setup: $(READY) ## the Python environment in .venv

demo: $(READY) ## all of it on synthetic data, in minutes: no licence, no GPU; a demo that was stopped goes on
	@test ! -e demo/.done || { cd demo && rm -rf sample fr tables kgi-fr results links .done; }
	$(PY) tests/synthetic_umls.py demo/sample
	$(PY) data.py build configs/demo.toml
	$(PY) kgi.py configs/demo.toml
	$(PY) finetune.py demo/kgi-fr configs/demo.toml --out demo/results/pretrained
	$(PY) finetune.py demo/kgi-fr configs/demo.toml --out demo/results/untrained --untrained
	$(PY) -m beyond.plot demo/kgi-fr
	$(PY) -m beyond.evaluate map demo/kgi-fr --data demo/fr --out demo/results
	$(PY) -m beyond.tag demo/results/pretrained/model demo/sample/ner/fr.txt --out demo/results/entities.jsonl \
	  --html demo/results/tagged.html
	@$(PY) tests/demo_report.py demo
	@touch demo/.done

LINK = $(PY) -m beyond.link $(1) demo/links/mentions.jsonl --dictionary demo/links/names.tsv --out demo/links/$(2).jsonl

demo-links: $(READY) ## after the demo, a minute of synonym alignment: French mentions and their nearest concepts
	@test -e demo/.done || $(MAKE) demo
	@test ! -e demo/links/.done || rm -rf demo/links
	mkdir -p demo/links && cp -R demo/fr demo/tables demo/links
	$(PY) -m beyond.synonyms build demo/links/fr --pairs 4000
	$(PY) -m beyond.synonyms configs/demo.toml --data demo/links/fr --init demo/kgi-fr --out demo/links/kgi-fr-sa \
	  --tasks mlm --batch_size 32 --pairs_per_step 128 --steps 120
	$(PY) tests/demo_links.py mentions demo/links
	$(call LINK,demo/kgi-fr,trigrams) --score trigrams
	$(call LINK,demo/kgi-fr,before)
	$(call LINK,demo/links/kgi-fr-sa,after)
	@$(PY) tests/demo_links.py report demo/links
	@touch demo/links/.done

test: $(READY) ## the tests, in two processes
	$(PY) -m pytest -q -n 2

lint: $(READY) ## ruff, check and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

data: $(READY) ## LANG=fr [UMLS=path] [E3C=dir] [TOKENIZER=dir] [EXCLUDE=dir] [CONFIG=file] [ARGS=..]: a data set
	@$(PY) data.py build $(CONFIG) $(if $(LANGUAGE),--lang $(LANGUAGE)) $(if $(TOKENIZER),--tokenizer "$(TOKENIZER)") \
	  $(if $(EXCLUDE),--exclude "$(EXCLUDE)") $(ARGS)

train: $(READY) ## [RANKS=4] [CONFIG=configs/v1-fr.toml] [ARGS=..]: pre-training into runs/
	@$(VENV)/bin/torchrun --nproc_per_node $(or $(RANKS),1) kgi.py $(CONFIG) $(ARGS)

evaluate: given-CHECKPOINT $(READY) ## CHECKPOINT="runs/kgi-fr other" [DATA=dataset]: held-out pairs and synonyms
	@$(PY) -m beyond.evaluate $(CHECKPOINT) $(if $(DATA),--data "$(DATA)") $(ARGS)

map: given-CHECKPOINT $(READY) ## CHECKPOINT=runs/kgi-fr [DATA=dataset]: a picture of its terms by semantic group
	@$(PY) -m beyond.evaluate map $(CHECKPOINT) $(if $(DATA),--data "$(DATA)") $(ARGS)

tag: given-MODEL $(READY) ## MODEL=results/.. INPUT=notes.txt [ARGS="--html page.html"]: the entities of texts
	@$(PY) -m beyond.tag "$(MODEL)" "$(INPUT)" $(ARGS)

link: given-CHECKPOINT given-CORPUS $(READY) ## CHECKPOINT=runs/kgi-en CORPUS=folder [IDS=file] [DATA=dataset]: the concepts of a corpus's mentions
	@$(PY) -m beyond.link $(CHECKPOINT) --corpus "$(CORPUS)" $(if $(IDS),--ids "$(IDS)") $(if $(DATA),--data "$(DATA)") $(ARGS)

plot: given-RUN $(READY) ## RUN="runs/a runs/b" [ARGS="--out x.png"]: loss and accuracy over the steps, as a picture
	@$(PY) -m beyond.plot $(RUN) $(ARGS)

list: $(READY) ## the evaluation corpora, and what their folders must hold
	@$(PY) finetune.py list

check: given-CORPUS given-DATA $(READY) ## CORPUS=meddocan DATA=dir [ARGS="--dataset datasets/es"]: what a corpus holds, what is lost
	@$(PY) -m beyond.check --corpus "$(CORPUS)" --data "$(DATA)" $(ARGS)

ner: given-CHECKPOINT given-CORPUS given-DATA $(READY) ## CHECKPOINT=runs/kgi-fr CORPUS=e3c DATA=dir [ARGS=..]: one-shot NER
	@$(PY) finetune.py $(CHECKPOINT) --corpus "$(CORPUS)" --data "$(DATA)" $(ARGS)

tables: $(READY) ## [ARGS=--paper]: Tables 2, 3, 4, 6, 9, 10, 11 and what encoders know, from results/
	@$(PY) finetune.py tables $(ARGS)

ablation: $(READY) ## LANG=fr [CONFIG=file] [DATA=dataset] [SEEDS="0 1 2"] [RUNS=4] [CORPORA="e3c=dir ..."] [ARGS=..]: Table 6
	@test -n "$(LANGUAGE)" || { echo "make ablation needs LANG=fr (or en, es ...)"; exit 1; }
	@CONFIG="$(or $(CONFIG),configs/v1-$(LANG).toml)" DATA="$(or $(DATA),datasets/$(LANG))" LANGUAGE="$(LANGUAGE)" \
	  SEEDS="$(SEEDS)" RUNS="$(RUNS)" RANKS="$(RANKS)" CORPORA="$(CORPORA)" BIN="$(VENV)/bin" configs/ablation.sh $(ARGS)

bench: $(READY) ## [ARGS="--sizes 6x384 --repeat 3"]: training speed beside the paper's batching; on a GPU ten minutes of checks
	$(PY) tests/bench.py train $(ARGS)

bench-gpu: $(READY) ## [ARGS="--gpu h100 --ranks 4"]: kernels, bytes and time of a step on a GPU, by counting, without one
	$(PY) tests/gpu_counts.py $(ARGS)

bench-data: $(READY) ## [ARGS="--repeat 3"]: the build at the full size of 2022AB, beside its floor; writes 3.4 GB into .cache
	$(PY) tests/bench.py data $(ARGS)

clean: ## removes the demo and caches, keeps data sets, runs and results
	rm -rf demo .cache curves.png .pytest_cache .ruff_cache __pycache__ */__pycache__
