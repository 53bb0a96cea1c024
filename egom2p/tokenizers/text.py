"""Text to ids and back: WordPiece through the `tokenizers` library.

B clips, L positions of the sequence, V vocabulary.

A text is normalised (NFC, one space between words, lower case if asked for), cut into words and punctuation, and each
of those into the longest pieces of the vocabulary. Spaces are kept as a mark at the start of a word, so that decoding
gives the normalised text back, character by character. Ids of one clip: the pieces, eos, then padding.

A folder holds `wordpiece.json` (a file of the `tokenizers` library, readable by any program that uses it) and
`tokenizer.json` (the card). There are no tensors. The fingerprint is given when a vocabulary is trained and stands in
the card; the checksum guards the file, so that another version of the library, which may write it otherwise, changes
neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from egom2p.config import Count, strict, to_plain
from egom2p.contracts import AlignedClip, ModalitySpec, TokenGrid, check_shape
from egom2p.storage import atomic_directory, fingerprint_of, load_json, save_json
from egom2p.tokenizers.protocol import code_usage

CARD_FILE = "tokenizer.json"
VOCABULARY_FILE = "wordpiece.json"

_PAD, _EOS, _UNKNOWN = "[PAD]", "[EOS]", "[UNK]"
_SPACE, _CONTINUES = "\u2581", "##"
_MAX_LETTERS = 1000  # rarer ones are unknown: a vocabulary spent on them would know no words
_MAX_LETTERS_OF_WORD = 200


@strict
class WordPieceConfig:
    """One text modality.

    max_tokens     L: pieces and eos of the longest text
    vocab_size     at most so many ids, special ones included; fewer where the captions do not hold as many pieces
    num_sentinels  marks of hidden spans; a text can have at most so many
    lowercase      fold case before anything else: captions rarely mean anything by it, and each word needs one entry
    min_frequency  pieces that occur less often in training are not merged
    too_long       a text of more than max_tokens: an error that names the clip, or cut at the end
    """

    architecture: Literal["wordpiece"] = "wordpiece"
    modality: str = "tok_caption"
    quantity: Literal["text"] = "text"
    folder: str = "caption"
    stream: str = "caption"
    max_tokens: Count = 64
    vocab_size: Count = 30000
    num_sentinels: Count = 32
    lowercase: bool = True
    min_frequency: Count = 2
    too_long: Literal["error", "cut"] = "error"

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens must be at least 2 (a piece and the end), got {self.max_tokens}")
        if self.vocab_size <= len(_special_tokens(self)):
            raise ValueError(
                f"vocab_size {self.vocab_size} has no room beside {len(_special_tokens(self))} special ids"
            )


class TextTokenizer:
    """A finished text tokenizer (`contracts.Tokenizer`).

    spec         its modality, with fingerprint; `vocab_size` is what the vocabulary holds
    card         what its folder says about it
    """

    def __init__(
        self,
        config: WordPieceConfig,
        wordpiece: tokenizers.Tokenizer,
        *,
        fingerprint: str,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.stream = config, config.stream
        self.fingerprint = fingerprint
        self.card = dict(card or {})
        # Else "[EOS]" written in a caption would end it.
        wordpiece.encode_special_tokens = True
        self._wordpiece = wordpiece
        self._unknown_id = wordpiece.token_to_id(_UNKNOWN)
        self.spec = ModalitySpec(
            name=config.modality,
            kind="sequence",
            quantity="text",
            grid=TokenGrid((config.max_tokens,)),
            vocab_size=wordpiece.get_vocab_size(),
            folder=config.folder,
            tokenizer_fingerprint=self.fingerprint,
            pad_id=wordpiece.token_to_id(_PAD),
            eos_id=wordpiece.token_to_id(_EOS),
            sentinel_ids=tuple(wordpiece.token_to_id(token) for token in _sentinels(config)),
            conventions={"values": "NFC, single spaces" + (", lower case" if config.lowercase else "")},
        )

    def to(self, device: Any) -> "TextTokenizer":
        """Itself: there is nothing to move."""
        return self

    def normalised(self, text: str) -> str:
        """What decoding gives back of a text whose characters the vocabulary knows."""
        return self._wordpiece.normalizer.normalize_str(text).replace(_SPACE, " ").strip()

    def encode_texts(self, texts: Sequence[str], *, names: Sequence[str] | None = None) -> np.ndarray:
        """Ids (B, L) int32 of texts. ValueError for an empty text, and for one too long unless it is to be cut.

        names   of the texts, for messages
        """
        ids_BL = np.full((len(texts), self.config.max_tokens), self.spec.pad_id, np.int32)
        for row, found in enumerate(self._wordpiece.encode_batch(list(texts))):
            where = names[row] if names is not None else repr(texts[row])
            pieces, room = found.ids, self.config.max_tokens - 1
            if not pieces:
                raise ValueError(f"{where}: found a text without a word, wanted at least one")
            if len(pieces) > room and self.config.too_long == "error":
                raise ValueError(
                    f"{where}: found a text of {len(pieces)} tokens, wanted at most {room} and the end "
                    f"(network.max_tokens, or network.too_long=cut when the tokenizer is trained)"
                )
            kept = [*pieces[:room], self.spec.eos_id]
            ids_BL[row, : len(kept)] = kept
        return ids_BL

    def decode_ids(self, ids: np.ndarray) -> list[str]:
        """Texts of ids (B, L'), each up to its end; sentinels are left out, an unknown word reads `[UNK]`."""
        special = {self.spec.pad_id, *self.spec.sentinel_ids}
        texts = []
        for row in np.asarray(ids):
            ends = np.flatnonzero(row == self.spec.eos_id)
            pieces = [int(piece) for piece in (row[: ends[0]] if len(ends) else row) if int(piece) not in special]
            texts.append(self._wordpiece.decode(pieces, skip_special_tokens=False).strip())
        return texts

    def encode(self, clips: Sequence[AlignedClip]) -> np.ndarray:
        """Ids (B, L) int32 of clips that all have the stream; ValueError names the clip that does not fit."""
        for clip in clips:
            if self.stream not in clip:
                raise ValueError(f"clip {clip.key} has no {self.stream} for {self.spec.name}")
        texts = [str(clip.streams[self.stream].values[0]) for clip in clips]
        return self.encode_texts(texts, names=[f"clip {clip.key}, {self.stream}" for clip in clips])

    def decode(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Texts (B, 1) of ids (B, L), L at most that of the spec, and validity (B, 1): whether there is any text."""
        ids = np.asarray(ids)
        check_shape(f"ids of {self.spec.name}", ids, "b l")
        if ids.shape[1] > self.spec.num_tokens or len(ids) == 0:
            raise ValueError(
                f"ids of {self.spec.name} have shape {ids.shape}, wanted (b > 0, <= {self.spec.num_tokens})"
            )
        if ids.size and (ids.min() < 0 or ids.max() >= self.spec.vocab_size):
            raise ValueError(
                f"ids of {self.spec.name} run from {ids.min()} to {ids.max()}, "
                f"its vocabulary has {self.spec.vocab_size} ids"
            )
        texts = np.array(self.decode_ids(ids), dtype=np.str_)[:, None]
        return texts, texts != ""

    def evaluate(self, clips: Sequence[AlignedClip]) -> dict[str, float]:
        """Share of texts that come back as their normalised self, of unknown pieces, mean length, use of the ids."""
        return self.measure([str(clip.streams[self.stream].values[0]) for clip in clips])

    def measure(self, texts: Sequence[str]) -> dict[str, float]:
        """The same for plain texts."""
        ids_BL = self.encode_texts(texts)
        is_piece_BL = (ids_BL != self.spec.pad_id) & (ids_BL != self.spec.eos_id)
        same = [found == self.normalised(text) for found, text in zip(self.decode_ids(ids_BL), texts, strict=True)]
        return {
            "exact_round_trip": float(np.mean(same)),
            "unknown_share": float((ids_BL[is_piece_BL] == self._unknown_id).mean()),
            "tokens_per_text": float(is_piece_BL.sum(1).mean()),
        } | code_usage(ids_BL[is_piece_BL], self.spec.vocab_size)

    def save(
        self,
        directory: str | Path,
        *,
        training_data: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        licence: str | None = None,
    ) -> None:
        """Write the folder atomically."""
        vocabulary = self._wordpiece.to_str(pretty=True) + "\n"
        self.card = {
            "fingerprint": self.fingerprint,
            "checksum": _checksum(vocabulary, self.fingerprint, to_plain(self.config)),
            "config": to_plain(self.config),
            "spec": self.spec.to_dict(),
            "training_data": dict(training_data or {}),
            "metrics": dict(metrics or {}),
            "licence": licence,
        }
        with atomic_directory(directory) as folder:
            (folder / VOCABULARY_FILE).write_text(vocabulary, encoding="utf-8")
            save_json(folder / CARD_FILE, self.card)


def train_wordpiece(config: WordPieceConfig, texts: Sequence[str]) -> TextTokenizer:
    """The vocabulary of some texts. The same texts give the same ids, in whatever order they come."""
    wordpiece = _empty_wordpiece(config, {token: number for number, token in enumerate(_special_tokens(config))})
    counts = Counter(letter for text in texts for letter in wordpiece.normalizer.normalize_str(text))
    del counts[" "]
    letters = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:_MAX_LETTERS]
    # The library numbers pieces inside words as a hash map gives them, and ids decide between merges that are equally
    # good. Naming these pieces beforehand makes the result a function of the texts.
    inside = [f"{_CONTINUES}{letter}" for letter in sorted(letters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        special_tokens=[*_special_tokens(config), *inside],
        initial_alphabet=[_SPACE, *letters],
        limit_alphabet=len(letters) + 1,
        continuing_subword_prefix=_CONTINUES,
        show_progress=False,
    )
    wordpiece.train_from_iterator(texts, trainer)
    wordpiece = _empty_wordpiece(config, wordpiece.get_vocab())
    if wordpiece.get_vocab_size() > config.vocab_size:
        raise ValueError(
            f"vocab_size is {config.vocab_size}, but the texts' {len(letters)} letters and the special ids alone need "
            f"{wordpiece.get_vocab_size()}"
        )
    decides_ids = {"wordpiece": wordpiece.to_str(), "max_tokens": config.max_tokens, "too_long": config.too_long}
    return TextTokenizer(config, wordpiece, fingerprint=fingerprint_of({}, decides_ids))


def _empty_wordpiece(config: WordPieceConfig, vocabulary: dict[str, int]) -> tokenizers.Tokenizer:
    """A tokenizer of the library with a vocabulary and nothing learned beside it."""
    wordpiece = tokenizers.Tokenizer(
        models.WordPiece(vocabulary, unk_token=_UNKNOWN, max_input_chars_per_word=_MAX_LETTERS_OF_WORD)
    )
    steps = [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Strip()]
    wordpiece.normalizer = normalizers.Sequence(steps + ([normalizers.Lowercase()] if config.lowercase else []))
    wordpiece.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always"), pre_tokenizers.Punctuation("isolated")]
    )
    wordpiece.decoder = decoders.Sequence(
        [decoders.Replace(_CONTINUES, ""), decoders.Fuse(), decoders.Replace(_SPACE, " ")]
    )
    wordpiece.add_special_tokens(_special_tokens(config))
    return wordpiece


def load_text_tokenizer(directory: str | Path, config: WordPieceConfig) -> TextTokenizer:
    """Read a folder whose card holds this config; ValueError when vocabulary and card do not belong together."""
    file = Path(directory) / VOCABULARY_FILE
    card = load_json(Path(directory) / CARD_FILE)
    vocabulary = file.read_text(encoding="utf-8")
    found = _checksum(vocabulary, card["fingerprint"], card["config"])
    if found != card["checksum"]:
        raise ValueError(f"{file}: vocabulary and config have checksum {found}, {CARD_FILE} says {card['checksum']}")
    wordpiece = tokenizers.Tokenizer.from_str(vocabulary)
    return TextTokenizer(config, wordpiece, fingerprint=card["fingerprint"], card=card)


def _checksum(vocabulary: str, fingerprint: str, config: Mapping[str, Any]) -> str:
    """The card's own words are hashed, so that a setting added later cannot break a folder."""
    return fingerprint_of({}, {"wordpiece": vocabulary, "fingerprint": fingerprint, "config": dict(config)})


def _sentinels(config: WordPieceConfig) -> list[str]:
    return [f"[S_{number}]" for number in range(config.num_sentinels)]


def _special_tokens(config: WordPieceConfig) -> list[str]:
    return [_PAD, _UNKNOWN, _EOS, *_sentinels(config)]
