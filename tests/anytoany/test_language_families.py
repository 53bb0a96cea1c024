"""Any causal language model: packed conversations do not see each other, whatever the family."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_toys import LLAMA, toy_batch, toy_model

from egom2p.anytoany.language.language_model import (
    LanguageModelConfig,
    check_language_model,
    load_language_model,
    model_settings,
)
from egom2p.anytoany.language.language_tokenizer import train_tokenizer, with_reserved_tokens

_SMALL = {key: value for key, value in LLAMA.items() if key != "model_type"}
FAMILIES = {
    "llama": LLAMA,
    "qwen3": {"model_type": "qwen3", "head_dim": 12, **_SMALL},
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 12, **_SMALL},  # caps scores and logits
    "mistral": {"model_type": "mistral", "sliding_window": 12, **_SMALL},
    "granite": {"model_type": "granite", "logits_scaling": 3.0, "attention_multiplier": 0.2, **_SMALL},
    "gpt2": {"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0},
    "opt": {"model_type": "opt", "hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_the_same_in_any_row(folder, family):
    model = toy_model(folder, architecture=FAMILIES[family])
    packed = model.token_losses(toy_batch(model, rows=((0, 1, 2), (3,), (4, 5)), count=6))
    alone = torch.cat([model.token_losses(toy_batch(model, rows=((n,),), count=6)) for n in range(6)])
    assert (packed - alone).abs().max() <= 1e-5
    # The same from transformers' own forward pass, on one conversation without media.
    batch = toy_batch(model, rows=((0,),))
    logits = model.lm(input_ids=batch.ids, use_cache=False).logits[0]
    is_target = batch.labels[0] >= 0
    plain = torch.nn.functional.cross_entropy(logits[is_target], batch.labels[0][is_target], reduction="none")
    assert (model.token_losses(batch) - plain).abs().max() <= 1e-5


def test_gradients_do_not_leak_between_conversations(folder):
    model = toy_model(folder).eval()
    batch = toy_batch(model, rows=((1, 2),))
    embeddings = model.embed(batch).detach().requires_grad_()
    model.embed = lambda _: embeddings
    model.hidden(batch)[0, batch.segments[0] == 0].square().sum().backward()
    is_first = batch.segments[0] == 0
    assert embeddings.grad[0, is_first].abs().sum() > 0 and embeddings.grad[0, ~is_first].abs().max() == 0


def test_a_family_that_ignores_the_layout_is_refused(folder):
    lm = copy.deepcopy(toy_model(folder).lm)
    lm.set_attn_implementation("sdpa")
    with pytest.raises(ValueError, match="not supported"):
        check_language_model(lm)


def test_settings_are_checked_and_the_world_is_not_seeded(folder):
    tokenizer = with_reserved_tokens(train_tokenizer(["a"], 300))
    with pytest.raises(ValueError, match="did you mean `hidden_size`"):
        model_settings({"model_type": "llama", "hiden_size": 8}, tokenizer)
    with pytest.raises(ValueError, match="no 'lama'"):
        model_settings({"model_type": "lama"}, tokenizer)
    for wrong in ({}, {"pretrained": "x", "architecture": LLAMA}, {"architecture": LLAMA}):
        with pytest.raises(ValueError):
            LanguageModelConfig(**wrong)
    config = LanguageModelConfig(architecture=LLAMA, tokenizer="x", seed=5)
    before = torch.random.get_rng_state()
    first, second = (load_language_model(config, tokenizer).state_dict() for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_importing_the_room_does_not_load_transformers():
    room = Path(__file__).parents[2] / "egom2p" / "anytoany"
    names = [".".join(path.relative_to(room.parents[1]).with_suffix("").parts) for path in room.rglob("*.py")]
    slow = {"transformers", "peft", "timm"}
    program = f"import sys\nfor name in {names}: __import__(name)\nprint(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=room.parents[1], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr[-500:]
