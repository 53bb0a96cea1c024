"""Text to ids: a tokenizer of the language model's own, or one trained here, with the reserved tokens of media.

Reserved tokens stand behind the vocabulary of the base tokenizer, in one fixed order: `<|media|>`, the start and end
tags of every kind, then the codes of the codebooks. Loading it again finds them where they were.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from egom2p.anytoany.types import KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MEDIA = "<|media|>"
_START_OF_TURN, _END_OF_TURN, _END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

Template = Literal["auto", "own", "chatml", "llama3", "plain"]

# What stands between the generation marks is what the assistant says: the only text with a loss.
_TEMPLATES = {
    "chatml": (
        "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}{{ '\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    ),
    "llama3": (
        "{{- bos_token -}}{%- for message in messages -%}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}{{ message['content'] + '<|eot_id|>' }}{% endgeneration %}"
        "{%- else -%}{{ message['content'] + '<|eot_id|>' }}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"
    ),
    "plain": (
        "{{- bos_token or '' -}}{%- for message in messages -%}{{ message['role'].capitalize() + ':\n' }}"
        "{%- if message['role'] == 'assistant' -%}"
        "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
        "{%- else -%}{{ message['content'] }}{%- endif -%}{{ '\n' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'Assistant:\n' }}{%- endif -%}"
    ),
}
_TURN_ENDS = {"chatml": _END_OF_TURN, "llama3": "<|eot_id|>"}


def start_tag(kind: str) -> str:
    return f"<|start_{kind}|>"


def end_tag(kind: str) -> str:
    return f"<|end_{kind}|>"


def code_token(codebook: str, code: int) -> str:
    """The text of one code of a modality in the vocabulary."""
    return f"<|{codebook}_{code}|>"


def media_text(kind: str, length: int) -> str:
    """A media item as text: its tags, and between them the reserved token once per perception token."""
    return start_tag(kind) + MEDIA * length + end_tag(kind)


def reserved_tokens(codebooks: Sequence[tuple[str, int]] = ()) -> list[str]:
    """All reserved tokens in their order; `codebooks`: name and number of codes of each."""
    tags = [tag for kind in KINDS for tag in (start_tag(kind), end_tag(kind))]
    return [MEDIA, *tags, *(code_token(name, code) for name, size in codebooks for code in range(size))]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> "PreTrainedTokenizerFast":
    """Byte-level BPE of some texts, without downloads: every string can be written with it. ChatML turns.

    vocab_size   largest number of tokens before the reserved ones; at least the 256 bytes and 3 marks
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = [_END_OF_TEXT, _START_OF_TURN, _END_OF_TURN]
    if vocab_size < 256 + len(marks):
        raise ValueError(f"vocab_size must be at least {256 + len(marks)} (all bytes and marks), got {vocab_size}")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END_OF_TURN, pad_token=_END_OF_TEXT)
    tokenizer.chat_template = _TEMPLATES["chatml"]
    return tokenizer


def load_text_tokenizer(
    path: str, *, template: Template = "auto", codebooks: Sequence[tuple[str, int]] = ()
) -> "PreTrainedTokenizerFast":
    """The tokenizer of a local folder or of the Hub, with reserved tokens and a chat template that marks the answers.

    template   `own`: as it comes; `auto`: as it comes where it marks the answers, else the fitting one from here
    """
    from transformers import AutoTokenizer

    # Without a question whether code that lies there may run: it may not.
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return with_reserved_tokens(tokenizer, template=template, codebooks=codebooks)


def with_reserved_tokens(
    tokenizer: "PreTrainedTokenizerFast", *, template: Template = "auto", codebooks: Sequence[tuple[str, int]] = ()
) -> "PreTrainedTokenizerFast":
    """Add what is missing of the reserved tokens, and choose the chat template. Works on the tokenizer itself."""
    from tokenizers import AddedToken

    wanted = reserved_tokens(codebooks)
    known = tokenizer.get_vocab()
    missing = [token for token in wanted if token not in known]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    first = media_id(tokenizer)
    if tokenizer.convert_tokens_to_ids(wanted) != list(range(first, first + len(wanted))):
        raise ValueError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: reserved tokens lie elsewhere than behind {MEDIA}; "
            f"it was made with other codebooks, load it with those"
        )
    if first + len(wanted) != len(tokenizer):
        raise ValueError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has {len(tokenizer) - first - len(wanted)} tokens behind the "
            f"reserved ones; it was made with other codebooks"
        )
    _set_template(tokenizer, template)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def media_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Id of the token that perception replaces: the first of the reserved ones."""
    found = tokenizer.convert_tokens_to_ids(MEDIA)
    if found is None or found == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no {MEDIA}; load it with load_text_tokenizer or with_reserved_tokens")
    return found


def stop_ids(tokenizer: "PreTrainedTokenizerFast") -> tuple[int, ...]:
    """Ids that end an answer: the end of a turn and the end of a text."""
    known = tokenizer.get_vocab()
    marks = (tokenizer.eos_token, *_TURN_ENDS.values(), _END_OF_TEXT, "<|end_of_text|>")
    return tuple(dict.fromkeys(known[mark] for mark in marks if mark in known))


def _set_template(tokenizer: "PreTrainedTokenizerFast", template: Template) -> None:
    marks_answers = "{% generation %}" in (tokenizer.chat_template or "").replace("{%- ", "{% ").replace(" -%}", " %}")
    if template == "own" and not marks_answers:
        raise ValueError(
            "the tokenizer's own chat template does not mark the assistant's text with {% generation %}; "
            "choose template auto, chatml, llama3 or plain"
        )
    if template == "own" or (template == "auto" and marks_answers):
        return
    known = tokenizer.get_vocab()
    if template == "auto":
        template = "llama3" if _TURN_ENDS["llama3"] in known else "chatml" if _END_OF_TURN in known else "plain"
    ending = _TURN_ENDS.get(template)
    if ending is not None and ending not in known:
        raise ValueError(f"template {template} needs the token {ending}, which the tokenizer does not have")
    if template == "plain" and tokenizer.eos_token is None:
        raise ValueError("template plain ends an answer with the end-of-text token, which the tokenizer does not have")
    tokenizer.chat_template = _TEMPLATES[template]
    if ending is not None:
        tokenizer.eos_token = ending
