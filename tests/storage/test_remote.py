"""Objects in a bucket are read like files, by ranges."""

import pytest

from egom2p.storage import is_remote, open_binary

moto = pytest.importorskip("moto")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_open_binary_reads_a_range_of_an_object(monkeypatch, rng):
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    content = rng.bytes(3_000_000)
    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="clips")
        client.put_object(Bucket="clips", Key="a/shard.tar", Body=content)
        assert is_remote("s3://clips/a/shard.tar")
        with open_binary("s3://clips/a/shard.tar") as opened:
            opened.seek(1_500_000)
            assert opened.read(2_000) == content[1_500_000:1_502_000]
            opened.seek(0)
            assert opened.read() == content
        with pytest.raises(FileNotFoundError, match="s3://clips/absent"):
            open_binary("s3://clips/absent")
