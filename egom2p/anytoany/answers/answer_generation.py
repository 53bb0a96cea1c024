"""Answers to questions with media: batched, with a cache, until a stop token, each with its own seed.

R questions at once, T positions of the longest, V vocabulary, N feature rows.

Questions stand at the right end of their rows; what is padding on the left is seen by nobody and moves no position, so
an answer does not depend on the questions beside it. Questions of like length are answered together; one that is asked
several times is read once.
"""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egom2p.anytoany.codebooks import SpanGrammar
from egom2p.anytoany.conversations.packing import joined_features
from egom2p.anytoany.language.gated_layers import MediaMemory
from egom2p.anytoany.language.language_tokenizer import stop_ids
from egom2p.anytoany.model import AnyToAny
from egom2p.anytoany.types import NO_LOSS, LanguageBatch, PerceptionFeatures, Rendered
from egom2p.config import Count, NotNegative, strict

# Not the point of "1." at the beginning of a line, nor of "3.5" cut in two.
_SENTENCE_END = re.compile(r"(?<!\d)[.!?]+[\"')\]]*(?=\s|$)")


@strict
class AnswerConfig:
    """How answers are drawn.

    temperature  0: always the most likely token
    top_k        draw among so many most likely tokens; null: all
    spans        modality spans that the answer begins with (kinds of codebooks), in this order
    free_spans   whether the model may begin spans by itself
    stop_every   steps between looks at whether all answers have ended (each look waits for the device)
    batch_size   questions at once
    """

    max_new_tokens: Count = 100  # at most
    temperature: NotNegative = 0.0
    top_k: Count | None = None
    spans: tuple[str, ...] = ()
    free_spans: bool = True
    stop_every: Count = 8
    batch_size: Count = 32


@dataclass(frozen=True)
class Question:
    """A rendered question (it ends where the assistant begins to speak) and the features of its media, in order."""

    rendered: Rendered
    features: tuple[PerceptionFeatures, ...] = ()

    def __post_init__(self) -> None:
        if len(self.features) != len(self.rendered.spans):
            raise ValueError(f"{len(self.features)} features for {len(self.rendered.spans)} media items of a question")


@dataclass(frozen=True)
class Answer:
    """An answer, whole or as far as `max_new_tokens` let it come.

    ids      (n,) without the stop token
    text     without tags and codes
    spans    (kind, codes) of what is in codes
    is_cut   whether the limit ended it, and not the model
    """

    ids: np.ndarray
    text: str
    spans: tuple[tuple[str, np.ndarray], ...] = ()
    is_cut: bool = False

    @property
    def whole_sentences(self) -> str:
        """The text; of one that was cut what comes before the sentence that it ends in, which may be nothing."""
        ends = [found.end() for found in _SENTENCE_END.finditer(self.text)]
        return self.text[: ends[-1] if ends else 0] if self.is_cut else self.text


@torch.inference_mode()
def answer(
    model: AnyToAny, questions: Sequence[Question], config: AnswerConfig, *, seeds: Sequence[int] | None = None
) -> list[Answer]:
    """Answers in the order of the questions; equal question and seed (0, 1, ... by default) give an equal answer."""
    seeds = list(range(len(questions))) if seeds is None else list(seeds)
    if len(seeds) != len(questions):
        raise ValueError(f"one seed per question is needed: {len(questions)} questions, {len(seeds)} seeds")
    was_training = model.training
    model.eval()
    try:
        answers: dict[int, Answer] = {}
        by_length = sorted(range(len(questions)), key=lambda number: len(questions[number].rendered.ids))
        for start in range(0, len(questions), config.batch_size):
            part = by_length[start : start + config.batch_size]
            made = _answer_batch(model, [questions[n] for n in part], config, [seeds[n] for n in part])
            answers |= dict(zip(part, made, strict=True))
        return [answers[number] for number in range(len(questions))]
    finally:
        if model.gated is not None:
            model.gated.look_at(None)
        model.train(was_training)


