"""Held-out conversations: loss and exact match, with what was truly perceived, with another's features, with nothing.

R conversations, M labels. An answer matches exactly when the most likely token is right at each of its positions: the
answer that greedy decoding gives.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from egom2p.anytoany.conversations.chat import ChatRenderer
from egom2p.anytoany.conversations.datasets import DatasetConfig, open_dataset
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.evaluation.controls import controlled
from egom2p.anytoany.language.likelihood import token_answers
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import NO_LOSS, Conversation, Media, PerceptionFeatures, Rendered
from egom2p.config import Count, Natural, strict
from egom2p.data.clip_order import clip_rng
from egom2p.training.distributed import Ranks
from egom2p.training.task import Measurement

Control = Literal["shuffled", "zero"]
_NAMES = ("loss", "exact_match", "token_accuracy")


@strict
class LanguageEvaluationConfig:
    """What is measured on held-out conversations.

    max_conversations   of each data set, spread over it
    controls            beside the true features: `shuffled`, each item shows what another one of the data set shows;
                        `zero`, perception features are 0
    num_samples         answers that are written beside their references to `samples.jsonl`
    """

    datasets: dict[str, DatasetConfig] = field(default_factory=dict)
    max_conversations: Count = 512
    batch_size: Count = 32
    controls: tuple[Control, ...] = ("shuffled", "zero")
    num_samples: Natural = 4


@dataclass(frozen=True)
class Answered:
    """One conversation as the model would end it. `output`: most likely token at each position of the reference."""

    key: str
    reference: str
    output: str


class LanguageEvaluation:
    """Conversations are drawn once; every rank takes its share of them.

    nested   renderers by the number of perception tokens they give media: measured too, with true features
    """

    def __init__(
        self,
        config: LanguageEvaluationConfig,
        renderer: ChatRenderer,
        features_of: Callable[[Media], PerceptionFeatures],
        *,
        seed: int,
        ranks: Ranks,
        nested: Mapping[int, ChatRenderer] | None = None,
    ) -> None:
        self._config, self._renderer, self._features_of, self._ranks = config, renderer, features_of, ranks
        self._sets = {name: self._draw(name, dataset, seed, renderer) for name, dataset in config.datasets.items()}
        self._nested = {
            f"{name}, {count} perception tokens": self._draw(name, dataset, seed, fewer)
            for name, dataset in config.datasets.items()
            for count, fewer in (nested or {}).items()
        }
        self.samples: list[Answered] = []

    def measure(self, model: AnyToAny) -> list[Measurement]:
        """Loss, exact match and token accuracy of every data set under every control; complete on every rank."""
        self.samples, measurements = [], []
        for name, rows in (self._sets | self._nested).items():
            for control in ("true", *(self._config.controls if name in self._sets else ())):
                items = [span.media for _, rendered in rows for span in rendered.spans]
                features_of = controlled(self._features_of, control, items)
                sums = np.zeros(4)  # loss, exact, right tokens, tokens
                own = rows[self._ranks.rank :: self._ranks.world_size]
                for start in range(0, len(own), self._config.batch_size):
                    part = own[start : start + self._config.batch_size]
                    sums += self._sums(model, part, features_of, keep=control == "true")
                loss, exact, right, tokens = self._ranks.sum_floats(sums.tolist())
                values = (loss / tokens, exact / len(rows), right / tokens)
                group = name if control == "true" else f"{name}, {control} features"
                measurements += [Measurement(group, key, value) for key, value in zip(_NAMES, values, strict=True)]
        return measurements

    def media(self) -> list[Media]:
        """Media items of all sets."""
        return [span.media for rows in self._sets.values() for _, rendered in rows for span in rendered.spans]

    def _draw(self, name: str, dataset: Any, seed: int, renderer: ChatRenderer) -> list[tuple[Conversation, Rendered]]:
        opened = open_dataset(dataset)
        count = min(len(opened), self._config.max_conversations)
        rows = []
        for number in range(count):
            index = number * len(opened) // count
            conversation = opened.conversation(index, clip_rng(seed, f"evaluation of {name}", index))
            rendered = renderer.render(conversation)
            if rendered is not None:
                rows.append((conversation, rendered))
        if not rows:
            raise ValueError(f"evaluation.datasets.{name}: every conversation is longer than chat.max_length")
        return rows

    def _sums(
        self,
        model: AnyToAny,
        rows: Sequence[tuple[Conversation, Rendered]],
        features_of: Callable[[Media], PerceptionFeatures],
        *,
        keep: bool,
    ) -> np.ndarray:
        tokenizer = self._renderer.tokenizer
        batch = collate([[rendered] for _, rendered in rows], features_of, pad_id=tokenizer.pad_token_id)
        batch = batch.to(self._ranks.device)
        losses_M, output_M = token_answers(model, batch)
        labels_RT, output_RT = batch.labels, torch.full_like(batch.labels, NO_LOSS)
        output_RT[labels_RT != NO_LOSS] = output_M
        is_right_RT = output_RT == labels_RT
        num_right = int((is_right_RT & (labels_RT != NO_LOSS)).sum())
        if keep and len(self.samples) < self._config.num_samples:
            self.samples += [
                Answered(conversation.key, *(_words(tokenizer, ids[ids != NO_LOSS]) for ids in (labels, output)))
                for (conversation, _), labels, output in zip(rows, labels_RT.cpu(), output_RT.cpu(), strict=True)
            ][: self._config.num_samples - len(self.samples)]
        return np.array([float(losses_M.sum()), float(is_right_RT.all(1).sum()), num_right, batch.num_targets])


def _words(tokenizer: Any, ids: Tensor) -> str:
    return tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()


def as_rows(samples: Sequence[Answered]) -> Iterator[dict[str, str]]:
    """Samples as plain values."""
    for sample in samples:
        yield {"key": sample.key, "reference": sample.reference, "output": sample.output}
