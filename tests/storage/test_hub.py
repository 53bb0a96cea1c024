"""Fetching and pushing: plain files travel, errors say where to go."""

import json
from pathlib import Path

import pytest
from fake_hub import answers, hub_with

from egom2p.storage.hub import fetch, push, pushable_files

FILES = {"model.safetensors": b"weights", "tokenizer.json": b"{}", "evil.pth": b"pickle", "sub/card.md": b"# card"}
IMPORTS = "from egom2p.storage.hub import fetch, push"


@pytest.fixture(scope="module")
def hub():
    with hub_with(FILES) as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def write_folder(folder):
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"w")
    (folder / "inner" / "tokenizer.json").write_text("{}")
    (folder / ".writer").write_text("")
    return folder


PUSHED = ["README.md", "inner/tokenizer.json", "model.safetensors"]


@pytest.fixture(scope="module")
def online(hub, home, tmp_path_factory):
    """Answers of one process that reaches the Hub, and what it asked of it."""
    folder = write_folder(tmp_path_factory.mktemp("made") / "tok")
    calls = {
        "fetched": "fetch('me/tok')",
        "gated": "fetch('me/gated')",
        "absent": "fetch('me/absent')",
        "revision": "fetch('me/tok', revision='no-such')",
        "pushed": f"push({str(folder)!r}, 'me/tok', private=True, readme='# Card')",
    }
    address, log = hub
    found = answers(IMPORTS, calls.values(), home, HF_ENDPOINT=address, HF_TOKEN="hf_test")
    return dict(zip(calls, found, strict=True)), list(log)


@pytest.fixture(scope="module")
def offline(online, home, hub, tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("made") / "tok")
    calls = {"fetched": "fetch('me/tok')", "other": "fetch('me/other')", "pushed": f"push({str(folder)!r}, 'me/tok')"}
    found = answers(IMPORTS, calls.values(), home, HF_HUB_OFFLINE="1", HF_ENDPOINT=hub[0])
    return dict(zip(calls, found, strict=True))


def test_fetching_brings_plain_files_only(online):
    answer, log = online
    folder = Path(answer["fetched"].removeprefix("-> "))
    found = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert found == ["model.safetensors", "sub/card.md", "tokenizer.json"]
    assert not any("evil" in path for path, *_ in log)


def test_what_was_fetched_needs_no_network(online, offline):
    assert offline["fetched"] == online[0]["fetched"]
    assert offline["other"].startswith("FileNotFoundError me/other")
    assert "cannot be reached" in offline["other"] and "local folder" in offline["other"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("gated", ["ValueError", "/me/gated", "accept its terms", "HF_TOKEN"]),
        ("absent", ["FileNotFoundError", "no such local folder", "/me/absent"]),
        ("revision", ["FileNotFoundError", "no revision 'no-such'"]),
    ],
)
def test_errors_say_where_to_go(online, case, words):
    assert all(word in online[0][case] for word in words), online[0][case]


def test_local_folders_need_no_hub(tmp_path):
    assert fetch(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="no such folder, and no id"):
        fetch(tmp_path / "gone")
    with pytest.raises(ValueError, match="revision 'v1'"):
        fetch(tmp_path, revision="v1")


def test_pushing_is_one_commit_of_who_is_logged_in(online, offline):
    answer, log = online
    assert answer["pushed"] == f"-> {PUSHED}"
    commits = [(body, token) for path, body, token in log if "/commit/" in path]
    created = [json.loads(body) for path, body, _ in log if path.endswith("/repos/create")]
    assert len(commits) == 1 and created[0].get("private", created[0].get("visibility")) in (True, "private")
    assert commits[0][1] == "Bearer hf_test"
    written = [json.loads(line)["value"].get("path") for line in commits[0][0].decode().splitlines()]
    assert written[1:] == PUSHED
    assert "hf auth login" in offline["pushed"]


def test_a_dry_run_names_the_files(tmp_path):
    assert push(write_folder(tmp_path / "tok"), "me/tok", dry_run=True, readme="x") == PUSHED


@pytest.mark.parametrize(("name", "words"), [("weights.pth", "pickles"), ("run.py", "holds run.py")])
def test_only_plain_files_are_pushed(tmp_path, name, words):
    (write_folder(tmp_path / "tok") / name).write_bytes(b"")
    with pytest.raises(ValueError, match=words):
        push(tmp_path / "tok", "me/tok", dry_run=True)


def test_wrong_ids_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="owner/name"):
        push(write_folder(tmp_path / "tok"), "tok", dry_run=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="nothing to push"):
        pushable_files(tmp_path / "empty")