def right_aligned(questions: Sequence[Question], *, pad_id: int) -> LanguageBatch:
    """Questions as a batch whose rows end together; segment 0 is the question, -1 the padding before it."""
    length = max(len(question.rendered.ids) for question in questions)
    shape = (len(questions), length)
    ids_RT, positions_RT = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64)
    segments_RT = np.full(shape, -1, np.int64)
    spans = []
    for row, question in enumerate(questions):
        start = length - len(question.rendered.ids)
        ids_RT[row, start:] = question.rendered.ids
        positions_RT[row, start:] = np.arange(length - start)
        segments_RT[row, start:] = 0
        spans += [(row, start + span.start, span.length) for span in question.rendered.spans]
    spans_I3 = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3)
    return LanguageBatch(
        ids=torch.from_numpy(ids_RT),
        labels=torch.full(shape, NO_LOSS),
        positions=torch.from_numpy(positions_RT),
        segments=torch.from_numpy(segments_RT),
        **joined_features([item for question in questions for item in question.features]),
        media_rows=spans_I3[:, 0].contiguous(),
        media_starts=spans_I3[:, 1].contiguous(),
        media_lengths=spans_I3[:, 2].contiguous(),
        kinds=tuple(span.media.kind for question in questions for span in question.rendered.spans),
        num_clips=len(questions),
        num_targets=0,
        num_tokens=sum(len(question.rendered.ids) for question in questions),
    )


def _answer_batch(
    model: AnyToAny, questions: Sequence[Question], config: AnswerConfig, seeds: Sequence[int]
) -> list[Answer]:
    tokenizer, device = model.tokenizer, model.device
    grammar = SpanGrammar(
        model.codebooks, tokenizer, vocab_size=model.vocab_size, spans=config.spans, is_free=config.free_spans
    ).to(device)
    if grammar.num_forced > config.max_new_tokens:
        raise ValueError(
            f"max_new_tokens is {config.max_new_tokens}, the spans {list(config.spans)} alone need {grammar.num_forced}"
        )
    different, number_R = _different(questions)
    batch = right_aligned(different, pad_id=tokenizer.pad_token_id).to(device)
    stops = torch.tensor(stop_ids(tokenizer), device=device)
    chances = torch.from_numpy(_chances(seeds, config)).to(device)
    reader = _CachedReader(model, batch, config.max_new_tokens)
    hidden_RD, states_R = reader.read(model.embed(batch)), grammar.begin(len(questions))
    if len(different) < len(questions):
        rows_R = torch.tensor(number_R, device=device)
        hidden_RD = hidden_RD[rows_R]
        reader.go_on_with(rows_R)
    is_done_R = torch.zeros(len(questions), dtype=torch.bool, device=device)
    outputs: list[Tensor] = []
    for step in range(config.max_new_tokens):
        logits_RV = model.logits(hidden_RD).float()
        logits_RV = logits_RV.masked_fill(~grammar.allowed(states_R, config.max_new_tokens - step), float("-inf"))
        ids_R = _chosen(logits_RV, chances[:, step], config)
        ids_R = torch.where(is_done_R, stops[0], ids_R)
        states_R = grammar.after(states_R, ids_R)
        outputs.append(ids_R)
        is_done_R = is_done_R | torch.isin(ids_R, stops)
        is_last = step + 1 == config.max_new_tokens
        if is_last or ((step + 1) % config.stop_every == 0 and bool(is_done_R.all())):
            break
        hidden_RD = reader.read(model.embed_ids(ids_R[:, None]))
    ends = set(stop_ids(tokenizer))
    return [_as_answer(model, ids_S, ends) for ids_S in torch.stack(outputs, 1).cpu().numpy()]


def _different(questions: Sequence[Question]) -> tuple[list[Question], list[int]]:
    """Each question object once, and the number of every question among those."""
    first = {id(question): question for question in questions}
    number_of = {key: number for number, key in enumerate(first)}
    return list(first.values()), [number_of[id(question)] for question in questions]


