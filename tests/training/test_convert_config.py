"""A published trio becomes one YAML of ours, and no key is lost without a word."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.pipelines.convert_config import ConvertConfigConfig, convert_config
from egom2p.training.tasks.pretrain_config import PretrainConfig

MAIN = """
run_name: auto
num_input_tokens: 2048
num_target_tokens: 2048
loss_type: mod
model: egom2p_base_12e_12d_swiglu_nobias
patch_size: 16
dtype: bfloat16
epochs: -1
total_tokens: 500 # in billions
opt: adamw
blr: 0.0001
min_blr: 0.
clip_grad: 1.0
warmup_epochs: -1
warmup_tokens: 10
batch_size: 4
data_config: data/mix.yaml
eval_freq: 1
save_ckpt_freq: 2
epoch_size: 1_000_000
output_dir: output/auto
log_wandb: True
wandb_project: train
wandb_entity: null
brand_new_key: 3
"""
DATA = """
train:
  datasets:
    four:
      type: multimodal
      in_domains: tok_cam-tok_rgb
      out_domains: tok_cam
      input_alphas: null
      target_alphas: null
      alphas_config: alphas.yaml
      num_input_tokens: 1024
      data_path: '/data/[rgb,turn]/shard-{000..003}.tar'
      use_wds: True
      wds_n_repeats: 4
      modality_name_map: {turn: tok_cam}
    other:
      in_domains: tok_cam-tok_rgb
      out_domains: tok_cam-tok_rgb
      input_alphas: 1.0-0.5
      target_alphas: 0.3
      data_path: '/other/[rgb,cam]/shard-{000..001}.tar'
      colour: blue
  weights: [0.9, 0.1]
val:
  datasets:
    four: {data_path: '/val/[rgb,turn]/shard-000.tar'}
    stranger: {data_path: /val}
"""
ALPHAS = """
sampling_weights: [1.0, 2.0]
alphas_mixture:
  tok_rgb: {input_alphas: [0.01, 10.0], target_alphas: [0.01, 10.0], keep: [all, all]}
  tok_cam: {input_alphas: [0.01, 10.0], target_alphas: [0.01, 10.0]}
"""


@pytest.fixture
def trio(tmp_path):
    (tmp_path / "data").mkdir()
    for name, text in (("main.yaml", MAIN), ("data/mix.yaml", DATA), ("alphas.yaml", ALPHAS)):
        (tmp_path / name).write_text(text)
    return ConvertConfigConfig(
        main=str(tmp_path / "main.yaml"), output=str(tmp_path / "ours.yaml"), root=str(tmp_path), world_size=256
    )


def test_the_numbers_arrive(trio, capsys):
    convert_config(trio)
    config = load_config(PretrainConfig, trio.output)
    length = config.training.length()
    assert (length.unit, length.total, length.warmup) == ("token_budget", 500e9, 10e9)
    assert config.training.learning_rate(length, 256).peak == pytest.approx(4e-4)
    assert config.model.dim == 768 and config.model.encoder_depth == 12 and not config.model.use_bias
    assert config.training.evaluate_every == 976 and config.training.checkpoint_every == 1952
    assert config.training.dtype == "bf16" and config.training.wandb.mode == "online"
    four, other = config.data.datasets["four"], config.data.datasets["other"]
    assert (four.max_input_tokens, four.max_target_tokens, four.weight) == (1024, 2048, 0.9)
    assert four.alphas.weights == [1.0, 2.0] and four.folder_names == {"tok_cam": "turn"}
    assert other.alphas.alphas_mixture["tok_rgb"].input_alphas == [0.5] and other.policy == "clamp"
    held_out = config.data.validation["four"]
    assert held_out.shards.startswith("/val/") and held_out.max_target_tokens == 128


def test_every_key_without_counterpart_is_named(trio, capsys):
    lines = convert_config(trio)
    shown = capsys.readouterr().err
    for key in (
        "main.brand_new_key: unknown", "main.patch_size: ", "main.run_name: ", "data.other.colour: unknown",
        "data.four.wds_n_repeats: ", "data.four.out_domains: kept", "data.val.stranger: ",
        "alphas alphas.tok_rgb.keep: unknown",
    ):  # fmt: skip
        assert any(line.startswith(key) for line in lines), key
        assert key in shown
    written = Path(trio.output).read_text()
    assert all(f"#   {line}" in written for line in lines)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("main.yaml", "egom2p_base_12e", "vit_base", "main.yaml: model 'vit_base_12d"),
        ("main.yaml", "total_tokens: 500", "total_tokens: -1", "says how long"),
        ("main.yaml", "data_config: data/mix.yaml", "", "data_config names no data file"),
        ("data/mix.yaml", "[0.9, 0.1]", "[0.9]", "1 weights for 2 data sets"),
        ("data/mix.yaml", "1.0-0.5", "1.0-0.5-2", "3 alphas"),
        ("data/mix.yaml", "train:", "train: [", "mix.yaml: "),
    ],
)
def test_what_is_wrong_is_said(trio, tmp_path, file, old, new, message):
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        convert_config(trio)
    assert not (tmp_path / "ours.yaml").exists()


def test_the_file_appears_whole_or_not(trio, tmp_path, monkeypatch):
    """Written once: who reads it meanwhile, or what a full disk leaves, is the old one."""
    Path(trio.output).write_text("old")
    renamed = []

    def full(source, target):
        renamed.append((Path(source).read_text(), Path(target).read_text()))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(os, "replace", full)
        convert_config(trio)
    assert Path(trio.output).read_text() == "old" and sorted(file.name for file in tmp_path.iterdir()) == [
        "alphas.yaml", "data", "main.yaml", "ours.yaml",
    ]  # fmt: skip
    convert_config(trio)
    assert renamed == [(Path(trio.output).read_text(), "old")]
    with pytest.raises(ValueError, match="ours.json: a config is written as .yaml"):
        convert_config(replace(trio, output=str(tmp_path / "ours.json")))


def test_what_has_no_counterpart_is_refused_or_named(trio, tmp_path):
    path = tmp_path / "main.yaml"
    path.write_text(path.read_text().replace("opt: adamw", "opt: lion").replace("min_blr: 0.", "min_blr: 1e-6"))
    lines = convert_config(trio)
    assert any("main.opt: lion has no counterpart" in line for line in lines)
    assert any("main.min_blr: 1e-06 has no counterpart" in line for line in lines)
