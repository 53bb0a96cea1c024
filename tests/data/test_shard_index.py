"""The packed index: it says what the tars say, is made once, is small, and never believed when stale or damaged."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from token_shards import tiny_specs, write_tokens

from egom2p.data.masking import AlphasConfig, ModalityAlphas
from egom2p.data.shards import shard_index
from egom2p.data.shards.shard_files import Member, read_index
from egom2p.data.shards.shard_index import IndexFile, ShardIndex, main, pack_shard
from egom2p.data.shards.shard_set import ShardSet, ShardWriter, encode_array, shard_pattern
from egom2p.data.unified_datasets import DataConfig, DatasetConfig, TokenLoader
from egom2p.storage import only_writer

SPECS = tiny_specs()


def write(root, num_clips=7, clips_per_shard=3, folders=("rgb", "cam"), name="kitchen_01_{:06d}"):
    with ShardWriter(root, "toy", dict.fromkeys(folders, "npy"), clips_per_shard=clips_per_shard) as writer:
        for number in range(num_clips):
            content = encode_array(np.full(3 + number % 2, number))
            if (key := name.format(number)) not in writer.finished_keys:
                writer.write(key, dict.fromkeys(folders, content))
    return shard_pattern(root, "toy", list(folders))


def index_of(root, folder="rgb"):
    return Path(root, folder, "toy", ".index", "shards")


def what(shards):
    return [(shards.key(i), *(shards.read(i, folder) for folder in shards.folders)) for i in range(len(shards))]


@pytest.fixture
def headers_read(monkeypatch):
    """Paths of the tars whose headers are read from here on."""
    read = []

    def counted(path):
        read.append(os.path.relpath(path, Path(path).parents[2]))
        return read_index(path)

    monkeypatch.setattr(shard_index, "read_index", counted)
    return read


def test_the_index_says_what_the_headers_say(tmp_path, rng):
    """Any keys: shared beginnings, none, other alphabets, names longer than a tar's header holds; several suffixes."""
    keys = [f"kitchen_{n:04d}" for n in range(40)] + ["a", "ab", "Ж_küche", "x" * 190, "x" * 189 + "y", "z" * 99]
    keys += ["".join(rng.choice(list("ab_"), 12)) + str(n) for n in range(20)]
    path = tmp_path / "rgb" / "toy" / "shard-000000.tar"
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as archive:
        for number, key in enumerate(keys):
            file = tmp_path / "file"
            file.write_bytes(bytes([number]) * (600 * (number % 5)))
            archive.add(file, f"{'./' * (number % 3 == 0)}{key}.{('npy', 'npz', 'a.json')[number % 3]}")
    shards = ShardSet(shard_pattern(tmp_path, "toy", ["rgb"]))
    wanted = read_index(str(path))
    assert shards.keys == [member.key for member in wanted] == [shards.key(i) for i in range(len(wanted))] == keys
    for number, member in enumerate(wanted):
        assert shards.suffix(number, "rgb") == member.suffix
        assert shards.read(number, "rgb") == bytes([number]) * member.size
    assert what(pickle.loads(pickle.dumps(shards))) == what(shards)


def test_the_index_is_made_once_and_only_new_or_changed_shards_are_read(tmp_path, headers_read):
    pattern = write(tmp_path, num_clips=6)
    before = what(ShardSet(pattern))
    assert sorted(headers_read) == sorted(f"{f}/toy/shard-00000{n}.tar" for f in ("rgb", "cam") for n in (0, 1))
    headers_read.clear()
    assert what(ShardSet(pattern)) == before and headers_read == []
    write(tmp_path, num_clips=8)
    assert what(ShardSet(pattern))[:6] == before and ShardSet(pattern).verify() == 8
    assert sorted(headers_read) == ["cam/toy/shard-000002.tar", "rgb/toy/shard-000002.tar"]
    headers_read.clear()
    other = write(tmp_path / "other", num_clips=6, name="garden_02_{:06d}")
    for folder in ("rgb", "cam"):  # the same size, another content
        shutil.copyfile(tmp_path / f"other/{folder}/toy/shard-000001.tar", tmp_path / f"{folder}/toy/shard-000001.tar")
    assert what(ShardSet(pattern))[3:6] == what(ShardSet(other))[3:]
    assert sorted(path for path in headers_read if "000001" in path)[::2] == ["cam/toy/shard-000001.tar"] * 1 + [
        "rgb/toy/shard-000001.tar"
    ]
    for folder in ("rgb", "cam"):
        (tmp_path / folder / "toy" / "shard-000002.tar").unlink()
    assert len(ShardSet(pattern)) == 6