class _CachedReader:
    """Reads embeddings piece by piece; keys and values of what was read are kept."""

    def __init__(self, model: AnyToAny, batch: LanguageBatch, max_new_tokens: int) -> None:
        from transformers import DynamicCache

        self._model, self._num_read, num_positions = model, 0, batch.ids.shape[1]
        settings = model.lm.config
        window = getattr(settings, "sliding_window", None)
        # Only transformers knows which of its layers look back how far; then it makes the masks.
        self._has_window = window is not None and num_positions + max_new_tokens > window
        self._cache = DynamicCache(config=settings) if self._has_window else DynamicCache()
        # Until transformers 5.23 the argument is called past_key_values.
        accepts = inspect.signature(model.lm.base_model.forward).parameters
        self._cache_argument = {"cache" if "cache" in accepts else "past_key_values": self._cache}
        is_real = torch.nn.functional.pad(batch.segments >= 0, (0, max_new_tokens), value=True)
        self._is_real_RS, self._positions_RT = is_real, batch.positions
        self._lengths_R1 = batch.positions[:, -1:] + 1
        self._media: MediaMemory | None = None if model.gated is None else model.gated.media

    def read(self, embeddings_RTD: Tensor) -> Tensor:
        """Hidden states (R, D) of the last position."""
        first, num_new = self._num_read, embeddings_RTD.shape[1]
        self._num_read = end = first + num_new
        positions = self._positions_RT if first == 0 else self._lengths_R1 + (first - self._positions_RT.shape[1])
        gated = self._model.gated
        if gated is not None:
            if first == 0:
                self._media = gated.media  # of the question that is embedded now
            elif self._media is not None:
                gated.look_at(self._media.at(slice(-1, None)))
        hidden_RTD = self._model.lm.base_model(
            inputs_embeds=embeddings_RTD,
            position_ids=positions,
            attention_mask=self._is_real_RS[:, :end] if self._has_window else self._mask(first, end),
            use_cache=True,
            **self._cache_argument,
        ).last_hidden_state
        return hidden_RTD[:, -1]

    def go_on_with(self, rows_R: Tensor) -> None:
        """From here on, rows are copies of what was read in these rows."""
        self._cache.batch_select_indices(rows_R)
        self._is_real_RS, self._positions_RT = self._is_real_RS[rows_R], self._positions_RT[rows_R]
        self._lengths_R1 = self._lengths_R1[rows_R]
        if self._media is not None:
            self._media = self._media.of_rows(rows_R)

    def _mask(self, first: int, end: int) -> Tensor:
        """(R, 1, T, S) of what was read last over all that was read. Padding sees itself, so that no row is empty."""
        is_real_R11S = self._is_real_RS[:, None, None, :end]
        if end == first + 1:
            return is_real_R11S
        ones_TS = torch.ones(end - first, end, dtype=torch.bool, device=is_real_R11S.device)
        is_itself_TS = torch.eye(end - first, end, dtype=torch.bool, device=is_real_R11S.device)
        return (is_real_R11S & ones_TS.tril(first)) | is_itself_TS


def _chances(seeds: Sequence[int], config: AnswerConfig) -> np.ndarray:
    """(R, max_new_tokens) numbers in [0, 1), each row from its seed alone."""
    if config.temperature == 0:
        return np.zeros((len(seeds), config.max_new_tokens), np.float32)
    return np.stack([np.random.default_rng(seed).random(config.max_new_tokens, np.float32) for seed in seeds])


def _chosen(logits_RV: Tensor, chances_R: Tensor, config: AnswerConfig) -> Tensor:
    if config.temperature == 0:
        return logits_RV.argmax(-1)
    # Sorted, so that a tiny difference between batches moves no token over another's share.
    count = min(config.top_k or logits_RV.shape[1], logits_RV.shape[1])
    best_RK, ids_RK = logits_RV.topk(count, dim=-1)
    shares_RK = (best_RK / config.temperature).softmax(-1).cumsum(-1)
    number_R1 = (shares_RK < chances_R[:, None] * shares_RK[:, -1:]).sum(-1, keepdim=True).clamp(max=count - 1)
    # Rounding at the end of the sum must not land on a token that may not come.
    number_R1 = torch.minimum(number_R1, (best_RK > float("-inf")).sum(-1, keepdim=True) - 1)
    return ids_RK.gather(1, number_R1)[:, 0]


def _as_answer(model: AnyToAny, ids: np.ndarray, stops: set[int]) -> Answer:
    ends = [number for number, token in enumerate(ids.tolist()) if token in stops]
    output = ids[: ends[0]] if ends else ids
    return Answer(
        ids=output.astype(np.int32),
        text=model.tokenizer.decode(output.tolist(), skip_special_tokens=True).strip(),
        spans=tuple(model.codebooks.spans(output.tolist(), model.tokenizer)),
        is_cut=not ends,
    )
