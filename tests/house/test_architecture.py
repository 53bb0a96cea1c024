"""docs/ARCHITECTURE.md names the files that run, stage by stage."""

import re

import pytest
from paths import ROOT, measured_paths

TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
# Files run, at most. From generate.py to written files 42 were wanted; four tokenizers and stitching alone are 16.
BUDGETS = {"to the first step": 45, "one training step": 24, "one generation": 56, "one preparation": 30}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return measured_paths(tmp_path_factory.mktemp("paths"))


def stages(name: str) -> list[list[str]]:
    """Files that the page names under a heading, item by item."""
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE | re.IGNORECASE)[1]
    return [re.findall(r"`([\w/]+\.py)`", item) for item in re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]]


@pytest.mark.parametrize("name", ["one training step", "one generation", "one preparation"])
def test_the_page_names_what_runs_in_order(found, name):
    files, named = found[name], [file for stage in stages(name) for file in stage]
    advice = "python tests/house/paths.py prints what runs"
    assert sorted(set(files) - set(named)) == [], f"run, but not named; {advice}"
    assert sorted(set(named) - set(files)) == [], f"named, but not run; {advice}"
    assert len(named) == len(set(named)), "a file is named twice"
    first = [min(files.index(file) for file in stage) for stage in stages(name)]
    assert first == sorted(first), f"stages are not in the order in which they begin; {advice}"


@pytest.mark.parametrize("name", BUDGETS)
def test_a_walk_is_no_longer_than_it_was(found, name):
    assert len(found[name]) <= BUDGETS[name], "\n".join(found[name])


def test_every_room_is_on_the_page():
    rooms = {path.parent.name for path in (ROOT / "egom2p").glob("*/__init__.py")}
    assert {line.split()[0] for line in TEXT.split("```")[1].strip().splitlines()} == rooms
