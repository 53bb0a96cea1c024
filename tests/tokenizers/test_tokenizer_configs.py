"""The configs load, and describe the modalities they claim."""

import dataclasses
from pathlib import Path

import pytest

from egom2p.config import ConfigError, from_plain, load_config
from egom2p.data.modality_info import default_specs
from egom2p.tokenizers import build_network
from egom2p.tokenizers.convert_tokenizer import ConvertTokenizerConfig
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVaeConfig
from egom2p.tokenizers.video.video_codec import VideoCodecConfig
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig

CONFIGS = Path(__file__).resolve().parents[2] / "cfgs" / "default" / "tokenization"
CLIPS = ["train.root=clips", "train.datasets=[a]", "validation.root=clips", "validation.datasets=[b]"]


def network_config(file: Path):
    needs_clips = "root: ???" in file.read_text() or file.stem in ("gaze_256", "depth_dv4x8x8")
    return load_config(TokenizerTrainingConfig, file, CLIPS if needs_clips else []).network


@pytest.mark.parametrize(
    "file",
    sorted(
        file
        for file in CONFIGS.rglob("*.yaml")
        if file.stem.endswith(("quickstart", "world_small")) and "text" not in file.parts
    ),
    ids=lambda file: str(file.relative_to(CONFIGS)),
)
def test_small_configs_build(file):
    network = build_network(network_config(file))
    published = {spec.name: spec for spec in default_specs()}[network.spec.name]
    assert network.spec.quantity == published.quantity and network.spec.folder == published.folder
    assert sum(parameter.numel() for parameter in network.parameters()) < 5e6


@pytest.mark.parametrize(
    ("file", "modality"),
    [
        ("vqvae/cam_traj/cam_256.yaml", "tok_cam"),
        ("vqvae/gaze/gaze_256.yaml", "tok_gaze"),
        ("video/rgb_dv4x8x8.yaml", "tok_rgb"),
        ("video/depth_dv4x8x8.yaml", "tok_depth"),
    ],
)
def test_full_size_configs_make_the_published_modalities(file, modality):
    config = network_config(CONFIGS / file)
    wanted = {spec.name: spec for spec in default_specs()}[modality]
    if config.architecture == "video_codec":
        assert config.token_grid == wanted.grid
    else:
        assert (config.num_tokens,) == wanted.grid.shape and config.num_codes == wanted.vocab_size
    assert config.modality == modality and config.folder == wanted.folder and config.quantity == wanted.quantity
    assert config.rate_hz == wanted.rate_hz


def test_the_fine_tuning_config_uses_every_loss():
    file = CONFIGS / "video" / "rgb_dv4x8x8_finetune.yaml"
    config = load_config(TokenizerTrainingConfig, file, [*CLIPS, "init_from=some/tokenizer", "losses.flow=null"])
    assert config.losses.perceptual is not None and config.losses.adversarial is not None and config.losses.flow is None
    assert config.init_from == "some/tokenizer" and config.training.ema is not None


@pytest.mark.parametrize("name", ["rgb_dv4x8x8", "depth_dv4x8x8"])
def test_released_codecs_convert_to_the_published_grid(name):
    config = load_config(
        ConvertTokenizerConfig, CONFIGS / "convert" / f"{name}.yaml", ["checkpoint=a/b", "output=c"]
    ).network
    assert config.token_grid == {spec.name: spec for spec in default_specs()}[config.modality].grid
    assert config.video_channels == 3  # also for depth: the released weights see pictures
    assert name.startswith("rgb") or config.depth_representation == "inverse_per_sequence"


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (TrajectoryVqVaeConfig, {"modality": "tok_gaze", "quantity": "gaze", "folder": "gaze", "num_samples": 60}),
        (
            VideoCodecConfig,
            {
                "modality": "tok_rgb", "quantity": "rgb", "folder": "rgb", "num_frames": 17, "height": 64, "width": 64,
                "rate_hz": 8.0,
            },
        ),
    ],
)  # fmt: skip
def test_a_size_of_nothing_is_refused_by_its_key(schema, values):
    sizes = [
        field.name
        for field in dataclasses.fields(schema)
        if isinstance(value := values.get(field.name, field.default), int) and not isinstance(value, bool)
    ]
    assert {"encoder_depth", "num_heads"} <= {*sizes} or {"channels", "patch_size"} <= {*sizes}
    for name in (*sizes, "rate_hz"):
        with pytest.raises(ConfigError, match=name):
            from_plain(schema, values | {name: 0})
