"""TorchScript files of others: tensors come out by name, nothing of the file runs."""

import hashlib
import os
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn

from egom2p.storage.torchscript_archives import is_torchscript, load_torchscript, read_torchscript_tensors


class Part(nn.Module):
    """Parameters, buffers (also one that a state dict leaves out), a list of numbers, a view, a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(2, 3, 1)
        self.register_buffer("levels", torch.arange(4))
        self.register_buffer("wavelets", torch.arange(4.0)[::2], persistent=False)
        self.sizes = [1, 2]
        self.is_causal = True

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return self.conv3d(video) + self.wavelets.sum()


def released(file, *, traced=False):
    module = nn.Sequential(Part(), nn.Sequential(nn.Identity(), nn.Conv3d(3, 2, 1))).to(torch.bfloat16).eval()
    video = torch.zeros(1, 2, 1, 2, 2, dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch discourage TorchScript
        program = torch.jit.trace(module, video) if traced else torch.jit.script(module)
        torch.jit.save(program, str(file))
    return module


@pytest.mark.parametrize("traced", [False, True])
def test_tensors_come_back_by_name(tmp_path, traced):
    module = released(tmp_path / "encoder.jit", traced=traced)
    assert is_torchscript(tmp_path / "encoder.jit")
    found = read_torchscript_tensors(tmp_path / "encoder.jit")
    wanted = module.state_dict() | {"0.wavelets": module[0].wavelets}
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


class Attack:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_of_the_file_runs(tmp_path):
    released(tmp_path / "good.jit")
    with zipfile.ZipFile(tmp_path / "good.jit") as good, zipfile.ZipFile(tmp_path / "evil.jit", "w") as evil:
        for name in good.namelist():
            attacked = name.endswith("/data.pkl")
            evil.writestr(name, pickle.dumps(Attack(tmp_path / "made"), protocol=2) if attacked else good.read(name))
    with pytest.raises(ValueError, match=r"evil\.jit: the archive holds no tensors"):
        read_torchscript_tensors(tmp_path / "evil.jit")
    assert not (tmp_path / "made").exists()


def test_other_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "weights.pt")
    (tmp_path / "text.jit").write_text("no zip")
    for name in ("weights.pt", "text.jit"):
        with pytest.raises(ValueError, match=f"{name}: not a TorchScript archive"):
            read_torchscript_tensors(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="gone"):
        read_torchscript_tensors(tmp_path / "gone.jit")


def test_storages_that_do_not_hold_what_they_announce_are_refused(tmp_path):
    released(tmp_path / "good.jit")
    with zipfile.ZipFile(tmp_path / "good.jit") as good, zipfile.ZipFile(tmp_path / "short.jit", "w") as short:
        for name in good.namelist():
            content = good.read(name)
            short.writestr(name, content[:-8] if name.endswith("/data/0") else content)
    with pytest.raises(ValueError, match=r"short\.jit: not a readable .*are announced"):
        read_torchscript_tensors(tmp_path / "short.jit")


@pytest.mark.parametrize(
    "program",
    [b"", b"no pickle", b"\x80\x02]K\x01K\x02s.", b"\x80\x02K\x01K\x02a.", b"\x80\x02ctorch\nFloatStorage\n)R."],
)
def test_maimed_descriptions_are_named(tmp_path, program):
    released(tmp_path / "good.jit")
    with zipfile.ZipFile(tmp_path / "good.jit") as good, zipfile.ZipFile(tmp_path / "maimed.jit", "w") as maimed:
        for name in good.namelist():
            maimed.writestr(name, program if name.endswith("/data.pkl") else good.read(name))
    with pytest.raises(ValueError, match=r"maimed\.jit: (not a readable|the archive holds no)"):
        read_torchscript_tensors(tmp_path / "maimed.jit")


def test_running_it_needs_permission_and_the_known_hash(tmp_path):
    file = tmp_path / "encoder.jit"
    module = released(file)
    known = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="allow_torchscript=true"):
        load_torchscript(file, allow_torchscript=False, sha256=known)
    with pytest.raises(ValueError, match="needs the sha256"):
        load_torchscript(file, allow_torchscript=True, sha256=None)
    with pytest.raises(ValueError, match=f"has sha256 {known}, wanted 00"):
        load_torchscript(file, allow_torchscript=True, sha256="00")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = load_torchscript(file, allow_torchscript=True, sha256=known.upper())
    video = torch.randn(1, 2, 1, 2, 2, dtype=torch.bfloat16)
    assert torch.equal(program(video), module(video))
