"""Pretrain EgoM2P: `[torchrun --nproc_per_node=4] run_training_egom2p.py --config FILE [key=value ...]`."""

from egom2p.config import run_main
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import pretrain

if __name__ == "__main__":
    run_main(
        PretrainConfig,
        pretrain,
        description="Masked multimodal pretraining of EgoM2P on token shards.",
    )
