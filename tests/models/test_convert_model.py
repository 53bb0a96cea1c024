"""A released checkpoint becomes a model directory by one command."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from parity_checks.model_folder import pack_reference
from safetensors.torch import load_file

from egom2p.config import load_config
from egom2p.models.convert_model import ConvertModelConfig, convert_model
from egom2p.models.egom2p_model import load_model
from egom2p.models.sampling import Recommendation
from egom2p.models.weights import recommendation

VARIANTS = ("swiglu_nobias", "gelu_bias", "swiglu_qknorm_nobias", "swiglu_nobias_registers")


@pytest.fixture
def released(parity_dir, tmp_path):
    """A `.pth` as the published trainer writes it, and the config that describes it."""

    def write(variant: str) -> tuple[ConvertModelConfig, dict]:
        folder = parity_dir / "model" / variant
        info = json.loads((folder / "info.json").read_text())
        file = tmp_path / f"{variant}.pth"
        args = argparse.Namespace(model=variant, opt_betas=[0.9, 0.95], all_domains=info["encoder_modality_order"])
        torch.save({"model": load_file(folder / "state_dict.safetensors"), "args": args, "epoch": 122}, file)
        written = load_config(
            ConvertModelConfig,
            "default/egom2p/convert/released.yaml",
            [f"checkpoint={file}", f"output={tmp_path / 'out'}", f"num_heads={info['config']['heads']}"],
        )
        grids = {"grid": info["config"]["grid"], "track": [30]}
        modalities = {name: {**values, "grid": grids[values["kind"]]} for name, values in written.modalities.items()}
        return replace(written, modalities=modalities), info

    return write


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_converted_model_computes_what_was_published(released, parity_dir, variant):
    config, info = released(variant)
    measured = Recommendation(num_samples=4, temperature=1.0)
    convert_model(replace(config, recommended=measured))
    model = load_model(config.output)
    assert recommendation(config.output) == measured
    folder = parity_dir / "model" / variant
    batch = pack_reference(load_file(folder / "inputs.safetensors"), info, model.specs)
    wanted = load_file(folder / "outputs.safetensors")
    found = model.decode(batch, model.encode(batch))
    assert torch.allclose(found, wanted["decoder_out"][wanted["decoder_mod_mask"] != -1], atol=1e-4)
    assert model.config.num_registers == info["config"].get("registers", 0)
    assert {spec.name: spec.quantity for spec in model.specs}["tok_cam"] == "camera"


def test_what_does_not_fit_is_named_and_nothing_is_written(released, tmp_path):
    config, _ = released("swiglu_nobias")
    turned = {**config.modalities, "tok_rgb": {**config.modalities["tok_rgb"], "grid": [4, 5, 4]}}
    fewer = {name: values for name, values in config.modalities.items() if name != "tok_gaze"}
    for change, message in (
        ({"modalities": turned}, "swiglu_nobias.pth: tok_rgb: its 80 positions are not those of the grid"),
        ({"modalities": fewer}, r"swiglu_nobias.pth: its modalities are \[.*tok_gaze.*the config describes"),
        ({"tokenizers": {"tok_smell": "x"}}, "tokenizers names"),
        ({"num_heads": 5}, "multiple of num_heads"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_model(replace(config, **change))
    torch.save({"model": {"a": torch.ones(1)}}, config.checkpoint)
    with pytest.raises(ValueError, match="not the weights of an EgoM2P; they begin with a"):
        convert_model(config)
    assert not (tmp_path / "out").exists()
