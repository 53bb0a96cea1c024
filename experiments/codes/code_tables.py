"""Tables of results/anytoany_experiments.md: each row trained with several seeds, all measured on the same clips.

    python -m experiments.codes.code_data
    python -m experiments.codes.code_tables perception_tokens [--seeds 3] [--timed] [key=value ...]

Finished runs below --output are not trained again. Intervals: 95 % bootstrap over combinations of factors, the clips of
a combination and all seeds drawn together. Milliseconds: the fastest of 30 on one core, the models
of the first seed in turns.
"""

import argparse
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from egom2p.anytoany.answers.answer_generation import AnswerConfig, Question, answer
from egom2p.anytoany.conversations.chat import ChatRenderer
from egom2p.anytoany.conversations.conversation import answer_of, question_of
from egom2p.anytoany.conversations.datasets import open_dataset
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.evaluation.controls import controlled
from egom2p.anytoany.language.likelihood import likelihoods
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.perception.feature_store import FeatureLookup, spellings
from egom2p.anytoany.saving import load_anytoany
from egom2p.anytoany.types import Conversation
from egom2p.config import load_config
from egom2p.data.clip_order import clip_rng
from egom2p.metrics.bootstrap import bootstrap_interval
from egom2p.storage import load_json, save_json
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig, train_anytoany
from egom2p.training.tasks.language_evaluation import LanguageEvaluationConfig
from experiments.codes.caption_filter import CaptionFilterConfig, filter_captions
from experiments.codes.table_rows import TABLES, ExperimentRow, ExperimentTable

_COMBINATION = re.compile(r"((?:caption|plan|mine)-\w+(?:-\d+)+)-\d+")
_ANSWER = AnswerConfig(max_new_tokens=64, batch_size=64)


class Measured:
    """A trained model and its held-out questions."""

    def __init__(self, row: ExperimentRow, seed: int, output: Path) -> None:
        self._row, self._folder = row, _folder(output, row.trained_as or row.label, seed)
        folder = self._folder
        given = [*row.overrides, f"seed={seed}", f"output_dir={folder}"]
        if not any("language_model.pretrained" in text for text in given):
            given.append(f"model.language_model.seed={seed}")
        if row.filtered_by is not None:
            given.append(f"data.datasets.captions.files=[{_likely_captions(output, row.filtered_by, seed)}]")
        self.config = load_config(AnyToAnyTrainingConfig, f"experiments/codes/{row.config}.yaml", given)
        if not (folder / "final").is_dir():
            train_anytoany(replace(self.config, evaluation=LanguageEvaluationConfig()))
        self.model: AnyToAny = load_anytoany(folder / "final")
        connector = self.config.model.connector
        self.lookup = FeatureLookup(self.config.model.perception, self.config.features, connector)
        self.renderer = ChatRenderer(
            self.model.tokenizer,
            partial(self.lookup.span_length, wanted=row.num_tokens),
            self.config.data.chat,
            spellings=spellings(self.model.codebooks, self.lookup),
        )

    @property
    def num_parameters(self) -> int:
        """Of what turns perception features into perception tokens."""
        return sum(parameter.numel() for parameter in self.model.connector.parameters())

    def scores(self, dataset: str, control: str, *, is_said: bool) -> dict[str, list[float]]:
        """Per question `exact`, `nats` and `tokens`; with `is_said`, also whether the last sentence said is right.

        Kept beside the run, so that a table that was interrupted goes on.
        """
        count = "" if self._row.num_tokens is None else f"_{self._row.num_tokens}"
        file = self._folder / f"{dataset}_{control}{count}.json"
        if not file.is_file():
            save_json(file, self._scores(dataset, control, is_said=is_said))
        return load_json(file)

    def _scores(self, dataset: str, control: str, *, is_said: bool) -> dict[str, list[float]]:
        talks = self._talks(dataset)
        features_of = controlled(self.lookup.features, control, [item for talk in talks for item in talk.media])
        rendered = [self.renderer.render(talk) for talk in talks]
        found = likelihoods(self.model, rendered, features_of, batch_size=64)
        scores = {
            "exact": [float(one.is_greedy) for one in found],
            "nats": [one.nats for one in found],
            "tokens": [one.num_tokens for one in found],
        }
        if is_said:
            asked = [self.renderer.render_question(question_of(talk)) for talk in talks]
            questions = [Question(one, tuple(features_of(span.media) for span in one.spans)) for one in asked]
            said = [one.text for one in answer(self.model, questions, _ANSWER)]
            last = [text.rpartition(". ")[2] for text in said]
            scores["last"] = [
                float(text == answer_of(talk).rpartition(". ")[2]) for text, talk in zip(last, talks, strict=True)
            ]
        return scores

    def groups(self, dataset: str) -> list[str]:
        """Combination of factors that each question is about."""
        names = [" ".join([talk.key, *(item.ref for item in talk.media)]) for talk in self._talks(dataset)]
        found = [_COMBINATION.search(name) for name in names]
        return [name if match is None else match.group(1) for name, match in zip(names, found, strict=True)]

    def timed(self, dataset: str, what: str) -> float:
        """Milliseconds of one clip: `tokens` from its features, or a whole `answer`."""
        talk = self._talks(dataset)[0]
        question = self.renderer.render_question(question_of(talk))
        items = tuple(self.lookup.features(span.media) for span in question.spans)
        batch = collate([[question]], self.lookup.features, pad_id=self.model.tokenizer.pad_token_id)
        start_s = time.perf_counter()
        if what == "tokens":
            with torch.inference_mode():
                self.model.perceive(batch)
        else:
            answer(self.model, [Question(question, items)], _ANSWER)
        return 1000 * (time.perf_counter() - start_s)

    def _talks(self, dataset: str) -> list[Conversation]:
        opened = open_dataset(self.config.evaluation.datasets[dataset])
        return [opened.conversation(row, clip_rng(0, f"evaluation of {dataset}", row)) for row in range(len(opened))]


