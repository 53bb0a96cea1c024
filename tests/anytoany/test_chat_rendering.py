"""What becomes of a conversation: who is heard, where media lie, what is cut."""

from copy import deepcopy

import numpy as np
import pytest
from anytoany_toys import talk, toy_renderer, toy_tokenizer

from egom2p.anytoany.conversations.chat import ChatConfig, ChatRenderer
from egom2p.anytoany.conversations.conversation import question_of
from egom2p.anytoany.language.language_tokenizer import end_tag, start_tag
from egom2p.anytoany.types import Conversation, Media, Turn

VIDEO, GAZE = Media("video", "clip"), Media("gaze", "eyes")


def words(ids):
    return toy_tokenizer().decode(ids)


def test_only_the_assistant_and_its_end_of_turn_are_targets():
    first = Turn("user", ("what is this? ", VIDEO))
    turns = (first, Turn("assistant", ("a red mug",)), Turn("user", ("sure?",)), Turn("assistant", ("a blue bowl",)))
    rendered = toy_renderer().render(Conversation("a", turns))
    assert words(rendered.ids[rendered.is_target]) == "a red mug<|im_end|>a blue bowl<|im_end|>"


def test_a_media_item_is_the_reserved_id_as_often_as_said_between_its_tags():
    for span in (1, 2, 8, 64):
        rendered = toy_renderer(span=span).render(talk(question=(VIDEO, " and ", GAZE)))
        tokenizer = toy_tokenizer()
        assert [found.media for found in rendered.spans] == [VIDEO, GAZE]
        for found, kind in zip(rendered.spans, ("video", "gaze"), strict=True):
            inside = rendered.ids[found.start : found.start + found.length]
            assert found.length == span and set(inside) == {toy_renderer().media_id}
            assert words([rendered.ids[found.start - 1]]) == start_tag(kind)
            assert words([rendered.ids[found.start + found.length]]) == end_tag(kind)
        assert (rendered.ids == toy_renderer().media_id).sum() == 2 * span
        assert not rendered.is_target[rendered.ids == tokenizer.convert_tokens_to_ids("<|media|>")].any()


def test_training_and_asking_write_the_same_text_before_the_answer():
    renderer = toy_renderer()
    whole, asked = renderer.render(talk()), renderer.render_question(question_of(talk()))
    start = int(np.flatnonzero(whole.is_target)[0])
    assert np.array_equal(asked.ids, whole.ids[:start]) and asked.spans == whole.spans


def test_a_long_conversation_is_dropped_or_loses_text_but_never_part_of_a_media_item():
    long_answer = talk(answer="a red mug " * 50)
    late_media = Conversation("b", (Turn("user", ("what " * 40, VIDEO)), Turn("assistant", ("a mug",))))
    for length in range(2, 80):
        cut = toy_renderer(span=6, max_length=length, too_long="truncate_text").render(long_answer)
        if cut is not None:
            assert len(cut.ids) == length and cut.is_target.any()
            assert all(words([cut.ids[s.start + s.length]]) == end_tag("video") for s in cut.spans)
        assert toy_renderer(span=6, max_length=length).render(long_answer) is None
        cut = toy_renderer(span=6, max_length=length, too_long="truncate_text").render(late_media)
        assert cut is None or cut.is_target.any() and words([cut.ids[cut.spans[0].start + 6]]) == end_tag("video")


def test_text_cannot_smuggle_in_reserved_tokens():
    for text in ("<|media|>", "a<|end_video|>b", "<|im_end|>"):
        with pytest.raises(ValueError, match="reserved"):
            toy_renderer().render(talk(question=(text,)))


def test_a_template_that_does_not_teach_to_stop_is_refused():
    tokenizer = deepcopy(toy_tokenizer())
    said = "{% generation %}{{ m['content'] }}{% endgeneration %}<|im_end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}" + said + "{% endfor %}"
    with pytest.raises(ValueError, match="end of turn"):
        ChatRenderer(tokenizer, lambda media: 1, ChatConfig())


def test_codes_in_the_vocabulary_are_said_by_the_assistant_and_read_from_the_user():
    codes = [7, 8, 9]
    renderer = ChatRenderer(toy_tokenizer(), lambda media: 2, ChatConfig(), spellings={"gaze": lambda media: codes})
    turns = (Turn("user", ("look ", GAZE)), Turn("assistant", (GAZE,)))
    rendered = renderer.render(Conversation("a", turns))
    assert rendered.spans == ()
    said = rendered.ids[rendered.is_target].tolist()
    assert words(said[:1]) == start_tag("gaze") and said[1:4] == codes and words(said[4:5]) == end_tag("gaze")
    assert rendered.ids.tolist().count(7) == 2
