"""Every row of the experiments' tables is a config that loads, with the questions that are asked of it."""

from pathlib import Path

import pytest

from egom2p.config import load_config
from egom2p.training.tasks.anytoany_task import AnyToAnyTrainingConfig
from experiments.codes.code_tables import _COMBINATION
from experiments.codes.table_rows import TABLES


@pytest.mark.parametrize("name", TABLES)
def test_rows_load_and_know_their_questions(name):
    table = TABLES[name]
    assert len({row.label for row in table.rows}) == len(table.rows)
    for row in table.rows:
        config = load_config(AnyToAnyTrainingConfig, f"experiments/codes/{row.config}.yaml", list(row.overrides))
        assert set(table.asked) <= set(config.evaluation.datasets), row.label
        if row.num_tokens is not None:
            connector = config.model.connector
            assert row.num_tokens in (*connector.nested, connector.num_tokens)


def test_every_table_is_in_the_documentation():
    text = (Path(__file__).resolve().parents[2] / "experiments/results/anytoany_experiments.md").read_text()
    assert all(f"`{name}`" in text for name in TABLES)


@pytest.mark.parametrize(
    "name, group",
    [
        ("captions_unseen_many.jsonl#3 caption-unseen-1-2-3-7", "caption-unseen-1-2-3"),
        ("which/caption-unseen-4-0-1-9/0/first caption-unseen-1-2-3-7", "caption-unseen-4-0-1"),
        ("named/mine-unseen-1-11-499 mine-unseen-1-11-3-3-0", "mine-unseen-1-11"),
    ],
)
def test_clips_of_a_combination_are_drawn_together(name, group):
    assert _COMBINATION.search(name).group(1) == group