def _folder(output: Path, label: str, seed: int) -> Path:
    return output / re.sub(r"\W+", "_", label) / str(seed)


def _likely_captions(output: Path, label: str, seed: int) -> Path:
    """The file of captions that the model of another row finds likeliest."""
    model = _folder(output, label, seed) / "final"
    kept = model.parent / "kept.jsonl"
    given = [f"model={model}", f"output={kept}"]
    found = filter_captions(load_config(CaptionFilterConfig, "experiments/codes/caption_filter.yaml", given))
    print(f"{label}, seed {seed}: {found}")
    return kept


def table_lines(table: ExperimentTable, seeds: Sequence[int], output: Path, *, is_timed: bool) -> list[str]:
    """The table as Markdown, row by row as it is measured."""
    names = [(dataset, control) for dataset, controls in table.asked.items() for control in controls]
    titles = [dataset if control == "true" else f"{dataset}, {control}" for dataset, control in names]
    lines = ["| row | " + " | ".join(titles) + " |", "|---" * (1 + len(titles)) + "|"]
    first_models = {}
    for row in table.rows:
        found: dict[tuple[str, str], list[dict[str, list[float]]]] = {pair: [] for pair in names}
        groups: dict[str, list[str]] = {}
        for seed in seeds:
            measured = Measured(row, seed, output)
            first_models.setdefault(row.label, measured)
            for dataset, control in names:
                found[dataset, control].append(measured.scores(dataset, control, is_said=table.is_said))
                groups[dataset] = measured.groups(dataset)
        cells = [_cell(found[pair], groups[pair[0]]) for pair in names]
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines + (_timed_lines(first_models, next(iter(table.asked))) if is_timed else [])


def _cell(of_seeds: Sequence[Mapping[str, list[float]]], groups: Sequence[str]) -> str:
    """`exact % [interval] (each seed), nats`, then the same of the last sentence."""
    parts = []
    for name in ("exact", "last"):
        if name in of_seeds[0]:
            values = [value for scores in of_seeds for value in scores[name]]
            found = bootstrap_interval(values, np.random.default_rng(0), groups=[*groups] * len(of_seeds))
            seeds = " ".join(f"{100 * np.mean(scores[name]):.1f}" for scores in of_seeds)
            low, high = (100 * (found.mean if bound is None else bound) for bound in (found.low, found.high))
            parts.append(f"{name} {100 * found.mean:.1f} [{low:.1f}, {high:.1f}] ({seeds})")
    nats = [sum(scores["nats"]) / sum(scores["tokens"]) for scores in of_seeds]
    return ", ".join([*parts, f"nats {np.mean(nats):.4f} ({' '.join(f'{one:.4f}' for one in nats)})"])


def _timed_lines(models: Mapping[str, Measured], dataset: str, num_rounds: int = 30) -> list[str]:
    """Parameters of the connectors and least milliseconds, one clip of each model after the other."""
    spent: dict[tuple[str, str], list[float]] = {}
    for _ in range(num_rounds):
        for label, measured in models.items():
            for what in ("tokens", "answer"):
                spent.setdefault((label, what), []).append(measured.timed(dataset, what))
    lines = ["", "| row | connector's parameters | ms features to tokens | ms answer |", "|---|---|---|---|"]
    for label, measured in models.items():
        times = " | ".join(f"{min(spent[label, what]):.2f}" for what in ("tokens", "answer"))
        lines.append(f"| {label} | {measured.num_parameters:,} | {times} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", default="", help="regular expression of the labels to make")
    parser.add_argument("--output", type=Path, default=Path("outputs/experiments/codes/tables"))
    parser.add_argument("--timed", action="store_true", help="also milliseconds and parameters of each row's connector")
    parser.add_argument("overrides", nargs="*", help="settings of all rows, such as training.num_steps=400")
    given = parser.parse_intermixed_args()
    chosen = [row for row in TABLES[given.table].rows if re.search(given.rows, row.label)]
    rows = tuple(replace(row, overrides=(*row.overrides, *given.overrides)) for row in chosen)
    table = replace(TABLES[given.table], rows=rows)
    lines = table_lines(table, range(given.seeds), given.output / given.table, is_timed=given.timed)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
