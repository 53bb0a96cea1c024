"""A conversation as ids: the tokenizer's chat template writes it, media items become spans of a reserved id.

L ids. The loss is on what the assistant says, its end of turn included, and never on a perceived media item.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from egom2p.anytoany.language.language_tokenizer import media_id, media_text, reserved_tokens
from egom2p.anytoany.types import Conversation, Media, MediaSpan, Rendered, Turn
from egom2p.config import Count, strict

# Codes of a media item that the language model reads and says itself, as ids of its vocabulary.
Spelling = Callable[[Media], Sequence[int]]


@strict
class ChatConfig:
    """Length of conversations.

    max_length  tokens
    too_long  `drop` leaves out a conversation of more than `max_length` tokens; `truncate_text` cuts off its end,
              and leaves it out only if that would cut a media item or everything the assistant says
    """

    max_length: Count = 512
    too_long: Literal["drop", "truncate_text"] = "drop"

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length must be at least 2, got {self.max_length}")


class ChatRenderer:
    """Writes conversations for one tokenizer.

    span_length  positions of a perceived media item
    spellings    kinds of media that are written as codes of the vocabulary instead (early fusion)
    """

    def __init__(
        self,
        tokenizer: Any,
        span_length: Callable[[Media], int],
        config: ChatConfig,
        *,
        spellings: Mapping[str, Spelling] | None = None,
    ) -> None:
        self.tokenizer, self.config = tokenizer, config
        self._span_length, self._spellings = span_length, dict(spellings or {})
        self.media_id = media_id(tokenizer)
        self._reserved = tuple(dict.fromkeys([*reserved_tokens(), *tokenizer.all_special_tokens]))
        self._check_template()

    def render(self, conversation: Conversation) -> Rendered | None:
        """Ids with targets for training; None when the length policy leaves the conversation out."""
        rendered, media_end = self._written(conversation, is_question=False)
        if len(rendered.ids) <= self.config.max_length:
            return rendered
        return self._shortened(rendered, media_end) if self.config.too_long == "truncate_text" else None

    def render_question(self, question: Conversation) -> Rendered:
        """Ids up to where the assistant begins to speak; nothing is a target, nothing is cut."""
        return self._written(question, is_question=True)[0]

    def _written(self, conversation: Conversation, *, is_question: bool) -> tuple[Rendered, int]:
        """Everything, and where the last media item with its end tag ends (0 without media)."""
        messages = [
            {"role": turn.role, "content": self._text_of(turn, conversation.key)} for turn in conversation.turns
        ]
        answer = self.tokenizer.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=not is_question,
            add_generation_prompt=is_question,
        )
        ids_L = np.asarray(answer["input_ids"], dtype=np.int32)
        is_target_L = np.zeros(len(ids_L), bool) if is_question else np.asarray(answer["assistant_masks"], dtype=bool)
        return self._with_spans(conversation, ids_L, is_target_L)

    def _text_of(self, turn: Turn, key: str) -> str:
        refuse_reserved(turn, self._reserved, key)
        texts = []
        for part in turn.parts:
            if isinstance(part, Media):
                texts.append(media_text(part.kind, 1))  # widened below, where its length is a number
                continue
            texts.append(part)
        return "".join(texts)

    def _with_spans(
        self, conversation: Conversation, ids_L: np.ndarray, is_target_L: np.ndarray
    ) -> tuple[Rendered, int]:
        """Each single media id widened to the span of its item."""
        media, positions = conversation.media, np.flatnonzero(ids_L == self.media_id)
        if len(positions) != len(media):
            raise ValueError(
                f"conversation {conversation.key}: the chat template wrote {len(positions)} of {len(media)} media items"
            )
        ids, targets, spans, end, length = [], [], [], 0, 0
        for item, position in zip(media, positions.tolist(), strict=True):
            spelling = self._spellings.get(item.kind)
            inside = np.asarray(
                spelling(item) if spelling else [self.media_id] * self._span_length(item), dtype=np.int32
            )
            length += position - end
            if spelling is None:
                spans.append(MediaSpan(item, length, len(inside)))
            ids += [ids_L[end:position], inside]
            targets += [is_target_L[end:position], np.full(len(inside), bool(spelling and is_target_L[position]))]
            end, length = position + 1, length + len(inside)
        whole = Rendered(
            np.concatenate([*ids, ids_L[end:]]), np.concatenate([*targets, is_target_L[end:]]), tuple(spans)
        )
        return whole, length + 1 if media else 0

    def _shortened(self, rendered: Rendered, media_end: int) -> Rendered | None:
        """The first `max_length` ids, if all media items with their end tags and some target lie among them."""
        end = self.config.max_length
        cut = replace(rendered, ids=rendered.ids[:end], is_target=rendered.is_target[:end])
        return cut if media_end <= end and cut.is_target.any() else None

    def _check_template(self) -> None:
        """The template must mark what the assistant says, and its end of turn with it: else no model learns to stop."""
        if "generation" not in (self.tokenizer.chat_template or ""):
            raise ValueError("the tokenizer's chat template has no {% generation %} block around the answers")
        probe = Conversation("probe", (Turn("user", ("a",)), Turn("assistant", ("b",))))
        rendered, _ = self._written(probe, is_question=False)
        targets = rendered.ids[rendered.is_target].tolist()
        if len(targets) < 2 or self.tokenizer.eos_token_id not in targets:
            raise ValueError(
                f"the chat template's {{% generation %}} block must hold the answer and the end of turn "
                f"({self.tokenizer.eos_token!r}); it holds {self.tokenizer.convert_ids_to_tokens(targets)}"
            )


def refuse_reserved(turn: Turn, reserved: Sequence[str], key: str) -> None:
    """ValueError for a text with a word that the tokenizer would take for one of its marks."""
    for part in turn.parts:
        found = next((token for token in reserved if isinstance(part, str) and token in part), None)
        if found is not None:
            raise ValueError(f"conversation {key}: the text has {found!r}, a token reserved for the model")
