"""Single files of the Hugging Face Hub: who may have them is asked first, what came is compared with what was promised.

Models and data sets alike. Logins, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what the Hub's library says.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RepoKind = Literal["model", "dataset"]


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
        told = f"{repo_page(repo, kind)}: {name} broke off ({first_line(error)})"
        raise ValueError(f"{told}; start again, it goes on from there") from error


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
