"""A released tokenizer checkpoint (`.pth`, `.pt`) -> our tokenizer directory.

python -m egom2p.tokenizers.convert_reference checkpoint=cam.pth output=outputs/tokenizers/cam_256/final
"""

from egom2p.config import run_main, strict
from egom2p.storage.foreign_checkpoints import foreign_weights
from egom2p.tokenizers.pretrained import TokenizerNetworkConfig, build_network, save_tokenizer
from egom2p.tokenizers.protocol import TrainableTokenizer
from egom2p.tokenizers.reference_weights import load_reference_codec, load_reference_trajectory
from egom2p.tokenizers.trajectory_vqvae import TrajectoryVqVae
from egom2p.tokenizers.video_codec import VideoCodec


@strict
class ConvertTokenizerConfig:
    """Root schema. `network` is the network that the weights belong to, with its normalisation."""

    checkpoint: str
    output: str
    network: TokenizerNetworkConfig
    licence: str | None = None  # of the weights, for their card


def convert_tokenizer(config: ConvertTokenizerConfig) -> str:
    """Write the tokenizer directory and return the fingerprint.

    ValueError names the file and the weights that do not fit, before anything is written.
    """
    weights, _ = foreign_weights(config.checkpoint)
    network: TrainableTokenizer = build_network(config.network)
    try:
        if isinstance(network, TrajectoryVqVae):
            if config.network.mean is None:
                raise ValueError("network.mean and network.std must say how its training data was normalised")
            load_reference_trajectory(network, weights)
        else:
            assert isinstance(network, VideoCodec)
            load_reference_codec(network, weights)
    except ValueError as error:
        raise ValueError(f"{config.checkpoint}: {error}") from None
    return save_tokenizer(
        network, config.output, training_data={"converted_from": config.checkpoint}, licence=config.licence
    )


if __name__ == "__main__":
    run_main(
        ConvertTokenizerConfig,
        convert_tokenizer,
        default_config="default/tokenization/convert/cam_256.yaml",
        description="Convert a released tokenizer checkpoint to a tokenizer directory.",
    )
