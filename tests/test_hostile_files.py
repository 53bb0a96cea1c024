"""Files of strangers: what they say can neither write, read nor run anything that they have no business with."""

import ast
import contextlib
import io
import os
import shutil
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_artifacts
import torch
from model_toys import LLAMA
from safetensors.torch import save_file

import egom2p
from egom2p.anytoany.download import DownloadConfig, download
from egom2p.anytoany.saving import _copy_checkpoint
from egom2p.anytoany.world.synthetic_data import SyntheticDataConfig
from egom2p.config import from_plain
from egom2p.contracts import AlignedClip, ModalitySpec, Provenance, TokenClip, TokenGrid, plain_name
from egom2p.data.clips.clip_store import ClipStore, clip_folders, encode_clip
from egom2p.data.clips.video_files import write_video
from egom2p.data.recordings.track_files import load_npz
from egom2p.data.shards.array_files import decode_array, read_npz
from egom2p.data.shards.folder_set import FolderSet
from egom2p.data.shards.shard_set import ShardSet, ShardWriter, read_card
from egom2p.data.shards.shard_writer import write_shard
from egom2p.evaluation.drift_evaluation import DriftConfig, run_drift
from egom2p.evaluation.evaluation import run_evaluation
from egom2p.evaluation.evaluation_config import ClipsConfig, EvaluationConfig
from egom2p.evaluation.probe import ProbeConfig, run_probe
from egom2p.generation.checkpoints import load_checkpoint
from egom2p.generation.generation import GenerationConfig, run_generation
from egom2p.models.weights import tokenizer_locations
from egom2p.pipelines.export_model import ExportModelConfig, export_model
from egom2p.pipelines.prepare import PrepareConfig, prepare
from egom2p.pipelines.token_shards import TokenShards
from egom2p.pipelines.tokenization import TokenizeConfig, tokenize
from egom2p.storage import (
    atomic_directory,
    inside,
    load_json,
    load_tensor_metadata,
    load_tensors,
    only_writer,
    remove_directory,
    save_json,
    stream_tensors,
    tensor_shapes,
)
from egom2p.storage.hub import pushable_files
from egom2p.tokenizers.pretrained import load_tokenizer
from egom2p.training.run_log import RunLog, WandbConfig
from egom2p.training.schedule import Length, Progress
from egom2p.viewing.rerun_folders import RerunConfig, write_rerun_recordings

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
        shards._write(0, ["a"], clips)
    for key in ("../x", "/tmp/x", "a/b"):
        shards = TokenShards(str(tmp_path / "other"), "tiny", {"gaze": 4}, layout=layout)
        with pytest.raises(ValueError, match="is not one plain name"):
            shards._write(0, [key], iter([(key, {"gaze": b"x"})]))
    assert not any((tmp_path / "elsewhere").iterdir())


def test_shards_are_written_below_their_root_only(tmp_path):
    for folder, dataset in (("../gaze", "tiny"), ("gaze", "../tiny"), ("gaze", "/tiny")):
        with pytest.raises(ValueError, match="is not one plain name"):
            ShardWriter(tmp_path / "deep" / "root", dataset, {folder: "npy"})
    assert not list(tmp_path.iterdir())


def test_the_hidden_folder_of_a_shard_in_work_keeps_files_of_others(tmp_path):
    hidden = tmp_path / "gaze" / ".tiny-part-000000"
    hidden.mkdir(parents=True)
    (hidden / "shard-000000.tar.tmp").touch()  # what a killed run leaves
    assert write_shard(tmp_path, "tiny", 0, {"gaze": "npy"}, [("a", {"gaze": b"x"})]) == 1 and not hidden.exists()
    hidden.mkdir()
    (hidden / "thesis.txt").write_text("years")
    with pytest.raises(OSError, match="tiny-part-000000"):
        write_shard(tmp_path, "tiny", 0, {"gaze": "npy"}, [("b", {"gaze": b"x"})])
    assert (hidden / "thesis.txt").read_text() == "years"


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


