"""Downloading by a manifest: asked first, checked after, gone on with; the Hub is played by functions."""

import hashlib

import pyarrow
import pytest
from pyarrow import parquet

from egom2p.anytoany import download as module
from egom2p.anytoany.download import DownloadConfig, ManifestEntry, _without_stand_ins, download, load_manifest
from egom2p.anytoany.world.synthetic_data import reference_paragraphs
from egom2p.config import from_plain
from egom2p.storage import only_writer, save_json
from egom2p.storage.hub import HubFile

MANIFEST = """
base:
  lm:
    {repo: me/lm, kind: model, folder: base, licence: MIT, accept_at: "https://hub/me/lm", files: [{name: config.json}]}
datasets:
  captions: {repo: me/data, kind: dataset, folder: data, licence: MIT, files: [{name: a.parquet, columns: [caption]}]}
"""


ENTRY = {"repo": "a/b", "kind": "dataset", "folder": "base", "licence": "MIT", "files": [{"name": "a.parquet"}]}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Files of the Hub by repository, what was fetched, and who is refused."""
    source = tmp_path / "hub"
    source.mkdir()
    parquet.write_table(pyarrow.table({"caption": ["x"]}), source / "a.parquet")
    (source / "config.json").write_text("{}")
    state = {"fetched": [], "problems": {}, "source": source}

    def facts(repo, kind, names, revision=None):
        found = {name: (source / name).read_bytes() for name in names}
        return {name: HubFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in found.items()}

    def fetch(repo, kind, name, folder, revision=None):
        state["fetched"].append(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(state.get("data", (source / name).read_bytes()))
        return folder / name

    monkeypatch.setattr(module, "access_problem", lambda repo, kind: state["problems"].get(repo))
    monkeypatch.setattr(module, "files_on_hub", facts)
    monkeypatch.setattr(module, "fetch_file", fetch)
    (tmp_path / "manifest.yaml").write_text(MANIFEST)
    state["config"] = lambda **more: DownloadConfig(
        output=str(tmp_path / "out"), manifest=str(tmp_path / "manifest.yaml"), **more
    )
    return state


def test_what_is_there_is_not_fetched_again_and_what_was_cut_off_is(hub, tmp_path):
    download(hub["config"](dry_run=True))
    assert any("to be made here" in line for line in download(hub["config"](dry_run=True, source="synthetic")))
    assert hub["fetched"] == [] and not (tmp_path / "out").exists()
    download(hub["config"]())
    assert hub["fetched"] == ["config.json", "a.parquet"]
    download(hub["config"]())
    assert len(hub["fetched"]) == 2
    (tmp_path / "out" / "data" / "a.parquet").write_bytes(b"half")
    download(hub["config"]())
    assert hub["fetched"][2:] == ["a.parquet"]


def test_a_missing_licence_is_found_before_anything_is_downloaded(hub):
    hub["problems"]["me/lm"] = "me/lm: accept the licence at https://hub/me/lm"
    with pytest.raises(ValueError, match="nothing was downloaded(?s:.*)https://hub/me/lm"):
        download(hub["config"]())
    assert hub["fetched"] == []
    download(hub["config"](what=("datasets",)))
    assert hub["fetched"] == ["a.parquet"]


def test_wrong_bytes_and_wrong_columns_are_noticed(hub, tmp_path):
    hub["data"] = b"other"
    with pytest.raises(ValueError, match="came with hash"):
        download(hub["config"](what=("base",)))
    assert not (tmp_path / "out" / "base" / "config.json").exists()
    del hub["data"]
    parquet.write_table(pyarrow.table({"text": ["x"]}), hub["source"] / "a.parquet")
    with pytest.raises(ValueError, match="no column 'caption'"):
        download(hub["config"](what=("datasets",)))


def test_a_manifest_that_the_hub_contradicts(hub, tmp_path):
    (tmp_path / "manifest.yaml").write_text(MANIFEST.replace("{name: config.json}", "{name: config.json, size: 5}"))
    with pytest.raises(ValueError, match="size is 2 on the Hub, the manifest says 5"):
        download(hub["config"]())
    with pytest.raises(ValueError, match="no 'nothing'"):
        download(hub["config"](only=("nothing",)))


def test_stand_ins_make_room_for_what_they_stood_for(hub, tmp_path, monkeypatch):
    """transformers reads model.safetensors rather than the shards beside it: what is left would be the base model."""

    def made_like(tables, config):
        new = [path for path in tables if not path.exists()]
        for path in new:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
            (path.parent / "model.safetensors").write_text("made")
        return [path.parent if path.name == "config.json" else path for path in new]

    monkeypatch.setattr(module, "build_like_manifest", made_like)
    monkeypatch.setattr(module, "build_synthetic", lambda *_: [])
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    assert any("(stand-in, made here)" in line for line in download(hub["config"](source="synthetic")))
    (out / "data" / "model.safetensors").unlink()
    again = download(hub["config"](source="synthetic"))
    assert again == [f"{out}: everything is there already"]
    assert (out / "base/model.safetensors").is_file() and (out / "data/a.parquet").is_file()
    told = download(hub["config"](dry_run=True))
    assert sum("make room" in line for line in told) == 2 and (out / "base/model.safetensors").is_file()
    download(hub["config"]())
    assert sorted(path.name for path in (out / "base").iterdir()) == ["config.json", "origin.json"]
    assert (out / "base/config.json").read_text() == "{}"
    assert not any("make room" in line for line in download(hub["config"]()))
    (out / "base/model.safetensors").write_bytes(b"mine")
    with pytest.raises(ValueError, match="model.safetensors: the manifest does not name it"):
        download(hub["config"]())


def test_the_manifest_names_the_model_that_the_config_uses():
    """The published one downloaded another base model than its config read."""
    from egom2p.config import load_plain

    manifest = load_manifest("default/anytoany/download/manifest.yaml")
    config = load_plain("cfgs/default/anytoany/8B_lora.yaml")
    root = load_plain("cfgs/default/anytoany/download.yaml")["output"]
    folders = {f"{root}/{entry.folder}" for entry in manifest.base.values()}
    assert config["model"]["language_model"]["pretrained"] in folders
    files = {f"{root}/{e.folder}/{file.name}" for e in manifest.datasets.values() for file in e.files}
    assert {file for data in config["data"]["datasets"].values() for file in data["files"]} == files
    assert all(entry.licence for entry in (*manifest.base.values(), *manifest.datasets.values()))


def test_two_downloads_do_not_write_one_folder(hub, tmp_path):
    """Each would write a ledger without the other's files."""
    with (
        only_writer(tmp_path / "out"),
        pytest.raises(ValueError, match="another process is writing here"),
    ):
        download(hub["config"]())
    assert hub["fetched"] == []


