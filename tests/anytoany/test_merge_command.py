"""The merge command: what it writes is the model, to the precision that its numbers have."""

import pytest
from model_toys import LLAMA, toy_model

from egom2p.anytoany.language.language_model import LanguageModelConfig, load_language_model
from egom2p.anytoany.language.language_tokenizer import train_tokenizer
from egom2p.anytoany.merge import MergeConfig, merge
from egom2p.anytoany.saving import save_anytoany


def saved(tmp_path, dtype):
    tokenizer = train_tokenizer(["the wearer looks at the red mug and turns left. "] * 4, 283)
    described = LanguageModelConfig(architecture={**LLAMA, "vocab_size": 290}, tokenizer="x")
    load_language_model(described, tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = LanguageModelConfig(pretrained=str(tmp_path / "base"), dtype=dtype)
    save_anytoany(toy_model(tmp_path, adapt="lora", language_model=settings), tmp_path / "model")
    return {"model": str(tmp_path / "model"), "output": str(tmp_path / "merged")}


def test_float32_matches_to_its_precision(tmp_path):
    assert merge(MergeConfig(**saved(tmp_path, "float32"))) < 1e-5


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_half_precision_is_held_to_what_it_can(tmp_path):
    """The published run is in bfloat16: adapter and weights summed are rounded, which 1e-5 does not allow."""
    settings = saved(tmp_path, "bfloat16")
    assert 1e-5 < merge(MergeConfig(**settings)) < 5e-2
    with pytest.raises(ValueError, match="wanted 1e-05"):
        merge(MergeConfig(**settings, tolerance=1e-5))