def test_readers_of_parts_of_a_folder_share_its_index(tmp_path, headers_read):
    pattern = write(tmp_path, num_clips=9)
    for part in ("{000000..000001}", "{000002..000002}", "{000000..000001}", "*"):
        ShardSet(pattern.replace("*", part)).verify()
    assert sorted(headers_read) == sorted(f"{f}/toy/shard-00000{n}.tar" for f in ("rgb", "cam") for n in range(3))


def test_a_clip_costs_less_than_48_bytes(tmp_path):
    """Four folders: what lies in pages that a training touches, the members of all and the keys of the first."""
    name, num_clips = "cmu_bike01_2_{:06d}", 4000
    members = [Member(name.format(7 * n), "npy", 1536 * (n + 1) - 1024, 248) for n in range(num_clips)]
    packed = pack_shard("shard-000000.tar", 1536 * num_clips + 1024, "1", members)
    assert 4 * len(packed.members) + len(packed.keys) <= 48 * num_clips
    ShardSet(write(tmp_path, num_clips=400, clips_per_shard=200))
    assert index_of(tmp_path).stat().st_size <= 20 * 400


def test_training_order_and_batches_are_those_of_before(tmp_path):
    """The digest was taken of the loader that kept all headers as Python objects."""
    both = ModalityAlphas(input_alphas=[0.1, 1.0], target_alphas=[0.1, 1.0])
    alphas = AlphasConfig(alphas_mixture={spec.name: both for spec in SPECS})

    def dataset(pattern, weight):
        return DatasetConfig(shards=pattern, alphas=alphas, max_input_tokens=10, max_target_tokens=10, weight=weight)

    full = write_tokens(tmp_path, SPECS, num_clips=20)
    partial = write_tokens(tmp_path, SPECS[:2], dataset="partial", num_clips=9, suffix="npz")
    config = DataConfig(datasets={"full": dataset(full, 2.0), "partial": dataset(partial, 1.0)}, shards_per_block=2)
    for _ in range(2):  # with an index made, and with one found
        digest = hashlib.sha256()
        for batch in islice(TokenLoader(config, SPECS, batch_size=4, seed=5).batches(8), 40):
            for column in ("input_ids", "target_ids", "input_position", "target_position", "input_offsets"):
                digest.update(np.asarray(getattr(batch, column), np.int64).tobytes())
        assert digest.hexdigest()[:16] == "6432c23edf3210d1"


def test_no_damage_gives_other_clips(tmp_path, rng):
    pattern = write(tmp_path, num_clips=40, clips_per_shard=20)
    wanted, path = what(ShardSet(pattern)), index_of(tmp_path)
    sound = path.read_bytes()
    for at in [*range(40), *rng.choice(len(sound), 300, replace=False).tolist()]:
        path.write_bytes(sound[:at] + bytes([sound[at] ^ (1 << int(rng.integers(8)))]) + sound[at + 1 :])
        try:
            assert what(ShardSet(pattern)) == wanted
        except ValueError as error:
            assert str(path) in str(error) and "remove the file" in str(error)
    for content in (b"", sound[:50], sound + b"more", sound[:-1], b"\0" * 500, b"[1, 2"):
        path.write_bytes(content)
        assert what(ShardSet(pattern)) == wanted and path.read_bytes() == sound


def rewritten(path, change):
    """An index whose checksums are right and whose content is not."""
    head, magic = shard_index._HEAD, shard_index._MAGIC
    content = path.read_bytes()
    length = head.unpack_from(content)[1]
    rows = json.loads(content[head.size : head.size + length])
    index = IndexFile.open(path)
    packed = [index.packed(row) for row in range(len(rows))]
    parts = [change(list(part.row), bytearray(part.members), bytearray(part.keys)) for part in packed]
    for row, members, keys in parts:
        row[6], row[7], row[8] = zlib.crc32(members), len(keys), zlib.crc32(keys)
    table = json.dumps([row for row, *_ in parts]).encode()
    joined = b"".join([bytes(members) for _, members, _ in parts] + [bytes(keys) for *_, keys in parts])
    path.write_bytes(head.pack(magic, len(table), zlib.crc32(table)) + table + joined)


