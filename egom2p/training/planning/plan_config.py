"""What a dry run assumes about the machine that is not there."""

from egom2p.config import strict


@strict
class PlanConfig:
    """Assumptions of `dry_run`.

    num_gpus       processes of the planned launch; null: those of this launch
    peak_tflops    of one device in bf16; 989: the data sheet of H100, H200 and GH200
    mfu            part of it that the model's arithmetic reaches; depends on model, batch and network: measure it in a
                   short run (`mfu` in log.jsonl) and put it here
    memory_gb      devices of the memory table
    verify_shards  shards of a data set whose keys are compared over all folders, spread over it
    """

    num_gpus: int | None = None
    peak_tflops: float = 989.0
    mfu: float = 0.3
    memory_gb: tuple[float, ...] = (24, 48, 80, 141)
    verify_shards: int = 16

    def __post_init__(self) -> None:
        if self.num_gpus is not None and self.num_gpus < 1:
            raise ValueError(f"plan.num_gpus is positive or null, got {self.num_gpus}")
        if not 0 < self.mfu <= 1 or self.peak_tflops <= 0:
            raise ValueError(f"plan.mfu is in (0, 1] and plan.peak_tflops positive, got {self.mfu}, {self.peak_tflops}")
        if not self.memory_gb or min(self.memory_gb) <= 0 or self.verify_shards < 1:
            raise ValueError(f"plan.memory_gb and plan.verify_shards are positive, got {self.memory_gb}")
