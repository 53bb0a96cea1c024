"""Everything the tables of this folder read: `python -m experiments.codes.code_data` (12 seconds, no network).

The quickstart's world of codes with more clips, questions and texts. Makes nothing twice.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from egom2p.anytoany.world.factor_world import Split, factor_rows
from egom2p.anytoany.world.synthetic_data import (
    SyntheticDataConfig,
    build_synthetic,
    world_texts,
    write_codes,
    write_rows,
    write_tokenizer,
)
from egom2p.config import run_main, strict
from egom2p.jobs.progress import say
from egom2p.storage import only_writer
from experiments.codes.code_conversations import balanced_rows, conversation_clips, experiment_rows, repeated_rows
from experiments.codes.plans_and_things import code_clip
from experiments.codes.reference_text import reference_rows

Row = dict[str, Any]
_SPLITS: tuple[Split, ...] = ("train", "unseen")


@strict
class CodeDataConfig:
    """synthetic: the quickstart's part; held_out_clips: of each unseen combination."""

    output: str
    synthetic: SyntheticDataConfig = SyntheticDataConfig()
    held_out_clips: int = 10


def build_code_data(config: CodeDataConfig) -> list[Path]:
    """Write what is missing below the output; returns the files and folders.

    What the quickstart has (`synthetic_data`), and beside it
    captions_unseen_many.jsonl, captions_noisy.jsonl, dialogues_*, which_*, changed_*, named_*, say_*, read_*
                               see code_conversations
    looked_at_balanced.jsonl   questions that nobody can answer without the gaze
    text.jsonl, text_unseen.jsonl, reference_*   conversations without media
    features/                  codes of all these clips
    tokenizer_experiments/, tokenizer_reference/   trained on these texts too
    """
    with only_writer(config.output):
        return _build(config, Path(config.output))


def _build(config: CodeDataConfig, output: Path) -> list[Path]:
    made = build_synthetic(output, config.synthetic)
    many = factor_rows("caption", "unseen", config.held_out_clips)
    captions = {"train": factor_rows("caption", "train", config.synthetic.clips_per_combination), "unseen": many}
    files = {"captions_unseen_many.jsonl": many, **experiment_rows(captions)}
    manual = {f"reference_{split}.jsonl": reference_rows(split) for split in _SPLITS}
    balanced = {"looked_at_balanced.jsonl": balanced_rows()}
    texts = {"text.jsonl": repeated_rows(captions["train"]), "text_unseen.jsonl": repeated_rows(many)}
    made += [write_rows(output / name, rows) for name, rows in (files | manual | balanced | texts).items()]
    shown = [row["clip"] for row in (*balanced["looked_at_balanced.jsonl"], *many)] + conversation_clips()
    made.append(write_codes(output / "features", [code_clip(name) for name in shown]))
    made += _tokenizers(output, files, manual["reference_train.jsonl"], 2 * config.synthetic.vocab_size)
    return made


def _tokenizers(output: Path, files: Mapping[str, Sequence[Row]], manual: Sequence[Row], vocab_size: int) -> list[Path]:
    words = list(dict.fromkeys(text for rows in files.values() for row in rows for text in _spoken_in(row)))
    passages = [turn["value"] for row in manual for turn in row["conversations"]]
    return [
        write_tokenizer(output / f"tokenizer_{name}", [*world_texts(), *texts], vocab_size)
        for name, texts in (("experiments", words), ("reference", passages))
    ]


def _spoken_in(row: Row) -> list[str]:
    """Texts of an interleaved row, without the placeholders of media."""
    return [re.sub(r"\{\w+\}", " ", turn["text"]) for turn in row.get("turns", ())]


def main(config: CodeDataConfig) -> None:
    for path in build_code_data(config):
        say(str(path))


if __name__ == "__main__":
    run_main(CodeDataConfig, main, default_config="experiments/codes/code_data.yaml", description=str(__doc__))
