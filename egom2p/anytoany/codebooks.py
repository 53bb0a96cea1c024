"""Early fusion: codes of modalities as tokens of the language model.

D width, V base vocabulary, n new tokens, K codebooks, R answers at once, Z states, C classes of tokens.

The vocabulary is: the base tokenizer's tokens, the reserved tokens of media, then the codes of each codebook one after
the other. Where each begins is written down in `codebooks.json`. `SpanGrammar` says which token may come next: spans of
codes are always whole and legal, reserved tokens never come.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from egom2p.anytoany.language.language_tokenizer import code_token, end_tag, media_id, reserved_tokens, start_tag
from egom2p.anytoany.types import KINDS
from egom2p.config import Count, strict

_TEXT = 0
_NUM_TAGS = len(reserved_tokens())


@strict
class CodebookConfig:
    """One modality in the vocabulary.

    kind        media kind, whose tags stand around its codes
    modality    name of EgoM2P's modality (`tok_gaze`)
    size        codes
    num_tokens  codes of a clip: a span holds exactly so many
    fingerprint  of the tokenizer that makes the codes
    """

    kind: str
    modality: str
    size: Count
    num_tokens: Count
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"codebook kind must be one of {KINDS}, got {self.kind!r}")


class Codebooks:
    """Where the codes of each modality lie in the vocabulary."""

    def __init__(self, configs: Sequence[CodebookConfig], first_reserved: int) -> None:
        """first_reserved: id of `<|media|>`, the first token behind the base vocabulary."""
        kinds = [config.kind for config in configs]
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"one codebook per kind of media, found {kinds}")
        self.configs = {config.kind: config for config in configs}
        sizes = [config.size for config in configs]
        starts = first_reserved + _NUM_TAGS + np.cumsum([0, *sizes])
        self.offsets: dict[str, int] = dict(zip(kinds, starts[:-1].tolist(), strict=True))
        self.end = int(starts[-1])

    @classmethod
    def of_tokenizer(cls, configs: Sequence[CodebookConfig], tokenizer: Any) -> "Codebooks":
        """ValueError when the tokenizer was made with other codebooks."""
        books = cls(configs, media_id(tokenizer))
        for kind, config in books.configs.items():
            last = tokenizer.convert_tokens_to_ids(code_token(kind, config.size - 1))
            if last != books.offsets[kind] + config.size - 1:
                raise ValueError(f"codes of {kind} should end at {books.offsets[kind] + config.size - 1}, found {last}")
        return books

    def ids(self, kind: str, codes: np.ndarray) -> np.ndarray:
        """Vocabulary ids (n,) int32 of codes (n,)."""
        config = self._config(kind)
        codes_N = np.asarray(codes).reshape(-1)
        if len(codes_N) and not 0 <= codes_N.min() <= codes_N.max() < config.size:
            found = f"{codes_N.min()} ... {codes_N.max()}"
            raise ValueError(f"codes of {kind} lie in {found}, wanted 0 ... {config.size - 1}")
        return (codes_N + self.offsets[kind]).astype(np.int32)

    def codes(self, kind: str, ids: np.ndarray) -> np.ndarray:
        """Codes (n,) int32 of vocabulary ids (n,)."""
        config = self._config(kind)
        codes_N = np.asarray(ids).reshape(-1).astype(np.int64) - self.offsets[kind]
        if len(codes_N) and not 0 <= codes_N.min() <= codes_N.max() < config.size:
            raise ValueError(f"ids {np.asarray(ids).reshape(-1)[:5]} ... are not all codes of {kind}")
        return codes_N.astype(np.int32)

    def text_of_codes(self, kind: str, codes: np.ndarray) -> str:
        """Codes as text with their tags, for conversations."""
        self.ids(kind, codes)
        inside = "".join(code_token(kind, int(code)) for code in np.asarray(codes).reshape(-1))
        return start_tag(kind) + inside + end_tag(kind)

    def spans(self, ids: Sequence[int], tokenizer: Any) -> list[tuple[str, np.ndarray]]:
        """(kind, codes) of every complete span in generated ids, in order."""
        found, number, ids = [], 0, list(ids)
        starts = {tokenizer.convert_tokens_to_ids(start_tag(kind)): kind for kind in self.configs}
        while number < len(ids):
            kind = starts.get(ids[number])
            number += 1
            if kind is None:
                continue
            config, end = self.configs[kind], tokenizer.convert_tokens_to_ids(end_tag(kind))
            inside = ids[number : number + config.num_tokens]
            is_code = [0 <= token - self.offsets[kind] < config.size for token in inside]
            if len(inside) == config.num_tokens and all(is_code) and ids[number + len(inside) :][:1] == [end]:
                found.append((kind, self.codes(kind, np.array(inside))))
                number += len(inside) + 1
        return found

    def to_plain(self) -> dict[str, Any]:
        """Content of `codebooks.json`."""
        return {
            kind: {
                "modality": config.modality,
                "offset": self.offsets[kind],
                "size": config.size,
                "num_tokens": config.num_tokens,
                "fingerprint": config.fingerprint,
            }
            for kind, config in self.configs.items()
        }

    def _config(self, kind: str) -> CodebookConfig:
        if kind not in self.configs:
            raise ValueError(f"no codebook of {kind}; the vocabulary holds {sorted(self.configs) or 'none'}")
        return self.configs[kind]


def codebook_sizes(configs: Sequence[CodebookConfig]) -> list[tuple[str, int]]:
    """What `text_tokenizer` asks for."""
    return [(config.kind, config.size) for config in configs]


class NewTokens(nn.Module):
    """Embeddings (n, D) of the tokens behind the base vocabulary, trained while the base table is frozen.

    A token's row here stands in for whatever the base table holds at that id. With `is_emitted` the head is extended
    too: by the same rows where the base model ties its head to its embeddings, by rows of their own otherwise.
    """

    def __init__(self, base: nn.Embedding, head: nn.Module, *, first: int, count: int, is_emitted: bool) -> None:
        super().__init__()
        self.first = first
        self.is_tied = head.weight is base.weight
        self.rows = nn.Parameter(_like_rows_of(base.weight[:first], count))
        own_head = is_emitted and not self.is_tied
        self.head_rows = nn.Parameter(_like_rows_of(head.weight[:first], count)) if own_head else None
        self.is_emitted = is_emitted

    def embed(self, base: nn.Embedding, ids: Tensor) -> Tensor:
        """(..., D) of ids (...); the base's own lookup, so that families that scale theirs keep doing so."""
        is_new = ids >= self.first
        last_known = base.weight.shape[0] - 1
        known = base(ids.clamp(max=last_known))
        new = F.embedding((ids - self.first).clamp(min=0), self.rows).to(known.dtype)
        scale = getattr(base, "embed_scale", None)  # Gemma's table multiplies
        return torch.where(is_new[..., None], new if scale is None else new * scale, known)

    def emitted_rows(self) -> Tensor | None:
        """(n, D) rows of the head, None where new tokens are never emitted."""
        if not self.is_emitted:
            return None
        return self.rows if self.is_tied else self.head_rows


