"""Recordings -> aligned clips on disk; what it takes stands in cfgs/default/data_preparation/."""

from egom2p.config import run_main
from egom2p.pipelines.prepare import PrepareConfig, prepare

if __name__ == "__main__":
    run_main(
        PrepareConfig,
        prepare,
        default_config="default/data_preparation/recordings.yaml",
        description="Cut recordings into aligned clips on disk.",
    )
