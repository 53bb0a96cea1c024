"""Aligned clips -> shards of tokens; what it takes stands in cfgs/default/tokenize/."""

from egom2p.config import run_main
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize

if __name__ == "__main__":
    run_main(
        TokenizeConfig,
        tokenize,
        default_config="default/tokenize/clips.yaml",
        description="Turn aligned clips into shards of tokens.",
    )
