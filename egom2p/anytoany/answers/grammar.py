"""Which token may come next: spans of modality codes are always whole and legal, reserved tokens never come.

R answers at once, V vocabulary, Z states, C classes of tokens.

A span is start tag, exactly n codes of its codebook, end tag. The state of each answer is a number on the device, so
that nothing waits for the host: a table says which class of tokens may follow a state, another which state follows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egom2p.anytoany.codebooks import Codebooks
from egom2p.anytoany.language.language_tokenizer import end_tag, media_id, start_tag

_TEXT = 0


class SpanGrammar:
    """Masks logits and follows the output.

    spans     kinds whose spans the answer begins with, in this order
    is_free   whether further spans may begin anywhere in the text
    """

    def __init__(
        self, codebooks: Codebooks, tokenizer: Any, *, vocab_size: int, spans: Sequence[str] = (), is_free: bool = True
    ) -> None:
        self._books = codebooks
        id_of = tokenizer.convert_tokens_to_ids
        text_V = torch.zeros(vocab_size, dtype=torch.bool)
        text_V[: media_id(tokenizer)] = True
        classes, class_of, follows = [text_V], [0], [_TEXT]
        entry_V = torch.zeros(vocab_size, dtype=torch.int64)
        length_V = torch.zeros(vocab_size, dtype=torch.int64)
        for kind, config in codebooks.configs.items() if is_free else ():
            start = id_of(start_tag(kind))
            text_V[start] = True
            entry_V[start] = len(follows)
            length_V[start] = config.num_tokens + 2
            self._add_span(kind, classes, class_of, follows, vocab_size, id_of(end_tag(kind)))
        self.first_state = len(follows) if spans else _TEXT
        for kind in spans:
            codebooks.text_of_codes(kind, [])  # for its error
            class_of.append(len(classes))
            classes.append(_only(id_of(start_tag(kind)), vocab_size))
            follows.append(len(follows) + 1)
            self._add_span(kind, classes, class_of, follows, vocab_size, id_of(end_tag(kind)))
            follows[-1] = len(follows)
        if spans:
            follows[-1] = _TEXT
        self.num_forced = sum(codebooks.configs[kind].num_tokens + 2 for kind in spans)
        self._classes_CV, self._class_Z = torch.stack(classes), torch.tensor(class_of)
        self._next_Z, self._entry_V, self._length_V = torch.tensor(follows), entry_V, length_V

    def to(self, device: torch.device) -> "SpanGrammar":
        for name in ("_classes_CV", "_class_Z", "_next_Z", "_entry_V", "_length_V"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def begin(self, num_answers: int) -> Tensor:
        """States (R,) before the first token."""
        return torch.full((num_answers,), self.first_state, dtype=torch.int64, device=self._class_Z.device)

    def allowed(self, states: Tensor, num_left: int) -> Tensor:
        """(R, V): what may come with `num_left` tokens left; a span that would not end in time may not begin.

        (1, V) where nothing but text ever comes.
        """
        if len(self._classes_CV) == 1:
            return self._classes_CV
        allowed_RV = self._classes_CV[self._class_Z[states]]
        fits_V = self._length_V <= num_left
        return torch.where((states == _TEXT)[:, None], allowed_RV & fits_V, allowed_RV)

    def after(self, states: Tensor, ids: Tensor) -> Tensor:
        """States (R,) after saying ids (R,)."""
        return torch.where(states == _TEXT, self._entry_V[ids], self._next_Z[states])

    def _add_span(
        self, kind: str, classes: list[Tensor], class_of: list[int], follows: list[int], vocab_size: int, end: int
    ) -> None:
        """States of the codes and of the end tag of one span."""
        config, first = self._books.configs[kind], self._books.offsets[kind]
        codes_V = torch.zeros(vocab_size, dtype=torch.bool)
        codes_V[first : first + config.size] = True
        class_of += [len(classes)] * config.num_tokens + [len(classes) + 1]
        classes += [codes_V, _only(end, vocab_size)]
        follows += [len(follows) + number + 1 for number in range(config.num_tokens)] + [_TEXT]


def _only(token: int, vocab_size: int) -> Tensor:
    allowed_V = torch.zeros(vocab_size, dtype=torch.bool)
    allowed_V[token] = True
    return allowed_V
