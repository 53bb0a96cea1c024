"""The public evaluation harnesses lm_eval and lmms_eval on an any-to-any model. Both are installed apart.

lm_eval runs its own transformers model on the merged language model; lmms_eval gets an adapter that perceives what its
tasks show. B requests.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.evaluation.settings import AnyToAnyEvaluationConfig, HarnessConfig
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.saving import save_merged
from egom2p.anytoany.types import PerceptionFeatures

Perceive = Callable[[str, Any], PerceptionFeatures]
"""(kind of media, what the task shows: a picture or the path of a video) -> features."""


def check_installed(config: AnyToAnyEvaluationConfig) -> None:
    """ValueError names the package that the config asks for and that is not there, before any model is loaded."""
    for name, wanted in (("lm_eval", config.lm_eval), ("lmms_eval", config.lmms_eval)):
        if wanted is not None:
            _import(name)


def run_lm_eval(
    model: AnyToAny, config: HarnessConfig, *, batch_size: int, workplace: Path | None = None
) -> dict[str, Any]:
    """Results of lm_eval by task. The model is used up: it is merged into a plain language model.

    workplace   folder below which that lies while it is needed; None: the system's
    """
    harness = _import("lm_eval")
    with TemporaryDirectory(dir=workplace) as folder:
        save_merged(model, Path(folder) / "merged")
        answer = _evaluated(
            "lm_eval",
            harness.simple_evaluate,
            config,
            model="hf",
            model_args=f"pretrained={Path(folder) / 'merged'}",
            batch_size=batch_size,
            device=str(model.device),  # it would take a GPU that is not there
        )
    return dict(answer["results"])


def run_lmms_eval(model: AnyToAny, config: HarnessConfig, perceive: Perceive, *, batch_size: int) -> dict[str, Any]:
    """Results of lmms_eval by task."""
    harness, api = _import("lmms_eval"), _import("lmms_eval.api.model", package="lmms_eval")
    evaluator = importlib.import_module("lmms_eval.evaluator") if not hasattr(harness, "simple_evaluate") else harness
    adapter = lmms_adapter(api.lmms, model, perceive, batch_size=batch_size)
    answer = _evaluated("lmms_eval", evaluator.simple_evaluate, config, model=adapter, batch_size=batch_size)
    return dict(answer["results"])


def _evaluated(
    package: str, evaluate: Callable[..., Mapping[str, Any]], config: HarnessConfig, **settings: Any
) -> Mapping[str, Any]:
    if config.include_path is not None:
        tasks = importlib.import_module(f"{package}.tasks")
        settings["task_manager"] = tasks.TaskManager(include_path=config.include_path)
    try:
        return evaluate(tasks=list(config.tasks), limit=config.limit, **settings | config.arguments)
    except KeyError as error:
        # How both tell that a task is unknown; one of their own code passes through.
        if not any(task in str(error) for task in config.tasks):
            raise
        raise ValueError(f"tasks {list(config.tasks)}: {error.args[0] if error.args else error}") from error


def file_perception(model: AnyToAny) -> Perceive:
    """Perceives files of media, and pictures; ValueError for what the model cannot perceive."""
    inference = Inference(model)

    def of_file(kind: str, path: str) -> PerceptionFeatures:
        clip = next(inference.perceive_file(kind, path), None)
        if clip is None:
            raise ValueError(f"{path}: shorter than one clip")
        return clip.features

    def perceive(kind: str, shown: Any) -> PerceptionFeatures:
        if isinstance(shown, Image.Image):
            with TemporaryDirectory() as folder:
                file = Path(folder) / "shown.png"
                shown.convert("RGB").save(file)
                return of_file(kind, str(file))
        if not isinstance(shown, str | Path):
            sources = [source.source for source in model.config.perception]
            raise ValueError(
                f"this model perceives {kind} by {sources} from files; the task shows {type(shown).__name__}"
            )
        return of_file(kind, str(shown))

    return perceive


def lmms_adapter(base: type, model: AnyToAny, perceive: Perceive, *, batch_size: int) -> Any:
    """An object of lmms_eval's model class `base` that answers with an any-to-any model."""
    inference = Inference(model)

    class AnyToAnyAdapter(base):  # type: ignore[misc, valid-type]
        """`generate_until` is all that tasks with free answers ask for."""

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            questions, settings = [], []
            for request in requests:
                context, given, to_visual, doc_id, task, split = request.args
                shown = to_visual(self.task_dict[task][split][doc_id]) or []
                media = [(_kind_of(one), perceive(_kind_of(one), one)) for one in shown]
                placeholders = "".join(f"{{{kind}}}\n" for kind, _ in media)
                questions.append(inference.question(placeholders + _without_braces(context), media))
                settings.append(given)
            answers = [
                inference.answer([question], answer_config(given, batch_size=batch_size))[0].text
                for question, given in zip(questions, settings, strict=True)
            ]
            return [_until(text, given.get("until", ())) for text, given in zip(answers, settings, strict=True)]

        def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
            raise NotImplementedError("tasks of several rounds are not supported")

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            raise NotImplementedError("only tasks that are answered by generating are supported")

    return AnyToAnyAdapter()


def answer_config(given: Mapping[str, Any], *, batch_size: int) -> AnswerConfig:
    """A task's settings of generation as ours."""
    is_drawn = bool(given.get("do_sample", given.get("temperature", 0) > 0))
    return AnswerConfig(
        max_new_tokens=int(given.get("max_new_tokens", 128)),
        temperature=float(given.get("temperature", 1.0)) if is_drawn else 0.0,
        batch_size=batch_size,
        free_spans=False,
    )


def _until(text: str, until: str | Sequence[str]) -> str:
    for stop in [until] if isinstance(until, str) else until:
        text = text.split(stop)[0] if stop else text
    return text.strip()


def _kind_of(shown: Any) -> str:
    return "video" if isinstance(shown, str | Path) else "audio" if isinstance(shown, Mapping | np.ndarray) else "image"


def _without_braces(text: str) -> str:
    """The text of a task, in which nothing is a placeholder of ours."""
    return text.replace("<image>", "").replace("{", "(").replace("}", ")").strip()


def _import(name: str, *, package: str | None = None) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = package or name
        raise ValueError(
            f"these tasks need the package {package}, which is not installed for {sys.executable}: "
            f"pip install {package}"
        ) from error
