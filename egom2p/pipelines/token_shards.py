"""Where tokens go: shards that are whole or absent, a ledger that makes work resumable to the clip, a note per shard.

Below `output` (a folder or an S3 prefix):
    <folder>/<dataset>/shard-000000.tar   or, with layout `files`, <folder>/<dataset>/<key>.npy
    <folder>/<dataset>/card.json          the modality, with the fingerprint of its tokenizer
    .ledger/<dataset>/shard-000000.json   note of a finished shard: clips, refused clips, errors; written last
    .ledger/<dataset>/shard-000000.npz    how often it uses each code
While a shard is in work its clips are lines of `work_dir/<dataset>/shard-000000/rows.jsonl`, on a disk.
V vocabulary size.
"""

import base64
import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from egom2p.contracts import plain_name
from egom2p.data.shards.array_files import decode_array, encode_array
from egom2p.data.shards.shard_set import ShardSet
from egom2p.data.shards.shard_writer import check_finished, finished_keys, shard_path, write_shard
from egom2p.jobs.progress import Ledger
from egom2p.storage import inside, is_remote, only_writer, remove_unfinished
from egom2p.storage.atomic import LOCK
from egom2p.storage.remote import joined, list_names, read_bytes, upload, write_bytes

_SUFFIX = "npy"
_NOTES = ".ledger"


class ClipLedger:
    """Clips of one shard as they are finished; what a kill left half written is dropped."""

    def __init__(self, folder: Path, header: Mapping[str, Any]) -> None:
        """header: what the ids depend on; a ledger with another one is begun anew."""
        self._ledger = Ledger(folder / "rows.jsonl")
        found = self._ledger.entries()
        self.keys: set[str] = set()
        if next(found, None) == dict(header):
            self.keys = {row["key"] for row in found}
        else:
            self._ledger.file.unlink(missing_ok=True)
            self._ledger.append([header])

    def remove(self) -> None:
        """The shard is made: its ledger and lock go, and the folder unless somebody put files into it."""
        folder = self._ledger.file.parent
        for file in (self._ledger.file, folder / LOCK):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows of finished (`ids`: folder -> array of a clip) or refused (`refused`: why) clips."""
        # As base64: a third of the size of written numbers, and read without parsing them.
        self._ledger.append(
            [{**row, "ids": {folder: _packed(ids) for folder, ids in row["ids"].items()}} for row in rows]
        )
        self.keys |= {row["key"] for row in rows}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Finished and refused clips, in the order in which they were appended."""
        for row in islice(self._ledger.entries(), 1, None):
            ids = {folder: decode_array(base64.b64decode(text)) for folder, text in row["ids"].items()}
            yield {**row, "ids": ids}


