"""Do logits and hidden states of early fusion grow in a long run? Prints them every so many steps.

    python -m experiments.codes.logit_growth output_dir=DIR training.num_steps=4000 training.evaluate_every=200

Config: experiments/codes/plans.yaml with overrides, such as model.z_loss=0. Of the held-out answers:
the largest logit, the mean of log(sum exp logits), and the mean norm of the states before and behind the last norm.
"""

import sys
from collections.abc import Iterable

import torch
from torch import nn

from egom2p.anytoany.conversations.datasets import open_dataset
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.types import NO_LOSS, LanguageBatch
from egom2p.config import load_config, to_plain
from egom2p.data.clip_order import clip_rng
from egom2p.training.distributed import ranks_of_launch
from egom2p.training.loop import fit
from egom2p.training.task import Measurement
from egom2p.training.tasks.anytoany_task import AnyToAnyTask, AnyToAnyTrainingConfig


class WatchedTask(AnyToAnyTask):
    """The same training; evaluations also measure sizes."""

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        found = list(super().evaluate(model))
        for name, dataset in self.config.evaluation.datasets.items():
            opened = open_dataset(dataset)
            talks = [opened.conversation(row, clip_rng(0, name, row)) for row in range(min(len(opened), 64))]
            rows = [[rendered] for talk in talks if (rendered := self.renderer.render(talk)) is not None]
            batch = collate(rows, self.lookup.features, pad_id=self._anytoany.tokenizer.pad_token_id)
            is_answer_RT = batch.labels != NO_LOSS
            before_RTD, hidden_RTD = self._states(batch)
            hidden_ND = hidden_RTD[is_answer_RT]
            logits_NV = self._anytoany.logits(hidden_ND)
            sizes = {
                "max_logit": logits_NV.abs().max(),
                "logsumexp": logits_NV.logsumexp(-1).mean(),
                "norm_before": before_RTD[is_answer_RT].norm(dim=-1).mean(),
                "norm_behind": hidden_ND.norm(dim=-1).mean(),
            }
            found += [Measurement(name, size, float(value)) for size, value in sizes.items()]
        return found

    def _states(self, batch: LanguageBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, T, D) before and behind the last norm."""
        before: list[torch.Tensor] = []
        norm = self._anytoany.lm.base_model.norm
        handle = norm.register_forward_pre_hook(lambda module, given: before.append(given[0]))
        hidden_RTD = self._anytoany.hidden(batch)
        handle.remove()
        return before[0].view_as(hidden_RTD), hidden_RTD


def main() -> None:
    config = load_config(AnyToAnyTrainingConfig, "experiments/codes/plans.yaml", sys.argv[1:])
    with ranks_of_launch(config.training.device) as ranks:
        task = WatchedTask(config, ranks)
        settings = to_plain(config)
        fit(task, config.training, output_dir=config.output_dir, ranks=ranks, seed=config.seed, settings=settings)


if __name__ == "__main__":
    main()
