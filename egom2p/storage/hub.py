"""The Hugging Face Hub: folders of weights fetched or pushed as one commit, and single files of any repository.

Only plain files travel: safetensors, JSON and text; of single files who may have them is asked first, and what came is
compared with what was promised. Who is logged in (`hf auth login`) or has set HF_TOKEN reaches
private and gated repositories; HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what the Hub's library says.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from egom2p.storage.atomic import check_link, with_pretrained

PLAIN_FILES = ("*.safetensors", "*.json", "*.txt", "*.md", "*.jinja")
"""What is fetched unless another choice is given, and all that is ever pushed."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".joblib", ".jit", ".npy", ".npz"}
_ALSO_PLAIN = {"LICENSE", "NOTICE"}
RepoKind = Literal["model", "dataset"]


def fetch(id_or_path: str | Path, *, revision: str | None = None, files: Sequence[str] = PLAIN_FILES) -> Path:
    """A local folder as it is, or the local copy of a repository `owner/name` of the Hub.

    revision   branch, tag or commit; a local folder has none
    files      patterns of the files wanted from the Hub

    FileNotFoundError for a folder or repository that does not exist or cannot be reached; ValueError for a gated one,
    with the page that asks for access. What was fetched before is found without a network.
    """
    path = with_pretrained(id_or_path)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{path}: is a local folder, revision {revision!r} has a meaning on the Hub only")
        return path
    name = str(id_or_path)
    if not _ID.fullmatch(name):
        raise FileNotFoundError(f"{name}: no such folder, and no id of the Hub (owner/name)")
    # Imported here: slow, and only needed by those who go to the Hub.
    from huggingface_hub import errors, snapshot_download

    page = repo_page(name, "model")
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise ValueError(
            f"{name}: access must be asked for; accept its terms at {page}, then log in (`hf auth login`, or HF_TOKEN)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: no such local folder, and no repository at {page} (a private one needs `hf auth login` or "
            "HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name}: {page} has no revision {revision!r}") from error
    except (errors.LocalEntryNotFoundError, *network_errors()) as error:
        raise FileNotFoundError(
            f"{name}: no such local folder, and {page} cannot be reached ({first_line(error)}); it was not fetched "
            "before. Without a network give a local folder"
        ) from error
    if not any(folder.glob(pattern) for pattern in files):
        raise FileNotFoundError(f"{name}: {page} holds none of {list(files)}")
    return folder


def push(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool = True,
    dry_run: bool = False,
    readme: str | None = None,
    message: str = "Upload folder",
    leave_out: Sequence[str] = (),
) -> list[str]:
    """Push a folder as one commit; returns the names of the files in it.

    readme     text of README.md, beside or instead of the folder's own
    dry_run    only say which files: no network, no login
    leave_out  names of files that stay at home

    ValueError when the folder holds anything but plain files (a pickle can run code where it is loaded), or nobody is
    logged in.
    """
    directory = Path(directory)
    if not _ID.fullmatch(repo_id):
        raise ValueError(f"a repository of the Hub is owner/name, got {repo_id!r}")
    files = pushable_files(directory, leave_out=leave_out)
    names = sorted({*files, *(["README.md"] if readme is not None else [])})
    if dry_run:
        return names
    from huggingface_hub import CommitOperationAdd, HfApi, errors, get_token

    page = repo_page(repo_id, "model")

    if get_token() is None:
        raise ValueError(f"pushing to {page} needs a login: run `hf auth login`, or set HF_TOKEN")
    contents: dict[str, Any] = {name: str(path) for name, path in files.items()}
    if readme is not None:
        contents["README.md"] = readme.encode()
    operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents[name]) for name in names]
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(repo_id, operations, commit_message=message)
    except errors.HfHubHTTPError as error:
        raise ValueError(f"{page}: the push was refused ({first_line(error)})") from error
    except network_errors() as error:
        raise ValueError(f"{page} cannot be reached ({first_line(error)}); nothing was pushed") from error
    return names


def pushable_files(directory: str | Path, *, leave_out: Sequence[str] = ()) -> dict[str, Path]:
    """Name in the repository -> file, of a folder of plain files; hidden ones stay at home."""
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such folder")
    found = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name not in leave_out]
    files = {path.relative_to(directory).as_posix(): path for path in found}
    files = {name: path for name, path in files.items() if not any(part[0] == "." for part in name.split("/"))}
    for name, path in files.items():
        check_link(path, directory)
        if path.suffix.lower() in _PICKLES:
            raise ValueError(f"{path}: pickles and programs are not pushed; write the tensors as safetensors")
        if path.name not in _ALSO_PLAIN and not any(path.match(pattern) for pattern in PLAIN_FILES):
            raise ValueError(f"{directory}: holds {name}; only {', '.join(PLAIN_FILES)} are pushed")
    if not files:
        raise ValueError(f"{directory}: nothing to push")
    return files


@dataclass(frozen=True)
class HubFile:
    """What the Hub says of a file. `sha256`: of large files only."""

    name: str
    size: int
    sha256: str | None


def repo_page(repo: str, kind: RepoKind) -> str:
    """The page of a repository, for people."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"


def first_line(error: Exception) -> str:
    """What an error of the Hub's library says, without its advice."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's library raises when it cannot be reached, whatever package carries its requests."""
    from huggingface_hub import errors

    # Of `requests` all are OSErrors; of `httpx` they share a base, which HfHubHTTPError has too.
    return (OSError, *errors.HfHubHTTPError.__bases__)


def access_problem(repo: str, kind: RepoKind) -> str | None:
    """Why this user may not download from a repository, with the page to visit; None where nothing is in the way."""
    # Imported here: slow, and only needed by those who go to the Hub.
    from huggingface_hub import HfApi, errors, get_token

    page = repo_page(repo, kind)
    try:
        HfApi().auth_check(repo, repo_type=kind)
    except errors.GatedRepoError:
        login = "" if get_token() else "log in (`hf auth login`, or HF_TOKEN), and "
        return f"{repo}: {login}accept the licence at {page}"
    except errors.RepositoryNotFoundError:
        login = "" if get_token() else " to those who are not logged in (`hf auth login`, or HF_TOKEN)"
        return f"{repo}: there is no {page}{login}"
    except network_errors() as error:
        return f"{repo}: {page} cannot be reached ({first_line(error)})"
    return None


def files_on_hub(repo: str, kind: RepoKind, names: list[str], *, revision: str | None = None) -> dict[str, HubFile]:
    """Size and hash of files; ValueError names one that the repository does not have, or what cannot be reached."""
    from huggingface_hub import HfApi

    try:
        listed = HfApi().get_paths_info(repo, names, repo_type=kind, revision=revision)
    except network_errors() as error:
        raise ValueError(f"{repo_page(repo, kind)} cannot be reached ({first_line(error)})") from error
    found = {info.path: HubFile(info.path, info.size, info.lfs.sha256 if info.lfs else None) for info in listed}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{repo_page(repo, kind)} has no file {missing[0]!r}")
    return found


def fetch_file(repo: str, kind: RepoKind, name: str, folder: Path, *, revision: str | None = None) -> Path:
    """Download one file below `folder`; what an interrupted download left is continued. ValueError: it broke off."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name, repo_type=kind, revision=revision, local_dir=folder))
    except network_errors() as error:
        problem = f"{repo_page(repo, kind)}: {name} broke off ({first_line(error)})"
        raise ValueError(f"{problem}; start again, it goes on from there") from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
