"""Settings of the evaluation of any-to-any models."""

import re
from dataclasses import field
from typing import Any, Literal

from egom2p.anytoany.answers.answer_generation import AnswerConfig
from egom2p.anytoany.conversations.datasets import DatasetConfig
from egom2p.anytoany.evaluation.controls import check_control
from egom2p.anytoany.world.world_questions import WorldQuestionsConfig
from egom2p.config import Count, Natural, strict


@strict
class EvaluatedModelConfig:
    """One model.

    directory     any-to-any directory; for texts alone also a folder (or Hub id) of plain transformers
    features      folders of exported features that it perceives; vectors need none
    live_encoder  a model trained on exported states of an encoder runs the encoder here, from plain ids: what
                  controls of single modalities need
    controls      other ones than those of the evaluation; a modality that a model does not have cannot be shuffled
    """

    directory: str
    features: tuple[str, ...] = ()
    live_encoder: bool = False
    controls: tuple[str, ...] | None = None


@strict
class QuestionsConfig:
    """Conversations about media; the last thing the assistant says is the reference.

    kind    `text`: the model says an answer, scored as a caption; `choice`: the question offers answers as `A) ...`,
            and the likeliest letter counts
    group   pattern whose first group is, of the name of the first media item, what it has in common with others that
            are not independent of it; by default the name without numbers at its end: the room or recording
    clips   folders of stored clips that hold the media items by key, for pictures on the page; questions of kind
            `world` have theirs
    """

    dataset: DatasetConfig  # any data set of conversations
    kind: Literal["text", "choice"] = "text"
    max_conversations: Count = 512  # spread over it
    group: str = r"(.+?)(?:_\d+)*$"
    clips: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if re.compile(self.group).groups < 1:
            raise ValueError(f"group needs a pattern with a group in brackets, got {self.group!r}")

    @property
    def clip_roots(self) -> tuple[str, ...]:
        return (*self.clips, self.dataset.root) if isinstance(self.dataset, WorldQuestionsConfig) else self.clips


@strict
class TextTaskConfig:
    """What the language model knows without media: rows of .jsonl (or .json, .parquet) files.

    kind   `perplexity`: {text}; `choices`: {question, choices, answer: number of the right one}, the likeliest choice
           per character counts; `completion`: {prompt, completion}, right if each token of it is the likeliest
    """

    kind: Literal["perplexity", "choices", "completion"]
    files: tuple[str, ...]
    max_rows: Count | None = None  # spread over the files; null: all


@strict
class HarnessConfig:
    """Tasks of lm_eval or lmms_eval, which are installed apart.

    include_path   folder with task files of your own, which `tasks` then may name
    limit          requests of each task
    arguments      of the harness's function simple_evaluate
    """

    tasks: tuple[str, ...]  # names as the harness has them
    include_path: str | None = None
    limit: Count | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


@strict
class AnyToAnyEvaluationConfig:
    """Root schema of `python -m egom2p.anytoany.evaluation.anytoany_evaluation`.

    models      label -> model; differences are taken to the first one
    controls    see egom2p/anytoany/evaluation/controls.py
    embedding   folder of a transformers text encoder for the cosine of answers; `own`: the language model's states;
                null: no cosine
    lm_eval, lmms_eval   further tasks by these packages
    num_shown   questions of each set that are kept with pictures of what they are about
    """

    models: dict[str, EvaluatedModelConfig]
    output: str
    questions: dict[str, QuestionsConfig] = field(default_factory=dict)
    texts: dict[str, TextTaskConfig] = field(default_factory=dict)
    controls: tuple[str, ...] = ("true", "shuffled", "zero")
    answer: AnswerConfig = AnswerConfig(max_new_tokens=64)
    embedding: str | None = None
    lm_eval: HarnessConfig | None = None
    lmms_eval: HarnessConfig | None = None
    batch_size: Count = 16
    num_shown: Natural = 8
    seed: Natural = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("models must name at least one model")
        if not (self.questions or self.texts or self.lm_eval or self.lmms_eval):
            raise ValueError("nothing to evaluate: name questions, texts, lm_eval or lmms_eval")
        for label, model in self.models.items():
            chosen = self.controls if model.controls is None else model.controls
            if "true" not in chosen:
                raise ValueError(f"models.{label}: the controls need 'true' beside them, got {list(chosen)}")
            for control in chosen:
                check_control(control)
