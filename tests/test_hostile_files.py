"""Files of strangers: what they say can neither write, read nor run anything that they have no business with."""

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_artifacts

from egom2p.anytoany.saving import _copy_checkpoint
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, TokenClip, TokenGrid, plain_name
from egom2p.data.clips.clip_store import ClipStore
from egom2p.data.shards.folder_set import FolderSet
from egom2p.data.shards.shard_set import ShardSet, ShardWriter
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.models.weights import tokenizer_locations
from egom2p.pipelines.token_shards import TokenShards
from egom2p.storage import atomic_directory, inside, load_json, only_writer, remove_directory, save_json
from egom2p.storage.hub import pushable_files

EVIL_NAMES = [
    "../x",
    "..",
    ".",
    "",
    " ",
    "/abs",
    "a/b",
    "a\\b",
    ".hidden",
    "a\nb",
    "a\x00b",
    "a\x7f",
    "x" * 201,
    None,
    7,
]
EVIL_NAMES += ["\u202eevil", "é" * 101]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    tiny_artifacts.make_tiny_world(root)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def renamed(tar: Path, name_of) -> None:
    """Write a tar again with other names of members."""
    with tarfile.open(tar) as archive:
        members = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
    with tarfile.open(tar, "w") as archive:
        for number, (name, content) in enumerate(members):
            entry = tarfile.TarInfo(name_of(number) + name[name.index(".") :])
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("name", EVIL_NAMES, ids=repr)
def test_a_name_is_one_plain_part_of_a_path(name):
    with pytest.raises(ValueError, match="card.json: folder .* is not one plain name"):
        plain_name(name, "folder", "card.json")
    for make in (
        lambda: ModalitySpec(name, "track", "gaze", TokenGrid((3,)), 5, "gaze"),
        lambda: ModalitySpec("tok_gaze", "track", "gaze", TokenGrid((3,)), 5, name),
        lambda: TokenClip(name, {}),
        lambda: AlignedClip(name, {}, None, Provenance("a", "b")),
        lambda: inside("out", ".windows_a", name) if name != ".hidden" else plain_name(name, "file"),
    ):
        with pytest.raises(ValueError, match="is not one plain name"):
            make()


@pytest.mark.parametrize("name", ["clip_000", "walk (1).mp4", "视频", "a..b", "Müller_07", "x" * 200, "a\u202fb"])
def test_plain_names_stay_as_they_are(name):
    assert plain_name(name, "clip key") == name and inside("out", name) == Path("out", name)


