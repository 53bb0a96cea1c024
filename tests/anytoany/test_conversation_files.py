"""Readers of conversations, templates, and what they refuse."""

import json
import re
from dataclasses import replace

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from egom2p.anytoany.conversations.conversation import (
    TemplateConfig,
    Templates,
    answer_of,
    conversation_of,
    fill,
    load_templates,
    template_path,
)
from egom2p.anytoany.conversations.conversation_loader import LanguageDataConfig, check_rows
from egom2p.anytoany.conversations.datasets import (
    CaptionsConfig,
    InstructConfig,
    InterleavedConfig,
    TextConfig,
    llama3_turns,
    open_dataset,
)
from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.types import KINDS, Media
from egom2p.config import ConfigError, cfgs_root

RNG = np.random.default_rng


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_captions_of_jsonl_and_parquet_are_the_same(tmp_path):
    rows = [{"clip": f"c{n}", "description": f"a {n} with {{video}} braces"} for n in range(5)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    of_lines = open_dataset(CaptionsConfig(files=(lines(tmp_path / "a.jsonl", rows),), ref="clip"))
    of_parquet = open_dataset(CaptionsConfig(files=(str(tmp_path / "a.parquet"),), ref="clip"))
    assert len(of_lines) == len(of_parquet) == 5
    for number in range(5):
        one, two = (data.conversation(number, RNG(number)) for data in (of_lines, of_parquet))
        assert one.turns == two.turns and one.media == (Media("video", f"c{number}"),)
        assert answer_of(one) == rows[number]["description"]


def test_a_row_that_holds_its_vector_is_named_by_file_and_row(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"description": "x", "video_embed": [0.0]}] * 2)
    assert open_dataset(CaptionsConfig(files=(path,))).conversation(1, RNG(0)).media == (Media("video", f"{path}#1"),)


def test_instructions_in_the_format_of_llava(tmp_path):
    turns = [
        {"from": "human", "value": "<image>\nwhat {is} this?"},
        {"from": "gpt", "value": "a mug"},
        {"from": "human", "value": "sure?"},
        {"from": "gpt", "value": "yes"},
    ]
    rows = [{"caption": turns, "ib_embed": [0.0, 1.0]}, {"caption": turns, "ib_embed": [1.0, 0.0]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = open_dataset(InstructConfig(files=(str(tmp_path / "a.parquet"),)))
    talk = data.conversation(0, RNG(0))
    assert [turn.role for turn in talk.turns] == ["user", "assistant"] * 2
    assert talk.turns[0].parts == (Media("image", f"{tmp_path / 'a.parquet'}#0"), "\nwhat {is} this?")


def test_every_tag_of_a_row_has_its_own_item(tmp_path):
    """The published trainer gave each tag of a row the same embedding."""
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "the second"}]
    path = lines(tmp_path / "a.jsonl", [{"t": turns, "pics": ["one", "two"]}, {"t": turns, "pics": ["one"]}])
    data = open_dataset(InstructConfig(files=(path,), turns="t", ref="pics"))
    assert [item.ref for item in data.conversation(0, RNG(0)).media] == ["one", "two"]
    with pytest.raises(ValueError, match="2 tags .* for 1 media"):
        data.conversation(1, RNG(0))


def test_interleaved_media_and_their_count(tmp_path):
    good = {
        "key": "k",
        "turns": [{"role": "user", "text": "{gaze} then {video}"}, {"role": "assistant", "text": "{cam}"}],
        "media": [{"kind": "gaze", "ref": "g"}, {"kind": "video", "ref": "v"}, {"kind": "cam", "ref": "c"}],
    }
    swapped = {**good, "media": good["media"][1::-1] + good["media"][2:]}
    missing, more = {**good, "media": good["media"][:2]}, {**good, "media": good["media"] * 2}
    path = lines(tmp_path / "a.jsonl", [good, swapped, missing, more])
    data = open_dataset(InterleavedConfig(files=(path,)))
    assert [item.kind for item in data.conversation(0, RNG(0)).media] == ["gaze", "video", "cam"]
    for number, message in ((1, "stands where"), (2, "no media item is left"), (3, "6 media items for 3")):
        with pytest.raises(ValueError, match=message):
            data.conversation(number, RNG(0))


def test_text_alone_in_turns_and_in_llama_form(tmp_path):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "{video}?"}]
    path = lines(tmp_path / "a.jsonl", [{"conversations": [*turns, {"role": "assistant", "content": "no"}]}])
    talk = open_dataset(TextConfig(files=(path,))).conversation(0, RNG(0))
    assert talk.media == () and talk.turns[1].parts == ("{video}?",)
    text = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi\nyou<|eot_id|><|start_header_id|>assistant"
    assert llama3_turns(text + "<|end_header_id|>\n\nhello")[1] == {"role": "assistant", "content": "hello"}
    assert llama3_turns(text + "<|end_header_id|>\n\nhello")[0]["content"] == "hi\nyou"


@pytest.mark.parametrize("roles", [["assistant"], ["user"], ["user", "user"], ["user", "system", "assistant"], []])
def test_turns_out_of_order_are_refused(roles):
    with pytest.raises(ValueError, match="conversation k"):
        conversation_of("k", [(role, "x") for role in roles], [])


def test_tables_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\nnot json\n[1]\n')
    table = TableFiles([str(path)], ["a"])
    assert len(table) == 4 and table[1] == {"a": 2}
    for number in (2, 3):
        with pytest.raises(ValueError, match=f"row {number}"):
            table[number]
    with pytest.raises(ValueError, match="has no 'b'"):
        TableFiles([str(path)], ["b"])[0]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TableFiles([str(tmp_path / "nowhere*.jsonl")], ["a"])