def laid_links(root: Path, name: str, links) -> tuple[Path, Path]:
    """A folder of somebody else, and an output in which links lead to it, or, of names with a dot, to its file."""
    victim, output = root / "victim", root / name
    victim.mkdir(parents=True)
    (victim / "thesis.txt").write_text("years")
    (victim / "theirs.npz").write_text("theirs")
    for link in links:
        (output / link).parent.mkdir(parents=True, exist_ok=True)
        (output / link).symlink_to(victim / "thesis.txt" if "." in link[1:] else victim)
    return victim, output


def test_nothing_is_written_through_a_link(tiny, tmp_path):
    """Whatever a command writes below its output: through links that lie there beforehand it ends nowhere."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis.txt").write_text("years")
    clips = str(tiny / "clips" / "val")

    def output(name: str, *links: str) -> Path:
        for link in links:
            place = tmp_path / name / link
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(victim / "thesis.txt" if "." in place.name[1:] else victim)
        return tmp_path / name

    def evaluate(*links):
        files = ClipsConfig(root=clips, dataset="tiny")
        config = EvaluationConfig(
            output=str(output("evaluation", *links)), checkpoints={"tiny": str(tiny / "model")}, clips=files,
            num_shown_clips=1, tasks=("rgb2gaze",), device="cpu", progress=False,
        )  # fmt: skip
        run_evaluation(config)

    def generate(*links):
        config = GenerationConfig(
            checkpoint=str(tiny / "model"), input=clips, targets=("gaze",), output=str(output("generated", *links)),
            join="none", device="cpu", progress=False, max_clips=1,
        )  # fmt: skip
        run_generation(config)

    def tokenize_clips(*links):
        names = {f"tok_{name}": name for name in tiny_artifacts.TOKENIZERS}
        config = TokenizeConfig(
            clips=clips, tokenizers_root=str(tiny / "tokenizers"), tokenizers=names,
            output=str(output("tokens", *links)), device="cpu",
        )  # fmt: skip
        tokenize(config)

    def download_stand_ins(*links):
        synthetic = SyntheticDataConfig(clips_per_combination=1, vocab_size=600, architecture=LLAMA)
        download(DownloadConfig(output=str(output("download", *links)), source="synthetic", synthetic=synthetic))

    def export(*links):
        words = {"title": "t", "data": "d", "commands": ("c",), "limits": "l", "summary": "s"}
        config = ExportModelConfig(checkpoint=str(tiny / "model"), output=str(output("export", *links)), **words)
        export_model(config)

    def log(*links):
        folder = output("run", *links)
        RunLog(folder, length=Length("steps", 1, 0), wandb_config=WandbConfig(), settings={}).evaluation(Progress(), ())

    key = ClipStore(clips, "tiny").keys[0]
    for run, links in (
        (evaluate, ("results.json", "per_clip.csv", "results.md")),
        (evaluate, ("shown",)),
        (evaluate, ("finished",)),
        (generate, (key,)),
        (generate, ("manifest.json",)),
        (tokenize_clips, ("gaze",)),
        (tokenize_clips, (".ledger",)),
        (download_stand_ins, ("datasets",)),
        (export, ("",)),
        (log, ("log.jsonl",)),
    ):
        with contextlib.suppress(ValueError, OSError):  # refused, or the link is replaced by a file of ours
            run(*links)
        assert contents(victim) == {"thesis.txt": b"years"}, f"{run.__name__} {links}"
        for folder in tmp_path.iterdir():
            if folder != victim:
                folder.unlink() if folder.is_symlink() else shutil.rmtree(folder)


@pytest.mark.parametrize(
    "links",
    [
        ("meta",),
        ("rgb",),
        ("meta/home",),
        ("meta/home_train", "meta/home_val"),
        ("meta/home/contact_sheets",),
        ("meta/home/prepare_plan.json",),
        ("meta/home_val/card.json",),
        ("meta/home/prepare_report.json",),
    ],
)
def test_clips_are_prepared_below_their_output_only(tmp_path, links):
    victim, folder = laid_links(tmp_path, "clips", links)
    (tmp_path / "recordings" / "a").mkdir(parents=True)
    write_video(tmp_path / "recordings" / "a" / "video.mp4", np.full((120, 24, 32, 3), 60, np.uint8), 30)
    config = PrepareConfig(
        source={"kind": "plain_folder", "root": str(tmp_path / "recordings")}, clip={"height": 16, "width": 16},
        output=str(folder), dataset="home", split={"fractions": {"val": 1.0}},
    )  # fmt: skip
    if links == ("meta/home/prepare_report.json",):  # replaced by a file of ours
        assert prepare(config).num_clips == 2
    else:
        with pytest.raises(ValueError, match="leads out of|not valid JSON"):  # plans and cards are read first
            prepare(config)
    assert contents(victim) == {"thesis.txt": b"years", "theirs.npz": b"theirs"}


def test_a_table_of_drift_or_of_a_probe_is_written_through_no_link(tiny, tmp_path):
    tables = ("results.json", "results.md", "per_clip.csv")
    rooms = {"num_rooms": 1, "first_seed": 5, "duration_s": 2.5, "camera": {"height": 32, "width": 32}}
    drift = {
        "recordings": {"rooms": {"source": {"kind": "synthetic", "world": rooms}, "segments_m": [0.05]}},
        "rows": {"round trip": {"is_ceiling": True}},
    }
    probe = {
        "train": {"root": str(tiny / "clips" / "train"), "dataset": "tiny"},
        "test": {"root": str(tiny / "clips" / "val"), "dataset": "tiny"},
        "inputs": ["gaze"],
        "labels": {"region": {"kind": "cell", "stream": "gaze"}},
    }
    for run, schema, values in ((run_drift, DriftConfig, drift), (run_probe, ProbeConfig, probe)):
        victim, folder = laid_links(tmp_path / schema.__name__, "out", tables)
        values = values | {"output": str(folder), "checkpoint": str(tiny / "model"), "device": "cpu", "progress": False}
        run(from_plain(schema, values))
        assert contents(victim) == {"thesis.txt": b"years", "theirs.npz": b"theirs"}
        assert all((folder / name).is_file() and not (folder / name).is_symlink() for name in tables)


def test_files_of_the_hubs_cache_are_pushed(tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "1234").write_text("{}")
    (snapshot / "model.json").symlink_to(os.path.relpath(blobs / "1234", snapshot))
    assert list(pushable_files(snapshot)) == ["model.json"]


def changed(value, path, new):
    """Plain values with the value at a path of keys replaced, or with `DROP` left out."""
    if not path:
        return new
    if isinstance(value, list):
        return [changed(item, path[1:], new) if number == path[0] else item for number, item in enumerate(value)]
    return {key: changed(item, path[1:], new) if key == path[0] else item for key, item in value.items()} | (
        {path[0]: new} if len(path) == 1 and path[0] not in value else {}
    )


WRONG_MODELS = {
    "extra key of a modality": (("modalities", 0, "evil"), 1, "evil"),
    "no grid": (("modalities", 0, "grid"), None, "grid"),
    "vocabulary as text": (("modalities", 0, "vocab_size"), "12", "vocab_size"),
    "vocabulary of a fraction": (("modalities", 0, "vocab_size"), 12.5, "vocab_size"),
    "vocabulary as truth": (("modalities", 0, "vocab_size"), True, "vocab_size"),
    "grid of texts": (("modalities", 0, "grid"), ["a"], "grid"),
    "endless grid": (("modalities", 0, "grid"), [1 << 20, 1 << 20, 1 << 20], "grid"),
    "name that leads away": (("modalities", 0, "name"), "../x", "plain name"),
    "folder that leads away": (("modalities", 0, "folder"), "/home", "plain name"),
    "kind is a list": (("modalities", 0, "kind"), [], "kind"),
    "rate is nan": (("modalities", 0, "rate_hz"), float("nan"), "rate_hz"),
    "modality is null": (("modalities", 0), None, "modalities"),
    "modalities are text": (("modalities",), "x", "modalities"),
    "no modalities": (("modalities",), [], "modalities"),
    "model is null": (("model",), None, "model"),
    "model is a list": (("model",), [1], "model"),
    "unknown key of the model": (("model", "evil"), 1, "evil"),
    "width of billions": (("model", "dim"), 2_000_000_000, "dim"),
    "endless depth": (("model", "encoder_depth"), 100_000_000, "encoder_depth"),
    "negative depth": (("model", "encoder_depth"), -100_000_000, "encoder_depth"),
    "tokenizers are a list": (("tokenizers",), ["a"], "tokenizers"),
    "tokenizer is a number": (("tokenizers", "tok_gaze"), 3, "tokenizers"),
}


@pytest.mark.parametrize("case", WRONG_MODELS)
def test_a_wrong_model_file_is_one_error_with_file_and_key(tiny, tmp_path, case):
    path, new, said = WRONG_MODELS[case]
    shutil.copytree(tiny / "model", tmp_path / "model")
    save_json(tmp_path / "model" / "model.json", changed(load_json(tiny / "model" / "model.json"), path, new))
    with pytest.raises(ValueError, match=rf"model\.json(?s:.)*{said}"):
        load_checkpoint(tmp_path / "model", device="cpu")


NO_JSON = {
    "list": b"[]",
    "null": b"null",
    "empty": b"",
    "broken": b"{",
    "deep": b"[" * 200_000,
    "digits": b'{"model": ' + b"1" * 5000 + b"}",
    "not utf-8": b'{"a": "\xff"}',
    "empty mapping": b"{}",
}


@pytest.mark.parametrize("case", NO_JSON)
def test_cards_that_are_none_are_named(tiny, tmp_path, case):
    tokenizer = next(iter(tokenizer_locations(tiny / "model").values()))
    copies = {
        "model.json": tiny / "model",
        "tokenizer.json": Path(tokenizer),
        "card.json": tiny / "tokens/train/gaze/tiny",
    }
    reads = {
        "model.json": lambda folder: load_checkpoint(folder, device="cpu"),
        "tokenizer.json": load_tokenizer,
        "card.json": read_card,
    }
    for name, source in copies.items():
        shutil.copytree(source, tmp_path / name)
        (tmp_path / name / name).write_bytes(NO_JSON[case])
        if (name, case) == ("card.json", "empty mapping"):
            continue  # nothing is said, nothing is wrong
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            reads[name](tmp_path / name)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        (("config",), []),
        (("config", "architecture"), ["video_codec"]),
        (("config", "architecture"), "os.system"),
        (("config", "folder"), "../../x"),
        (("config", "dim"), 3_000_000_000),
        (("config", "encoder_depth"), 5_000),
        (("fingerprint",), 3),
        (("checksum",), None),
    ],
    ids=str,
)
def test_a_wrong_tokenizer_card_is_one_error(tiny, tmp_path, path, new):
    shutil.copytree(tiny / "tokenizers" / "gaze", tmp_path / "gaze")
    save_json(tmp_path / "gaze" / "tokenizer.json", changed(load_json(tmp_path / "gaze" / "tokenizer.json"), path, new))
    with pytest.raises(ValueError, match=rf"tokenizer\.json(?s:.)*{path[-1]}|plain name"):
        load_tokenizer(tmp_path / "gaze")


@pytest.mark.parametrize(
    "ties",
    ["[]", "null", "{", "[" * 100_000, '{"b": "c"}', '{"b": 3}', '{"a": "a"}', "1" * 5000],
    ids=lambda text: text[:12],
)
def test_wrong_metadata_of_weights_is_one_error(tmp_path, ties):
    save_file({"a": torch.zeros(2)}, str(tmp_path / "x.safetensors"), metadata={"tied": ties})
    for read in (load_tensors, tensor_shapes, load_tensor_metadata, lambda path: list(stream_tensors(path))):
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, b"\xff" * 64, b"\x10" + b"\x00" * 7 + b"{" * 16])
def test_what_is_no_safetensors_file_is_named(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    for read in (load_tensors, tensor_shapes, load_tensor_metadata):
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "meta",
    [
        b"null", b"[]", b"{}", b'{"units": {}}', b"[" * 100_000, b"\xff",
        b'{"units": {"gaze": 3}, "intrinsics": null, "provenance": {"dataset": "a", "recording": "b"}, "extra": {}}',
        b'{"units": {}, "intrinsics": null, "provenance": {"dataset": "a", "recording": "b"}, "extra": {}}',
        b'{"units": {}, "intrinsics": {"width": "x"}, "provenance": {"dataset": "a", "recording": "b"}, "extra": {}}',
        b'{"units": {}, "intrinsics": null, "provenance": null, "extra": {}}',
        b'{"units": {}, "intrinsics": null, "provenance": {}, "extra": {}, "evil": 1}',
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_what_a_clip_says_of_itself_is_checked(tmp_path, meta):
    contents = encode_clip(tiny_artifacts.invented_clip(0))
    with ShardWriter(tmp_path, "toy", clip_folders(("gaze",))) as writer:
        writer.write("a", {"meta": meta, "gaze": contents["gaze"]})
    with pytest.raises(ValueError, match=r"meta/toy/shard-000000.tar: clip a"):
        ClipStore(tmp_path, "toy")[0]


def bomb(num_bytes: int, *, is_lying: bool = False) -> bytes:
    """An npz whose array is announced with so many bytes; packed zeros, or nothing at all."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (num_bytes,)})
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("values.npy", "w", force_zip64=True) as out,
    ):
        out.write(head.getvalue())
        for _ in range(0 if is_lying else num_bytes >> 24):
            out.write(bytes(1 << 24))
    return file.getvalue()


