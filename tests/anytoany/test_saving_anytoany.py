"""On disk and back, in plain peft, and merged into a plain language model."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from model_toys import BOOKS, LLAMA, toy_batch, toy_config, toy_features, toy_model
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.language.language_model import LanguageModelConfig, load_language_model
from egom2p.anytoany.language.language_tokenizer import train_tokenizer
from egom2p.anytoany.saving import load_anytoany, merge_into_plain, save_anytoany, save_merged
from egom2p.layers.lora import LoraConfig
from egom2p.storage import load_json, load_tensors, save_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def base_model(path, *, is_tied, vocab_size=290):
    """A pretrained language model on disk, with more rows than tokens, as released ones have."""
    tokenizer = train_tokenizer(["the wearer looks at the red mug and turns left. "] * 4, 283)
    architecture = {**LLAMA, "tie_word_embeddings": is_tied, "vocab_size": vocab_size}
    load_language_model(LanguageModelConfig(architecture=architecture, tokenizer="x"), tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return LanguageModelConfig(pretrained=str(path))


def logits_of(model, ids):
    positions = torch.arange(ids.shape[1])[None]
    one = toy_batch(model, rows=((0,),))
    batch = replace(one, ids=ids, positions=positions, segments=torch.zeros_like(ids), row_lengths=((ids.shape[1],),))
    with torch.no_grad():
        return model.logits(model.hidden(batch))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by an old name
@pytest.mark.parametrize("codebooks", [(), BOOKS], ids=["text", "codes"])
@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_adapter_saved_loaded_in_peft_and_merged(tmp_path, folder, is_tied, codebooks):
    settings = base_model(tmp_path / "base", is_tied=is_tied)
    model = toy_model(folder, language_model=settings, adapt="lora", codebooks=codebooks)
    save_anytoany(model, tmp_path / "saved")
    loaded = load_anytoany(tmp_path / "saved")
    batch = toy_batch(model)
    losses = model.token_losses(batch)
    assert torch.equal(losses, loaded.token_losses(batch))

    first = model.media_id
    words = torch.arange(5, first)[None, :120]
    ours = logits_of(model, words)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path / "saved").eval()(input_ids=words).logits
    assert (ours[..., :first] - theirs[..., :first]).abs().max() <= 1e-5 * max(1, ours.abs().max())

    reserved = torch.tensor([[*range(5, 40), *range(first + 1, len(model.tokenizer))]])
    ours = logits_of(model, reserved)
    save_merged(loaded, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert len(tokenizer) == len(model.tokenizer) <= plain.get_input_embeddings().weight.shape[0]
    said = model.vocab_size if codebooks else first
    with torch.no_grad():
        merged = plain(input_ids=reserved).logits[..., :said]
        spliced = plain(inputs_embeds=model.embed(batch)[1:]).logits  # perception too, through its embeddings
    assert (merged - ours[..., :said]).abs().max() <= 1e-5 * max(1, ours.abs().max())
    with torch.no_grad():
        alone = model.logits(model.hidden(batch))[1:, :, :first]
    is_text = batch.segments[1:] >= 0
    assert (spliced[..., :first] - alone)[is_text].abs().max() <= 1e-5 * max(1, alone.abs().max())
    if not codebooks:
        assert plain.generation_config.suppress_tokens == list(range(first, len(tokenizer)))


def test_files_of_an_adapter(tmp_path, folder):
    settings = base_model(tmp_path / "base", is_tied=False)
    save_anytoany(toy_model(folder, language_model=settings, adapt="lora"), tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {
        ".egom2p",
        "adapter_config.json",
        "adapter_model.safetensors",
        "anytoany.json",
        "codebooks.json",
        "parts.safetensors",
        "tokenizer",
    }
    card = load_json(tmp_path / "saved" / "adapter_config.json")
    assert card["base_model_name_or_path"] == str(tmp_path / "base") and card["r"] == 8 and card["lora_alpha"] == 16
    assert not any("proj_from" in name for name in load_tensors(tmp_path / "saved" / "parts.safetensors"))


@pytest.mark.parametrize(
    "connector",
    [*({"kind": kind} for kind in ("global_mlp", "resampler", "gated_xattn")),
     *({"kind": "st_shuffle", "cell": (2, 1, 1), "pool": pool} for pool in ((1, 1, 1), (2, 1, 1)))],
    ids=["global_mlp", "resampler", "gated_xattn", "st_shuffle", "pooled"],
)  # fmt: skip
def test_a_whole_model_needs_nothing_else(tmp_path, folder, connector):
    """A pooled shuffle came back with the size of the trained embeddings in place of that of the first ones."""
    connector = ConnectorConfig(num_tokens=2, dim=24, num_heads=2, **connector)
    model = toy_model(tmp_path / "tokenizer", connector=connector, codebooks=BOOKS)
    save_anytoany(model, tmp_path / "saved")
    for path in sorted((tmp_path / "tokenizer").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    batch = toy_batch(model)
    loaded = load_anytoany(tmp_path / "saved")
    assert torch.equal(model.token_losses(batch), loaded.token_losses(batch))
    save_anytoany(loaded, tmp_path / "again")  # from the copy, not from what it was made of
    assert torch.equal(load_anytoany(tmp_path / "again").token_losses(batch), model.token_losses(batch))
    question = Inference(model).question("{video} what?", [("video", toy_features(3))])
    config = AnswerConfig(max_new_tokens=12)
    ours, theirs = (Inference(m).answer([question], config)[0] for m in (model, loaded))
    assert ours.text == theirs.text and (ours.ids == theirs.ids).all()


def test_lora_on_a_model_from_a_description(tmp_path, folder):
    model = toy_model(folder, adapt="lora", lora=LoraConfig(rank=2, use_dora=True))
    save_anytoany(model, tmp_path / "saved")
    batch = toy_batch(model)
    assert torch.equal(model.token_losses(batch), load_anytoany(tmp_path / "saved").token_losses(batch))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux what lies behind an address")
def test_no_process_has_a_copy_of_the_base_in_its_memory(tmp_path, folder):
    """Ranks on one machine share the pages of the file; on a GPU they pass through those one tensor at a time."""
    settings = base_model(tmp_path / "base", is_tied=True)
    model = toy_model(folder, language_model=settings, adapt="lora")
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [[int(end, 16) for end in row[0].split("-")] for row in maps if row[-1].endswith("model.safetensors")]
    bytes_of = {True: 0, False: 0}
    for parameter in model.lm.parameters():
        bytes_of[parameter.requires_grad] += parameter.nbytes
        if not parameter.requires_grad:
            assert any(start <= parameter.data_ptr() < end for start, end in files), "a copy"
    assert bytes_of[False] > 5 * bytes_of[True] > 0


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_a_checkpoint_holds_what_trains_and_that_once(tmp_path, folder, is_tied):
    """The frozen head of tied weights, which is the table of embeddings under another name, was stored."""
    settings = base_model(tmp_path / "base", is_tied=is_tied)
    model = toy_model(folder, language_model=settings, adapt="lora")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.state_to_keep().keys() == trained
    model = toy_model(folder, language_model=settings, adapt="full")
    kept = model.state_to_keep()
    assert ("lm.lm_head.weight" in kept) != is_tied and "lm.model.embed_tokens.weight" in kept
    assert len({tensor.data_ptr() for tensor in kept.values()}) == len(kept)
    drawn = toy_model(folder, adapt="lora")
    assert {f"lm.{name}" for name, _ in drawn.lm.named_parameters()} <= drawn.state_to_keep().keys()


def test_errors_name_what_is_wrong(tmp_path, folder):
    with pytest.raises(ValueError, match=r"no anytoany\.json"):
        load_anytoany(tmp_path)
    model = toy_model(folder)
    save_anytoany(model, tmp_path / "saved")
    file = tmp_path / "saved" / "parts.safetensors"
    parts = load_tensors(file)
    save_tensors(file, {name: tensor for name, tensor in parts.items() if name != "connector.out.weight"})
    with pytest.raises(ValueError, match=r"parts\.safetensors: connector\.out\.weight should be .* found nothing"):
        load_anytoany(tmp_path / "saved")
    gated = toy_model(folder, connector=ConnectorConfig(kind="gated_xattn", dim=24, num_heads=2))
    with pytest.raises(ValueError, match="gated_xattn"):
        merge_into_plain(gated)
    assert toy_config(folder).adapt == "full"


@pytest.mark.parametrize("name", ["anytoany.json", "codebooks.json"])
@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", "{", '{"config": null}', '{"config": {"perception": null}}', "[" * 99_999]
)
def test_a_broken_card_is_named(tmp_path, folder, name, content):
    """Broken codebooks were not noticed at all."""
    save_anytoany(toy_model(folder), tmp_path / "saved")
    assert load_anytoany(tmp_path / "saved") is not None
    good = (tmp_path / "saved" / name).read_text()
    if json.loads(good) == {} and content == "{}":
        content = '{"gaze": 1}'
    (tmp_path / "saved" / name).write_text(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_anytoany(tmp_path / "saved")


def test_code_that_lies_beside_a_tokenizer_never_runs(tmp_path, folder, monkeypatch):
    """It was asked for with a question that `yes |` answers."""
    save_anytoany(toy_model(folder), tmp_path / "saved")
    tokenizer = tmp_path / "saved" / "tokenizer"
    card = json.loads((tokenizer / "tokenizer_config.json").read_text())
    card |= {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "tokenizer_class": "Evil"}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(card))
    (tokenizer / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with contextlib.suppress(ValueError, OSError):
        load_anytoany(tmp_path / "saved")
    assert not (tmp_path / "ran").exists()
