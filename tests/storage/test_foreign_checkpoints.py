"""Foreign pickles: plain values come out, anything else is refused before it runs."""

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from egom2p.storage.foreign_checkpoints import foreign_weights, read_foreign_checkpoint


class Attack:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("is_zip", [True, False])
def test_plain_values_come_back(tmp_path, is_zip):
    args = argparse.Namespace(model="base", betas=[0.9, 0.95], lr=4e-4, nested=argparse.Namespace(depth=12), none=None)
    args.mean, args.std = np.arange(3.0), np.float64(2)
    weights = OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2, dtype=torch.bfloat16))
    file = tmp_path / "released.pth"
    torch.save(
        {"model": weights, "args": args, "epoch": 3, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        file,
        _use_new_zipfile_serialization=is_zip,
    )
    content = read_foreign_checkpoint(file)
    assert content["epoch"] == 3 and content["args"]["nested"] == {"depth": 12}
    found, settings = foreign_weights(file)
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert settings["betas"] == [0.9, 0.95] and settings["none"] is None
    assert settings["mean"].tolist() == [0, 1, 2] and settings["std"] == 2


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("where", ["top", "namespace"])
def test_anything_else_is_refused_and_never_run(tmp_path, kind, where):
    trap, file = tmp_path / "made_by_attack", tmp_path / "evil.pth"
    attack = Attack(trap)
    content = {"model": {"a": torch.ones(1)}}
    content |= {"evil": attack} if where == "top" else {"args": argparse.Namespace(evil=attack)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps({key: value for key, value in content.items() if key != "model"}))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ValueError, match=r"evil\.pth: ") as refused:
        read_foreign_checkpoint(file)
    assert "mkdir" in str(refused.value) or kind == "pickle"
    assert not trap.exists()


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        read_foreign_checkpoint(tmp_path / "nothing.pth")
    broken = tmp_path / "broken.pth"
    torch.save({"a": torch.ones(1000)}, broken)
    for content in (b"", b"hello", broken.read_bytes()[:200]):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match="broken.pth: "):
            read_foreign_checkpoint(broken)
    torch.save([1, 2], broken)
    with pytest.raises(ValueError, match="a checkpoint is a dict, found list"):
        read_foreign_checkpoint(broken)
    torch.save({"epoch": 1}, broken)
    with pytest.raises(ValueError, match=r"no weights; its keys are \['epoch'\]"):
        foreign_weights(broken)