@pytest.mark.parametrize("is_lying", [False, True], ids=["zeros", "nothing"])
def test_an_array_that_unpacks_to_gigabytes_is_not_unpacked(tmp_path, is_lying):
    content = bomb(3 << 30, is_lying=is_lying)
    assert len(content) < 4 << 20
    (tmp_path / "a.npz").write_bytes(content)
    tracemalloc.start()
    for read in (
        lambda: decode_array(content, "npz"),
        lambda: load_npz(tmp_path / "a.npz"),
        lambda: read_npz(io.BytesIO(content)),
    ):
        with pytest.raises(ValueError, match="would take 3221225600 bytes|announces 3221225600 bytes"):
            read()
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


ALLOWED = {
    "torch.load(": {"storage/foreign_checkpoints.py"},  # weights_only, tested there
    "torch.jit.load(": {"storage/torchscript_archives.py"},  # by hash, when asked for
    "import pickle": {"storage/foreign_checkpoints.py", "storage/torchscript_archives.py"},
    # names of ours, not of files
    "import_module(": {
        "__init__.py",
        "__main__.py",
        "anytoany/evaluation/harness.py",
        "data/recordings/reader_parts.py",
        "pipelines/teacher_labels.py",  # of the function that the config of a run names
    },
    "__import__(": {"data/recordings/reader_parts.py"},  # of packages named in readers
}
FORBIDDEN = [
    *ALLOWED,
    "os.system(",
    "shell=True",
    "allow_pickle=True",
    "trust_remote_code=True",
    "yaml.load(",
    "marshal",
]
FORBIDDEN += [
    "dill",
    "import joblib",
    "import shelve",
    "os.popen(",
    "extractall(",
    "unsafe_load",
    "from pickle",
    "pty.spawn(",
]
# Words for what was read in a file: a path is made of them by `inside`, or they were checked where they were read.
READ_SOMEWHERE = {"key", "dataset", "modality", "folder", "stream", "ref", "member"}
CHECKED_JOINS = {
    "setup.py": {"HERE / folder"},  # folders of the package
    "config/composition.py": {"file.parent / key", "cfgs_root() / key"},  # of configs, which are ours
    "data/clips/clip_store.py": {"joined(root, folder, dataset)", "joined(root, META, dataset)"},  # read only
    "data/recordings/lerobot_writer.py": {"videos/{key}/chunk-"},  # keys are names of streams, plain ones
    "data/shards/shard_writer.py": {"Path(root) / folder", "Path(root) / folder / dataset"},  # checked by its writer
    "generation/generation.py": {"self.folder / key"},  # read only, and keys of clips are plain
    "pipelines/prepare.py": {"/ META / dataset", "/ META / config.dataset"},  # plain by the config
    "pipelines/token_shards.py": {"_NOTES, self.dataset", "joined(self.output, folder, self.dataset)", "dataset)"},
    "pipelines/tokenization.py": {"META, dataset)", "tokenizer.spec.folder, dataset)", "tokenize_report-{dataset}"},
    "training/tasks/pretrain_config.py": {"Path(root, folder)"},  # of the config, read only
}


