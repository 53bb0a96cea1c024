"""Shards: what is written is read back by us and by webdataset; whatever is missing is named."""

import io
import multiprocessing
import os
import pickle
import tarfile

import numpy as np
import pytest
import webdataset

from egom2p.data.modality_info import default_specs
from egom2p.data.shards.folder_set import FolderSet, open_clips
from egom2p.data.shards.shard_files import expand_braces, read_index, split_folders
from egom2p.data.shards.shard_set import ShardSet, ShardWriter, decode_array, encode_array, shard_pattern


def _write(root, num_clips=7, clips_per_shard=3, folders=None, first=0):
    folders = folders or {"rgb": "npz", "cam": "npy"}
    with ShardWriter(root, "toy", folders, clips_per_shard=clips_per_shard) as writer:
        for number in range(first, num_clips):
            key = f"clip{number:03d}"
            if key not in writer.finished_keys:
                writer.write(
                    key, {folder: encode_array(np.full((2, 2), number), suffix) for folder, suffix in folders.items()}
                )
    return shard_pattern(root, "toy", list(folders))


def _rewrite(path, keep):
    """Write a tar again with the members (and in the order) `keep` returns."""
    with tarfile.open(path) as archive:
        members = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
    with tarfile.open(path, "w") as archive:
        for name, content in keep(members):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_clips_come_back_by_index(tmp_path):
    shards = ShardSet(_write(tmp_path))
    assert (shards.num_clips, shards.shard_starts, shards.folders) == (7, (0, 3, 6, 7), ("rgb", "cam"))
    assert shards.keys == [f"clip{number:03d}" for number in range(7)]
    for index in (6, 0, 4):
        assert shards.read_array(index, "rgb")[0, 0] == shards.read_array(index, "cam")[0, 0] == index
    assert (shards.suffix(0, "rgb"), shards.suffix(0, "cam")) == ("npz", "npy")
    with pytest.raises(IndexError, match="clip 7 of 7"):
        shards.key(7)


# webdataset leaves the last tar to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_our_shards(tmp_path):
    pattern = _write(tmp_path).replace("[rgb,cam]", "cam").replace("*", "{000000..000002}")
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"clip{number:03d}" for number in range(7)]
    assert decode_array(samples[3]["npy"])[0, 0] == 3


def test_patterns_expand():
    assert expand_braces("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert split_folders("r/[rgb, cam]/x.tar") == {"rgb": "r/rgb/x.tar", "cam": "r/cam/x.tar"}
    assert split_folders("r/depth/toy/shard-*.tar") == {"depth": "r/depth/toy/shard-*.tar"}
    with pytest.raises(ValueError, match="one .* list of folders"):
        split_folders("[a]/[b]/x.tar")
    with pytest.raises(ValueError, match="ends before it starts"):
        expand_braces("{3..1}")


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (lambda members: members[:1] + members[2:], r"clip clip004 has no cam \(1 missing\)"),
        (
            lambda members: members + [("extra.npy", b"")],
            r"clip extra of cam is missing in \S+rgb/toy/shard-000001.tar",
        ),
        (lambda members: members[::-1], "clip 0 of cam is clip005, wanted clip003: the order differs"),
        (lambda members: members + members[:1], "clip clip003 occurs twice"),
    ],
)
def test_a_shard_that_differs_is_named(tmp_path, keep, message):
    pattern = _write(tmp_path)
    bad = tmp_path / "cam" / "toy" / "shard-000001.tar"
    _rewrite(bad, keep)
    shards = ShardSet(pattern)
    if "twice" not in message:  # what is wrong with a tar by itself shows when its index is made
        assert shards.read_array(0, "cam")[0, 0] == 0
    for act in (shards.verify, lambda: shards.read(4, "cam")):
        with pytest.raises(ValueError, match=message) as caught:
            act()
        assert str(bad) in str(caught.value)


def test_missing_and_broken_files_are_named(tmp_path):
    pattern = _write(tmp_path)
    with pytest.raises(ValueError, match="no file matches"):
        ShardSet(pattern.replace("cam", "smell"))
    with pytest.raises(ValueError, match="shard-000009.tar: cannot open this shard"):
        ShardSet(pattern.replace("*", "{000009..000009}"))
    with pytest.raises(ValueError, match="no folder 'depth'"):
        ShardSet(pattern).read(0, "depth")
    path = tmp_path / "rgb" / "toy" / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(ValueError, match="shard-000000.tar: not a complete tar"):
        ShardSet(pattern)
    (tmp_path / "cam" / "toy" / "shard-000002.tar").unlink()
    with pytest.raises(ValueError, match="folder cam has 2 shards, folder rgb has 3.*shard-000002.tar"):
        ShardSet(pattern)


