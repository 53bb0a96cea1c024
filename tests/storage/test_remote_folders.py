"""Folders in a bucket are there completely or not at all."""

import pytest

moto = pytest.importorskip("moto")

from botocore.client import BaseClient  # noqa: E402
from botocore.exceptions import (  # noqa: E402
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from egom2p.data.shards.shard_files import read_card  # noqa: E402
from egom2p.storage import RemoteConfig, RemoteError, configure_remote, open_binary  # noqa: E402
from egom2p.storage import remote as remote_module  # noqa: E402
from egom2p.storage.remote import list_names, upload, write_bytes  # noqa: E402
from egom2p.storage.remote_folders import RemoteFolder  # noqa: E402

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


def cut_bodies(monkeypatch, cuts: list[int | Exception]) -> list[str]:
    """Bodies of the next answers end after so many bytes, or their reading fails; returns the ranges asked for."""
    asked: list[str] = []

    def client(*arguments, **options):
        made = real(*arguments, **options)
        get = made.get_object

        def get_object(**request):
            answer = get(**request)
            asked.append(request.get("Range", ""))
            if request.get("Range") != "bytes=0-0" and cuts:
                answer["Body"] = CutBody(answer["Body"], cuts.pop(0))
            return answer

        made.get_object = get_object
        return made

    import boto3

    real = boto3.client
    monkeypatch.setattr(boto3, "client", client)
    monkeypatch.setattr(remote_module, "_FIRST_PAUSE_S", 0.0)
    return asked


class CutBody:
    def __init__(self, body, cut):
        self._body, self._cut, self._is_cut = body, cut, False

    def read(self, amount=None):
        if self._is_cut:
            raise ResponseStreamingError(error="Connection broken: IncompleteRead")
        if isinstance(self._cut, Exception):
            raise self._cut
        self._is_cut = True
        return self._body.read(min(self._cut, amount or self._cut))


@pytest.mark.parametrize("cut", [0, 1, 500, 99_999])
def test_a_body_that_is_cut_goes_on_where_it_broke_off(bucket, monkeypatch, rng, cut):
    content = rng.bytes(100_000)
    bucket.put_object(Bucket="runs", Key="a.tar", Body=content)
    asked = cut_bodies(monkeypatch, [cut, ReadTimeoutError(endpoint_url="x"), cut])
    with open_binary("s3://runs/a.tar") as opened:
        assert opened.read() == content
    first = int(asked[2].removeprefix("bytes=").partition("-")[0])
    assert first == cut and len(asked) in (4, 5), "the range is resumed, not begun anew"


def test_a_body_that_is_always_cut_is_an_error_with_the_address(bucket, monkeypatch):
    bucket.put_object(Bucket="runs", Key="a.tar", Body=b"0123456789")
    asked = cut_bodies(monkeypatch, [0] * 99)
    with (
        open_binary("s3://runs/a.tar") as opened,
        pytest.raises(RemoteError, match="s3://runs/a.tar: .* broke off 5 times"),
    ):
        opened.read()
    assert len(asked) == 6
    configure_remote(RemoteConfig(num_attempts=2))
    try:
        with open_binary("s3://runs/a.tar") as opened, pytest.raises(RemoteError, match="broke off 2 times"):
            opened.read()
    finally:
        configure_remote(RemoteConfig())


def test_an_object_that_changes_while_it_is_read_is_an_error(bucket, monkeypatch):
    bucket.put_object(Bucket="runs", Key="a.tar", Body=b"0123456789")
    with open_binary("s3://runs/a.tar") as opened:
        bucket.put_object(Bucket="runs", Key="a.tar", Body=b"9876543210")
        with pytest.raises(RemoteError, match="s3://runs/a.tar: was changed while it was read"):
            opened.read()


def test_an_empty_object_is_read(bucket):
    bucket.put_object(Bucket="runs", Key="a.tar", Body=b"")
    with open_binary("s3://runs/a.tar") as opened:
        assert opened.read() == b""


USES = {
    "open": lambda address, file: open_binary(address),
    "card": lambda address, file: read_card(address),
    "list": lambda address, file: list_names(address),
    "write": lambda address, file: write_bytes(address, b"x"),
    "upload": lambda address, file: upload(file, address),
    "upload folder": lambda address, file: RemoteFolder(address).upload_directory(file.parent, "a"),
    "download folder": lambda address, file: RemoteFolder(address).download_directory("a", file.parent / "b"),
    "download file": lambda address, file: RemoteFolder(address).download_file("a", file.parent / "b"),
    "folders": lambda address, file: RemoteFolder(address).directories(),
    "remove": lambda address, file: RemoteFolder(address).remove_directory("a"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("AccessDenied", "access is denied"),
        ("ExpiredToken", "the credentials have expired"),
        ("NoSuchBucket", "there is no bucket 'runs'"),
        ("InternalError", "InternalError"),
        (EndpointConnectionError(endpoint_url="there"), "cannot be reached"),
        (NoCredentialsError(), "cannot be reached .Unable to locate credentials"),
    ],
    ids=str,
)
def test_every_error_of_a_bucket_names_its_address(bucket, monkeypatch, folder, use, code, said):
    """403 on a card was `no card`; with it the guard of the fingerprints was silently off."""

    def refuse(self, operation, _):
        if isinstance(code, Exception):
            raise code
        raise ClientError({"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {}}, operation)

    monkeypatch.setattr(BaseClient, "_make_api_call", refuse)
    with pytest.raises(RemoteError, match=f"s3://runs/a/b.*: .*{said}"):
        USES[use]("s3://runs/a/b", folder / "one.bin")


def test_only_an_absent_card_is_no_card(bucket):
    assert read_card("s3://runs/tokens/smell/toy") == {}
    for content in (b"[]", b"{", b"[" * 100_000, b"1" * 5000, b"\xff"):
        bucket.put_object(Bucket="runs", Key="tokens/smell/toy/card.json", Body=content)
        with pytest.raises(ValueError, match="s3://runs/tokens/smell/toy/card.json: "):
            read_card("s3://runs/tokens/smell/toy")


def test_a_list_of_contents_leads_nowhere_else(bucket, tmp_path):
    for name in ("../../evil", "/evil", "a/../../evil"):
        bucket.put_object(Bucket="runs", Key="a/b/step/.complete.json", Body=f'{{"{name}": 1}}'.encode())
        bucket.put_object(Bucket="runs", Key=f"a/b/step/{name}", Body=b"x")
        with pytest.raises(ValueError, match="is not one plain name"):
            RemoteFolder("s3://runs/a/b").download_directory("step", tmp_path / "deep" / "deep" / "here")
    assert not list(tmp_path.rglob("evil"))


def test_timeouts_and_attempts_are_set(bucket):
    configure_remote(RemoteConfig(connect_timeout_s=3, read_timeout_s=7, num_attempts=4))
    try:
        found = remote_module.s3_client().meta.config
        assert (found.connect_timeout, found.read_timeout, found.retries["total_max_attempts"]) == (3, 7, 4)
    finally:
        configure_remote(RemoteConfig())
    assert remote_module.s3_client().meta.config.read_timeout == 30
    for wrong in ({"read_timeout_s": 0}, {"connect_timeout_s": float("nan")}, {"num_attempts": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RemoteConfig(**wrong)