def dangers(text: str, name: str) -> list[str]:
    """What of a source file could run, unpickle or reach what a stranger's file says."""
    found = [word for word in FORBIDDEN if word in text and name not in ALLOWED.get(word, ())]
    for node in ast.walk(ast.parse(text)):
        if any(_is_read_somewhere(part) for part in _joined_parts(node)):
            shown = ast.unparse(node)
            if not any(allowed in shown for allowed in CHECKED_JOINS.get(name, ())):
                found.append(f"a path of a name that was read: {shown}")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if (
            called in ("eval", "exec", "compile")
            or called.startswith("pickle.")
            and name not in ALLOWED["import pickle"]
        ):
            found.append(called)
        if called.startswith("Auto") and called.endswith(("from_pretrained", "from_config")):
            wanted = {"trust_remote_code": "False"}
            if called.startswith("AutoModel") and called.endswith("from_pretrained"):
                wanted["use_safetensors"] = "True"
            found += [f"{called} without {key}={value}" for key, value in wanted.items() if options.get(key) != value]
        if called in ("np.load", "numpy.load", "load") and options.get("allow_pickle", "False") != "False":
            found.append(f"{called} with allow_pickle={options['allow_pickle']}")
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append("torch.load without weights_only=True")
    return found


def _joined_parts(node: ast.AST) -> list[ast.expr]:
    """What is put behind a folder, in an expression that makes a path."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and not isinstance(node.left, ast.Constant):
        return [node.right]
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    if called in ("Path", "joined", "os.path.join"):
        return node.args[1:]
    return node.args if called.endswith(".joinpath") else []


def _is_read_somewhere(part: ast.expr) -> bool:
    words = [word.id if isinstance(word, ast.Name) else getattr(word, "attr", None) for word in ast.walk(part)]
    words += [
        word.value for word in ast.walk(part) if isinstance(word, ast.Constant) and isinstance(part, ast.Subscript)
    ]
    is_path = isinstance(part, ast.Name | ast.Attribute | ast.JoinedStr | ast.Subscript)
    return is_path and not READ_SOMEWHERE.isdisjoint(word for word in words if isinstance(word, str))


def test_no_file_of_a_stranger_can_run_anything():
    """No unpickling but in the two places that refuse everything, no shell, no code of models, no `eval`, no path of a
    name that nobody checked."""
    root = Path(egom2p.__file__).parent
    for path in sorted([*root.rglob("*.py"), *root.parent.glob("*.py")]):
        name = path.relative_to(root if path.is_relative_to(root) else root.parent).as_posix()
        assert not (found := dangers(path.read_text(), name)), f"{name}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "pickle.load(file)", "import dill", "os.system(text)",
        "os.popen(text)",
        "subprocess.run(text, shell=True)", "eval(text)", "exec(text)", "compile(text, '', 'exec')", "torch.load(path)",
        "torch.load(path, weights_only=False)", "torch.jit.load(path)", "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=wanted)", "yaml.load(text)", "archive.extractall(folder)", "__import__(text)",
        "importlib.import_module(text)", "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(path)", "AutoConfig.from_pretrained(path, trust_remote_code=True)",
        "AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)", "folder / key", "output / clip.key",
        "root / f'{key}.npz'", "Path(output, dataset)", "folder / note['key']", "os.path.join(root, member)",
        "root.joinpath(spec.folder)", "joined(self.output, modality)",
    ],
)  # fmt: skip
def test_what_could_run_something_is_found(line):
    """Each line, put into a file of ours, is one that the test above fails by."""
    assert dangers(f"def f():\n    {line}\n" if " import" not in line and "import " not in line else line, "a/b.py")
    assert dangers(f"def f():\n    {line}\n", "generation/stitching.py")


def test_lines_of_no_danger_are_none():
    for line in (
        "inside(output, key)",
        "a / b",
        "np.load(path)",
        "number / 2",
        "folder / 'clip.json'",
        "json.loads(x)",
    ):
        assert not dangers(line, "a/b.py"), line


@pytest.mark.parametrize("name", ["../../victim/a", "/tmp/a", "a/b", 3])
def test_keys_in_the_notes_of_a_folder_lead_nowhere_else(tmp_path, name):
    """manifest.json and results.json of somebody else name clips; pages read them, recordings are written beside."""
    save_json(tmp_path / "out" / "manifest.json", {"clips": [{"key": name, "made_streams": []}], "settings": {}})
    with pytest.raises(ValueError, match="is not one plain name"):
        write_rerun_recordings(RerunConfig(folder=str(tmp_path / "out")))