class TokenShards:
    """Shards of tokens of one data set."""

    def __init__(
        self,
        output: str,
        dataset: str,
        vocab_sizes: Mapping[str, int],
        *,
        layout: Literal["tars", "files"] = "tars",
        work_dir: str | None = None,
    ) -> None:
        """vocab_sizes: folder -> V of the tokens in it, of patches 256."""
        self.output, self.dataset, self.layout = output, plain_name(dataset, "data set"), layout
        self.vocab_sizes = dict(vocab_sizes)
        if work_dir is None and is_remote(output):
            work_dir = str(Path("outputs", "tokenize_work", hashlib.sha256(output.encode()).hexdigest()[:12]))
        self._work = Path(work_dir or Path(output, _NOTES), dataset)
        self._listed: dict[str, set[str]] = {}

    def location(self, folder: str) -> str:
        """Where the clips of a folder lie; ValueError where that is outside the output."""
        if is_remote(self.output):
            folder = folder if folder == _NOTES else plain_name(folder, "folder")
            return joined(self.output, folder, self.dataset)  # the name of the data set was checked at the start
        return str(inside(self.output, folder, self.dataset))

    def work_folder(self, number: int) -> Path:
        return self._work / f"shard-{number:06d}"

    def note(self, number: int, keys: Sequence[str]) -> dict[str, Any] | None:
        """What was noted of a finished shard of the clips `keys`, None if it is not finished.

        ValueError when it holds other clips.
        """
        name = f"{number:06d}"
        if f"shard-{name}.json" not in self._names(_NOTES):
            # A run that was killed between the tars and their note left the ledger, which knows more than they do.
            is_in_work = (self.work_folder(number) / "rows.jsonl").is_file()
            return None if is_in_work else self._note_of_tars(number, keys)
        note = json.loads(read_bytes(joined(self.output, _NOTES, self.dataset, f"shard-{name}.json")))
        if note["source"] != keys_hash(keys):
            raise ValueError(
                f"{self.output}: shard {number} was made of other clips ({note['num_clips']} of them), wanted "
                f"the {len(keys)} clips of this configuration; choose another output, or remove it"
            )
        return note if self._holds(number, note) else None

    def counts(self, number: int) -> dict[str, np.ndarray]:
        """Folder -> how often a finished shard uses each code (V,)."""
        content = read_bytes(joined(self.output, _NOTES, self.dataset, f"shard-{number:06d}.npz"))
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {folder: arrays[folder] for folder in arrays.files}

    def finish(self, number: int, keys: Sequence[str], ledger: ClipLedger) -> dict[str, Any]:
        """Make the shard of a ledger that has all of `keys`, note it, and drop the ledger."""
        counts = {folder: np.zeros(size, np.int64) for folder, size in self.vocab_sizes.items()}
        refused: dict[str, str] = {}
        checks: dict[str, Any] = {}
        num_clips = 0

        def clips() -> Iterator[tuple[str, dict[str, bytes]]]:
            nonlocal num_clips
            for row in ledger.rows():
                if "refused" in row:
                    refused[row["key"]] = row["refused"]
                    continue
                num_clips += 1
                if "errors" in row:
                    checks[row["key"]] = row["errors"]
                for folder, ids in row["ids"].items():
                    counts[folder] += np.bincount(ids.reshape(-1), minlength=len(counts[folder]))
                yield row["key"], {folder: encode_array(ids, _SUFFIX) for folder, ids in row["ids"].items()}

        self._write(number, keys, clips())
        note = {"source": keys_hash(keys), "num_clips": num_clips, "refused": refused, "checks": checks}
        self._save_note(number, note, counts)
        ledger.remove()
        return note

    def forget(self) -> None:
        """Look at the folders anew: others write there too."""
        self._listed = {}

    def finished(self) -> dict[int, dict[str, Any]]:
        """Number -> note of every shard that has one, of all ranks and runs."""
        self.forget()
        names = [name for name in self._names(_NOTES) if name.endswith(".json")]
        folder = joined(self.output, _NOTES, self.dataset)
        return {int(name[6:12]): json.loads(read_bytes(joined(folder, name))) for name in sorted(names)}

    def save(self, location: str, content: bytes) -> None:
        """A file beside the shards, by one process at a time: what a killed one left of it goes."""
        if is_remote(location):
            write_bytes(location, content)
            return
        path = Path(location)
        with only_writer(self.location(_NOTES)):
            remove_unfinished(path.parent, {path.name})
            write_bytes(path, content)

    def _write(self, number: int, keys: Sequence[str], clips: Iterator[tuple[str, dict[str, bytes]]]) -> None:
        folders = dict.fromkeys(self.vocab_sizes, _SUFFIX)
        if self.layout == "files":
            names = {f"{plain_name(key, 'clip key')}.{_SUFFIX}" for key in keys}
            for folder in () if is_remote(self.output) else folders:
                remove_unfinished(self.location(folder), names)  # the shard is this process's alone
            for key, contents in clips:
                for folder, content in contents.items():
                    name = f"{plain_name(key, 'clip key')}.{_SUFFIX}"
                    write_bytes(joined(self.location(folder), name), content)
        elif not is_remote(self.output):
            write_shard(self.output, self.dataset, number, folders, clips)
        else:
            staged = self.work_folder(number) / "tars"
            if write_shard(staged, self.dataset, number, folders, clips):
                for folder in folders:
                    tar = shard_path(staged, folder, self.dataset, number)
                    upload(tar, joined(self.location(folder), tar.name))
            shutil.rmtree(staged)

    def _save_note(self, number: int, note: Mapping[str, Any], counts: Mapping[str, np.ndarray]) -> None:
        if {f"shard-{number:06d}.json", f"shard-{number:06d}.npz"} <= self._names(_NOTES):
            # Another modality beside those of earlier runs: what is known of them stays.
            known = json.loads(read_bytes(joined(self.output, _NOTES, self.dataset, f"shard-{number:06d}.json")))
            keys = {**known["checks"], **note["checks"]}
            checks = {key: known["checks"].get(key, {}) | note["checks"].get(key, {}) for key in keys}
            note = {**note, "checks": checks, "refused": known["refused"] | note["refused"]}
            counts = self.counts(number) | dict(counts)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **counts)
        name = joined(self.output, _NOTES, self.dataset, f"shard-{number:06d}")
        self.save(f"{name}.npz", buffer.getvalue())
        self.save(f"{name}.json", (json.dumps(note) + "\n").encode())

    def _holds(self, number: int, note: Mapping[str, Any]) -> bool:
        """Whether the tars that a note speaks of are there in every folder."""
        if self.layout == "files" or not note["num_clips"]:
            return True
        return all(f"shard-{number:06d}.tar" in self._names(folder) for folder in self.vocab_sizes)

    def _note_of_tars(self, number: int, keys: Sequence[str]) -> dict[str, Any] | None:
        """Of tars that lie there without a note (copied without the ledger): checked, counted, noted."""
        if is_remote(self.output) or self.layout == "files":
            return None
        found = finished_keys(self.output, self.dataset, number, self.vocab_sizes)
        if found is None:
            return None
        have = set(found)
        first = shard_path(self.output, next(iter(self.vocab_sizes)), self.dataset, number)
        check_finished(found, [key for key in keys if key in have], where=str(first))
        tars = ShardSet(f"{self.output}/[{','.join(self.vocab_sizes)}]/{self.dataset}/{first.name}")
        counts = {
            folder: sum(
                np.bincount(tars.read_array(row, folder).reshape(-1), minlength=size) for row in range(len(tars))
            )
            for folder, size in self.vocab_sizes.items()
        }
        refused = {key: "not in the tars, which have no note of why" for key in keys if key not in have}
        note = {"source": keys_hash(keys), "num_clips": len(found), "refused": refused, "checks": {}}
        self._save_note(number, note, counts)
        return note

    def _names(self, folder: str) -> set[str]:
        if folder not in self._listed:
            self._listed[folder] = set(list_names(self.location(folder))[1])
        return self._listed[folder]


def keys_hash(keys: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def _packed(ids: np.ndarray) -> str:
    return base64.b64encode(encode_array(ids)).decode()