def test_a_path_below_an_output_stays_there(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out" / "here").mkdir()
    (tmp_path / "out" / "own").symlink_to("here")
    (tmp_path / "door").symlink_to(tmp_path / "out")
    with pytest.raises(ValueError, match="leads out of"):
        inside(tmp_path / "out", "link", "x")
    assert inside(tmp_path / "out", "own", "x") and inside(tmp_path / "door", ".windows_a", "x")


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    with atomic_directory(theirs) as folder:  # empty: nothing can be lost
        (folder / "ours").touch()
    with atomic_directory(theirs) as folder:
        (folder / "again").touch()
    assert (theirs / "again").is_file()
    (theirs / ".egom2p").unlink()
    for attempt in (lambda: atomic_directory(theirs).__enter__(), lambda: remove_directory(theirs)):
        with pytest.raises(ValueError, match="thesis: holds files that were not written here"):
            attempt()
    (tmp_path / "link").symlink_to(theirs)
    with pytest.raises(ValueError, match="is a link"), atomic_directory(tmp_path / "link"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, wanted a folder"), atomic_directory(tmp_path / "file"):
        pass
    assert [entry.name for entry in theirs.iterdir()] == ["again"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "link", "thesis"]


def test_a_folder_that_came_while_ours_was_written_is_not_replaced(tmp_path):
    with pytest.raises(ValueError, match="not written here"), atomic_directory(tmp_path / "a"):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "theirs").touch()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["a", "a/theirs"]


def test_the_lock_neither_follows_a_link_nor_empties_a_file(tmp_path):
    (tmp_path / "victim.txt").write_text("thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".writer").symlink_to(tmp_path / "victim.txt")
    with pytest.raises(OSError, match=r"\.writer"), only_writer(tmp_path / "run"):
        pass
    (tmp_path / "run" / ".writer").unlink()
    (tmp_path / "run" / ".writer").write_text("mine")
    with only_writer(tmp_path / "run"):
        pass
    assert (tmp_path / "victim.txt").read_text() == "thesis" and (tmp_path / "run" / ".writer").read_text() == "mine"


@pytest.mark.parametrize("key", ["../../../victim/precious{}", "/{victim}/precious{}", "a/b{}", "a\nb{}", ".a{}"])
def test_clips_with_keys_that_lead_elsewhere_are_refused_before_anything_is_made(tiny, tmp_path, key):
    """Generated files once replaced the directory that a clip's key named."""
    victim = tmp_path / "victim" / "precious0"
    victim.mkdir(parents=True)
    (victim / "thesis.txt").write_text("years")
    shutil.copytree(tiny / "clips" / "val", tmp_path / "clips")
    for tar in (tmp_path / "clips").rglob("shard-*.tar"):
        renamed(tar, lambda number: key.replace("{victim}", str(tmp_path / "victim")[1:]).format(number))
    output = tmp_path / "a" / "b" / "out"
    config = GenerationConfig(
        checkpoint=str(tiny / "model"),
        input=str(tmp_path / "clips"),
        targets=("depth",),
        output=str(output),
        join="none",
    )
    with pytest.raises(ValueError, match=r"shard-000000.tar: clip key .* is not one plain name"):
        run_generation(config)
    with pytest.raises(ValueError, match=r"shard-000000.tar: clip key .* is not one plain name"):
        ClipStore(tmp_path / "clips", "tiny")
    assert contents(tmp_path / "victim") == {"precious0/thesis.txt": b"years"}
    assert not output.exists()


def test_generation_never_replaces_a_folder_of_somebody_else(tiny, tmp_path):
    key = ClipStore(tiny / "clips" / "val", "tiny").keys[0]
    (tmp_path / "out" / key).mkdir(parents=True)
    (tmp_path / "out" / key / "thesis.txt").write_text("years")
    config = GenerationConfig(
        checkpoint=str(tiny / "model"),
        input=str(tiny / "clips" / "val"),
        targets=("depth",),
        output=str(tmp_path / "out"),
        join="none",
    )
    with pytest.raises(ValueError, match=f"{key}: holds files that were not written here"):
        run_generation(config)
    assert (tmp_path / "out" / key / "thesis.txt").read_text() == "years"


@pytest.mark.parametrize("layout", ["tars", "files"])
def test_tokens_are_written_below_their_output_only(tmp_path, layout):
    with pytest.raises(ValueError, match="is not one plain name"):
        TokenShards(str(tmp_path / "out"), "../elsewhere", {"gaze": 4}, layout=layout)
    shards = TokenShards(str(tmp_path / "out"), "tiny", {"../../elsewhere": 4, "gaze": 4}, layout=layout)
    with pytest.raises(ValueError, match="is not one plain name"):
        shards.location("../../elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gaze").symlink_to(tmp_path / "elsewhere")
    shards = TokenShards(str(tmp_path / "out"), "tiny", {"gaze": 4}, layout=layout)
    clips = iter([("a", {"gaze": b"x"})])
    with pytest.raises(ValueError, match="leads out of"):
        shards._write(0, clips)
    for key in ("../x", "/tmp/x", "a/b"):
        shards = TokenShards(str(tmp_path / "other"), "tiny", {"gaze": 4}, layout=layout)
        with pytest.raises(ValueError, match="is not one plain name"):
            shards._write(0, iter([(key, {"gaze": b"x"})]))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_shards_are_written_below_their_root_only(tmp_path):
    for folder, dataset in (("../gaze", "tiny"), ("gaze", "../tiny"), ("gaze", "/tiny")):
        with pytest.raises(ValueError, match="is not one plain name"):
            ShardWriter(tmp_path / "deep" / "root", dataset, {folder: "npy"})
    assert not list(tmp_path.iterdir())


def test_keys_of_plain_files_are_plain_names(tmp_path):
    for name in ("a/x.npy", "b/x.npy", "x.npy"):
        path = tmp_path / "root" / "gaze" / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.zeros(3))
    assert FolderSet(f"{tmp_path}/root/[gaze]/toy").keys == ["a__x", "b__x", "x"]
    np.save(tmp_path / "root" / "gaze" / "toy" / "a__x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="clip a__x occurs twice"):
        FolderSet(f"{tmp_path}/root/[gaze]/toy")


def test_members_written_with_a_dot_and_a_slash_keep_their_keys(tmp_path):
    """What `tar cf shard.tar ./*` makes."""
    with ShardWriter(tmp_path, "toy", {"cam": "npy"}) as writer:
        writer.write("a", {"cam": b"1"})
    renamed(tmp_path / "cam" / "toy" / "shard-000000.tar", lambda number: "./a")
    assert ShardSet(f"{tmp_path}/[cam]/toy/shard-*.tar").keys == ["a"]


def test_the_checkpoint_in_an_export_takes_nothing_along_but_its_own_files(tiny, tmp_path):
    """Names and places of tokenizers come from the model file of a stranger."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "id_rsa").write_text("secret")
    shutil.copytree(tiny / "model", tmp_path / "model")
    card = load_json(tmp_path / "model" / "model.json")
    named = tokenizer_locations(tiny / "model")
    name = next(iter(named))

    def copied(tokenizers):
        save_json(tmp_path / "model" / "model.json", card | {"tokenizers": tokenizers})
        shutil.rmtree(tmp_path / "export", ignore_errors=True)
        _copy_checkpoint(tmp_path / "model", tmp_path / "export")
        return sorted(path.name for path in (tmp_path / "export").rglob("*") if path.is_file())

    assert "id_rsa" not in copied({name: named[name]})
    with pytest.raises(ValueError, match=r"model.json: modality .* is not one plain name"):
        copied({"../../../x": named[name]})
    with pytest.raises((ValueError, FileNotFoundError), match="tokenizer.json"):
        copied({name: str(tmp_path / "home")})
    shutil.copytree(named[name], tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "notes.txt").write_text("mine")
    assert "notes.txt" not in copied({name: str(tmp_path / "tokenizer")})
    (tmp_path / "tokenizer" / "model.safetensors").unlink()
    (tmp_path / "tokenizer" / "model.safetensors").symlink_to(tmp_path / "home" / "id_rsa")
    with pytest.raises(ValueError, match="leads out of its folder"):
        copied({name: str(tmp_path / "tokenizer")})


def test_links_that_lead_out_are_not_pushed(tmp_path):
    (tmp_path / "secret.txt").write_text("key")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.json").write_text("{}")
    (model / "same.json").symlink_to("model.json")
    assert sorted(pushable_files(model)) == ["model.json", "same.json"]
    (model / "NOTICE").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="NOTICE: leads out of its folder"):
        pushable_files(model)


def test_files_of_the_hubs_cache_are_pushed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("{}")
    (snapshot / "model.json").symlink_to(os.path.relpath(blobs / "1234", snapshot))
    assert list(pushable_files(snapshot)) == ["model.json"]
