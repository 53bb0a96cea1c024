"""Tokenizing much: resumed at the clip, shared, bounded in memory, from and to folders, tars and buckets."""

import io
import json
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_clips import FOLDERS, tiny_clip, tiny_config

from egom2p.data.clips.clip_store import ClipStore, write_clips
from egom2p.data.shards.folder_set import FolderSet
from egom2p.data.shards.shard_set import ShardSet, shard_pattern
from egom2p.pipelines.clip_encoding import ClipEncoder, PreparedClips, ReadingTimes, ReadTask, read_ahead
from egom2p.pipelines.token_shards import TokenShards
from egom2p.pipelines.tokenization import tokenize
from egom2p.storage.remote import list_names, read_bytes


@pytest.fixture
def made(tmp_path, rng):
    return tiny_config(tmp_path, rng)


def tars(root) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob("shard-*.tar"))}


class Stopped(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch):
    """Make the n-th batch from now on end the run; tells which clips were encoded."""
    encoded: list[str] = []
    plain = ClipEncoder.encode

    def arm(count):
        encoded.clear()

        def encode(self, prepared):
            if len(encoded) >= count:
                raise Stopped
            encoded.extend(prepared.keys)
            return plain(self, prepared)

        monkeypatch.setattr(ClipEncoder, "encode", encode)
        return encoded

    return arm


def test_an_interrupted_run_continues_at_the_clip(made, tmp_path, stop_after):
    tokenize(replace(made, output=str(tmp_path / "whole")))
    stop_after(5)
    with pytest.raises(Stopped):
        tokenize(made)
    ledger = next(Path(made.output).rglob("rows.jsonl"))
    with ledger.open("a") as opened:
        opened.write('{"key": "c5", "ids": {"rgb": "tor')  # killed while writing
    encoded = stop_after(100)
    (report,) = tokenize(made)
    assert encoded == ["c5", "c6"]
    assert report.num_clips == 7 and report.is_complete and report.num_checked == 7
    assert tars(made.output) == tars(tmp_path / "whole")
    assert not list(Path(made.output).rglob("rows.jsonl"))


@pytest.mark.parametrize("layout", ["tars", "files"])
def test_nothing_half_written_outlives_the_run_that_goes_on(made, tmp_path, layout, monkeypatch):
    """Killed between the tokens and their note; beside them the halves that atomic writing leaves after a kill."""
    made = replace(made, layout=layout)
    (whole,) = tokenize(replace(made, output=str(tmp_path / "whole")))
    save_note = TokenShards._save_note
    monkeypatch.setattr(TokenShards, "_save_note", lambda *_: (_ for _ in ()).throw(Stopped))
    with pytest.raises(Stopped):
        tokenize(made)
    monkeypatch.setattr(TokenShards, "_save_note", save_note)
    halves = [
        "rgb/full/.card.json",
        ".ledger/full/.shard-000000.npz",
        ".tokenize_report-full.json",
    ]
    halves += ["rgb/full/.c1.npy"] if layout == "files" else []
    for name in halves:
        Path(made.output, f"{name}.unfinished-0a1b2c3d").write_bytes(b"half")
    foreign = Path(made.output, "rgb/full/.other.unfinished-0a1b2c3d")
    foreign.write_bytes(b"somebody else's")
    (report,) = tokenize(made)
    assert list(Path(made.output).rglob("*.unfinished-*")) == [foreign]
    assert report.num_checked == whole.num_checked == 7 and report.round_trip == whole.round_trip
    assert not list(Path(made.output).rglob("rows.jsonl"))


def test_a_ledger_of_other_settings_is_not_continued(made, stop_after):
    stop_after(2)
    with pytest.raises(Stopped):
        tokenize(made)
    encoded = stop_after(100)
    tokenize(replace(made, dtype="bf16"))
    assert encoded[:2] == ["c0", "c1"] and len(encoded) == 7


def test_a_shard_in_work_is_held(made):
    from egom2p.storage import only_writer

    with (
        only_writer(Path(made.output, ".ledger", "full", "shard-000000")),
        pytest.raises(ValueError, match="shard-000000: another process is writing here"),
    ):
        tokenize(made)


