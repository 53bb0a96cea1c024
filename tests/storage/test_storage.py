"""What is written is there completely or not at all, and comes back as it was."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from egom2p.storage import (
    atomic_directory,
    atomic_file,
    fingerprint_of,
    load_json,
    load_tensor_metadata,
    load_tensors,
    only_writer,
    open_binary,
    remove_unfinished,
    save_json,
    save_tensors,
)
from egom2p.storage.remote import RangeReader


def test_directory_appears_complete(tmp_path):
    target = tmp_path / "deep" / "step-1"
    with atomic_directory(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "inner" / "a.txt").read_text() == "a"
    assert [entry.name for entry in target.parent.iterdir()] == ["step-1"]


def test_directory_replaces_old_one_as_a_whole(tmp_path):
    target = tmp_path / "x"
    for name in ("old", "new"):
        with atomic_directory(target) as folder:
            (folder / name).touch()
    assert sorted(entry.name for entry in target.iterdir()) == [".egom2p", "new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_failed_directory_leaves_the_old_one(tmp_path):
    target = tmp_path / "x"
    with atomic_directory(target) as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError, match="disk"), atomic_directory(target) as folder:
        (folder / "new").touch()
        raise RuntimeError("disk")
    assert sorted(entry.name for entry in target.iterdir()) == [".egom2p", "old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_of_several_writers_of_one_folder_the_last_whole_one_stays(tmp_path):
    """Exports, models and tokenizers hold no lock. The old folder of one writer was the missing one of another."""

    def write(number: int) -> None:
        with atomic_directory(tmp_path / "x") as folder:
            for name in "ab":
                (folder / name).write_text(str(number))

    write(-1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(100)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert sorted(entry.name for entry in (tmp_path / "x").iterdir()) == [".egom2p", "a", "b"]
    assert (tmp_path / "x" / "a").read_text() == (tmp_path / "x" / "b").read_text() != "-1"


def test_a_folder_that_cannot_be_put_in_place_gives_way_to_the_old_one(tmp_path, monkeypatch):
    target, rename = tmp_path / "x", os.rename
    with atomic_directory(target) as folder:
        (folder / "old").touch()

    def denied(source, place):
        if place == target and (Path(source) / "new").exists():
            raise PermissionError(13, "denied")
        rename(source, place)

    monkeypatch.setattr(os, "rename", denied)
    with pytest.raises(PermissionError), atomic_directory(target) as folder:
        (folder / "new").touch()
    assert sorted(entry.name for entry in target.iterdir()) == [".egom2p", "old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_failed_file_leaves_the_old_one(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_a_killed_writer_are_removed(tmp_path):
    (tmp_path / ".x.unfinished-0123abcd").mkdir()
    (tmp_path / ".y.unfinished-0123abcd").touch()
    kept = ["kept", "notes.unfinished-2024", ".unfinished-0123abcd", ".z.unfinished-0123abcd.txt"]
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / ".link.unfinished-0123abcd").symlink_to(tmp_path / "kept")
    assert remove_unfinished(tmp_path, ["y"]) == 1
    assert (tmp_path / ".x.unfinished-0123abcd").is_dir()
    assert remove_unfinished(tmp_path) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted([*kept, ".link.unfinished-0123abcd"])
    assert remove_unfinished(tmp_path / "absent") == 0


def test_tensors_come_back(tmp_path, generator):
    whole = torch.randn(6, 4, generator=generator)
    tensors = {"whole": whole, "rows": whole[:2], "turned": whole.T, "half": whole.bfloat16(), "empty": whole[:0]}
    save_tensors(tmp_path / "a.safetensors", tensors, metadata={"made_by": "test"})
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor), name
    assert load_tensor_metadata(tmp_path / "a.safetensors") == {"made_by": "test"}


def test_tied_tensors_are_stored_once_and_come_back_tied(tmp_path, generator):
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(50, 8), "head": torch.nn.Linear(8, 50, bias=False)})
    model["head"].weight = model["embed"].weight
    save_tensors(tmp_path / "a.safetensors", model.state_dict())
    assert (tmp_path / "a.safetensors").stat().st_size < 2 * 50 * 8 * 4
    loaded = load_tensors(tmp_path / "a.safetensors")
    assert set(loaded) == {"embed.weight", "head.weight"}
    assert loaded["embed.weight"] is loaded["head.weight"]
    model.load_state_dict(loaded)


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\x10\x00\x00\x00")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="a.safetensors"):
        load_tensors(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.json"):
        load_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_json(tmp_path / "absent.json")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_tensors(tmp_path / "absent.safetensors")


def test_json_round_trip(tmp_path, rng):
    value = {"a": [1, 2.5, None], "b": rng.integers(0, 9, size=3), "path": tmp_path}
    save_json(tmp_path / "a.json", value)
    assert load_json(tmp_path / "a.json") == {"a": [1, 2.5, None], "b": value["b"].tolist(), "path": str(tmp_path)}


def test_fingerprint_depends_on_content_only(generator):
    a, b = torch.randn(3, generator=generator), torch.randn(2, 2, generator=generator).T
    base = fingerprint_of({"a": a, "b": b}, {"x": 1, "y": [2]})
    assert base.startswith("sha256:") and len(base) == len("sha256:") + 16
    assert base == fingerprint_of({"b": b.contiguous(), "a": a.clone()}, {"y": [2], "x": 1})
    assert base != fingerprint_of({"a": a + 1e-6, "b": b}, {"x": 1, "y": [2]})
    assert base != fingerprint_of({"a": a, "b": b}, {"x": 2, "y": [2]})
    assert base != fingerprint_of({"a": a, "b": b.reshape(4)}, {"x": 1, "y": [2]})
    assert fingerprint_of({"a": torch.tensor(1.0)}, {}) != fingerprint_of({"a": torch.tensor(2.0)}, {})


def test_open_binary_local(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    with open_binary(tmp_path / "a.bin") as opened:
        opened.seek(4)
        assert opened.read(3) == b"456"
    with pytest.raises(FileNotFoundError, match="absent"):
        open_binary(tmp_path / "absent")


def test_range_reader_seeks_like_a_file(rng):
    content = rng.bytes(10_000)
    reader = io.BufferedReader(RangeReader(len(content), lambda start, stop: content[start:stop]), buffer_size=512)
    for start in (0, 9_990, 5_000, 17):
        reader.seek(start)
        assert reader.read(1_000) == content[start : start + 1_000]
    reader.seek(-5, io.SEEK_END)
    assert reader.read() == content[-5:]


def test_one_writer_at_a_time(tmp_path):
    with only_writer(tmp_path / "run"):
        with pytest.raises(ValueError, match="run: another process is writing here"), only_writer(tmp_path / "run"):
            pass
    with only_writer(tmp_path / "run"):
        pass


def test_a_weights_file_has_the_mode_of_any_other_file(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", {"a": torch.zeros(2)})
    (tmp_path / "other").touch()
    assert (tmp_path / "weights.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
