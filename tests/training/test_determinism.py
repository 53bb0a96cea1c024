"""`training.check_determinism` takes the first steps twice and names the first tensor that differs."""

import itertools

import pytest
import torch
from tiny_tokens import pretrain_values, write_sets

from egom2p.config import from_plain
from egom2p.training.determinism import DIFFERS_CODE
from egom2p.training.tasks.pretrain_config import PretrainConfig
from egom2p.training.tasks.pretrain_task import PretrainTask, pretrain

WEIGHT = "decoder.0.mlp.fc1.weight"


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("tokens"))


def config(tokens, output, **training):
    return from_plain(PretrainConfig, pretrain_values(tokens, output, check_determinism=2, **training))


def test_steps_that_are_the_same_are_said_to_be(tokens, tmp_path, capsys):
    pretrain(config(tokens, tmp_path / "run", num_workers=2))
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "2 steps twice" in said and "are the same, bit by bit" in said
    assert not (tmp_path / "run").exists(), "nothing is written into the output"


class OtherGradients(PretrainTask):
    """From the second step on, every run adds a little of its own to the gradient of one weight."""

    runs = itertools.count()

    def __init__(self, *args):
        super().__init__(*args)
        number, calls = next(self.runs), itertools.count()
        weight = dict(self.model.named_parameters())[WEIGHT]
        weight.register_hook(lambda grad: grad + 1e-6 * number * (next(calls) > 0))


class OtherState(PretrainTask):
    runs = itertools.count()

    def __init__(self, *args):
        super().__init__(*args)
        self.number = next(self.runs)

    def after_step(self):
        with torch.no_grad():
            next(iter(self.model.parameters())).view(-1)[3] += 0.25 * self.number


class OtherData(PretrainTask):
    runs = itertools.count()

    def batches(self, first_clip):
        return super().batches(first_clip + 4 * next(self.runs))


@pytest.mark.parametrize(
    ("task", "found"),
    [
        (OtherGradients, f"step 2: gradient of {WEIGHT} differs"),
        (OtherState, "step 1: after the step, model/"),
        (OtherData, "step 1: batch "),
    ],
)
def test_what_differs_first_is_named(tokens, tmp_path, capsys, task, found):
    task.runs = itertools.count()
    with pytest.raises(SystemExit) as ended:
        pretrain(config(tokens, tmp_path / "run"), task)
    said = capsys.readouterr().err
    assert ended.value.code == DIFFERS_CODE == 5 and found in said and "by up to" in said, said
    if task is OtherState:
        assert "1 of " in said and "by up to 0.25" in said