def test_the_report_of_the_last_rank_is_of_all(made, tmp_path, monkeypatch):
    (alone,) = tokenize(replace(made, output=str(tmp_path / "alone")))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (first,) = tokenize(made)
    assert (first.num_finished, first.num_shards, first.num_clips) == (1, 3, 3)
    assert not Path(made.output, "tokenize_report-full.json").exists()
    monkeypatch.setenv("RANK", "0")
    (last,) = tokenize(made)
    for field in ("num_clips", "modalities", "num_finished", "skipped"):
        assert getattr(last, field) == getattr(alone, field)
    for name, errors in alone.round_trip.items():
        assert last.round_trip[name] == pytest.approx(errors)
    saved = json.loads(Path(made.output, "tokenize_report-full.json").read_text())
    assert saved["report"]["num_clips"] == 7
    assert [path.name for path in Path(made.output).glob("*.json")] == ["tokenize_report-full.json"]


def damaged_store(made, tmp_path):
    """Replace one clip of the gaze tars by bytes that are no archive, of the same length."""
    path = tmp_path / "clips" / "gaze" / "full" / "shard-000001.tar"
    with tarfile.open(path) as archive:
        member = archive.getmember("c4.npz")
    with path.open("r+b") as opened:
        opened.seek(member.offset_data)
        opened.write(b"x" * member.size)


@pytest.mark.parametrize("num_workers", [0, 3])
def test_corrupt_clips_are_listed_and_skipped_or_end_the_run(made, tmp_path, num_workers):
    damaged_store(made, tmp_path)
    with pytest.raises(ValueError, match=r"gaze/full/shard-000001\.tar: clip c4: not a readable stream"):
        tokenize(replace(made, num_workers=num_workers))
    (report,) = tokenize(replace(made, bad_clips="skip", num_workers=num_workers))
    assert list(report.skipped) == ["c4"] and "not a readable stream" in report.skipped["c4"]
    assert report.num_clips == 6 and ShardSet(shard_pattern(made.output, "full", FOLDERS)).verify() == 6
    (again,) = tokenize(replace(made, bad_clips="skip"))
    assert again.skipped == report.skipped and again.clips_per_s is None


def test_workers_and_memory_change_nothing(made, tmp_path):
    tokenize(replace(made, num_workers=0))
    for name, changes in {"many": {"num_workers": 4}, "narrow": {"num_workers": 4, "memory_gb": 1e-9}}.items():
        tokenize(replace(made, output=str(tmp_path / name), **changes))
        assert tars(tmp_path / name) == tars(made.output)


def fake_tasks(count):
    return [ReadTask(0, (number,), (f"c{number}",), (False,)) for number in range(count)]


@pytest.mark.parametrize(("max_bytes", "most"), [(350, 350), (10, 100), (10**6, 600)])
def test_what_waits_is_bounded_in_bytes(max_bytes, most):
    times = ReadingTimes()

    def prepare(task):
        return PreparedClips(task, task.keys, {}, {}, {}, num_bytes=100)

    found = []
    for prepared in read_ahead(fake_tasks(20), prepare, num_workers=3, max_bytes=max_bytes, times=times):
        time.sleep(0.005)  # the encoder is slow, so as much as allowed is read ahead
        found += prepared.keys
    assert found == [f"c{number}" for number in range(20)]
    assert times.largest_bytes <= most
    assert most == 100 or times.largest_bytes > 200


def test_an_error_of_a_reader_is_raised_in_its_turn():
    def prepare(task):
        if task.indices[0] == 2:
            raise OSError("disk is gone")
        return PreparedClips(task, task.keys, {}, {}, {}, num_bytes=1)

    found = []
    with pytest.raises(OSError, match="disk is gone"):
        for prepared in read_ahead(fake_tasks(9), prepare, num_workers=3, max_bytes=100, times=ReadingTimes()):
            found += prepared.keys
    assert found == ["c0", "c1"]


def loose(store_root, target):
    """The same clips as plain files."""
    for tar in Path(store_root).rglob("shard-*.tar"):
        with tarfile.open(tar) as archive:
            archive.extractall(target / tar.parent.relative_to(store_root), filter="data")
    return target


def test_plain_files_are_read_and_written(made, tmp_path):
    tokenize(made)
    folder = loose(made.clips, tmp_path / "loose")
    assert ClipStore(folder, "full").keys == ClipStore(made.clips, "full").keys
    config = replace(made, clips=str(folder), output=str(tmp_path / "files"), layout="files", clips_per_shard=4)
    (report,) = tokenize(config)
    assert (report.num_clips, report.num_shards) == (7, 2)
    wanted = ShardSet(shard_pattern(made.output, "full", FOLDERS))
    found = FolderSet(f"{config.output}/[{','.join(FOLDERS)}]/full")
    assert found.keys == wanted.keys
    for row in range(7):
        for name in FOLDERS:
            np.testing.assert_array_equal(found.read_array(row, name), wanted.read_array(row, name))