def _swapped(row, members, keys):
    return row, members[9:18] + members[:9] + members[18:], keys


def _far(row, members, keys):
    return row, b"\xff\xff\xff\x7f" + members[4:], keys


def _huge(row, members, keys):
    return row, members[:4] + b"\xff\xff\xff\xff" + members[8:], keys


def _no_suffix(row, members, keys):
    return row, members[:8] + b"\x09" + members[9:], keys


def _escaping(row, members, keys):
    return row, members, keys.replace(b"kitchen", b"../../x")


def _far_group(row, members, keys):
    return row, members, b"\xff\xff\xff\x7f" + keys[4:]


@pytest.mark.parametrize("change", [_swapped, _far, _huge, _no_suffix, _escaping, _far_group])
def test_a_hostile_index_is_one_error(tmp_path, change):
    pattern = write(tmp_path)
    ShardSet(pattern).verify()
    rewritten(index_of(tmp_path), change)
    with pytest.raises(ValueError, match=r"\.index/shards: its|shard-000000.tar: clip kitchen_01_000000 is not where"):
        what(ShardSet(pattern))


@pytest.mark.parametrize(
    "row",
    [
        {},
        ["../x.tar", 1, "1", 1, ["npy"], "", 0, 0, 0],
        ["x.tar", -1, "1", 1, ["npy"], "", 0, 0, 0],
        ["x.tar", 1, "1", 10**30, ["npy"], "", 0, 0, 0],
        ["x.tar", 1, "1", 1, [], "", 0, 0, 0],
        ["x.tar", 1, "1", True, ["npy"], "", 0, 0, 0],
        ["x.tar", 1, "1", 1 << 61, ["npy"], "a" * 32, 0, 1 << 61, 0],
    ],
)
def test_a_hostile_table_is_none(tmp_path, capfd, row):
    pattern = write(tmp_path)
    wanted, path = what(ShardSet(pattern)), index_of(tmp_path)
    table = json.dumps([row, row]).encode()
    path.write_bytes(shard_index._HEAD.pack(shard_index._MAGIC, len(table), zlib.crc32(table)) + table)
    assert what(ShardSet(pattern)) == wanted
    assert capfd.readouterr().err.count("the index is made anew") == 1


def test_a_tar_that_changes_under_a_reader_is_noticed(tmp_path):
    pattern = write(tmp_path)
    shards = ShardSet(pattern)
    shards.verify()
    other = write(tmp_path / "other", name="garden_02_{:06d}")
    os.replace(f"{tmp_path}/other/rgb/toy/shard-000000.tar", f"{tmp_path}/rgb/toy/shard-000000.tar")
    with pytest.raises(ValueError, match="shard-000000.tar: clip kitchen_01_000000 is not where .* has changed"):
        shards.read(0, "rgb")
    assert other