def test_writer_continues_and_never_leaves_half_a_shard(tmp_path):
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path, "toy", {"cam": "npy"}, clips_per_shard=3) as writer:
        for number in range(5):
            writer.write(f"clip{number:03d}", {"cam": encode_array(np.full((2, 2), number))})
        raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path / "cam" / "toy")) == ["shard-000000.tar"]
    pattern = _write(tmp_path, folders={"cam": "npy"})
    whole = _write(tmp_path / "whole", folders={"cam": "npy"})
    assert ShardSet(pattern).keys == ShardSet(whole).keys
    for shard in ("shard-000000.tar", "shard-000002.tar"):
        again, once = (root / "cam" / "toy" / shard for root in (tmp_path, tmp_path / "whole"))
        assert again.read_bytes() == once.read_bytes()


def test_writer_repairs_a_shard_that_was_being_renamed(tmp_path):
    pattern = _write(tmp_path)
    (tmp_path / "cam" / "toy" / "shard-000002.tar").unlink()
    _write(tmp_path)
    assert ShardSet(pattern).verify() == 7
    for shard in (1, 2):
        (tmp_path / "cam" / "toy" / f"shard-00000{shard}.tar").unlink()
    with pytest.raises(ValueError, match="lacks from shard-000001.tar on"):
        _write(tmp_path)


def test_writer_refuses_bad_clips(tmp_path):
    with ShardWriter(tmp_path, "toy", {"cam": "npy"}) as writer:
        writer.write("a", {"cam": b""})
        for key, contents, message in [
            ("a", {"cam": b""}, "already written"),
            ("b.c", {"cam": b""}, "no dot"),
            ("b", {"rgb": b""}, r"clip b has \['rgb'\], wanted \['cam'\]"),
        ]:
            with pytest.raises(ValueError, match=message):
                writer.write(key, contents)


def test_cards(tmp_path):
    pattern = _write(tmp_path)
    with ShardWriter(tmp_path, "toy", {"rgb": "npz", "cam": "npy"}) as writer:
        writer.card("cam", {"tokenizer_fingerprint": "sha256:1"})
    assert ShardSet(pattern).card("cam") == {"tokenizer_fingerprint": "sha256:1"}
    assert ShardSet(pattern).card("rgb") == {}


