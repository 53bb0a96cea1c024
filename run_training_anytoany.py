"""Train the any-to-any model: `[torchrun --nproc_per_node=4] run_training_anytoany.py --config FILE [key=value]`."""

from egom2p.config import run_main
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig, train_anytoany

if __name__ == "__main__":
    run_main(
        AnyToAnyTrainingConfig,
        train_anytoany,
        description="Training of a causal language model on what cameras, eyes and microphones perceive.",
    )
