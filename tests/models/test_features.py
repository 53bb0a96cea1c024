"""The encoder alone: features of a clip do not depend on its batch, and are the states the decoder would see."""

import numpy as np
import pytest
import torch
from packing import TINY_SPECS, pack

from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid, TokenizerMismatch
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.features import encode_clip, encode_clips

SPECS = (*TINY_SPECS, ModalitySpec("tok_words", "sequence", "text", TokenGrid((5,)), 9, "words", pad_id=0, eos_id=1))


def tiny_model(**options) -> EgoM2P:
    torch.manual_seed(0)
    sizes = {"dim": 32, "num_heads": 4, "encoder_depth": 3, "decoder_depth": 1, "embedding_std": 0.5}
    return EgoM2P(ModelConfig(**sizes | options), SPECS)


def clip_of(key: str, rng: np.random.Generator, *names: str) -> TokenClip:
    ids = {spec.name: rng.integers(2, spec.vocab_size, spec.num_tokens).astype(np.int32) for spec in SPECS}
    return TokenClip(key, {name: ids[name] for name in names or ids})


@pytest.mark.parametrize("num_registers", [0, 2])
def test_features_are_the_states_of_the_encoder(rng, num_registers):
    model, clip = tiny_model(num_registers=num_registers), clip_of("a", rng)
    features = encode_clip(model, clip)
    inputs = {name: (ids, np.arange(len(ids))) for name, ids in clip.tokens.items()}
    wanted = model.encoder_output(pack([(inputs, {})], SPECS, num_registers=num_registers))
    assert torch.allclose(torch.cat([features.registers, features.rows]), wanted, atol=1e-6)
    assert features.rows.shape == (6 + 24 + 5, 32) and features.registers.shape == (num_registers, 32)
    assert features.modality.bincount().tolist() == [6, 24, 5] and features.position[6:30].tolist() == list(range(24))
    assert torch.allclose(features.pooled, features.rows.mean(0)) and not features.rows.requires_grad


@pytest.mark.parametrize("layer", [None, 0, 1, 3])
def test_a_clip_does_not_feel_its_batch(rng, layer):
    model = tiny_model(drop_path=0.5).train()
    clips = [clip_of("a", rng), clip_of("b", rng, "tok_motion"), clip_of("c", rng, "tok_smell", "tok_words")]
    together = encode_clips(model, clips, layer=layer, batch_size=2)
    for clip, found in zip(clips, together, strict=True):
        alone = encode_clip(model, clip, layer=layer)
        assert torch.allclose(found.rows, alone.rows, atol=1e-6) and len(alone.rows) == sum(
            map(len, clip.tokens.values())
        )
    assert model.training, "the model is left as it was"


def test_layers_follow_each_other(rng):
    model, clip = tiny_model().eval(), clip_of("a", rng, "tok_motion")
    states = [encode_clip(model, clip, layer=layer).rows for layer in range(4)]
    embedded = model.encoder_embeddings.token_table[torch.from_numpy(clip.tokens["tok_motion"]).long()]
    positions = model.positions(torch.arange(6), torch.zeros(6, dtype=torch.long))
    assert torch.allclose(states[0], embedded + positions, atol=1e-6)
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(states, states[1:], strict=False))
    assert torch.allclose(model.encoder_norm(states[3]), encode_clip(model, clip).rows, atol=1e-6)


def test_any_subset_of_modalities_and_what_is_known_of_them(rng):
    model, clip = tiny_model(), clip_of("a", rng)
    some = encode_clip(model, clip, modalities=["tok_smell"])
    only = encode_clip(model, TokenClip("a", {"tok_smell": clip.tokens["tok_smell"]}))
    assert torch.equal(some.rows, only.rows)
    clip.tokens["tok_motion"][2:] = -1
    clip.tokens["tok_words"][:] = [5, 7, 1, 0, 0]
    found = encode_clip(model, clip, modalities=["tok_motion", "tok_words"])
    assert found.modality.tolist() == [0, 0, 2, 2] and found.position.tolist() == [0, 1, 0, 1]


def test_mistakes_are_named(rng):
    model, clip = tiny_model(), clip_of("a", rng, "tok_motion")
    with pytest.raises(ValueError, match="layer must be in 0 ... 3, got 4"):
        encode_clip(model, clip, layer=4)
    with pytest.raises(ValueError, match="clip a has no tok_smell, only .'tok_motion'."):
        encode_clip(model, clip, modalities=["tok_smell"])
    with pytest.raises(ValueError, match="no modalities .'tok_taste'."):
        encode_clip(model, clip, modalities=["tok_taste"])
    with pytest.raises(ValueError, match="clip a: no tokens to encode"):
        encode_clip(model, TokenClip("a", {}))
    marked = EgoM2P(model.config, (SPECS[0].with_fingerprint("sha256:1"), *SPECS[1:]))
    with pytest.raises(TokenizerMismatch, match="sha256:2"):
        encode_clip(marked, TokenClip("a", clip.tokens, {"tok_motion": "sha256:2"}))
