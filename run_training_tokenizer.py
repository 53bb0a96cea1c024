"""Train a tokenizer: `[torchrun --nproc_per_node=4] run_training_tokenizer.py --config FILE [key=value ...]`."""

from egom2p.config import run_main
from egom2p.training.tasks.tokenizer_config import TokenizerTrainingConfig
from egom2p.training.tasks.tokenizer_task import train_tokenizer

if __name__ == "__main__":
    run_main(
        TokenizerTrainingConfig,
        train_tokenizer,
        description="Training of a tokenizer (video codec or trajectory VQ-VAE) on aligned clips.",
    )