@pytest.fixture
def bucket(monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="lab")
        yield client


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_buckets_are_read_and_written(made, tmp_path, bucket, stop_after):
    tokenize(made)
    wanted = tars(made.output)
    for path in Path(made.clips).rglob("*.tar"):
        bucket.upload_file(str(path), "lab", f"in/{path.relative_to(made.clips)}")
    config = replace(made, clips="s3://lab/in", output="s3://lab/out/v1", work_dir=str(tmp_path / "work"))
    stop_after(3)
    with pytest.raises(Stopped):
        tokenize(config)
    assert [name for name in list_names("s3://lab/out/v1/rgb/full")[1] if name.endswith(".tar")] == ["shard-000000.tar"]
    encoded = stop_after(100)
    (report,) = tokenize(config)
    assert encoded == ["c3", "c4", "c5", "c6"] and report.num_clips == 7 and report.is_complete
    found = {name: read_bytes(f"s3://lab/out/v1/{name}") for name in wanted}
    assert found == wanted
    saved = json.loads(read_bytes("s3://lab/out/v1/tokenize_report-full.json"))
    assert saved["report"]["num_finished"] == 3
    assert not list((tmp_path / "work").rglob("*.tar"))
    (again,) = tokenize(config)
    assert again.clips_per_s is None and len(encoded) == 4


def test_notes_of_other_clips_are_refused(made, tmp_path, rng):
    tokenize(made)
    other = [tiny_clip(f"d{i}", rng) for i in range(7)]
    write_clips(tmp_path / "other", "full", other, clips_per_shard=3)
    with pytest.raises(ValueError, match="shard 0 was made of other clips"):
        tokenize(replace(made, clips=str(tmp_path / "other")))


def test_tars_without_notes_are_counted_not_made_again(made, stop_after):
    (before,) = tokenize(made)
    for note in Path(made.output, ".ledger").rglob("shard-*"):
        note.unlink()
    encoded = stop_after(100)
    (after,) = tokenize(made)
    assert encoded == [] and after.modalities == before.modalities and after.num_clips == 7


def test_bf16_and_compiled_encoders_keep_the_shape(made, tmp_path):
    tokenize(made)
    tokenize(replace(made, output=str(tmp_path / "bf16"), dtype="bf16"))
    plain, half = (ShardSet(shard_pattern(root, "full", FOLDERS)) for root in (made.output, tmp_path / "bf16"))
    same = [np.mean(plain.read_array(row, "rgb") == half.read_array(row, "rgb")) for row in range(7)]
    assert half.verify() == 7 and np.mean(same) > 0.8


@pytest.mark.slow
def test_compiled_encoders_make_the_same_ids(made, tmp_path):
    tokenize(made)
    tokenize(replace(made, output=str(tmp_path / "compiled"), compile=True))
    plain, compiled = (ShardSet(shard_pattern(root, "full", FOLDERS)) for root in (made.output, tmp_path / "compiled"))
    for row in range(7):
        assert np.mean(plain.read_array(row, "rgb") == compiled.read_array(row, "rgb")) > 0.99


def test_a_round_trip_worse_than_the_card_is_said(made, tmp_path, capsys):
    file = tmp_path / "tokenizers" / "cam" / "tokenizer.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"metrics": {"ate_m": 1e-6}}))
    (report,) = tokenize(replace(made, report_every_s=0.0))
    reported = capsys.readouterr().err
    assert "look: tok_cam: ate_m is" in reported and "clips/s" in reported and "left, waited" in reported
    assert report.num_checked == 7


def test_checked_clips_are_spread(made):
    (report,) = tokenize(replace(made, num_check_clips=2))
    notes = [json.loads(path.read_text()) for path in sorted(Path(made.output, ".ledger").rglob("*.json"))]
    assert [sorted(note["checks"]) for note in notes] == [["c1"], ["c5"] if "c5" in notes[1]["checks"] else ["c4"], []]
    assert report.num_checked == 2


def test_counts_are_readable_elsewhere(made):
    tokenize(made)
    content = next(Path(made.output, ".ledger").rglob("shard-000000.npz")).read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as counts:
        assert sorted(counts.files) == sorted(FOLDERS) and counts["gaze"].sum() == 3 * 6