def test_text_by_people_is_found_on_every_machine(tmp_path):
    paragraphs = reference_paragraphs()
    assert len(paragraphs) > 100 and len(set(paragraphs)) == len(paragraphs)
    assert all(200 <= len(text) <= 802 and text[0].isupper() and text.endswith(".") for text in paragraphs)
    assert not any(sign in text for text in paragraphs for sign in ("==", "->", "[", "{", "\n"))
    words = " ".join(paragraphs).split()
    assert sum(word in ("the", "a", "of", "is", "to") for word in words) > 0.12 * len(words), "English"


@pytest.mark.parametrize("folder", ["../elsewhere", "/tmp/elsewhere", "datasets/../../elsewhere", "datasets//a"])
def test_a_manifest_names_places_below_the_output_only(tmp_path, folder):
    values = {"base": {}, "datasets": {"a": ENTRY | {"folder": folder}}}
    save_json(tmp_path / "manifest.yaml", values)  # JSON is YAML
    config = DownloadConfig(output=str(tmp_path / "out"), source="synthetic", manifest=str(tmp_path / "manifest.yaml"))
    with pytest.raises(ValueError, match="is not one plain name"):
        download(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.yaml"]


def test_names_of_stand_ins_lead_nowhere_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    (tmp_path / "out").mkdir()
    save_json(tmp_path / "out" / "stand_ins.json", ["base/../../thesis.txt"])
    with pytest.raises(ValueError, match="is not one plain name"):
        _without_stand_ins({"a": from_plain(ManifestEntry, ENTRY)}, tmp_path / "out", is_dry=False)
    assert (tmp_path / "thesis.txt").read_text() == "years"
