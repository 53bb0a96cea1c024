"""Questions about media, put to a model under every control; and what it knows without media.

The latter: perplexity, choices and completions of local files.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from egom2p.anytoany.answers.answer_generation import AnswerConfig, Question, answer
from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.conversation import answer_of, question_of
from egom2p.anytoany.conversations.datasets import open_dataset, row_name
from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.evaluation.controls import UNSEEN, FeaturesOf, controlled
from egom2p.anytoany.evaluation.settings import (
    AnyToAnyEvaluationConfig,
    EvaluatedModelConfig,
    QuestionsConfig,
    TextTaskConfig,
)
from egom2p.anytoany.language.likelihood import continuation, likelihoods
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.perception.feature_store import FeatureLookup, perceived_names, spellings
from egom2p.anytoany.saving import is_anytoany
from egom2p.anytoany.types import Conversation, Media, Turn
from egom2p.data.clip_order import clip_rng
from egom2p.metrics.caption import Encoder, caption_scores, corpus_bleu4, embedding_cosine

_COLUMNS = {
    "perplexity": ("text",),
    "choices": ("question", "choices", "answer"),
    "completion": ("prompt", "completion"),
}
_LETTER = re.compile(r"\b([A-H])\) ")
# A question is never cut; only training data has a length policy.
_ANY_LENGTH = ChatConfig(max_length=1_000_000)


@dataclass(frozen=True)
class Scores:
    """What one model reached on one set under one control.

    values     metric -> value per sample
    outputs    answer per sample
    whole      metrics of the set that no sample has by itself
    """

    model: str
    control: str
    values: Mapping[str, Sequence[float]]
    outputs: Sequence[str] = ()
    whole: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Samples:
    """The conversations of a set, the same for every model and control."""

    conversations: Sequence[Conversation]
    groups: Sequence[str]

    @property
    def keys(self) -> list[str]:
        return [conversation.key for conversation in self.conversations]

    @property
    def references(self) -> list[str]:
        return [answer_of(conversation) for conversation in self.conversations]


def draw_samples(name: str, config: QuestionsConfig, *, seed: int) -> Samples:
    """Conversations spread over a data set; templates and options are drawn from the seed."""
    opened = open_dataset(config.dataset)
    count = min(len(opened), config.max_conversations)
    rows = [number * len(opened) // count for number in range(count)]
    conversations = [opened.conversation(row, clip_rng(seed, f"evaluation of {name}", row)) for row in rows]
    groups = []
    for conversation in conversations:
        if not conversation.media:
            raise ValueError(f"questions.{name}: {conversation.key} has no media; texts belong into `texts`")
        found = re.match(config.group, conversation.media[0].ref)
        groups.append(conversation.media[0].ref if found is None else found.group(1))
    return Samples(conversations, groups)


class QuestionAsker:
    """Puts sets of questions to one model; to a plain language model their words alone."""

    def __init__(
        self,
        label: str,
        model: AnyToAny,
        about: EvaluatedModelConfig,
        config: AnyToAnyEvaluationConfig,
        encoder: Encoder | None,
    ) -> None:
        self._label, self._model, self._config, self._encoder = label, model, config, encoder
        self._controls = config.controls if about.controls is None else about.controls
        if not is_anytoany(about.directory):
            self._controls = (UNSEEN,)
        self._lookup = FeatureLookup(model.config.perception, about.features, model.config.connector)

    @property
    def num_controls(self) -> int:
        return len(self._controls)

    def scores(self, config: QuestionsConfig, samples: Samples, advance: Callable[[int], None]) -> list[Scores]:
        """One per control; `advance` hears of each."""
        if self._controls == (UNSEEN,):
            samples = replace(samples, conversations=[without_media(one) for one in samples.conversations])
        items = [item for conversation in samples.conversations for item in conversation.media]
        found = []
        for control in self._controls:
            shown = "true" if control == UNSEEN else control
            features_of = controlled(self._lookup.features, shown, items, self._names_of)
            if config.kind == "choice":
                found.append(self._choices(samples, control, features_of))
            else:
                found.append(self._texts(samples, control, features_of))
            advance(1)
        return found

    def _names_of(self, media: Media) -> Sequence[str]:
        return perceived_names(self._model.config.perception, media.kind)

    def _renderer(self, features_of: FeaturesOf) -> ChatRenderer:
        connector = self._model.config.connector
        return ChatRenderer(
            self._model.tokenizer,
            lambda media: connector.span_length(features_of(media), media.kind),
            _ANY_LENGTH,
            spellings=spellings(self._model.codebooks, self._lookup),
        )

    def _texts(self, samples: Samples, control: str, features_of: FeaturesOf) -> Scores:
        renderer = self._renderer(features_of)
        questions = []
        for conversation in samples.conversations:
            rendered = renderer.render_question(question_of(conversation))
            questions.append(Question(rendered, tuple(features_of(span.media) for span in rendered.spans)))
        outputs = [found.text for found in answer(self._model, questions, self._answer_config())]
        return text_scores(self._label, control, outputs, samples.references, self._encoder)

    def _answer_config(self) -> AnswerConfig:
        return replace(self._config.answer, batch_size=self._config.batch_size)

    def _choices(self, samples: Samples, control: str, features_of: FeaturesOf) -> Scores:
        renderer = self._renderer(features_of)
        rows, letters = [], []
        for conversation in samples.conversations:
            offered = letters_of(conversation)
            letters.append(offered)
            for letter in offered:
                turns = (*conversation.turns[:-1], Turn("assistant", (letter,)))
                rendered = renderer.render(Conversation(conversation.key, turns))
                assert rendered is not None
                rows.append(rendered)
        nats = iter(likelihoods(self._model, rows, features_of, batch_size=self._config.batch_size))
        outputs = []
        for offered in letters:
            found = [next(nats).nats for _ in offered]
            outputs.append(offered[int(np.argmin(found))])
        right = [float(letter == wanted) for letter, wanted in zip(outputs, samples.references, strict=True)]
        return Scores(self._label, control, {"accuracy": right}, outputs)


def without_media(conversation: Conversation) -> Conversation:
    """The words alone: what is left of a question for a model that perceives nothing."""
    turns = [replace(turn, parts=tuple(p for p in turn.parts if isinstance(p, str))) for turn in conversation.turns]
    return replace(conversation, turns=tuple(turns))


def text_scores(
    label: str, control: str, outputs: Sequence[str], wanted: Sequence[str], encoder: Encoder | None
) -> Scores:
    """All caption metrics of the answers."""
    references = [[text] for text in wanted]
    values: dict[str, Sequence[float]] = dict(caption_scores(outputs, references))
    if encoder is not None:
        values["embedding_cosine"] = embedding_cosine(outputs, references, encoder)
    return Scores(label, control, values, outputs, {"corpus_bleu4": corpus_bleu4(outputs, references)})


def commonest_answer(config: QuestionsConfig, samples: Samples) -> Scores:
    """What always saying the most frequent reference reaches: a prior that saw even the answers of this set."""
    references = samples.references
    best = max(dict.fromkeys(references), key=references.count)
    if config.kind == "choice":
        return Scores(
            "commonest answer", "", {"accuracy": [float(text == best) for text in references]}, [best] * len(references)
        )
    return text_scores("commonest answer", "", [best] * len(references), references, None)


def letters_of(conversation: Conversation) -> list[str]:
    """Letters that the last question offers, and among which the reference is; ValueError where that is not so."""
    asked = "".join(part for part in conversation.turns[-2].parts if isinstance(part, str))
    offered = _LETTER.findall(asked)
    wanted = answer_of(conversation)
    if len(set(offered)) != len(offered) or wanted not in offered:
        raise ValueError(f"{conversation.key}: offers the answers {offered}, the right one is {wanted!r}")
    return offered


def text_task(label: str, model: AnyToAny, config: TextTaskConfig, *, batch_size: int) -> tuple[list[str], Scores]:
    """Names of the rows and their scores."""
    rows = TableFiles(config.files, list(_COLUMNS[config.kind]))
    count = len(rows) if config.max_rows is None else min(len(rows), config.max_rows)
    picked = [number * len(rows) // count for number in range(count)]
    keys = [row_name(rows, row) for row in picked]
    task = {"perplexity": _perplexity, "choices": _choices, "completion": _completion}[config.kind]
    return keys, task(label, model, [rows[row] for row in picked], keys, batch_size)


def _perplexity(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    """Per row nats per token, lower is better; of the set the perplexity, in which every token counts alike.

    Perplexities of models with different tokenizers cannot be compared; nats per character can.
    """
    texts = [str(row["text"]) for row in rows]
    found = likelihoods(model, [continuation(model, "", text) for text in texts], batch_size=batch_size)
    total, num_tokens = sum(one.nats for one in found), sum(one.num_tokens for one in found)
    values = {
        "nats_per_token": [one.nats / one.num_tokens for one in found],
        "nats_per_character": [one.nats / len(text) for one, text in zip(found, texts, strict=True)],
    }
    return Scores(label, "text", values, whole={"perplexity": math.exp(total / num_tokens)})


def _choices(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    texts = [[str(choice) for choice in row["choices"]] for row in rows]
    for key, row, choices in zip(keys, rows, texts, strict=True):
        if not 0 <= int(row["answer"]) < len(choices):
            raise ValueError(f"{key}: answer is the number of one of {len(choices)} choices, found {row['answer']}")
    asked = [(str(row["question"]), choice) for row, choices in zip(rows, texts, strict=True) for choice in choices]
    found = iter(
        likelihoods(model, [continuation(model, q, f" {choice}") for q, choice in asked], batch_size=batch_size)
    )
    chosen = []
    for choices in texts:
        nats = [next(found).nats / len(choice) for choice in choices]
        chosen.append(nats.index(min(nats)))
    right = [float(number == int(row["answer"])) for number, row in zip(chosen, rows, strict=True)]
    return Scores(label, "text", {"accuracy": right}, [c[n] for c, n in zip(texts, chosen, strict=True)])


def _completion(label: str, model: AnyToAny, rows: Sequence[dict], keys: Sequence[str], batch_size: int) -> Scores:
    asked = [(str(row["prompt"]), f" {str(row['completion']).strip()}") for row in rows]
    found = likelihoods(model, [continuation(model, *pair) for pair in asked], batch_size=batch_size)
    values = {
        "accuracy": [float(one.is_greedy) for one in found],
        "nats_per_token": [one.nats / one.num_tokens for one in found],
    }
    return Scores(label, "text", values)
