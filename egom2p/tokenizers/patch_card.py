"""The card that says how videos are cut into patches of pixels; nothing is trained.

python -m egom2p.tokenizers.patch_card output=outputs/mine/tokenizers/rgb_patches 'network.patch=[2,8,8]'
"""

from egom2p.config import run_main, strict
from egom2p.tokenizers.patches import PatchesConfig, PatchTokenizer


@strict
class PatchCardConfig:
    """Root schema: how videos are cut, and the folder of the card."""

    output: str
    network: PatchesConfig
    licence: str | None = None


def write_card(config: PatchCardConfig) -> None:
    """Write the tokenizer folder."""
    PatchTokenizer(config.network).save(config.output, licence=config.licence)


if __name__ == "__main__":
    run_main(
        PatchCardConfig,
        write_card,
        default_config="default/tokenization/patches/rgb.yaml",
        description="Write the card that says how videos are cut into patches of pixels.",
    )
