"""One splice for training, evaluation, generation and serving. The published trainer had two that differed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_toys import features_of, renderer_of, talks, toy_features, toy_model

from egom2p.anytoany.answers.answer_generation import Question, right_aligned
from egom2p.anytoany.answers.inference import Inference
from egom2p.anytoany.connectors import ConnectorConfig
from egom2p.anytoany.conversations.conversation import question_of
from egom2p.anytoany.conversations.packing import collate
from egom2p.anytoany.splice import splice

MEDIA = 99


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_token_lies_in_its_position_and_nothing_else_moves(data):
    num_rows = data.draw(st.integers(1, 3))
    lengths = data.draw(st.lists(st.lists(st.integers(1, 64), max_size=4), min_size=num_rows, max_size=num_rows))
    width = max(sum(row) + 2 * len(row) for row in lengths) + 3
    ids = torch.zeros(num_rows, width, dtype=torch.int64)
    spans = []
    for number, row in enumerate(lengths):
        start = data.draw(st.integers(0, 3))
        for length in row:
            spans.append((number, start, length))
            ids[number, start : start + length] = MEDIA
            start += length + data.draw(st.integers(0, 1))
    spans = [spans[n] for n in np.random.default_rng(0).permutation(len(spans))]
    embeddings = torch.randn(num_rows, width, 4)
    tokens = torch.randn(sum(span[2] for span in spans), 4)
    wanted, first = embeddings.clone(), 0
    for row, start, length in spans:
        wanted[row, start : start + length] = tokens[first : first + length]
        first += length
    assert torch.equal(call(embeddings, tokens, ids, spans), wanted)


def call(embeddings, tokens, ids, spans):
    rows, starts, lengths = torch.tensor(spans, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return splice(
        embeddings, tokens, ids=ids, media_id=MEDIA, media_rows=rows, media_starts=starts, media_lengths=lengths
    )


@pytest.mark.parametrize(
    "spans, num_tokens, message",
    [
        ([(0, 2, 3)], 4, "4 perception tokens for 3 reserved"),
        ([(0, 2, 3)], 2, "2 perception tokens for 3 reserved"),
        ([(0, 1, 3)], 3, "spans cover"),  # not where the reserved ids are
        ([(0, 2, 2)], 2, "spans cover"),  # one reserved id left over
        ([(0, 2, 3), (0, 4, 1)], 4, "spans cover"),  # written twice
        ([(0, 8, 3)], 3, "should lie in row 0 at 8 ... 11"),
        ([(1, 2, 3)], 3, "there are 1 rows"),
    ],
)
def test_what_does_not_fit_is_an_error(spans, num_tokens, message):
    ids = torch.zeros(1, 10, dtype=torch.int64)
    ids[0, 2:5] = MEDIA
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 10, 4), torch.zeros(num_tokens, 4), ids, spans)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 8, 16, 33, 64])
def test_training_evaluation_generation_and_serving_embed_bitwise_alike(folder, num_tokens):
    model = toy_model(folder, connector=ConnectorConfig(num_tokens=num_tokens, dim=24, num_heads=2))
    talk = talks(3)[2]  # two media items
    items = tuple(features_of(media) for media in talk.media)
    renderer = renderer_of(model)
    trained = collate([[renderer.render(talk)]], features_of, pad_id=0, num_positions=300)
    asked = right_aligned([Question(renderer.render_question(question_of(talk)), items)], pad_id=0)
    prompt = "".join("{video}" for _ in talk.media) + talk.turns[0].parts[-1]
    served = right_aligned([Inference(model).question(prompt, [("video", p) for p in items])], pad_id=0)
    assert torch.equal(asked.ids, served.ids)
    length = asked.ids.shape[1]
    assert torch.equal(trained.ids[:, :length], asked.ids)
    with torch.no_grad():
        of_training, of_question, of_server = (model.embed(batch) for batch in (trained, asked, served))
    assert torch.equal(of_training[:, :length], of_question) and torch.equal(of_question, of_server)
    is_media = trained.ids[0] == model.media_id
    assert int(is_media.sum()) == 2 * num_tokens
    assert not torch.equal(of_training[0, is_media], model.embed_ids(trained.ids)[0, is_media])


def test_a_wrong_number_of_items_is_an_error(folder):
    model = toy_model(folder)
    rendered = renderer_of(model).render_question(question_of(talks(3)[2]))
    with pytest.raises(ValueError, match="1 features for 2 media items"):
        Question(rendered, (toy_features(0),))
    with pytest.raises(ValueError, match="fewer placeholders"):
        Inference(model).question("no placeholder", [("video", toy_features(0))])
