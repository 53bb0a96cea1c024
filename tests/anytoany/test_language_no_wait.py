"""Neither a training step nor a spoken token asks the device for a value."""

import pytest
import torch
from model_toys import BOOKS, features_of, renderer_of, talks, toy_batch, toy_model
from spy import Spy

from egom2p.anytoany.answers.answer_generation import AnswerConfig, Question, answer
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.conversation import question_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.mark.parametrize("kind", ["global_mlp", "st_shuffle", "resampler", "gated_xattn"])
def test_a_step_does_not_wait(folder, kind):
    connector = ConnectorConfig(kind=kind, num_tokens=3, dim=24, num_heads=2)
    model = toy_model(folder, connector=connector, codebooks=BOOKS, adapt="lora").train()
    batch = toy_batch(model)
    with Spy() as spy:
        model(batch).sums.sum().backward()
    assert spy.num_calls > 100
    # On the CPU it is looked at once whether ids and spans fit: an error that names both costs nothing there.
    assert len(spy.waiting) == 1, spy.waiting


@pytest.mark.parametrize("more", [{}, {"temperature": 1.0, "top_k": 9}, {"spans": ("gaze",)}], ids=str)
def test_further_tokens_do_not_wait(folder, more):
    """The published one looked up every token of every row in a set of Python's."""
    model = toy_model(folder, codebooks=BOOKS)
    renderer = renderer_of(model)
    asked = [question_of(talk) for talk in talks(3)]
    questions = [Question(renderer.render_question(talk), tuple(features_of(m) for m in talk.media)) for talk in asked]
    waits = []
    for num_tokens in (8, 24):
        with torch.random.fork_rng(), Spy() as spy:
            answer(model, questions, AnswerConfig(max_new_tokens=num_tokens, stop_every=100, **more))
        waits.append(len(spy.waiting))
    assert waits[0] == waits[1] and spy.num_calls > 1000
    with Spy() as spy:
        answer(model, questions, AnswerConfig(max_new_tokens=24, stop_every=2, **more))
    assert len(spy.waiting) > waits[1], "looks at whether all have ended are waits, and are seen"
