# Real recordings through the public commands: RGB-D frames, Aria MPS output, videos. Included by the Makefile; uses
# `stage` of quickstart.mk. README_DATA.md says where such samples can be had and what the commands do.

# A model with its tokenizers inside, of the sizes in models/main/world_small.yaml; named by a person, it generates too.
named_model := $(MODEL)
MODEL ?= checkpoints/world_small
# Its training clips, for trivial baselines beside the numbers; empty: none.
MODEL_CLIPS ?= $(wildcard outputs/world_small/clips/train)
# Size of pictures that the model's tokenizers read.
SIDE ?= 64
RGBD ?= $(SAMPLES)/rgbd_7scenes_redkitchen
ARIA ?= $(SAMPLES)/aria_mps_sample
VIDEOS ?= $(SAMPLES)/ego4d_clip_lavila $(SAMPLES)/egom2p_example_data/rgb2dep_h2o.mp4

real := outputs/real_samples
CONVERT := $(RUN) -m egom2p.pipelines.convert_samples
PREPARE := $(RUN) run_prepare_data.py --config $(CFG)/data_preparation/plain_folder.yaml clip.height=$(SIDE) clip.width=$(SIDE) output=$(real)/clips
with_baselines = $(if $(MODEL_CLIPS),'train_clips={root: $(MODEL_CLIPS)$(comma) dataset: world}')

.PHONY: real-samples clean-real-samples
real-samples: $(if $(SAMPLES),$(ENV))  ## real recordings through the same commands: SAMPLES=folder; ends in outputs/real_samples/generated/index.html
	@test -n '$(SAMPLES)' || { echo 'make real-samples SAMPLES=folder of samples (README_DATA.md)'; exit 2; }
	@test -f '$(MODEL)/model.json' || { echo '$(MODEL): no model.json there; MODEL=folder of a trained model'; exit 2; }
	@$(MAKE) --no-print-directory $(real)/.done/evaluation
	@printf '\nDone. Open in a browser:\n  %s\n  %s\n' '$(CURDIR)/$(real)/generated/index.html' '$(CURDIR)/$(real)/evaluation/index.html'

clean-real-samples:  ## remove what real-samples made
	rm -rf $(real)

$(real)/.done/recordings:
	$(call stage,samples as plain folders,$(CONVERT) $(RGBD) $(real)/recordings/rgbd && $(CONVERT) $(ARIA) $(real)/recordings/aria && for video in $(VIDEOS); do $(CONVERT) $$video $(real)/recordings/video || exit; done)

$(real)/.done/clips: $(real)/.done/recordings
	$(call stage,clips of 2 s,for kind in rgbd aria video; do $(PREPARE) source.root=$(real)/recordings/$$kind dataset=$$kind || exit; done)

$(real)/.done/tokens: $(real)/.done/clips
	$(call stage,tokens,$(RUN) run_tokenize_data.py --config $(CFG)/tokenize/real_samples.yaml tokenizers_root=$(MODEL)/tokenizers)

$(real)/.done/pretrain: $(real)/.done/tokens
	$(call stage,some steps on the mixture,$(RUN) run_training_egom2p.py --config $(CFG)/egom2p/models/main/real_samples.yaml finetune=$(MODEL))

$(real)/.done/generated: $(real)/.done/pretrain
	$(call stage,depth$(comma) camera and gaze of the videos,$(RUN) generate.py --config $(CFG)/egom2p/generation/real_samples.yaml $(if $(named_model),checkpoint=$(named_model)))

$(real)/.done/evaluation: $(real)/.done/generated
	$(call stage,numbers where there is truth,$(RUN) run_evaluation.py --config $(CFG)/egom2p/evaluation/real_samples.yaml 'checkpoints={world: $(MODEL)}' $(with_baselines))
