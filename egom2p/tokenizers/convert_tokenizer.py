"""A released tokenizer -> our tokenizer directory.

python -m egom2p.tokenizers.convert_tokenizer checkpoint=cam.pth output=outputs/tokenizers/cam_256/final

The checkpoint is a pickled state dict (`.pth`, `.pt`), a TorchScript file (`.jit`), or a folder or a repository of the
Hub that holds the latter. Weights are read, nothing is run.
"""

from pathlib import Path

from torch import Tensor

from egom2p.config import run_main, strict
from egom2p.storage.foreign_checkpoints import foreign_weights
from egom2p.storage.hub import fetch
from egom2p.storage.torchscript_archives import is_torchscript, read_torchscript_tensors
from egom2p.tokenizers.pretrained import TokenizerNetworkConfig, build_network, save_tokenizer
from egom2p.tokenizers.protocol import TrainableTokenizer
from egom2p.tokenizers.reference_weights import (
    TorchScriptConfig,
    compare_with_torchscript,
    load_reference_codec,
    load_reference_trajectory,
)
from egom2p.tokenizers.trajectory.trajectory_vqvae import TrajectoryVqVae
from egom2p.tokenizers.video.video_codec import VideoCodec

# What a release of a video codec consists of: the two halves, or both in one.
HALVES, WHOLE = ("encoder.jit", "decoder.jit"), "autoencoder.jit"


@strict
class ConvertTokenizerConfig:
    """Root schema. `network` is the network that the weights belong to, with its normalisation."""

    checkpoint: str  # file, folder, or owner/name on the Hub
    output: str
    network: TokenizerNetworkConfig
    revision: str | None = None  # of the repository on the Hub
    licence: str | None = None  # of the weights, for their card
    torchscript: TorchScriptConfig = TorchScriptConfig()  # whether the released program is run to compare with it


def convert_tokenizer(config: ConvertTokenizerConfig) -> str:
    """Write the tokenizer directory and return the fingerprint.

    ValueError names the file and the weights that do not fit, before anything is written.
    """
    files = checkpoint_files(config.checkpoint, config.revision)
    network: TrainableTokenizer = build_network(config.network)
    metrics: dict[str, float] = {}
    try:
        if isinstance(network, TrajectoryVqVae):
            if config.network.mean is None:
                raise ValueError("network.mean and network.std must say how its training data was normalised")
            load_reference_trajectory(network, read_weights(files))
        else:
            assert isinstance(network, VideoCodec)
            load_reference_codec(network, read_weights(files))
            if config.torchscript.allow_torchscript:
                metrics = compare_with_torchscript(network, files, config.torchscript)
    except ValueError as error:
        raise ValueError(f"{config.checkpoint}: {error}") from None
    data = {"converted_from": config.checkpoint} | ({"revision": config.revision} if config.revision else {})
    return save_tokenizer(network, config.output, training_data=data, metrics=metrics, licence=config.licence)


def checkpoint_files(checkpoint: str, revision: str | None = None) -> list[Path]:
    """The file, or those of a released codec in a folder or on the Hub. FileNotFoundError says what is missing."""
    if Path(checkpoint).is_file():
        return [Path(checkpoint)]
    folder = fetch(checkpoint, revision=revision, files=HALVES)
    halves = [folder / name for name in HALVES]
    if all(file.is_file() for file in halves):
        return halves
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    raise FileNotFoundError(f"{folder}: holds neither {' and '.join(HALVES)} nor {WHOLE}")


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """Weights by name of all files together."""
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= read_torchscript_tensors(file) if is_torchscript(file) else foreign_weights(file)[0]
    return weights


if __name__ == "__main__":
    run_main(
        ConvertTokenizerConfig,
        convert_tokenizer,
        default_config="default/tokenization/convert/cam_256.yaml",
        description="Convert a released tokenizer checkpoint to a tokenizer directory.",
    )