def test_the_packages_templates_are_many_and_differ_between_splits():
    files = sorted((cfgs_root() / "default/anytoany/templates").glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        loaded = load_templates(file)
        assert loaded.held_out and not set(loaded.train) & set(loaded.held_out)
        assert sum(text.count("{" + kind + "}") for kind in KINDS for text in loaded.train) >= len(loaded.train)
        if file.stem.startswith("caption"):
            assert len(loaded.train) >= 20 and len(loaded.held_out) >= 10


def test_templates_are_checked(tmp_path):
    def load(text):
        path = tmp_path / f"{abs(hash(text))}.yaml"
        path.write_text(text)
        return load_templates(path)

    for text, message in (
        ("train: ['{video} a', '{image} b']", "other placeholders"),
        ("train: ['{video} a']\nheld_out: ['{video} a']", "twice"),
        ("train: []", "empty"),
    ):
        with pytest.raises(ValueError, match=message):
            load(text)
    with pytest.raises(ConfigError, match="trian"):
        load("trian: ['{video}']")
    with pytest.raises(ValueError, match=re.escape("{options}")):
        fill("{video} {options}", {})
    assert fill("{video} {q}", {"q": "{video}?"}) == "{video} video?"
    assert len(Templates(TemplateConfig(file="caption_video", limit=5))) == 5
    assert template_path("caption_video").is_file()


NO_TEXT = {"null": None, "list": ["x", "y"], "mapping": {"en": "ball"}, "truth": True, "number": 3, "nan": float("nan")}


@pytest.mark.parametrize("what", NO_TEXT)
@pytest.mark.parametrize("kind", ["captions", "instruct", "interleaved", "text", "reference"])
def test_what_is_no_text_is_refused_with_file_and_row(tmp_path, kind, what):
    """Models were trained to say `None`, `nan` and `['x', 'y']`."""
    value = NO_TEXT[what]
    rows = {
        "captions": {"clip": "a", "description": value},
        "reference": {"clip": value, "description": "a ball"},
        "instruct": {"image": "a", "turns": [{"from": "human", "value": "?"}, {"from": "gpt", "value": value}]},
        "text": {"turns": [{"from": "human", "value": value}, {"from": "gpt", "value": "yes"}]},
        "interleaved": {"turns": [{"role": "user", "text": value}], "media": []},
    }
    path = lines(tmp_path / "a.jsonl", [rows[kind]])
    configs = {
        "captions": CaptionsConfig(files=(path,), ref="clip"),
        "reference": CaptionsConfig(files=(path,), ref="clip"),
        "instruct": InstructConfig(files=(path,), turns="turns", ref="image"),
        "text": TextConfig(files=(path,), turns="turns"),
        "interleaved": InterleavedConfig(files=(path,)),
    }
    data = open_dataset(configs[kind])
    if (kind, what) == ("reference", "number"):
        assert data.conversation(0, RNG(0)).media == (Media("video", "3"),)
        return
    with pytest.raises(ValueError, match=r"a\.jsonl#0: "):
        data.conversation(0, RNG(0))


def test_null_and_nan_of_parquet_are_refused_too(tmp_path):
    for name, values in {"null": ["a", None], "nan": [1.5, float("nan")], "list": [["a"], ["b"]]}.items():
        parquet.write_table(pyarrow.table({"clip": ["a", "b"], "description": values}), tmp_path / f"{name}.parquet")
        data = open_dataset(CaptionsConfig(files=(str(tmp_path / f"{name}.parquet"),), ref="clip"))
        with pytest.raises(ValueError, match=rf"{name}\.parquet#1: 'description' is .*, wanted a text"):
            data.conversation(1, RNG(0))


@pytest.mark.parametrize(
    "row", [{"turns": "x", "media": []}, {"turns": [3], "media": []}, {"turns": [], "media": {"a": 1}}]
)
def test_turns_and_media_are_lists_of_mappings(tmp_path, row):
    data = open_dataset(InterleavedConfig(files=(lines(tmp_path / "a.jsonl", [row]),)))
    with pytest.raises(ValueError, match=r"a\.jsonl#0: .* wanted a list of"):
        data.conversation(0, RNG(0))


@pytest.mark.parametrize("ref", ["../../etc/passwd", "/etc/passwd", "a//b", "a/../b"])
def test_a_reference_leads_nowhere_else(tmp_path, ref):
    path = lines(tmp_path / "a.jsonl", [{"clip": ref, "description": "x"}, {"clip": "deep/b.npy", "description": "x"}])
    data = open_dataset(CaptionsConfig(files=(path,), ref="clip", folder="media"))
    with pytest.raises(ValueError, match=r"a\.jsonl#0: .* is not one plain name"):
        data.conversation(0, RNG(0))
    assert data.conversation(1, RNG(0)).media[0].ref == "media/deep/b.npy"


def test_a_dry_look_sees_every_row_and_says_the_way_out(tmp_path):
    rows = [{"clip": f"c{n}", "description": "a ball"} for n in range(40)]
    rows[7]["description"], rows[23]["description"], rows[31]["description"] = None, "a <|media|> ball", " "
    captions = CaptionsConfig(files=(lines(tmp_path / "a.jsonl", rows),), ref="clip")
    absent = CaptionsConfig(files=(str(tmp_path / "absent.jsonl"),), ref="clip")
    config = LanguageDataConfig(datasets={"a": captions, "b": absent})
    with pytest.raises(ValueError, match=r"(?s)a\.jsonl#7: .*a\.jsonl#23.*a\.jsonl#31.*data\.bad_rows=skip"):
        check_rows(config, ["<|media|>"])
    said = check_rows(replace(config, bad_rows="skip"), ["<|media|>"])
    assert said[0] == "a: 40 rows, 3 of them bad" and "a.jsonl#7" in said[1] and said[-1].startswith("b: not looked at")
