# The main job on the embedded world, as a chain of the public commands. Finished stages are reused (`.done` files);
# an interrupted stage goes on where it was. Included by the Makefile.

# `make quickstart`, `make world-small` and `make world-real` differ in the configs they name and in how long those train.
world = $(patsubst outputs/%/.done/,%,$(dir $@))
out = outputs/$(world)
RUN := OMP_NUM_THREADS=1 EGOM2P_WORKERS=$(WORKERS) $(PY)
# Small models gain more from processes than from threads: one, two or four, which share the clips of a step.
RANKS ?= $(shell [ $(WORKERS) -ge 4 ] && echo 4 || { [ $(WORKERS) -ge 2 ] && echo 2 || echo 1; })
CLIPS_quickstart := 16
CLIPS_world_small := 16
CLIPS_world_real := 8
CLIPS_PER_RANK = $(shell echo $$(( $(CLIPS_$(world)) / $(RANKS) )))
TORCHRUN := OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc_per_node=$(RANKS)
CFG := cfgs/default

# A stage: says its name, runs, notes its seconds for the page, and is done.
define stage
@mkdir -p $(dir $@)
@printf '\n=== %s: %s\n' '$(world)' '$(1)'
@start=$$(date +%s); { $(2); } && echo $$(( $$(date +%s) - start )) > $@
endef

.PHONY: quickstart world-small world-real clean-quickstart
quickstart: $(ENV)  ## the whole job on a synthetic world, ~7 minutes on 2 cores; ends in outputs/quickstart/index.html
	@$(MAKE) --no-print-directory -j2 outputs/quickstart/.done/evaluation
	@printf '\nDone. Open %s in a browser.\n' '$(CURDIR)/outputs/quickstart/index.html'

world-small: $(ENV)  ## the same in ~45 minutes: the recipe of the pretrained checkpoint
	@$(MAKE) --no-print-directory -j2 outputs/world_small/.done/evaluation
	@printf '\nDone. Open %s in a browser.\n' '$(CURDIR)/outputs/world_small/index.html'

world-real: $(ENV)  ## natural rooms, seen as pixels: the recipe of checkpoints/world_real; REAL_CLIPS=folder: measured on real clips
	@$(MAKE) --no-print-directory -j2 outputs/world_real/.done/evaluation
	@$(if $(REAL_CLIPS),$(PY) run_evaluation.py --config $(CFG)/egom2p/evaluation/world_real_clips.yaml clips.root=$(REAL_CLIPS))
	@printf '\nDone. Open %s in a browser.\n' '$(CURDIR)/outputs/world_real/index.html'

clean-quickstart:  ## remove what the quickstart made
	rm -rf outputs/quickstart

%/.done/clips-train:
	$(call stage,synthetic recordings for training,$(RUN) run_prepare_data.py --config $(CFG)/data_preparation/$(world).yaml output=$(out)/clips/train)

HELD_OUT_quickstart := 24
HELD_OUT_world_small := 48
HELD_OUT_world_real := 24
%/.done/clips-val: %/.done/clips-train
	$(call stage,recordings of held-out rooms,$(RUN) run_prepare_data.py --config $(CFG)/data_preparation/$(world).yaml source.world.first_seed=200000 source.world.num_rooms=$(HELD_OUT_$(world)) output=$(out)/clips/val)

%/.done/tokenizer-rgb: %/.done/clips-val
	$(call stage,RGB tokenizer,$(RUN) run_training_tokenizer.py --config $(CFG)/tokenization/video/rgb_$(world).yaml)

%/.done/tokenizer-depth: %/.done/clips-val
	$(call stage,depth tokenizer,$(RUN) run_training_tokenizer.py --config $(CFG)/tokenization/video/depth_$(world).yaml)

%/.done/tokenizer-cam: %/.done/clips-val
	$(call stage,camera tokenizer,$(RUN) run_training_tokenizer.py --config $(CFG)/tokenization/vqvae/cam_traj/$(world).yaml)

%/.done/tokenizer-gaze: %/.done/clips-val
	$(call stage,gaze tokenizer,$(RUN) run_training_tokenizer.py --config $(CFG)/tokenization/vqvae/gaze/$(world).yaml)

%/.done/tokens-train: %/.done/tokenizer-rgb %/.done/tokenizer-depth %/.done/tokenizer-cam %/.done/tokenizer-gaze
	$(call stage,tokens for training,$(TORCHRUN) run_tokenize_data.py --config $(CFG)/tokenize/$(world).yaml)

# Depth and gaze tokenizers come with the project, the camera's learns random motion, pixels need none; and every clip is
# seen in the mirror too.
outputs/world_real/.done/motion: outputs/world_real/.done/clips-val
	$(call stage,random motion,$(RUN) run_prepare_data.py --config $(CFG)/data_preparation/trajectories.yaml output=$(out)/motion dataset=random_motion clip.stride_s=1 '~source' '+source={kind: random_motion$(comma) num_recordings: 400}')

outputs/world_real/.done/tokenizer-cam: outputs/world_real/.done/motion

CARD := $(PY) -m egom2p.tokenizers.patch_card --config $(CFG)/tokenization/patches
outputs/world_real/.done/tokens-train: outputs/world_real/.done/tokenizer-cam
	$(call stage,pixels and tokens for training,$(CARD)/rgb.yaml 'network.patch=[4$(comma)8$(comma)8]' output=$(out)/tokenizers/rgb_patches && $(CARD)/rgb_motion.yaml output=$(out)/tokenizers/rgb_motion && $(TORCHRUN) run_tokenize_data.py --config $(CFG)/tokenize/$(world).yaml && $(TORCHRUN) run_tokenize_data.py --config $(CFG)/tokenize/$(world).yaml mirrored=true output=$(out)/tokens/train_mirrored)

%/.done/tokens-val: %/.done/tokens-train
	$(call stage,tokens of held-out rooms,$(RUN) run_tokenize_data.py --config $(CFG)/tokenize/$(world).yaml clips=$(out)/clips/val output=$(out)/tokens/val)

%/.done/pretrain: %/.done/tokens-val
	$(call stage,pretraining,$(TORCHRUN) run_training_egom2p.py --config $(CFG)/egom2p/models/main/$(world).yaml training.batch_size=$(CLIPS_PER_RANK))

%/.done/evaluation: %/.done/pretrain
	@cd $(dir $@) && for stage in *; do printf '"%s": %s\n' $$stage $$(cat $$stage); done | paste -sd, - | sed 's/.*/{&}/' > ../stage_times.json
	$(call stage,generation and evaluation,$(PY) run_evaluation.py --config $(CFG)/egom2p/evaluation/$(world).yaml)

# Keep what the chain made in between.
.PRECIOUS: %/.done/clips-train %/.done/clips-val %/.done/tokenizer-rgb %/.done/tokenizer-depth %/.done/tokenizer-cam \
           %/.done/tokenizer-gaze %/.done/tokens-train %/.done/tokens-val %/.done/pretrain %/.done/evaluation
