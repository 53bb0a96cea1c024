"""A ledger of finished parts: what was appended comes back, and a torn last line is as if never written."""

import pytest

from egom2p.jobs.progress import Ledger

ROWS = [{"key": "a", "count": 1}, {"key": "b\nwith a break", "count": 2}, {"key": "ü", "ids": [1, 2]}]


def test_what_was_appended_comes_back_in_order_over_several_processes_lives(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    assert list(Ledger(file).entries()) == []
    Ledger(file).append(ROWS[:2])
    Ledger(file).append(ROWS[2:])
    assert list(Ledger(file).entries()) == ROWS


@pytest.mark.parametrize("kept", [1, 5, -1], ids=["one byte", "five bytes", "all but the line break"])
def test_a_torn_line_does_not_count_and_the_next_one_starts_anew(tmp_path, kept):
    whole, torn = Ledger(tmp_path / "whole.jsonl"), Ledger(tmp_path / "torn.jsonl")
    whole.append(ROWS)
    lines = whole.file.read_bytes().splitlines(keepends=True)
    torn.file.write_bytes(b"".join(lines[:2]) + lines[2][:kept])
    assert list(torn.entries()) == ROWS[:2]
    torn.append(ROWS[2:])
    assert torn.file.read_bytes() == whole.file.read_bytes()


def test_a_broken_line_in_the_middle_names_the_file(tmp_path):
    ledger = Ledger(tmp_path / "rows.jsonl")
    ledger.file.write_text('{"key": 1}\nnot json\n{"key": 2}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: line 2 is not JSON"):
        list(ledger.entries())
