"""Answers: batched as alone, cached as uncached, reproducible, and codes always in whole legal spans."""

import numpy as np
import pytest
import torch
from model_toys import BOOKS, CAM, GAZE, LLAMA, features_of, renderer_of, talks, toy_features, toy_model

from egom2p.anytoany.answers.answer_generation import Answer, AnswerConfig, Question, answer, right_aligned
from egom2p.anytoany.answers.inference import Inference, PerceivedClip, WindowCaption, caption_windows, joined
from egom2p.anytoany.codebooks import SpanGrammar
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.conversation import question_of
from egom2p.anytoany.language.language_tokenizer import end_tag, start_tag, stop_ids
from egom2p.anytoany.types import Rendered

_SMALL = {key: value for key, value in LLAMA.items() if key != "model_type"}
FAMILIES = {
    "llama": LLAMA,
    "gemma2": {"model_type": "gemma2", "head_dim": 12, "sliding_window": 12, "tie_word_embeddings": False, **_SMALL},
    "opt": {"model_type": "opt", "hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
GREEDY = AnswerConfig(max_new_tokens=16, stop_every=3)
DRAWN = AnswerConfig(max_new_tokens=16, temperature=1.0, top_k=50)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


def questions_of(model, count=5):
    renderer = renderer_of(model)
    asked = [question_of(talk) for talk in talks(count)]
    return [Question(renderer.render_question(talk), tuple(features_of(m) for m in talk.media)) for talk in asked]


def uncached(model, question, num_tokens):
    """Greedy answer by reading everything again for every token."""
    ids, spans = question.rendered.ids.tolist(), question.rendered.spans
    grammar = SpanGrammar(model.codebooks, model.tokenizer, vocab_size=model.vocab_size)
    state, said = grammar.begin(1), []
    for step in range(num_tokens):
        rendered = Rendered(np.array(ids + said, np.int32), np.zeros(len(ids + said), bool), spans)
        with torch.no_grad():
            batch = right_aligned([Question(rendered, question.features)], pad_id=0)
            logits = model.logits(model.hidden(batch)[:, -1])
        token = logits.masked_fill(~grammar.allowed(state, num_tokens - step), -torch.inf).argmax(-1)
        state = grammar.after(state, token)
        if int(token) in stop_ids(model.tokenizer):
            break
        said.append(int(token))
    return said


@pytest.mark.parametrize("kind", ["resampler", "gated_xattn"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_depends_on_its_question_alone(folder, family, kind):
    """The published evaluation padded on the left without a mask and without moving positions."""
    connector = ConnectorConfig(kind=kind, num_tokens=3, dim=24, num_heads=2)
    model = toy_model(folder, architecture=FAMILIES[family], connector=connector, codebooks=BOOKS, noise=0.3)
    questions = questions_of(model)
    together = answer(model, questions, GREEDY)
    assert len({tuple(said.ids.tolist()) for said in together}) > 1
    for question, said in zip(questions, together, strict=True):
        assert said.ids.tolist() == answer(model, [question], GREEDY)[0].ids.tolist()
        assert said.ids.tolist() == uncached(model, question, GREEDY.max_new_tokens)


def test_seeds_decide_what_is_drawn(folder):
    model = toy_model(folder, noise=0.3)
    questions = questions_of(model)
    seeds = [7, 7, 3, 4, 5]
    drawn = answer(model, questions, DRAWN, seeds=seeds)
    for question, seed, said in zip(questions, seeds, drawn, strict=True):
        assert said.ids.tolist() == answer(model, [question], DRAWN, seeds=[seed])[0].ids.tolist()
    same = answer(model, [questions[0]] * 6, DRAWN, seeds=[1, 1, 2, 3, 4, 5])
    assert same[0].ids.tolist() == same[1].ids.tolist() and len({tuple(said.ids.tolist()) for said in same}) > 2
    with pytest.raises(ValueError, match="one seed per question"):
        answer(model, questions, DRAWN, seeds=[1])


@pytest.mark.parametrize("kind", ["resampler", "gated_xattn"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_question_asked_again_is_read_once_and_answered_alike(folder, family, kind):
    connector = ConnectorConfig(kind=kind, num_tokens=3, dim=24, num_heads=2)
    model = toy_model(folder, architecture=FAMILIES[family], connector=connector, noise=0.3)
    few = questions_of(model, 3)
    asked, seeds = [few[1], few[0], few[1], few[2], few[1]], [4, 1, 5, 2, 6]
    read = []
    embed, model.embed = model.embed, lambda batch: read.append(batch.num_clips) or embed(batch)
    together = answer(model, asked, DRAWN, seeds=seeds)
    assert read == [3]
    for question, seed, said in zip(asked, seeds, together, strict=True):
        assert said.ids.tolist() == answer(model, [question], DRAWN, seeds=[seed])[0].ids.tolist()


def test_questions_of_like_length_share_a_batch(folder):
    """Beside one long question all others would be read at its length."""
    model = toy_model(folder, noise=0.3)
    renderer = renderer_of(model)
    asked = [question_of(talk) for talk in talks(12)]
    questions = [Question(renderer.render_question(t), tuple(features_of(m) for m in t.media)) for t in asked]
    mixed = [questions[n] for n in (11, 0, 10, 1, 9, 2, 8, 3, 7, 4, 6, 5)]
    shapes = []
    embed, model.embed = model.embed, lambda batch: shapes.append(batch.ids.shape) or embed(batch)
    said = answer(model, mixed, AnswerConfig(max_new_tokens=4, batch_size=3))
    num_real = sum(len(question.rendered.ids) for question in mixed)
    lengths = sorted(len(question.rendered.ids) for question in mixed)
    assert sum(rows * width for rows, width in shapes) == 3 * sum(lengths[2::3]) < 1.25 * num_real
    model.embed = embed
    for question, one in zip(mixed, said, strict=True):
        assert one.ids.tolist() == answer(model, [question], AnswerConfig(max_new_tokens=4))[0].ids.tolist()


def test_drawing_follows_the_distribution(folder):
    model = toy_model(folder, noise=0.0)
    with torch.no_grad():
        model.lm.lm_head.weight.mul_(40)
    question = questions_of(model)[0]
    config = AnswerConfig(max_new_tokens=1, temperature=0.7, top_k=5, batch_size=2000)
    drawn = answer(model, [question] * 2000, config)
    with torch.no_grad():
        logits = model.logits(model.hidden(right_aligned([question], pad_id=0))[0, -1])
    logits[model.media_id :] = -torch.inf
    best, ids = logits.topk(5)
    shares = (best / 0.7).softmax(-1)
    stops = stop_ids(model.tokenizer)
    for token, share in zip(ids.tolist(), shares.tolist(), strict=True):
        if token not in stops:
            assert abs(np.mean([said.ids.tolist() == [token] for said in drawn]) - share) < 0.05


def test_spans_are_always_whole_and_legal(folder):
    model = toy_model(folder, codebooks=BOOKS, noise=0.3)
    with torch.no_grad():  # an untrained model that likes to begin spans
        start = model.tokenizer.convert_tokens_to_ids(start_tag("gaze"))
        model.lm.lm_head.weight[start] += model.lm.lm_head.weight[:200].mean(0) * 3
    config = AnswerConfig(max_new_tokens=24, temperature=2.0, spans=("cam", "gaze"), batch_size=64)
    answers = answer(model, [questions_of(model)[1]] * 64, config)
    legal = 0
    for said in answers:
        assert [kind for kind, _ in said.spans[:2]] == ["cam", "gaze"]
        legal += check_spans(model, said.ids.tolist(), said.spans)
    assert legal == len(answers)
    assert sum(len(said.spans) for said in answers) > 2 * len(answers), "no span was begun freely"
    none = answer(
        model, [questions_of(model)[1]] * 8, AnswerConfig(max_new_tokens=24, temperature=2.0, free_spans=False)
    )
    assert all(max(said.ids, default=0) < model.media_id for said in none)


def check_spans(model, ids, spans):
    """Take the ids apart token by token, independently of the grammar's tables."""
    id_of = model.tokenizer.convert_tokens_to_ids
    found, number = [], 0
    while number < len(ids):
        if ids[number] < model.media_id:
            number += 1
            continue
        kind = next(kind for kind in ("gaze", "cam") if ids[number] == id_of(start_tag(kind)))
        book = {"gaze": GAZE, "cam": CAM}[kind]
        inside = ids[number + 1 : number + 1 + book.num_tokens]
        codes = [int(model.tokenizer.convert_ids_to_tokens(token).removesuffix("|>").split("_")[1]) for token in inside]
        assert all(0 <= code < book.size for code in codes) and len(codes) == book.num_tokens
        assert ids[number + 1 + book.num_tokens] == id_of(end_tag(kind))
        found.append((kind, codes))
        number += book.num_tokens + 2
    assert found == [(kind, codes.tolist()) for kind, codes in spans]
    return True


def test_errors_of_answers(folder):
    model = toy_model(folder, codebooks=BOOKS)
    with pytest.raises(ValueError, match="alone need 6"):
        answer(model, questions_of(model)[:1], AnswerConfig(max_new_tokens=5, spans=("gaze",)))
    with pytest.raises(ValueError, match="no codebook of depth"):
        answer(model, questions_of(model)[:1], AnswerConfig(spans=("depth",)))
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"max_new_tokens": 0}):
        with pytest.raises(ValueError):
            AnswerConfig(**wrong)
    model.train()
    answer(model, questions_of(model)[:1], GREEDY)
    assert model.training


def test_long_videos_by_windows(folder):
    model = toy_model(folder, noise=0.3)
    clips = [PerceivedClip(str(n), toy_features(n), n * 1.0, n * 1.0 + 2.0) for n in range(7)]
    config = AnswerConfig(max_new_tokens=6, batch_size=3)
    said = list(caption_windows(Inference(model), iter(clips), config, prompt="{video} what?"))
    alone = [
        Inference(model)
        .answer([Inference(model).question("{video} what?", [("video", clip.features)])], config)[0]
        .text
        for clip in clips
    ]
    assert [caption.text for caption in said] == alone
    assert [(caption.start_s, caption.end_s) for caption in said] == [(clip.start_s, clip.end_s) for clip in clips]
    captions = [WindowCaption(float(n), n + 2.0, text) for n, text in enumerate("aabccc")]
    assert list(joined(captions)) == [
        WindowCaption(0.0, 2.0, "a"),
        WindowCaption(2.0, 3.0, "b"),
        WindowCaption(3.0, 7.0, "c"),
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Rain falls. It is w", "Rain falls."),
        ('Is it? Yes! He said "go." Then', 'Is it? Yes! He said "go."'),
        ("It has 3.5 of it. Take 1.2", "It has 3.5 of it."),
        ("Three tips. They are:\n\n1. Sleep at n", "Three tips."),
        ("Complete as it is.", "Complete as it is."),
        ("none at all", ""),
    ],
)
def test_what_the_limit_cuts_keeps_its_whole_sentences(text, wanted):
    ids = np.zeros(3, np.int32)
    assert Answer(ids, text, is_cut=True).whole_sentences == wanted
    assert Answer(ids, text).whole_sentences == text, "what ends by itself is whole, whatever it ends with"


def test_an_answer_says_whether_the_limit_ended_it(folder):
    """The same question with room for its stop token and without."""
    model = toy_model(folder, noise=0.3)
    questions = questions_of(model, 12)
    whole = answer(model, questions, AnswerConfig(max_new_tokens=200, temperature=1.0))
    number, found = min(((n, a) for n, a in enumerate(whole) if not a.is_cut), key=lambda pair: len(pair[1].ids))
    for room, is_cut in ((len(found.ids) + 1, False), (len(found.ids), True)):
        (again,) = answer(
            model, questions[number : number + 1], AnswerConfig(max_new_tokens=room, temperature=1.0), seeds=[number]
        )
        assert (again.is_cut, again.ids.tolist()) == (is_cut, found.ids.tolist())
