"""Modality codes in the vocabulary, and EgoM2P going on from what was said."""

import numpy as np
import pytest
import torch
from model_toys import BOOKS, CAM, GAZE, toy_model

from egom2p.anytoany.answers.answer_generation import Answer
from egom2p.anytoany.codebooks import CodebookConfig, Codebooks
from egom2p.anytoany.generate import codebook_of, render, token_clip_of, write_tokens
from egom2p.contracts import ModalitySpec, TokenClip, TokenGrid, TokenizerMismatch
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.generate import Sampler
from egom2p.models.sampling import TargetPlan

SPECS = (
    ModalitySpec("tok_rgb", "grid", "rgb", TokenGrid((2, 3, 2)), 11, "rgb"),
    ModalitySpec("tok_gaze", "track", "gaze", TokenGrid((4,)), 13, "gaze", tokenizer_fingerprint="sha256:a"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy_model(tmp_path_factory.mktemp("tokenizer"), codebooks=BOOKS)


def answer_of(*spans):
    return Answer(np.zeros(0, np.int32), "", tuple((kind, np.array(codes)) for kind, codes in spans))


def test_offsets_and_round_trip(model):
    books, tokenizer = model.codebooks, model.tokenizer
    assert books.to_plain()["cam"]["offset"] == books.offsets["gaze"] + GAZE.size
    assert books.end == len(tokenizer)
    for kind, book in (("gaze", GAZE), ("cam", CAM)):
        codes = np.arange(book.num_tokens) % book.size
        assert books.codes(kind, books.ids(kind, codes)).tolist() == codes.tolist()
        text = books.text_of_codes(kind, codes)
        ids = tokenizer.encode(f"look {text} there", add_special_tokens=False)
        (found,) = books.spans(ids, tokenizer)
        assert found[0] == kind and found[1].tolist() == codes.tolist()
        assert books.spans([token for token in ids if token != books.ids(kind, codes)[0]], tokenizer) == []
    with pytest.raises(ValueError, match=r"wanted 0 \.\.\. 12"):
        books.ids("gaze", np.array([13]))
    with pytest.raises(ValueError, match="not all codes of gaze"):
        books.codes("gaze", np.array([books.offsets["cam"]]))
    with pytest.raises(ValueError, match="no codebook of depth"):
        books.ids("depth", np.array([0]))
    with pytest.raises(ValueError, match="one codebook per kind"):
        Codebooks((GAZE, GAZE), 10)
    with pytest.raises(ValueError, match="codes of gaze should end"):
        Codebooks.of_tokenizer((CodebookConfig(kind="gaze", modality="g", size=14, num_tokens=4),), tokenizer)


def test_two_codebooks_of_256_cost_512_rows(tmp_path):
    books = tuple(CodebookConfig(kind=kind, modality=kind, size=256, num_tokens=30) for kind in ("gaze", "cam"))
    wide, narrow = (toy_model(tmp_path, codebooks=some, adapt="frozen") for some in (books, ()))
    assert wide.new_tokens.rows.shape[0] - narrow.new_tokens.rows.shape[0] == 512


def egom2p():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return EgoM2P(ModelConfig(dim=24, num_heads=2, encoder_depth=1, decoder_depth=1), SPECS).eval()


def test_pictures_follow_what_was_said(model, tmp_path):
    plans = [TargetPlan(target="tok_rgb", num_steps=2, temperature=0.0)]
    answers = [answer_of(("gaze", [1, 2, 3, 4])), answer_of(("gaze", [0, 0, 0, 0]), ("gaze", [12, 11, 10, 9]))]
    made = render(egom2p(), answers, model.codebooks, plans, [5, 6])
    for clip, codes, seed in zip(made, ([1, 2, 3, 4], [12, 11, 10, 9]), (5, 6), strict=True):
        prompt = TokenClip("x", {"tok_gaze": np.array(codes, np.int32)})
        (wanted,) = Sampler(egom2p()).generate([prompt], plans, [seed])
        assert clip.tokens["tok_gaze"].tolist() == codes
        assert clip.tokens["tok_rgb"].tolist() == wanted.tokens["tok_rgb"].tolist()
    with pytest.raises(ValueError, match="no span of codes"):
        render(egom2p(), [answer_of()], model.codebooks, plans, [0])
    write_tokens(token_clip_of(answers[0], model.codebooks, key="k"), tmp_path / "said.npz")
    with np.load(tmp_path / "said.npz") as arrays:
        assert arrays["tok_gaze"].tolist() == [1, 2, 3, 4]


def test_codes_of_another_tokenizer_are_refused(model):
    other = EgoM2P(egom2p().config, (SPECS[0], SPECS[1].with_fingerprint("sha256:other")))
    with pytest.raises(TokenizerMismatch):
        render(other, [answer_of(("gaze", [1, 2, 3, 4]))], model.codebooks, [TargetPlan(target="tok_rgb")], [0])


def test_codebooks_of_modalities():
    book = codebook_of(SPECS[1])
    assert (book.kind, book.size, book.num_tokens, book.fingerprint) == ("gaze", 13, 4, "sha256:a")
    with pytest.raises(ValueError, match="no kind of media"):
        codebook_of(ModalitySpec("tok_smell", "track", "generic", TokenGrid((4,)), 5, "smell"))
