"""A released video codec, as TorchScript files with the published names, becomes a tokenizer directory."""

import hashlib
import warnings
from dataclasses import replace

import pytest
import torch
from moving_clips import moving_clip
from tiny_tokenizers import tiny_codec
from torch import nn

from egom2p.tokenizers.convert_tokenizer import ConvertTokenizerConfig, convert_tokenizer
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.tokenizers.reference_weights import TorchScriptConfig


class ReleasedEncoder(nn.Module):
    """Names, buffers and outputs of the released `encoder.jit`."""

    def __init__(self, codec) -> None:
        super().__init__()
        self.encoder, self.quant_conv, self.quantizer = codec.encoder, codec.quant_conv, _Levels(codec)
        self.encoder.register_buffer("wavelets", torch.ones(2))

    def forward(self, video):
        codes, ids = self.quantizer.fsq(self.quant_conv(self.encoder(video)))
        return ids, codes, torch.zeros(1)


class ReleasedDecoder(nn.Module):
    def __init__(self, codec) -> None:
        super().__init__()
        self.inv_quant, self.post_quant_conv, self.decoder = _Levels(codec), codec.post_quant_conv, codec.decoder

    def forward(self, ids):
        return self.decoder(self.post_quant_conv(self.inv_quant.fsq.indices_to_codes(ids)))


class _Levels(nn.Module):
    def __init__(self, codec) -> None:
        super().__init__()
        self.fsq = codec.quantizer
        self.register_buffer("_levels", torch.tensor(codec.config.levels))

    def forward(self, anything):
        return anything


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """Folder of a release, the codec it came from, and the config that converts it."""
    folder = tmp_path_factory.mktemp("released")
    codec = tiny_codec(num_frames=5, patch_size=2, channel_multipliers=(1, 2, 2), frame_multiple=4).eval()
    video = torch.zeros(1, 3, 5, 32, 32)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # newer versions of torch discourage TorchScript
        for parameter in codec.parameters():
            parameter.copy_(parameter.bfloat16())  # as the released ones are stored
        ids = ReleasedEncoder(codec)(video)[0]
        torch.jit.save(torch.jit.trace(ReleasedEncoder(codec), video), str(folder / "encoder.jit"))
        torch.jit.save(torch.jit.trace(ReleasedDecoder(codec), ids), str(folder / "decoder.jit"))
    del codec.encoder.wavelets
    return folder, codec


def config(released, tmp_path, **changes) -> ConvertTokenizerConfig:
    folder, codec = released
    return ConvertTokenizerConfig(
        **{"checkpoint": str(folder), "output": str(tmp_path / "out"), "network": codec.config} | changes
    )


def test_a_folder_converts_without_running_anything(released, tmp_path):
    convert_tokenizer(config(released, tmp_path))
    converted = load_tokenizer(tmp_path / "out")
    wanted = released[1].state_dict()
    found = converted.network.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert converted.card["training_data"]["converted_from"] == str(released[0])
    clip = moving_clip(0)
    frames = clip.streams["rgb"]
    short = type(clip)(
        clip.key,
        {"rgb": type(frames)(frames.values[:5], frames.is_valid[:5], frames.times_s[:5], "uint8")},
        None,
        clip.provenance,
    )
    assert converted.decode(converted.encode([short]))[0].shape == (1, 5, 32, 32, 3)


def test_one_half_alone_or_another_network_is_refused(released, tmp_path):
    folder, codec = released
    with pytest.raises(ValueError, match=r"encoder\.jit: .*weights do not fit.*decoder\..*found None"):
        convert_tokenizer(config(released, tmp_path, checkpoint=str(folder / "encoder.jit")))
    with pytest.raises(ValueError, match=r"its levels are \[8, 4, 4\], the network's are \[8, 4, 3\]"):
        convert_tokenizer(config(released, tmp_path, network=replace(codec.config, levels=(8, 4, 3))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither encoder\.jit and decoder\.jit nor autoencoder\.jit"):
        convert_tokenizer(config(released, tmp_path, checkpoint=str(tmp_path / "empty")))
    assert not (tmp_path / "out").exists()


def test_the_released_program_agrees_when_it_may_run(released, tmp_path):
    folder, _ = released
    with pytest.raises(ValueError, match="needs sha256"):
        TorchScriptConfig(allow_torchscript=True)
    known = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("encoder.jit", "decoder.jit")}
    wrong = TorchScriptConfig(allow_torchscript=True, sha256=known | {"decoder.jit": "00"})
    with pytest.raises(ValueError, match=r"decoder\.jit: has sha256 .*not the file you trust"):
        convert_tokenizer(config(released, tmp_path, torchscript=wrong))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        convert_tokenizer(
            config(released, tmp_path, torchscript=TorchScriptConfig(allow_torchscript=True, sha256=known))
        )
    metrics = load_tokenizer(tmp_path / "out").card["metrics"]
    assert metrics["torchscript_equal_ids"] == 1.0 and metrics["torchscript_largest_difference"] < 1e-5
