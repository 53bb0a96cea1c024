"""Training the any-to-any language model on conversations: its root schema and its task for the loop."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.chat import ChatRenderer
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig, LanguageLoader, check_rows
from egom2p.anytoany.conversations.datasets import ConversationSet
from egom2p.anytoany.language.language_tokenizer import load_text_tokenizer, reserved_tokens, stop_ids
from egom2p.anytoany.language.packaged_model import stand_in_note
from egom2p.anytoany.language.size_of_model import LanguageFlops
from egom2p.anytoany.model import AnyToAny, AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.familiarity import MAX_ITEMS, Familiarity
from egom2p.anytoany.perception.feature_store import FeatureLookup, spellings
from egom2p.anytoany.perception.source import FeatureRows, rows_of
from egom2p.anytoany.saving import load_config_of, write_anytoany_files
from egom2p.anytoany.types import Conversation, LanguageBatch, Media
from egom2p.anytoany.word_lessons import teach_words, words_by_media
from egom2p.config import Natural, strict
from egom2p.contracts import LossOutput
from egom2p.data.clip_order import clip_rng
from egom2p.storage import append_to
from egom2p.training.distributed import Ranks
from egom2p.training.loop import FitResult, train
from egom2p.training.planning.anytoany_memory import estimate, estimate_text
from egom2p.training.planning.plan_checks import check_room
from egom2p.training.run_folder import local_folder
from egom2p.training.task import BatchSize, Measurement, Task, seeded
from egom2p.training.tasks.language_evaluation import LanguageEvaluation, LanguageEvaluationConfig, as_rows
from egom2p.training.training_config import TrainingConfig

_LESSON_CONVERSATIONS = 16384  # of each data set, from which the words of answers are taken


@strict
class AnyToAnyTrainingConfig:
    """Root schema of `run_training_anytoany.py`.

    features   folders of exported features (python -m egom2p.anytoany.perception.export_features); vectors need none
    training   `batch_size` counts rows: packed ones hold several conversations; `epochs` counts conversations
    dry_run    look at every row of the data that is here, say what the run would take, and stop: no weights
    """

    output_dir: str
    seed: Natural = 0
    dry_run: bool = False
    model: AnyToAnyConfig
    features: tuple[str, ...] = ()
    data: LanguageDataConfig
    evaluation: LanguageEvaluationConfig = LanguageEvaluationConfig()
    training: TrainingConfig

    def __post_init__(self) -> None:
        for key, there in (("batching", "data.batching"), ("num_workers", "data.num_workers")):
            if getattr(self.training, key) != getattr(TrainingConfig, key):
                raise ValueError(f"training.{key} has no effect on conversations; say {there}")


def train_anytoany(config: AnyToAnyTrainingConfig) -> FitResult | None:
    """Train, evaluate and write `<output_dir>/final`; ends the process with a code when a signal stopped it.

    None after a dry run.
    """
    if config.dry_run:
        lines = check_rows(config.data, _reserved_words(config.model))
        size, memory = estimate(config.model, config.data, config.training)
        num_kept = memory.gradients // 4 + (
            size.language_model if config.model.language_model.pretrained is None else 0
        )
        folder = local_folder(config.output_dir, config.training.scratch_dir)
        room, problem = check_room(folder, num_kept, config.training)
        if problem:
            raise ValueError(problem)
        lines += [estimate_text(size, memory), f"checkpoints: {room}"]
        if note := stand_in_note(config.model.language_model.pretrained):
            lines.append(note)
            if config.model.language_model.sizes is not None:
                lines.append("sizes above are those of the real model, as the config says them")
        sys.stdout.write("\n".join(lines) + "\n")
        return None
    result = train(config, AnyToAnyTask)
    if result.progress.step == 0:
        raise ValueError(f"{config.output_dir}: the run took no optimizer step; make it longer")
    return result


def _reserved_words(model: AnyToAnyConfig) -> list[str]:
    """What no text may hold; of a tokenizer that is not on this disk only the words that are added to any."""
    path = model.language_model.tokenizer_path
    known = load_text_tokenizer(path).all_special_tokens if Path(path).is_dir() else []
    return list(dict.fromkeys([*reserved_tokens(), *known]))


class AnyToAnyTask(Task):
    """The language model with its perception as the loop's `Task`. A clip, for the loop, is a conversation."""

    clip_word, row_word = "conversations", "rows"

    def __init__(self, config: AnyToAnyTrainingConfig, ranks: Ranks) -> None:
        self.config, self.ranks = config, ranks
        with seeded(config.seed, 0):
            # On the device of its rank from the start: no rank holds a large model in host memory.
            self._anytoany: AnyToAny = build_anytoany(config.model, device=ranks.device)
        self.model: nn.Module = self._anytoany
        self._flops = LanguageFlops(self._anytoany)
        self.lookup = FeatureLookup(config.model.perception, config.features, config.model.connector)
        books = self._anytoany.codebooks
        spelled = spellings(books, self.lookup)

        def renderer(count: int | None) -> ChatRenderer:
            span_length = partial(self.lookup.span_length, wanted=count)
            return ChatRenderer(self._anytoany.tokenizer, span_length, config.data.chat, spellings=spelled)

        self.renderer = renderer(None)
        nested = {count: renderer(count) for count in config.model.connector.nested}
        self.loader = LanguageLoader(
            config.data,
            self.renderer,
            self.lookup.features,
            batch_size=config.training.batch_size,
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            nested=tuple(nested.values()),
        )
        self._familiarity: Familiarity | None = None
        note = stand_in_note(config.model.language_model.pretrained)
        self.notes = () if note is None else (note,)
        if config.model.connector.whiten or config.model.connector.num_words:
            self._prepare_connector(config.model.connector)
        self.num_train_clips = self.loader.num_conversations
        self.evaluation = LanguageEvaluation(
            config.evaluation, self.renderer, self.lookup.features, seed=config.seed, ranks=ranks, nested=nested
        )

    def data_identity(self) -> dict[str, Any]:
        return {name: {"conversations": len(dataset)} for name, dataset in self.loader.datasets.items()}

    def batches(self, first_clip: int) -> Iterator[LanguageBatch]:
        return self.loader.batches(first_clip)

    def counts(self, batch: LanguageBatch) -> tuple[int, ...]:
        return (batch.num_targets,)

    def size(self, batch: LanguageBatch) -> BatchSize:
        flops = self._flops.training(batch)
        return BatchSize(clips=batch.num_clips, tokens=batch.num_tokens, token_budget=batch.ids.numel(), flops=flops)

    def loss(self, model: nn.Module, batch: LanguageBatch) -> LossOutput:
        return model(batch)

    def combine(self, sums: Tensor, denominators: tuple[int, ...]) -> Tensor:
        """Mean over the target tokens of the whole step, so that each token counts the same wherever it lies."""
        return sums[0] / max(denominators[0], 1)

    def evaluate(self, model: nn.Module) -> Iterable[Measurement]:
        if self.ranks.is_first:  # here and not in `export`, where sharded weights cannot be run
            self._familiarity = self._measured_familiarity()
        measurements = self.evaluation.measure(self._anytoany)
        if self.ranks.is_first and self.evaluation.samples:
            folder = local_folder(self.config.output_dir, self.config.training.scratch_dir)
            with append_to(folder / "samples.jsonl") as opened:
                opened.write(f"{json.dumps({'samples': list(as_rows(self.evaluation.samples))})}\n".encode())
        consumed = sum(self.loader.dropped.values())
        return [*measurements, Measurement("data", "conversations_left_out", float(consumed))]

    def check_checkpoint(self, directory: Path) -> None:
        found, wanted = load_config_of(directory), self.config.model
        for name in ("connector", "lora", "adapt", "codebooks"):
            if getattr(found, name) != getattr(wanted, name):
                raise ValueError(
                    f"{directory} has {name} {getattr(found, name)}, the config says {getattr(wanted, name)}; choose "
                    f"another output_dir or remove the old run"
                )

    def export(self, directory: Path) -> None:
        write_anytoany_files(self._anytoany, directory)
        if self._familiarity is not None:
            self._familiarity.save(directory)

    def _measured_familiarity(self) -> Familiarity:
        """Of items of the training data, and of the evaluation's."""
        return Familiarity.measure(
            self._anytoany, self._training_media(), self.evaluation.media(), self.lookup.features
        )

    def _training_media(self) -> list[Media]:
        """Media items spread over the training data, by turns of its data sets."""
        train = [
            [item for conversation in self._training_conversations(dataset, MAX_ITEMS) for item in conversation.media]
            for dataset in self.loader.datasets.values()
        ]
        return list(dict.fromkeys(item for row in zip_longest(*train) for item in row if item is not None))

    def _training_conversations(self, dataset: ConversationSet, most: int) -> list[Conversation]:
        count = min(len(dataset), most)
        return [dataset.conversation(n * len(dataset) // count, clip_rng(0, "familiar", n)) for n in range(count)]

    def _prepare_connector(self, config: ConnectorConfig) -> None:
        """What it knows before the first step, on every rank alike. A checkpoint that goes on brings its own."""
        model, connector = self._anytoany, self._anytoany.connector
        media = self._training_media()[:MAX_ITEMS]
        if len(model.towers) > 1 or not media:
            raise ValueError("connector.whiten and num_words need one perception source, and media in the data")

        @torch.no_grad()
        def rows(items: Sequence[Media]) -> FeatureRows:
            found = rows_of([self.lookup.features(item) for item in items], self.ranks.device)
            return replace(found, features=model.towers[0](found))

        if config.whiten:
            connector.fit(rows(media))
        if config.num_words:
            sets = self.loader.datasets.values()
            known = [one for dataset in sets for one in self._training_conversations(dataset, _LESSON_CONVERSATIONS)]
            words = words_by_media(known, self.renderer.render, stop_ids(model.tokenizer))
            loss = teach_words(
                connector,
                words,
                rows,
                self.lookup.span_length,
                model.lm.get_input_embeddings().weight.detach(),
                num_steps=config.word_steps,
                generator=torch.Generator().manual_seed(self.config.seed),
            )
            self.notes += (f"perception tokens learned words of {len(words)} items: {loss:.3f} nats a word",)
