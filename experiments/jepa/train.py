"""Pretraining with features as a second target: `python -m experiments.jepa.train --config experiments/jepa/jepa.yaml`.

The product's task, loop and checkpoints; what differs is the trained module (the model with its teacher), the loss and
one measurement.
"""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from egom2p.config import run_main, strict
from egom2p.contracts import PackedBatch
from egom2p.training.distributed import Ranks
from egom2p.training.loop import FitResult
from egom2p.training.planning.plan import plan_pretraining
from egom2p.training.planning.plan_report import report_plan
from egom2p.training.schedule import Progress
from egom2p.training.task import Measurement, seeded
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain
from experiments.jepa.feature_spread import FeatureSpread
from experiments.jepa.jepa import Jepa, JepaConfig


@strict
class JepaTrainingConfig(PretrainConfig):
    """Root schema: that of `run_training_egom2p.py`, and

    jepa              also (or only) predict the features of hidden tokens
    feature_spread    at every evaluation of the run, how far the encoder's states spread over clips of which it sees
                      these modalities (collapse)
    """

    jepa: JepaConfig
    feature_spread: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        training = self.training
        others = {
            "lora": self.lora is not None,
            "frozen": self.frozen is not None,
            "training.batching=tokens": training.batching == "tokens",
            "training.parallel.kind=fsdp": training.parallel.kind == "fsdp",
        }
        if given := [name for name, is_given in others.items() if is_given]:
            raise ValueError(f"jepa does not go together with {', '.join(given)}")


def train_jepa(config: JepaTrainingConfig) -> FitResult:
    """As `pretrain`: train, evaluate and write `<output_dir>/final`, a model like any other."""
    if config.dry_run:
        plan = plan_pretraining(config)
        plan.notes.append("FLOPs and memory are those without jepa; its teacher and the passes through it come on top")
        report_plan(plan)
        return FitResult(Progress(), 0, ())
    return pretrain(config, JepaTask)


class JepaTask(PretrainTask):
    """EgoM2P with a teacher as the loop's `Task`."""

    def __init__(self, config: JepaTrainingConfig, ranks: Ranks) -> None:
        super().__init__(config, ranks)
        self.spread: FeatureSpread | None = None
        if config.feature_spread:
            self.spread = FeatureSpread(
                config.feature_spread,
                config.data,
                self.specs,
                batch_size=config.training.batch_size,
                num_registers=config.model.num_registers,
                seed=config.seed,
                ranks=ranks,
            )
        with seeded(config.seed, 3):
            self.jepa = Jepa(self.egom2p, config.jepa)
        self.model = self.jepa

    def counts(self, batch: PackedBatch) -> tuple[int, ...]:
        return super().counts(batch) * self.jepa.num_terms

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        """The weighted sum of both kinds of terms, each averaged as the product averages its modalities."""
        return self.jepa.combine(sums, denominators, average=super().combine)

    def after_step(self) -> None:
        """The teacher follows; all other state is in weights and optimizer."""
        self.jepa.move_teacher()

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        measurements = tuple(super().evaluate(model))
        return measurements + (() if self.spread is None else tuple(self.spread.measure(self.egom2p)))

    def weights_to_export(self) -> Mapping[str, Tensor]:
        # By way of the trained module, which shows its average where that is what the run offers.
        named, prefix = self.jepa.state_dict(), "model."
        return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


if __name__ == "__main__":
    run_main(
        JepaTrainingConfig,
        train_jepa,
        default_config="experiments/jepa/jepa.yaml",
        description="Pretraining of EgoM2P that also predicts the features of hidden tokens.",
    )
