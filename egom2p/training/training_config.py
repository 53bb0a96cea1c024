"""Everything about training that does not depend on what is trained."""

from dataclasses import replace
from typing import Literal

from egom2p.config import Count, Natural, NotNegative, Positive, strict
from egom2p.jobs.workers import Dtype
from egom2p.storage import RemoteConfig
from egom2p.training.ema import EmaConfig
from egom2p.training.optim import OptimizerConfig
from egom2p.training.parallel import ParallelConfig, Recompute
from egom2p.training.run_log import WandbConfig
from egom2p.training.schedule import LearningRate, Length, Shape, WeightDecay


@strict
class PlanConfig:
    """Assumptions of `dry_run`.

    num_gpus       processes of the planned launch; null: those of this launch
    peak_tflops    of one device in bf16; 989: the data sheet of H100, H200 and GH200
    mfu            part of it that the model's arithmetic reaches; depends on model, batch and network: measure it in a
                   short run (`mfu` in log.jsonl) and put it here
    memory_gb      devices of the memory table; []: no table
    verify_shards  shards of a data set whose keys are compared over all folders, spread over it
    """

    num_gpus: Count | None = None
    peak_tflops: Positive = 989.0
    mfu: Positive = 0.3
    memory_gb: tuple[Positive, ...] = (24, 48, 80, 141)
    verify_shards: Count = 16

    def __post_init__(self) -> None:
        if self.mfu > 1:
            raise ValueError(f"plan.mfu is in (0, 1], got {self.mfu}")


@strict
class ProfileConfig:
    """Which steps are profiled, counted from the beginning of the run: `steps` of them from `start` on."""

    start: Natural = 10
    steps: Count = 3


_LENGTHS = ("num_steps", "total_token_budget", "total_tokens", "epochs")
_LR_BATCH = 256  # `blr` is the learning rate of a batch of this many clips


