"""Text and reserved tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egom2p.anytoany.language.language_tokenizer import (
    MEDIA,
    code_token,
    load_text_tokenizer,
    media_id,
    media_text,
    reserved_tokens,
    stop_ids,
    train_tokenizer,
    with_reserved_tokens,
)
from egom2p.anytoany.types import KINDS

BOOKS = [("gaze", 13), ("cam", 5)]
TALK = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "what? " + media_text("video", 5)},
    {"role": "assistant", "content": "a mug"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return with_reserved_tokens(train_tokenizer(["a red mug on the table"] * 3, 300), codebooks=BOOKS)


def said(tokenizer):
    answer = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    pairs = zip(answer["input_ids"], answer["assistant_masks"], strict=True)
    return tokenizer.decode([token for token, is_said in pairs if is_said])


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40))
def test_every_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("count", [1, 2, 7, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_each_position_of_a_media_item_is_one_reserved_token(tokenizer, kind, count):
    """The published trainer hoped that each character of "0 0 0 0" becomes one token."""
    ids = tokenizer.encode(media_text(kind, count), add_special_tokens=False)
    assert len(ids) == count + 2 and ids[1:-1] == [media_id(tokenizer)] * count


def test_reserved_tokens_stand_behind_the_vocabulary_in_their_order(tokenizer, tmp_path):
    first = media_id(tokenizer)
    assert tokenizer.convert_tokens_to_ids(reserved_tokens(BOOKS)) == list(range(first, len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(code_token("cam", 0)) == first + 1 + 2 * len(KINDS) + 13
    tokenizer.save_pretrained(tmp_path)
    again = load_text_tokenizer(str(tmp_path), codebooks=BOOKS)
    assert again.get_vocab() == tokenizer.get_vocab() and said(again) == said(tokenizer)
    for other in ([("gaze", 12), ("cam", 5)], [("cam", 5), ("gaze", 13)], []):
        with pytest.raises(ValueError, match="other codebooks"):
            load_text_tokenizer(str(tmp_path), codebooks=other)


def test_only_what_the_assistant_says_is_marked_with_its_end(tokenizer):
    assert said(tokenizer) == "a mug<|im_end|>yes<|im_end|>"
    assert tokenizer.eos_token_id in stop_ids(tokenizer)


def test_templates_for_base_models_without_marks():
    for template, ending in (("llama3", "<|eot_id|>"), ("plain", "<|endoftext|>")):
        base = train_tokenizer(["a red mug"], 300)
        base.add_special_tokens({"bos_token": "<|endoftext|>"})
        base.eos_token = "<|endoftext|>"
        base.add_tokens(["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"] if template == "llama3" else [])
        base.chat_template = "{{ messages[0]['content'] }}"  # does not mark answers
        with pytest.raises(ValueError, match="does not mark"):
            with_reserved_tokens(base, template="own")
        chosen = with_reserved_tokens(base, template="auto" if template == "llama3" else template)
        assert said(chosen) == f"a mug{ending}yes{ending}"
        assert chosen.convert_tokens_to_ids(ending) in stop_ids(chosen)


def test_errors():
    with pytest.raises(ValueError, match="at least 259"):
        train_tokenizer(["a"], 100)
    with pytest.raises(ValueError, match="load_text_tokenizer"):
        media_id(train_tokenizer(["a"], 300))
    with pytest.raises(ValueError, match="eot_id"):
        with_reserved_tokens(train_tokenizer(["a"], 300), template="llama3")
    assert MEDIA not in train_tokenizer(["a"], 300).get_vocab()