def tar_of(path, names, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 8
            archive.addfile(entry, io.BytesIO(hashlib.sha256(name.encode()).digest()[:8]))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("start", ["", "./"])
@pytest.mark.parametrize("key", ["a b", "ünï", "名" * 40, "long" * 30, "x" * 95, "y" * 96, "z" * 99])
def test_a_tar_replaced_by_one_of_equal_size_and_time(tmp_path, form, start, key):
    path = tmp_path / "rgb" / "toy" / "shard-000000.tar"
    names = [f"{start}{key}{number}.npy" for number in range(3)]
    tar_of(path, names, form)
    wanted = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
    assert [ShardSet(str(path)).read(clip, "rgb") for clip in range(3)] == wanted
    time_ns = path.stat().st_mtime_ns
    tar_of(path, names[::-1], form)
    os.utime(path, ns=(time_ns, time_ns))
    shards = ShardSet(str(path))
    assert shards.read(1, "rgb") == wanted[1]
    for clip in (0, 2):
        with pytest.raises(ValueError, match="is not where the headers of this tar had it"):
            shards.read(clip, "rgb")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_members_that_are_no_files_are_not_passed_over(tmp_path, kind):
    path = tmp_path / "rgb" / "toy" / "shard-000000.tar"
    tar_of(path, ["a.npy"])
    folder, link = tarfile.TarInfo("folder"), tarfile.TarInfo("b.npy")
    folder.type, link.type, link.linkname = tarfile.DIRTYPE, kind, "a.npy"
    with tarfile.open(path, "a") as archive:
        archive.addfile(folder)
    assert ShardSet(str(path)).keys == ["a"]
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    with pytest.raises(ValueError, match=r"shard-000000\.tar: b\.npy is a link"):
        ShardSet(str(path))


def test_what_a_killed_process_left_is_removed_and_no_link_is_followed(tmp_path):
    pattern = write(tmp_path, folders=("rgb",))
    folder = tmp_path / "rgb" / "toy" / ".index"
    folder.mkdir()
    (folder / ".shards.unfinished-0123abcd").write_bytes(b"half")
    assert len(ShardSet(pattern)) == 7 and sorted(os.listdir(folder)) == [".writer", "shards"]
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of"):
        ShardSet(pattern)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_folders_that_cannot_be_written_to(tmp_path, headers_read, capfd):
    pattern = write(tmp_path)
    for folder in ("rgb", "cam"):
        (tmp_path / folder / "toy" / ".index").write_text("somebody's file")  # as refusing as a read-only disk
    wanted = what(ShardSet(pattern))
    assert what(ShardSet(pattern)) == wanted
    said = capfd.readouterr().err
    assert said.count("stays in the memory of each process") == 2 and said.count("data.index_cache=FOLDER") == 2
    assert len(headers_read) == 6
    shard_index._in_memory.clear()
    for _ in range(2):
        assert what(ShardSet(pattern, index_cache=tmp_path / "cache")) == wanted
    assert len(headers_read) == 12 and "memory" not in capfd.readouterr().err
    assert len(list((tmp_path / "cache").glob("*/shards"))) == 2


def _open(pattern, results):
    results.put(ShardSet(pattern).verify())


def test_processes_that_open_a_folder_at_once_make_one_index(tmp_path):
    pattern = write(tmp_path, num_clips=200, clips_per_shard=10)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(pattern, results)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [200] * 4
    for process in processes:
        process.join()
    assert sorted(os.listdir(tmp_path / "rgb" / "toy" / ".index")) == [".writer", "shards"]


def test_the_command_makes_it(tmp_path, headers_read, capfd):
    pattern = write(tmp_path)
    main([pattern, "--workers", "1"])
    assert "rgb: 3 shards, 7 clips" in capfd.readouterr().err
    headers_read.clear()
    ShardSet(pattern).verify()
    assert headers_read == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_index_of_shards_in_a_bucket_lies_in_the_bucket(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    read = []
    monkeypatch.setattr(shard_index, "read_index", lambda path: read.append(path) or read_index(path))
    write(tmp_path)
    address = "s3://clips/tokens/[rgb,cam]/toy/shard-{000000..000002}.tar"
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="clips")
        for file in tmp_path.rglob("*.tar"):
            client.upload_file(str(file), "clips", f"tokens/{file.relative_to(tmp_path)}")
        wanted = what(ShardSet(address))
        assert wanted == what(ShardSet(str(tmp_path / "[rgb,cam]/toy/shard-*.tar")))
        assert sum(path.startswith("s3:") for path in read) == 6
        read.clear()
        for cache in (None, tmp_path / "cache", tmp_path / "cache"):
            assert what(ShardSet(address, index_cache=cache)) == wanted and read == []
        write(tmp_path / "other", name="garden_02_{:06d}")
        for folder in ("rgb", "cam"):
            file = tmp_path / "other" / folder / "toy" / "shard-000001.tar"
            client.upload_file(str(file), "clips", f"tokens/{folder}/toy/shard-000001.tar")
        found = what(ShardSet(address, index_cache=tmp_path / "cache"))
        assert [row[0] for row in found[2:5]] == ["kitchen_01_000002", "garden_02_000003", "garden_02_000004"]
        assert len(read) == 2 and ShardIndex(
            [address.replace("[rgb,cam]", "rgb").replace("{000000..000002}", "000001")]
        )
        client.delete_object(Bucket="clips", Key="tokens/rgb/toy/shard-000001.tar")
        with pytest.raises(ValueError, match="rgb/toy/shard-000001.tar: cannot open this shard"):
            ShardSet(address)


def test_who_waits_for_the_index_of_another_process_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shard_index, "_WAIT_S", 0.0)
    with only_writer(tmp_path / ".index"), pytest.raises(ValueError, match="another process is writing here"):
        with shard_index._maker(tmp_path / ".index"):
            pass
    assert "waiting for it" in "".join(capsys.readouterr())
