"""Captions of rendered video by two kinds of models: EgoM2P's own caption head, and a language model that perceives.

Command: `python -m experiments.world_captions.compare_captions`.

Both describe the same held-out clips, with true features, with those of another clip, and with none. Beside scores of
the whole caption stand two questions that a caption answers: does it tell the motion, and the thing that is looked at?
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from egom2p.anytoany.evaluation.controls import partners
from egom2p.anytoany.types import Media
from egom2p.anytoany.world.world_questions import read_facts
from egom2p.config import Count, Natural, run_main, strict
from egom2p.contracts import TokenClip
from egom2p.generation.clip_generation import generate_clips
from egom2p.generation.generation_inputs import read_prompts
from egom2p.generation.loaded_model import LoadedModel, load_model
from egom2p.generation.request import Request
from egom2p.metrics.bootstrap import bootstrap_interval
from egom2p.metrics.caption import caption_scores
from egom2p.storage import atomic_file, parse_json, save_json

_MEASURES = ("cider_d", "exact_match", "motion", "thing", "colour")
_LOOKS = " and looks at "


@strict
class CompareCaptionsConfig:
    """heads: label -> model directories of EgoM2P's caption head, runs that differ in their seed alone.

    clips        store of the held-out clips
    tokens       pattern of their token shards
    language     label -> files `samples.jsonl` of evaluations of language models, of as many seeds
    train_clips  clips whose commonest caption is a row of the table
    num_clips    evenly spaced among the held-out ones
    """

    output: str
    clips: str
    train_clips: str
    dataset: str
    tokens: str
    heads: dict[str, tuple[str, ...]]
    language: dict[str, tuple[str, ...]]
    num_clips: Count = 96
    batch_size: Count = 32
    seed: Natural = 0


@dataclass(frozen=True)
class Described:
    """What one model said of the clips under one control: clip -> caption."""

    model: str
    seed: int
    control: str
    captions: dict[str, str]


def compare(config: CompareCaptionsConfig) -> None:
    """Write results.json and results.md."""
    facts = {one.key: one.caption for one in read_facts(config.clips, [config.dataset]) if one.caption}
    chosen = [list(facts)[at * len(facts) // config.num_clips] for at in range(min(config.num_clips, len(facts)))]
    truth = {key: facts[key] for key in chosen}
    described = [
        one
        for label, folders in config.heads.items()
        for seed, folder in enumerate(folders)
        for one in captions_of_head(label, seed, load_model(folder), list(truth), config)
    ]
    described += [
        one
        for label, files in config.language.items()
        for seed, file in enumerate(files)
        for one in captions_of_language(label, seed, Path(file))
    ]
    often = Counter(one.caption for one in read_facts(config.train_clips, [config.dataset])).most_common(1)[0][0]
    described.append(Described("the commonest caption", 0, "", dict.fromkeys(truth, often)))
    rows = [row_of(one, truth, np.random.default_rng(config.seed)) for one in described]
    folder = Path(config.output)
    save_json(folder / "results.json", {"rows": rows})
    with atomic_file(folder / "results.md") as unfinished:
        unfinished.write_text(table(rows), encoding="utf-8")
    sys.stdout.write(table(rows))


def captions_of_head(
    label: str, seed: int, model: LoadedModel, keys: Sequence[str], config: CompareCaptionsConfig
) -> Iterator[Described]:
    """Of the true tokens, of those of another clip, and of none."""
    request = Request(targets=("caption",), join="none", dataset=config.dataset)
    wanted = set(keys)
    clips = {}
    for clip in read_prompts(config.tokens, model, request):
        if clip.key in wanted:
            inputs = {name: ids for name, ids in clip.tokens.items() if name != "tok_caption"}
            clips[clip.key] = TokenClip(clip.key, inputs, {name: clip.fingerprints[name] for name in inputs})
    if missing := wanted - set(clips):
        raise ValueError(f"{config.tokens}: no tokens of clip {min(missing)}")
    others = partners(Media("video", key) for key in clips)
    shown = {
        "true": clips,
        "shuffled": {key: clips[others[Media("video", key)].ref] for key in clips},
        "zero": {key: TokenClip(key, {}, {}) for key in clips},
    }
    for control, prompts in shown.items():
        asked = request if control != "zero" else Request(targets=("caption",), join="none", conditions=())
        said = {}
        for at in range(0, len(keys), config.batch_size):
            part = keys[at : at + config.batch_size]
            made = generate_clips(model, [prompts[key] for key in part], asked)
            said |= {key: str(one.clip.streams["caption"].values[0]) for key, one in zip(part, made, strict=True)}
        yield Described(label, seed, control, said)


def captions_of_language(label: str, seed: int, file: Path) -> Iterator[Described]:
    """What an evaluation kept of the table `captions`."""
    said: dict[str, dict[str, str]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = parse_json(line, f"{file}, line {number + 1}")
            if row["table"] == "captions":
                for answer in row["answers"]:
                    if answer["control"] in ("true", "shuffled", "zero"):
                        said.setdefault(answer["control"], {})[row["media"][0]["ref"]] = answer["output"]
    if not said:
        raise ValueError(f"{file}: no answers of the table `captions`")
    return (Described(label, seed, control, captions) for control, captions in said.items())


def row_of(one: Described, truth: dict[str, str], rng: np.random.Generator) -> dict[str, object]:
    """Means with intervals, drawn by room, over the clips that this model was asked about."""
    keys = [key for key in truth if key in one.captions]
    if len(keys) < len(truth):
        raise ValueError(f"{one.model}, seed {one.seed}: described {len(keys)} of {len(truth)} clips")
    scores = caption_scores([one.captions[key] for key in keys], [[truth[key]] for key in keys])
    parts = [(told(one.captions[key]), told(truth[key])) for key in keys]
    measured = {
        "cider_d": scores["cider_d"],
        "exact_match": scores["exact_match"],
        "motion": [float(found[0] == wanted[0]) for found, wanted in parts],
        "thing": [float(found[1] == wanted[1]) if wanted[1] else None for found, wanted in parts],
        "colour": [float(found[1][:1] == wanted[1][:1]) if wanted[1] else None for found, wanted in parts],
    }
    groups = [key.split("_")[0] for key in keys]
    found = {name: bootstrap_interval(values, rng, groups=groups) for name, values in measured.items()}
    return {
        "model": one.model,
        "seed": one.seed,
        "features": one.control,
        "num_clips": len(keys),
        **{name: [interval.mean, interval.low, interval.high] for name, interval in found.items()},
    }


def told(caption: str) -> tuple[str, tuple[str, ...]]:
    """(how the wearer moves, what is looked at: colour and name; empty where nothing of one colour is named)."""
    motion, _, thing = caption.casefold().strip(" .").partition(_LOOKS)
    words = tuple(word for word in thing.split() if word not in ("a", "an", "the", "moving"))
    return motion.strip(), words if len(words) == 2 else ()


def table(rows: Sequence[dict[str, object]]) -> str:
    """Markdown."""
    lines = ["| model | seed | features | " + " | ".join(_MEASURES) + " |", "|---" * (3 + len(_MEASURES)) + "|"]
    for row in rows:
        cells = []
        for name in _MEASURES:
            mean, low, high = json.loads(json.dumps(row[name]))
            digits = 2 if name == "cider_d" else 3
            between = "" if low is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
            cells.append(f"{mean:.{digits}f}{between}")
        lines.append(f"| {row['model']} | {row['seed']} | {row['features']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(
        CompareCaptionsConfig,
        compare,
        default_config="experiments/world_captions/compare_captions.yaml",
        description=str(__doc__),
    )
