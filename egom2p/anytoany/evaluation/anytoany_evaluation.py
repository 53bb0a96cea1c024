"""Any-to-any models on held-out questions and texts.

Command: `python -m egom2p.anytoany.evaluation.anytoany_evaluation --config FILE`.

Every table of questions has the controls: true, shuffled and zero features.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from egom2p.anytoany.evaluation.harness import check_installed, file_perception, run_lm_eval, run_lmms_eval
from egom2p.anytoany.evaluation.questions import QuestionAsker, Samples, Scores, commonest_answer, draw_samples
from egom2p.anytoany.evaluation.report import Table, glance, summarise, write_report
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig, EvaluatedModelConfig
from egom2p.anytoany.evaluation.shown import MediaFrames, write_pictures, write_samples
from egom2p.anytoany.evaluation.texts import text_task
from egom2p.anytoany.model import AnyToAny, AnyToAnyConfig, build_anytoany
from egom2p.anytoany.perception.source import PerceptionConfig
from egom2p.config import run_main, to_plain
from egom2p.jobs.progress import progress_bar, say
from egom2p.jobs.workers import choose_device
from egom2p.metrics.caption import Encoder
from egom2p.storage import only_writer


def evaluate_anytoany(config: AnyToAnyEvaluationConfig) -> dict[str, Any]:
    """Evaluate, write results.json, results.md, per_sample.csv, samples.jsonl and shown/ below `config.output`.

    Models are loaded one after the other; all answer the same questions. Returns the results. One process writes to an
    output at a time.
    """
    with only_writer(config.output):
        return _evaluate(config)


def _evaluate(config: AnyToAnyEvaluationConfig) -> dict[str, Any]:
    device, folder = choose_device(config.device), Path(config.output)
    check_installed(config)
    samples = {name: draw_samples(name, part, seed=config.seed) for name, part in config.questions.items()}
    rows: dict[str, list[Scores]] = {name: [] for name in (*config.questions, *config.texts)}
    text_keys: dict[str, list[str]] = {}
    harness: dict[str, Any] = {}
    seconds = {}
    for label, about in config.models.items():
        start_s = time.perf_counter()
        model = load_evaluated(about, device=device, is_for_texts=not config.questions)
        _ask(label, model, about, config, samples, rows)
        for name, task in config.texts.items():
            text_keys[name], scores = text_task(label, model, task, batch_size=config.batch_size)
            rows[name].append(scores)
        harness |= _harness_results(label, model, config)
        seconds[label] = round(time.perf_counter() - start_s, 1)
        say(f"{label}: {seconds[label]} s")
        del model
    tables = [_question_table(name, config, samples[name], rows[name]) for name in config.questions]
    tables += [Table(name, text_keys[name], text_keys[name], rows[name]) for name in config.texts]
    summaries = [summarise(table, seed=config.seed) for table in tables]
    about = {"config": to_plain(config), "seconds": seconds, "harness": harness, "machine": _machine(device)}
    write_report(folder, tables, summaries, about)
    write_samples(folder, tables, samples)
    roots = {name: part.clip_roots for name, part in config.questions.items()}
    write_pictures(folder, samples, roots, count=config.num_shown, frames=MediaFrames(config.models))
    return {"about": about, "tables": summaries}


def load_evaluated(about: EvaluatedModelConfig, *, device: torch.device, is_for_texts: bool) -> AnyToAny:
    """An any-to-any directory, or a plain language model, which knows texts alone."""
    # Imported here: it brings transformers along.
    from egom2p.anytoany.language.language_model import LanguageModelConfig
    from egom2p.anytoany.saving import load_anytoany

    if (Path(about.directory) / "anytoany.json").is_file():
        return load_anytoany(about.directory, device=device, live_encoder=about.live_encoder)
    if not is_for_texts:
        raise ValueError(f"{about.directory}: no any-to-any directory; a plain language model can only answer `texts`")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    plain = AnyToAnyConfig(
        language_model=LanguageModelConfig(pretrained=about.directory, dtype=dtype),
        perception=(PerceptionConfig(source="vectors", width=1),),
        adapt="frozen",
    )
    return build_anytoany(plain, device=device)


def _ask(
    label: str,
    model: AnyToAny,
    about: EvaluatedModelConfig,
    config: AnyToAnyEvaluationConfig,
    samples: Mapping[str, Samples],
    rows: Mapping[str, list[Scores]],
) -> None:
    if not config.questions:
        return
    asker = QuestionAsker(label, model, about, config, _encoder(config, model))
    with progress_bar(f"{label}: sets x controls", len(config.questions) * asker.num_controls) as advance:
        for name, part in config.questions.items():
            rows[name].extend(asker.scores(part, samples[name], advance))


def _question_table(name: str, config: AnyToAnyEvaluationConfig, samples: Samples, rows: list[Scores]) -> Table:
    constant = commonest_answer(config.questions[name], samples)
    return Table(name, samples.keys, samples.groups, [*rows, constant], samples.references)


def _encoder(config: AnyToAnyEvaluationConfig, model: AnyToAny) -> Encoder | None:
    if config.embedding is None:
        return None
    from egom2p.anytoany.language.text_embedding import folder_embedding, own_embedding

    return own_embedding(model) if config.embedding == "own" else folder_embedding(config.embedding)


def _harness_results(label: str, model: AnyToAny, config: AnyToAnyEvaluationConfig) -> dict[str, Any]:
    """Last of all: lm_eval uses the model up."""
    results: dict[str, Any] = {}
    if config.lmms_eval is None and config.lm_eval is None:
        return results
    if config.lmms_eval is not None:
        perceive = file_perception(model)
        results["lmms_eval"] = run_lmms_eval(model, config.lmms_eval, perceive, batch_size=config.batch_size)
    if config.lm_eval is not None:
        results["lm_eval"] = run_lm_eval(
            model, config.lm_eval, batch_size=config.batch_size, workplace=Path(config.output)
        )
    return {label: results}


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU" if device.type == "cpu" else str(device)


def main(config: AnyToAnyEvaluationConfig) -> None:
    results = evaluate_anytoany(config)
    say(glance(results["tables"]))
    for label, found in results["about"]["harness"].items():
        say(f"{label}: {found}")
    say(f"{config.output}: results.json, results.md, per_sample.csv, samples.jsonl")
    say(f"page with pictures: python -m egom2p.viewing.anytoany_page evaluation={config.output}")


if __name__ == "__main__":
    run_main(AnyToAnyEvaluationConfig, main, description=str(__doc__))