@torch.no_grad()
def _like_rows_of(table: Tensor, count: int) -> Tensor:
    """Rows drawn with the mean and the spread (per number) of a table's rows."""
    sample = table.float()
    mean_D, spread_D = sample.mean(0), sample.std(0)
    return mean_D + spread_D * torch.randn(count, table.shape[1], device=table.device)


class SpanGrammar:
    """Masks logits and follows the output.

    spans     kinds whose spans the answer begins with, in this order
    is_free   whether further spans may begin anywhere in the text
    """

    def __init__(
        self, codebooks: Codebooks, tokenizer: Any, *, vocab_size: int, spans: Sequence[str] = (), is_free: bool = True
    ) -> None:
        # Tables instead of a parser per answer: one lookup on the device moves all answers on, the host waits for none.
        self._books = codebooks
        id_of = tokenizer.convert_tokens_to_ids
        text_V = torch.zeros(vocab_size, dtype=torch.bool)
        # Reserved tokens come by the grammar alone: tags and codes in spans, the media token never.
        text_V[: media_id(tokenizer)] = True
        classes, class_of, follows = [text_V], [0], [_TEXT]
        entry_V = torch.zeros(vocab_size, dtype=torch.int64)
        length_V = torch.zeros(vocab_size, dtype=torch.int64)
        for kind, config in codebooks.configs.items() if is_free else ():
            start = id_of(start_tag(kind))
            text_V[start] = True
            entry_V[start] = len(follows)
            length_V[start] = config.num_tokens + 2  # the codes and both tags
            self._add_span(kind, classes, class_of, follows, vocab_size, id_of(end_tag(kind)))
        self.first_state = len(follows) if spans else _TEXT
        for kind in spans:
            codebooks.text_of_codes(kind, [])  # for its error
            class_of.append(len(classes))
            classes.append(_only(id_of(start_tag(kind)), vocab_size))
            follows.append(len(follows) + 1)
            self._add_span(kind, classes, class_of, follows, vocab_size, id_of(end_tag(kind)))
            follows[-1] = len(follows)  # from the end tag to the next span that must come
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
        # Inside a span the length was checked when it began.
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
