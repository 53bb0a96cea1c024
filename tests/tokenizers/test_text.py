"""The text tokenizer: texts come back, special words are only words, folders stand alone, mistakes are named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egom2p.contracts import AlignedClip, Provenance, Stream, Tokenizer
from egom2p.tokenizers import TextTokenizer, WordPieceConfig, load_tokenizer
from egom2p.tokenizers.text import train_wordpiece

ALPHABET = "abcdeABCDE0123456789 \t\n.,'#-!?[]_ÉéßS"
CORPUS = [
    "The wearer walks forward, and looks at a red moving ball.",
    "the wearer's well-known BALL isn't #1!",
    "it costs 0123456789 [ab] cde? é É ß S_",
    "abc bcd cde",
] * 3


def trained(**changes) -> TextTokenizer:
    return train_wordpiece(WordPieceConfig(**({"max_tokens": 80, "num_sentinels": 4} | changes)), CORPUS)


TOKENIZER = trained()


def clip_of(text: str, key: str = "clip_1") -> AlignedClip:
    return AlignedClip(
        key, {"caption": Stream(np.array([text]), np.ones(1, bool), np.zeros(1), "text")}, None, Provenance("d", "r")
    )


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from(ALPHABET), min_size=1, max_size=60).filter(lambda text: text.strip()))
def test_a_text_comes_back_as_its_normal_form(text):
    ids_BL = TOKENIZER.encode_texts([text])
    wanted = " ".join(text.split()).lower()
    assert TOKENIZER.normalised(text) == wanted
    assert TOKENIZER.decode_ids(ids_BL) == [wanted]
    assert np.array_equal(TOKENIZER.encode_texts([wanted]), ids_BL)


def test_ids_end_and_are_padded():
    spec, ids_L = TOKENIZER.spec, TOKENIZER.encode([clip_of("a red ball")])[0]
    assert ids_L.shape == (80,) and ids_L.dtype == np.int32
    length = int(np.flatnonzero(ids_L == spec.eos_id)[0])
    assert (ids_L[length + 1 :] == spec.pad_id).all() and len(spec.words(ids_L)) == length == 3
    assert spec.kind == "sequence" and spec.quantity == "text" and len(set(spec.sentinel_ids)) == 4
    values, is_valid = TOKENIZER.decode(ids_L[None])
    assert values.tolist() == [["a red ball"]] and is_valid.all()


def test_special_words_in_a_text_are_words():
    """Else a caption could end itself, or hold a mark of a hidden span."""
    spec = TOKENIZER.spec
    words = spec.words(TOKENIZER.encode_texts(["[EOS] [PAD] [S_1] abc"])[0])
    assert not {spec.eos_id, spec.pad_id, *spec.sentinel_ids} & set(words.tolist()) and len(words) > 4


def test_sentinels_are_left_out_of_decoded_texts():
    words = TOKENIZER.spec.words(TOKENIZER.encode_texts(["red ball"])[0]).tolist()
    marked = [TOKENIZER.spec.sentinel_ids[1], *words, TOKENIZER.spec.eos_id, 9]
    assert TOKENIZER.decode_ids(np.array([marked])) == ["red ball"]


def test_case_is_kept_where_asked():
    tokenizer = trained(lowercase=False)
    assert tokenizer.decode_ids(tokenizer.encode_texts(["The BALL"])) == ["The BALL"]
    assert tokenizer.fingerprint != TOKENIZER.fingerprint


def test_the_same_texts_give_the_same_vocabulary():
    for texts in (CORPUS, CORPUS[::-1]):
        again = train_wordpiece(TOKENIZER.config, texts)
        assert again.fingerprint == TOKENIZER.fingerprint
        assert np.array_equal(again.encode_texts(CORPUS), TOKENIZER.encode_texts(CORPUS))
    assert trained(vocab_size=120).spec.vocab_size == 120


def test_the_vocabulary_has_thirty_thousand_ids_where_there_are_as_many_pieces(rng):
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters, 7)) for _ in range(12000)]
    tokenizer = train_wordpiece(WordPieceConfig(min_frequency=1), words)
    assert tokenizer.spec.vocab_size == 30000
    assert tokenizer.decode_ids(tokenizer.encode_texts(words[:50])) == words[:50]


def test_a_folder_stands_alone(tmp_path):
    TOKENIZER.save(tmp_path / "text", training_data={"num_texts": 12}, licence="CC0")
    assert sorted(path.name for path in (tmp_path / "text").iterdir()) == [
        ".egom2p",
        "tokenizer.json",
        "wordpiece.json",
    ]
    loaded = load_tokenizer(tmp_path / "text")
    assert isinstance(loaded, Tokenizer)
    assert loaded.spec == TOKENIZER.spec and loaded.fingerprint == TOKENIZER.fingerprint == loaded.card["fingerprint"]
    assert loaded.card["training_data"] == {"num_texts": 12} and loaded.card["licence"] == "CC0"
    assert np.array_equal(loaded.encode([clip_of("[EOS] ball")]), TOKENIZER.encode([clip_of("[EOS] ball")]))


@pytest.mark.parametrize("file", ["wordpiece.json", "tokenizer.json"])
def test_a_changed_folder_is_refused(tmp_path, file):
    TOKENIZER.save(tmp_path / "text")
    path = tmp_path / "text" / file
    path.write_text(path.read_text().replace('"lowercase": true', '"lowercase": false').replace("##", "@@"))
    with pytest.raises(ValueError, match="wordpiece.json: vocabulary and config have checksum"):
        load_tokenizer(tmp_path / "text")


def test_a_setting_that_is_added_later_breaks_no_folder(tmp_path):
    TOKENIZER.save(tmp_path / "text")
    card = json.loads((tmp_path / "text" / "tokenizer.json").read_text())
    assert card["config"]["too_long"] == "error"
    del card["config"]["too_long"]
    tokenizer = load_tokenizer_after(tmp_path, card)
    assert tokenizer.config.too_long == "error"


def load_tokenizer_after(tmp_path, card):
    from egom2p.tokenizers import text

    vocabulary = (tmp_path / "text" / "wordpiece.json").read_text()
    card["checksum"] = text._checksum(vocabulary, card["fingerprint"], card["config"])
    (tmp_path / "text" / "tokenizer.json").write_text(json.dumps(card))
    return load_tokenizer(tmp_path / "text")


def test_a_text_that_does_not_fit_is_named_or_cut():
    short = trained(max_tokens=4)
    with pytest.raises(ValueError, match="clip clip_7, caption: found a text of 5 tokens, wanted at most 3"):
        short.encode([clip_of("abc"), clip_of("abc bcd cde abc bcd", "clip_7")])
    cut = trained(max_tokens=4, too_long="cut")
    assert cut.decode_ids(cut.encode_texts(["abc bcd cde abc bcd"])) == ["abc bcd cde"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="clip empty, caption: found a text without a word"):
        TOKENIZER.encode([clip_of(" \n", "empty")])
    with pytest.raises(ValueError, match="clip none has no caption for tok_caption"):
        TOKENIZER.encode([AlignedClip("none", {}, None, Provenance("d", "r"))])
    with pytest.raises(ValueError, match="ids of tok_caption run from 0 to 9999"):
        TOKENIZER.decode(np.array([[0, 9999]]))
    with pytest.raises(ValueError, match="vocab_size is 40, but the texts' .* letters"):
        trained(vocab_size=40)
    with pytest.raises(ValueError, match="no room beside 35 special ids"):
        WordPieceConfig(vocab_size=30)


def test_unknown_letters_are_counted_and_shown():
    measured = TOKENIZER.measure(["red 漢字 ball", "red ball"])
    assert measured["unknown_share"] == pytest.approx(1 / 5) and measured["exact_round_trip"] == 0.5
    assert TOKENIZER.decode_ids(TOKENIZER.encode_texts(["red 漢字 ball"])) == ["red[UNK] ball"]
