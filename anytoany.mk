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

# A step is 4 x 64 conversations on any number of GPUs, as published for one: the ranks share the micro-batches.
finetune-x%: $(ENV)  ## finetune-x1, finetune-x8 ...: the 8B run on so many GPUs of this machine, the same step on all of them
	@[ $$(( 64 % $* )) -eq 0 ] || { echo 'finetune-x$*: 64 micro-batches of a step cannot be shared by $* GPUs; 1, 2, 4, 8, 16, 32 or 64'; exit 2; }
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node=$* run_training_anytoany.py --config $(CFG_ANY)/8B_lora.yaml training.accumulation=$$(( 64 / $* )) $(OPTIONS)

eval_baseline eval_finetune mm_eval: $(ENV)  ## text tasks before and after, and questions about pictures
	$(PY) -m egom2p.anytoany.evaluation.anytoany_evaluation --config $(CFG_ANY)/evaluation/$@.yaml $(OPTIONS)

# Of these two alone: elsewhere MODEL is a checkpoint of EgoM2P.
gen mmgen: MODEL = outputs/anytoany/8B_lora/final

gen: $(ENV)  ## an example: text out of text (MODEL=<any-to-any directory>)
	$(PY) -m egom2p.anytoany.generate model=$(MODEL) 'prompt="Define inference in one word."' $(OPTIONS)

mmgen: $(ENV)  ## an example: text about a picture (IMAGE_FILE=<what the model perceives: vector, picture>)
	@test -n '$(IMAGE_FILE)' || { echo 'which picture? make mmgen IMAGE_FILE=file, as the model perceives it: vectors.parquet#0, photo.jpg ...'; exit 2; }
	$(PY) -m egom2p.anytoany.generate model=$(MODEL) 'prompt="Caption the image.\n{image}"' 'image=$(IMAGE_FILE)' $(OPTIONS)

# --- quickstart: no network, two cores. First the world of codes, then rendered video; finished stages are reused.
ANY := outputs/anytoany
QUICK_RANKS ?= $(shell [ $(WORKERS) -ge 2 ] && echo 2 || echo 1)
QUICK_TRAIN = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node=$(QUICK_RANKS) run_training_anytoany.py
PERCEIVE = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.perception.export_features --config $(CFG_ANY)/world_features.yaml

# BASE=packages: a real language model (SmolLM2-135M-Instruct) learns by LoRA in place of tiny ones from scratch.
BASE ?= scratch
ANY_KIND := $(if $(filter packages,$(BASE)),_smollm)

anytoany-quickstart: $(ENV)  ## a tiny language model captions clips never seen, a few minutes on 2 cores (BASE=packages: a real one)
	@case '$(BASE)' in scratch|packages) ;; *) echo 'BASE=$(BASE): there are scratch (tiny models, no network) and packages (SmolLM2)'; exit 2;; esac
	@$(MAKE) --no-print-directory -j$(if $(ANY_KIND),1,2) $(ANY)/index$(ANY_KIND).html
	@echo 'answers, pictures, intervals and losses: $(ANY)/index$(ANY_KIND).html'

$(ANY)/downloads/.synthetic-done:
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.download source=synthetic
	@touch $@

$(ANY)/downloads/.packages-done:
	OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.download source=packages
	@touch $@

$(ANY)/quickstart_smollm/.done: $(ANY)/downloads/.packages-done
	$(QUICK_TRAIN) --config $(CFG_ANY)/quickstart_smollm.yaml training.batch_size=$$(( 2 / $(QUICK_RANKS) ))
	@touch $@

$(ANY)/world_smollm/.done: $(ANY)/world_data/.done-train $(ANY)/world_data/.done-val $(ANY)/quickstart_smollm/.done
	$(QUICK_TRAIN) --config $(CFG_ANY)/world_smollm.yaml training.batch_size=$$(( 2 / $(QUICK_RANKS) ))
	@touch $@

$(ANY)/index_smollm.html: $(ANY)/evaluation/.done-world_smollm $(ANY)/evaluation/.done-quickstart_smollm
	OMP_NUM_THREADS=1 $(PY) -m egom2p.viewing.anytoany_page 'evaluation=[$(ANY)/evaluation/world_smollm,$(ANY)/evaluation/quickstart_smollm]' page=$@

$(ANY)/quickstart/.done: $(ANY)/downloads/.synthetic-done
	$(QUICK_TRAIN) --config $(CFG_ANY)/quickstart.yaml training.batch_size=$$(( 2 / $(QUICK_RANKS) ))
	HF_HUB_OFFLINE=1 $(PY) -m egom2p.anytoany.merge model=$(ANY)/quickstart/final output=$(ANY)/quickstart/merged
	@touch $@

$(ANY)/world_data/.done-%:
	OMP_NUM_THREADS=1 $(PY) run_prepare_data.py --config cfgs/default/data_preparation/gaze_questions.yaml output=$(ANY)/world_data/clips/$* $(ROOMS_$*)
	$(PERCEIVE) input=$(ANY)/world_data/clips/$* output=$(ANY)/world_data/features/$*
	@touch $@
ROOMS_train := source.world.num_rooms=120
ROOMS_val := source.world.num_rooms=24 source.world.first_seed=300000

$(ANY)/world/.done: $(ANY)/world_data/.done-train $(ANY)/world_data/.done-val $(ANY)/quickstart/.done
	$(QUICK_TRAIN) --config $(CFG_ANY)/world.yaml training.batch_size=$$(( 4 / $(QUICK_RANKS) ))
	@touch $@

$(ANY)/evaluation/.done-%: $(ANY)/%/.done
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(PY) -m egom2p.anytoany.evaluation.anytoany_evaluation --config $(CFG_ANY)/evaluation/$*.yaml
	@touch $@

$(ANY)/index.html: $(ANY)/evaluation/.done-world $(ANY)/evaluation/.done-quickstart
	OMP_NUM_THREADS=1 $(PY) -m egom2p.viewing.anytoany_page 'evaluation=[$(ANY)/evaluation/world,$(ANY)/evaluation/quickstart]' page=$@

clean-anytoany-quickstart:  ## remove what it made
	rm -rf $(addprefix $(ANY)/,quickstart_smollm world_smollm index_smollm.html downloads/.packages-done) \
	       $(addprefix $(ANY)/evaluation/,quickstart_smollm world_smollm .done-quickstart_smollm .done-world_smollm)
	rm -rf $(ANY)/quickstart $(ANY)/world $(ANY)/world_data $(ANY)/downloads/synthetic $(ANY)/downloads/.synthetic-done \
	       $(addprefix $(ANY)/evaluation/,quickstart world .done-quickstart .done-world) $(ANY)/index.html
