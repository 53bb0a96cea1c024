"""Folders in a bucket are there completely or not at all."""

import pytest

from egom2p.storage.remote_folders import RemoteFolder

moto = pytest.importorskip("moto")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def bucket(monkeypatch):
    """A client of an empty bucket `runs` that lives in memory."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        yield client


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made" / "deep").mkdir(parents=True)
    (tmp_path / "made" / "one.bin").write_bytes(b"1" * 1000)
    (tmp_path / "made" / "deep" / "two.json").write_text("{}")
    return tmp_path / "made"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def test_a_folder_goes_there_and_back(bucket, folder, tmp_path):
    remote = RemoteFolder("s3://runs/a/b")
    remote.upload_directory(folder, "checkpoints/step-1")
    assert remote.directories("checkpoints") == ["step-1"] and remote.directories() == []
    remote.download_directory("checkpoints/step-1", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    remote.remove_directory("checkpoints/step-1")
    assert remote.directories("checkpoints") == [] and "Contents" not in bucket.list_objects_v2(Bucket="runs")


def test_an_interrupted_upload_is_no_folder(bucket, folder, tmp_path, monkeypatch):
    remote = RemoteFolder("s3://runs/a")
    remote.upload_directory(folder, "step-1")
    upload_file, calls = remote.upload_file, []

    def fail_at_the_second(file, name):
        calls.append(name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        upload_file(file, name)

    monkeypatch.setattr(remote, "upload_file", fail_at_the_second)
    for name in ("step-1", "step-2"):  # also when the folder was complete before
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            remote.upload_directory(folder, name)
        assert remote.directories() == (["step-1"] if name == "step-2" else [])
        monkeypatch.setattr(remote, "upload_file", upload_file)
        remote.upload_directory(folder, "step-1")
        monkeypatch.setattr(remote, "upload_file", fail_at_the_second)
    with pytest.raises(FileNotFoundError, match="s3://runs/a/step-2: no complete folder"):
        remote.download_directory("step-2", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_file_of_another_size_is_refused(bucket, folder, tmp_path):
    remote = RemoteFolder("s3://runs/a")
    remote.upload_directory(folder, "step-1")
    bucket.put_object(Bucket="runs", Key="a/step-1/one.bin", Body=b"half")
    with pytest.raises(ValueError, match="a/step-1/one.bin: wanted 1000 bytes, found 4 bytes"):
        remote.download_directory("step-1", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_single_files(bucket, tmp_path):
    remote = RemoteFolder("s3://runs/a")
    (tmp_path / "log").write_text("one")
    remote.upload_file(tmp_path / "log", "log.jsonl")
    assert remote.download_file("log.jsonl", tmp_path / "back") and (tmp_path / "back").read_text() == "one"
    assert not remote.download_file("absent", tmp_path / "absent") and not (tmp_path / "absent").exists()
    with pytest.raises(ValueError, match="s3://bucket/path"):
        RemoteFolder("s3://runs")