@strict
class TrainingConfig:
    """Length, learning rate, batch, precision, logging and checkpoints of a run.

    Exactly one of `num_steps`, `total_token_budget`, `total_tokens` and `epochs` says how long, exactly one of `lr` and
    `blr` how fast.
    """

    # length
    num_steps: Natural | None = None  # optimizer steps
    total_token_budget: Natural | None = None  # the published "total tokens": budgets, filled or not
    total_tokens: Natural | None = None  # real tokens
    epochs: NotNegative | None = None  # of epoch_clips clips
    epoch_clips: Count | None = None  # null: the clips of the training data
    warmup: NotNegative = 0.0  # the rate rises for so long, in the unit of the length

    # learning rate
    lr: NotNegative | None = None  # learning rate
    blr: NotNegative | None = None  # learning rate per 256 clips of a step
    schedule: Shape = "cosine"  # how the rate falls after the warm-up
    warmup_start_lr: NotNegative = 0.0  # rate at the very first step
    min_lr: NotNegative = 0.0  # rate at the end
    cooldown: NotNegative = 0.0  # the last part, in the unit of the length; inverse_sqrt and warmup_stable_decay only
    timescale: Positive | None = None  # of inverse_sqrt, in the unit of the length; null: that of the warm-up
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig | None = None  # moving average of the weights

    # batch
    batching: Literal["clips", "tokens"] = "clips"  # what a micro-batch has a fixed number of
    batch_size: Count = 8  # clips of one micro-batch on one rank
    batch_tokens: Count | None = None  # with batching=tokens: input and target tokens of one micro-batch on one rank
    accumulation: Count = 1  # micro-batches per optimizer step, on each rank: a step grows with the number of ranks
    step_size: Count | None = (
        None  # clips (rows) of an optimizer step of all ranks together: they share it by accumulation
    )
    reference_denominator: bool = False  # average per rank and micro-batch, as published, not over the whole step
    num_workers: Natural = 0  # processes that load data (threads, for tokenizers); 0: in this process

    # machine
    device: str = "auto"
    dtype: Dtype = "auto"  # auto: bf16 on GPU, fp32 on CPU (few are faster in bf16); weights are fp32 in any case
    parallel: ParallelConfig = ParallelConfig()
    activation_checkpointing: Recompute = (
        False  # recompute blocks, or mlp, in the backward pass: less memory, more time
    )
    compile: Literal[False, "blocks", "auto"] = "auto"  # blocks: torch.compile of each of our transformer blocks and of
    # the loss; auto: that on a GPU, where a compiler is there, blocks are ours and their weights whole
    num_threads: Count | None = None  # null: torch's default, or OMP_NUM_THREADS

    # what the run tells and keeps
    log_every: Count = 10  # steps from one line of log.jsonl to the next
    evaluate_every: Count | None = None  # steps; null: at the end only
    evaluate_at_start: bool = False  # also before the first step
    checkpoint_every: Count | None = None  # steps
    checkpoint_minutes: Positive | None = 10.0  # null: only at the end, and as checkpoint_every says
    keep_last: Count = 2  # two stay in any case: the last may hold weights that a bad step has just ruined
    keep_every: Count | None = None  # checkpoints at multiples of this many steps are never removed
    keep_best: str | None = None  # a measurement (`group/name`, or `group`: its mean) whose lowest value stays too
    scratch_dir: str = "outputs/scratch"  # where a run lives whose output_dir is an S3 address
    remote: RemoteConfig = RemoteConfig()  # waiting for and asking of S3, for data and output_dir
    profile: ProfileConfig | None = None  # steps whose trace is written to <output_dir>/profile
    peak_tflops: Positive | None = None  # of one device, for model-FLOPs utilisation; null: that of its data sheet
    resume: Literal[True, False, "newest_valid"] = True  # go on from the newest checkpoint in output_dir; newest_valid:
    # from the newest that is as it was saved, damaged ones are set aside
    allow_changes: bool = False  # go on although settings that make the run what it is (model, rate, ...) have changed
    max_skipped_steps: Count | None = 20  # so many in a row, or a line of the log without a finite loss, end the run
    collective_timeout_s: Positive = 1800.0  # several ranks: how long one waits for the others, also for an evaluation
    watchdog_s: Positive | None = 120.0  # several ranks: one that gives no sign for so long ends the run (code 4)
    check_determinism: Count | None = None  # take so many steps twice and name the first tensor that differs; no run
    wandb: WandbConfig = WandbConfig()

    def __post_init__(self) -> None:
        _exactly_one(self, _LENGTHS, "says how long to train")
        _exactly_one(self, ("lr", "blr"), "says the learning rate")
        _check_schedule(self)
        if (self.batching == "tokens") != (self.batch_tokens is not None):
            raise ValueError(f"batching=tokens needs batch_tokens (and only it does), got {self.batch_tokens}")
        if self.step_size is not None and (self.accumulation != 1 or self.batching != "clips"):
            raise ValueError("step_size counts clips and sets accumulation itself: leave accumulation and batching out")
        if self.batching == "tokens" and self.blr is not None:
            raise ValueError("blr is a rate per 256 clips, and with batching=tokens their number varies; say lr")
        if self.epochs is None and self.epoch_clips is not None:
            raise ValueError("epoch_clips has a meaning only together with epochs")

    def shared_by(self, world_size: int) -> "TrainingConfig":
        """The settings of so many ranks: `accumulation` as step_size wants it. ValueError where it does not divide."""
        if self.step_size is None:
            return self
        micro_batches, left = divmod(self.step_size, self.batch_size * world_size)
        if left or not micro_batches:
            raise ValueError(
                f"training.step_size {self.step_size} cannot be shared by {world_size} ranks with batch_size "
                f"{self.batch_size}; it must be a multiple of {self.batch_size * world_size}"
            )
        return replace(self, accumulation=micro_batches, step_size=None)

    def length(self, num_train_clips: int | None = None) -> Length:
        """Length and warm-up; `num_train_clips` is the size of an epoch where the config does not say it."""
        if self.num_steps is not None:
            return Length("steps", self.num_steps, self.warmup)
        if self.total_token_budget is not None:
            return Length("token_budget", self.total_token_budget, self.warmup)
        if self.total_tokens is not None:
            return Length("tokens", self.total_tokens, self.warmup)
        epoch_clips = self.epoch_clips or num_train_clips
        if not epoch_clips:
            raise ValueError("epochs needs epoch_clips: the size of the training data is not known here")
        return Length("clips", self.epochs * epoch_clips, self.warmup * epoch_clips)

    def learning_rate(self, length: Length, world_size: int) -> LearningRate:
        step_clips = self.batch_size * self.accumulation * world_size
        peak = self.lr if self.lr is not None else self.blr * step_clips / _LR_BATCH
        return LearningRate(
            length,
            peak,
            start=self.warmup_start_lr,
            end=self.min_lr,
            shape=self.schedule,
            cooldown=self.in_units(length, self.cooldown),
            timescale=None if self.timescale is None else self.in_units(length, self.timescale),
        )

    def in_units(self, length: Length, amount: float) -> float:
        """An amount of the YAML in the unit of the length: `epochs` counts clips, in the YAML stand epochs."""
        return amount * length.total / self.epochs if self.epochs else amount

    def weight_decay(self, length: Length) -> WeightDecay | None:
        """Its course, where it has an end value of its own."""
        end = self.optimizer.weight_decay_end
        return None if end is None else WeightDecay(length, self.optimizer.weight_decay, end)


def _check_schedule(config: TrainingConfig) -> None:
    shape = config.schedule
    if config.cooldown and shape not in ("inverse_sqrt", "warmup_stable_decay"):
        raise ValueError(f"schedule {shape} has no cooldown; choose inverse_sqrt or warmup_stable_decay")
    if shape == "warmup_stable_decay" and not config.cooldown:
        raise ValueError("schedule warmup_stable_decay needs cooldown, the part in which it decays")
    if config.timescale is not None and (shape != "inverse_sqrt" or config.timescale <= 0):
        raise ValueError(f"timescale is positive and belongs to inverse_sqrt, got {config.timescale} with {shape}")


def _exactly_one(config: TrainingConfig, names: tuple[str, ...], purpose: str) -> None:
    given = [name for name in names if getattr(config, name) is not None]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none of them"
        raise ValueError(f"exactly one of {', '.join(names)} {purpose}; {found}")