def _read_in_child(shards, index, queue):
    queue.put(int(shards.read_array(index, "cam")[0, 0]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_the_same_set(tmp_path, method):
    shards = ShardSet(_write(tmp_path))
    shards.read(0, "cam")
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(shards, 5, queue))
    child.start()
    assert queue.get() == 5
    child.join()
    assert shards.read_array(1, "cam")[0, 0] == 1


def test_plain_files_have_the_same_interface(tmp_path):
    for folder in ("rgb", "cam"):
        for number in range(3):
            path = tmp_path / folder / "toy" / f"part{number % 2}" / f"clip{number}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode_array(np.full(2, number), "npz"))
        (tmp_path / folder / "toy" / "card.json").write_text('{"vocab_size": 3}')
    for pattern in (f"{tmp_path}/[rgb,cam]/toy", f"{tmp_path}/[rgb,cam]/toy/**/*.npz"):
        files = open_clips(pattern)
        assert isinstance(files, FolderSet) and files.card("cam") == {"vocab_size": 3}
        assert files.keys == ["part0__clip0", "part0__clip2", "part1__clip1"]
        assert files.read_array(1, "rgb")[0] == files.read_array(1, "cam")[0] == 2
    (tmp_path / "cam" / "toy" / "part0" / "clip2.npz").unlink()
    with pytest.raises(ValueError, match="clip part0__clip2 has no cam"):
        FolderSet(pattern)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("dtype", ["int32", "uint16", "float64", "bool"])
def test_arrays_survive(suffix, dtype, rng):
    values = rng.integers(0, 2, (3, 1, 4)).astype(dtype)
    for array in (values, np.asfortranarray(values), values[:0]):
        found = decode_array(encode_array(array, suffix), suffix)
        assert found.dtype == values.dtype and np.array_equal(found, array)


def test_data_sets_of_one_pattern_have_equal_cards(tmp_path):
    """A brace over data sets must not let the second one's tokens in unchecked."""
    for dataset, mark in (("one", "sha256:a"), ("two", "sha256:b"), ("three", "sha256:a")):
        with ShardWriter(tmp_path, dataset, {"rgb": "npy"}) as writer:
            writer.write(f"clip_{dataset}", {"rgb": encode_array(np.zeros(4))})
            writer.card("rgb", {"tokenizer_fingerprint": mark})
    same = ShardSet(f"{tmp_path}/[rgb]/{{one,three}}/shard-*.tar")
    assert same.card("rgb") == {"tokenizer_fingerprint": "sha256:a"}
    with pytest.raises(ValueError, match="two/card.json: found tokenizer_fingerprint sha256:b, but .*one/card.json"):
        ShardSet(f"{tmp_path}/[rgb]/{{one,two}}/shard-*.tar").card("rgb")
    with pytest.raises(ValueError, match="no folder 'cam'"):
        same.card("cam")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shards_and_their_card_lie_in_a_bucket(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto")
    import boto3

    names = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    _write(tmp_path, num_clips=3, folders={"rgb": "npy"})
    (tmp_path / "rgb" / "toy" / "card.json").write_text('{"tokenizer_fingerprint": "sha256:a"}')
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="clips")
        for file in (tmp_path / "rgb" / "toy").iterdir():
            client.upload_file(str(file), "clips", f"tokens/rgb/toy/{file.name}")
        shards = ShardSet("s3://clips/tokens/[rgb]/toy/shard-{000000..000000}.tar")
        assert shards.read_array(2, "rgb").tolist() == [[2, 2], [2, 2]]
        assert shards.card("rgb") == {"tokenizer_fingerprint": "sha256:a"}
        client.delete_object(Bucket="clips", Key="tokens/rgb/toy/card.json")
        assert shards.card("rgb") == {}


def test_other_archives_and_pickles():
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ids=np.arange(5))
    assert decode_array(buffer.getvalue(), "npz").tolist() == [0, 1, 2, 3, 4]
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, np.array([{}], dtype=object))
    plain = pickle.dumps([1])
    truncated = encode_array(np.arange(100), "npz")[:300]
    cases = [
        (objects.getvalue(), "npy"),
        (zipped.getvalue(), "npz"),
        (plain, "npy"),
        (plain, "npz"),
        (truncated, "npz"),
    ]
    for content, suffix in cases:
        with pytest.raises(ValueError, match=f"not a readable {suffix} array"):
            decode_array(content, suffix)


def test_published_example_tokens_are_read(real_data_dir):
    path = real_data_dir / "egom2p_example_data" / "rgb2cam_egoexo.npz"
    ids = decode_array(path.read_bytes(), "npz")
    with np.load(path, allow_pickle=False) as archive:
        assert np.array_equal(ids, archive["arr_0"])
    assert ids.size == default_specs()[-1].num_tokens and 0 <= ids.min() and ids.max() < default_specs()[-1].vocab_size


def _tar(path, count=13):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(count):
            entry = tarfile.TarInfo(f"clip_{number:03d}.npy")
            entry.size = 700
            archive.addfile(entry, io.BytesIO(bytes([number + 1]) * 700))
    return path


@pytest.mark.parametrize("damage", ["in a header", "between members", "garbage header", "hole", "half an end", "tail"])
def test_a_tar_that_ends_anywhere_but_at_its_end_mark_is_cut(tmp_path, damage):
    path = _tar(tmp_path / "shard-000000.tar")
    assert len(read_index(str(path))) == 13
    content, member = path.read_bytes(), 512 + 1024  # header and two blocks of data
    end = 13 * member
    changed = {
        "in a header": content[: 5 * member + 200],
        "between members": content[: 5 * member],
        "garbage header": content[: 5 * member] + b"\xa5" * 512 + content[5 * member + 512 :],
        "hole": content[: 5 * member] + bytes(member) + content[6 * member :],
        "half an end": content[: end + 512],
        "tail": content[: end + 1024] + b"more",
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=r"shard-000000\.tar: not a complete tar"):
        read_index(str(path))


def test_the_whole_tar_of_the_door_and_its_cuts(door_dir, tmp_path):
    content = (door_dir / "cut_tar" / "whole.tar").read_bytes()
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(content)
    whole = read_index(str(path))
    assert len(whole) == 13
    for member in whole[1:]:
        for at in (member.offset - 512, member.offset - 100, member.offset + 10):
            path.write_bytes(content[:at])
            with pytest.raises(ValueError, match="not a complete tar"):
                read_index(str(path))
