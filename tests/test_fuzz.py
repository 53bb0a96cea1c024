"""Damaged and invented files of every kind end in a ValueError that names the file, or are read: nothing else.

A good file is damaged at random (bytes, cuts, pieces put elsewhere) or text of the right look is invented. What once
went wrong stays as an example. The long search is in the slow set.
"""

import io
import json
import re
import struct
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from egom2p.config import load_config
from egom2p.contracts import ModalitySpec, TokenGrid
from egom2p.data.recordings.track_files import load_npz, read_track
from egom2p.data.shards.shard_files import read_index
from egom2p.geometry import read_trajectory
from egom2p.models.egom2p_model import EgoM2P, ModelConfig
from egom2p.models.weights import read_model_files, save_model
from egom2p.pipelines.prepare import PrepareConfig
from egom2p.storage import load_tensor_metadata, load_tensors, save_tensors, tensor_shapes

TUM = b"# timestamp tx ty tz qx qy qz qw\n0.0 1 2 3 0 0 0 1\n0.1 1 2 3 0 0 0 1\n0.2 1 2 3.5 0 0.7071 0 0.7071\n"
EUROC = b"#timestamp [ns],p_x [m],p_y,p_z,q_w,q_x,q_y,q_z\n" + b"".join(
    b"%d,1,2,3,1,0,0,0\n" % (n * 10**8) for n in range(3)
)
KITTI = b"1 0 0 1 0 1 0 2 0 0 1 3\n" * 3
CSV = b"timestamp,x,y,valid\n0.0,0.5,0.5,1\n0.1,0.25,,1\n0.2,nan,1e3,0\n"
YAML = (
    b"source: {kind: plain_folder, root: r}\nclip: {height: 16, width: 16}\noutput: o\ndataset: d\n"
    b"clips_per_shard: 2\nstreams: [rgb]\n"
)
WORDS = (
    "0 1 -1 1e999 nan inf 9999999999999999999 {} [] null true , ; : . \n # \t \" ' \\ ../ * & ! ${a} ??? \0 é".split(
        " "
    )
)


def tar() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for key in ("a", "b"):
            entry = tarfile.TarInfo(f"{key}.npy")
            entry.size = 8
            archive.addfile(entry, io.BytesIO(b"12345678"))
    return written.getvalue()


def npz() -> bytes:
    written = io.BytesIO()
    np.savez(written, a=np.zeros((2, 3)), b=np.arange(4))
    return written.getvalue()


def weights() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        tied = torch.ones(2, 2)
        save_tensors(Path(folder, "a"), {"x": torch.zeros(3), "y": tied, "z": tied}, {"note": "1"})
        return Path(folder, "a").read_bytes()


def model_card() -> tuple[bytes, bytes]:
    spec = ModalitySpec("tok_gaze", "track", "gaze", TokenGrid((3,)), 5, "gaze", tokenizer_fingerprint="sha256:a")
    model = EgoM2P(ModelConfig(dim=8, encoder_depth=1, decoder_depth=1, num_heads=1), (spec,))
    with tempfile.TemporaryDirectory() as folder:
        save_model(model, Path(folder, "m"), {"tok_gaze": "gaze"})
        return Path(folder, "m", "model.json").read_bytes(), Path(folder, "m", "model.safetensors").read_bytes()


CARD, CARD_WEIGHTS = model_card()


def read_card(file: Path) -> None:
    (file.parent / "model.safetensors").write_bytes(CARD_WEIGHTS)
    read_model_files(file.parent)


def read_weights(file: Path) -> None:
    for read in (tensor_shapes, load_tensor_metadata, load_tensors):
        read(file)


# kind of file -> its name, a good one, who reads it
KINDS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    "tum": ("t.txt", TUM, lambda file: read_trajectory(file, "tum")),
    "euroc": ("t.csv", EUROC, lambda file: read_trajectory(file, "euroc")),
    "kitti": ("poses.txt", KITTI, lambda file: read_trajectory(file, "kitti")),
    "csv": ("gaze.csv", CSV, lambda file: read_track(file, stream="gaze")),
    "npz": ("a.npz", npz(), load_npz),
    "model card": ("model.json", CARD, read_card),
    "safetensors": ("w.safetensors", weights(), read_weights),
    "shard": ("shard-000000.tar", tar(), lambda file: read_index(str(file))),
    "config": ("c.yaml", YAML, lambda file: load_config(PrepareConfig, file)),
}


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """A good file with one to four changes: bytes replaced, a cut, a word of many meanings put in, a piece moved."""
    content = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(content) - 1)))
        stop = min(len(content), start + draw(st.integers(0, 12)))
        kind = draw(st.sampled_from(["bytes", "cut", "word", "words", "move"]))
        if kind == "bytes":
            content[start:stop] = draw(st.binary(max_size=12))
        elif kind == "cut":
            del content[start:]
        elif kind == "word":
            content[start:stop] = draw(st.sampled_from(WORDS)).encode()
        elif kind == "words":  # a whole value of the text instead of a piece of one
            found = [match.span() for match in re.finditer(rb"[\w.+-]+", bytes(content))]
            if found:
                first, last = draw(st.sampled_from(found))
                content[first:last] = draw(st.sampled_from(WORDS)).encode()
        else:
            piece = content[start:stop]
            del content[start:stop]
            target = draw(st.integers(0, len(content)))
            content[target:target] = piece
    return bytes(content)


def check(kind: str, content: bytes) -> None:
    name, _, read = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_bytes(content)
        try:
            read(file)
        except ValueError as error:
            assert name in str(error) or "model.safetensors" in str(error), f"the file is not named: {error}"


def search(kind: str, num_examples: int) -> None:
    @settings(
        max_examples=num_examples, deadline=None, database=None, derandomize=num_examples < 1000,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged(KINDS[kind][1]))
    def run(content: bytes) -> None:
        check(kind, content)

    run()


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_is_read(kind, tmp_path):
    name, content, read = KINDS[kind]
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name)


@pytest.mark.parametrize(
    ("kind", "content"), [("config", b"0"), ("npz", b""), ("config", b"- a"), ("model card", b"0")]
)
def test_what_once_went_wrong(kind, content):
    name, _, read = KINDS[kind]
    with pytest.raises(ValueError, match=name), tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(content)
        read(Path(folder) / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_a_value_error_that_names_it(kind):
    search(kind, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_a_value_error_that_names_it_long(kind):
    search(kind, 2000)


HEADS = [
    {"x": {"dtype": "F32", "shape": [2**62], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}},
    {"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    {"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]}},
    {"__metadata__": {"tied": 3}},
    {"__metadata__": []},
]


@pytest.mark.parametrize("head", HEADS, ids=json.dumps)
def test_a_head_of_safetensors_that_lies(head):
    text = json.dumps(head).encode()
    with pytest.raises(ValueError, match="w.safetensors"):
        check_raises(struct.pack("<Q", len(text)) + text + bytes(4))


def check_raises(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "w.safetensors")
        file.write_bytes(content)
        read_weights(file)
