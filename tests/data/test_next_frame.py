"""Next-frame maskings: everything before a random frame is input, that frame is the target."""

import numpy as np
import pytest
from token_shards import random_clip, text_spec, tiny_specs

from egom2p.data.masking import AlphasConfig, MaskingConfig, TransferConfig, UnifiedMasking

SPECS = tiny_specs()
GRIDS = [spec for spec in SPECS if spec.kind == "grid"]
TRACKS = [spec for spec in SPECS if spec.kind == "track"]


def masking_of(inputs, targets, specs=SPECS, **further):
    transfer = TransferConfig(weight=1.0, inputs=inputs, targets=targets, next_frame=True, **further)
    alphas = AlphasConfig(transfers={"next": transfer})
    return UnifiedMasking(specs, MaskingConfig(alphas=alphas, max_input_tokens=9, max_target_tokens=9))


@pytest.mark.parametrize("spec", [GRIDS[0], TRACKS[0]], ids=lambda spec: spec.kind)
def test_all_before_is_input_and_the_next_frame_is_target(rng, spec):
    masking, size = masking_of([spec.name], [spec.name]), spec.num_tokens // spec.grid.shape[0]
    seen = set()
    for _ in range(200):
        clip = random_clip(SPECS, rng)
        masked = masking(clip, rng)
        assert set(masked.input_positions) == set(masked.target_positions) == {spec.name}
        inputs, targets = masked.input_positions[spec.name], masked.target_positions[spec.name]
        assert targets.tolist() == list(range(targets[0], targets[0] + size)) and targets[0] % size == 0
        assert inputs.tolist() == list(range(targets[0]))
        assert np.array_equal(masked.target_ids[spec.name], clip.tokens[spec.name][targets])
        assert np.array_equal(masked.input_ids[spec.name], clip.tokens[spec.name][inputs])
        seen.add(int(targets[0]) // size)
    assert seen == set(range(1, spec.grid.shape[0]))  # every frame but the first


def test_other_modalities_are_whole_and_subsets_stay_inside_the_cut(rng):
    video, track = GRIDS[0], TRACKS[0]
    size = video.num_tokens // video.grid.shape[0]
    masking = masking_of([track.name, video.name], [video.name], positions_per_input=3, positions_per_target=2)
    for _ in range(50):
        masked = masking(random_clip(SPECS, rng), rng)
        assert (
            len(masked.input_positions[track.name]) == min(3, track.num_tokens) and track.name not in masked.target_ids
        )
        targets = masked.target_positions[video.name]
        assert len(targets) == min(2, size) and len(set(targets // size)) == 1
        assert len(masked.input_positions[video.name]) == 3
        assert masked.input_positions[video.name].max() < targets[0] // size * size


@pytest.mark.parametrize("further", [{}, {"positions_per_input": 3, "positions_per_target": 2}])
def test_sizes_are_told_without_drawing_positions(further):
    names = [spec.name for spec in SPECS]
    masking = masking_of(names, [GRIDS[0].name, TRACKS[0].name], **further)
    for seed in range(50):
        clip = random_clip(SPECS, np.random.default_rng([seed, 1]))
        masked = masking(clip, np.random.default_rng(seed))
        found = tuple(sum(map(len, side.values())) for side in (masked.input_ids, masked.target_ids))
        assert masking.sizes(names, np.random.default_rng(seed)) == (*found, ())


def test_what_has_no_next_frame_is_refused():
    name = GRIDS[0].name
    with pytest.raises(ValueError, match="next_frame needs a modality on both sides"):
        TransferConfig(weight=1.0, inputs=[name], targets=[TRACKS[0].name], next_frame=True)
    with pytest.raises(ValueError, match="inputs and targets are disjoint"):
        TransferConfig(weight=1.0, inputs=[name], targets=[name])
    words = text_spec()
    with pytest.raises(ValueError, match=f"next_frame needs a grid or track of at least 2 frames, {words.name} is"):
        masking_of([words.name], [words.name], specs=(*SPECS, words))
