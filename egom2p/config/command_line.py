"""The command line of every script: `--config FILE a.b=c` on top of Hydra.

A plain run is composed in this process, by every rank alike, with no run directory. What Hydra alone can do
(`--cfg`, `--info`, `--help`, `--multirun`) is handed to `hydra.main` with the command line rewritten.
"""

import argparse
import errno
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from egom2p.config.composition import (
    build,
    cfgs_root,
    compose,
    find_config_file,
    load_config,
    prepare_overrides,
    quoted,
)
from egom2p.config.key_meanings import key_lines, prose
from egom2p.config.schema import ConfigError

SchemaT = TypeVar("SchemaT")

# Hydra would make a time-stamped folder and a log per rank; the trainer decides where a run lives.
_NO_RUN_FOLDERS = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.sweep.subdir=.",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
)


_OTHER_RANKS_WAIT_S = 3.0
_NO_MEMORY = "can't allocate memory"
_KEPT = "what was written before is whole, and the same command goes on from there"
_ADVICE = {
    errno.ENOSPC: f"make room, or choose an output on another disk; {_KEPT}",
    errno.EDQUOT: f"the quota is used up: make room, or choose an output elsewhere; {_KEPT}",
    errno.EFBIG: f"a limit on the size of files is set (ulimit -f); {_KEPT}",
    errno.EROFS: "choose an output on a disk that can be written",
    errno.EACCES: "choose a path that you may use, or change its permissions",
    errno.EPERM: "choose a path that you may use, or change its permissions",
    errno.ENOTDIR: "a part of this path is a file, wanted a folder",
    errno.EISDIR: "is a folder, wanted a file",
    errno.EEXIST: "is a file, wanted a folder",
    errno.ELOOP: "is a link, which is not followed here; remove it",
    errno.EMFILE: "too many files are open at once; raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine",
    errno.ENAMETOOLONG: "choose shorter names",
    errno.EIO: f"the disk or network below it fails; {_KEPT}",
    errno.ENOMEM: "a smaller batch or model, or fewer workers, need less",
}


class _TaskFailed(BaseException):
    """Carries an exception through Hydra, which would swallow or shorten it."""


def run_main(
    schema: type[SchemaT],
    task: Callable[[SchemaT], Any],
    *,
    default_config: str | None = None,
    description: str = "",
    arguments: list[str] | None = None,
    program: str | None = None,
) -> None:
    """Parse the command line, compose and validate the config, call `task(config)`.

    default_config   YAML used without --config, relative to the cfgs root; None: the recipes are listed
    arguments        the command line without the program's name; sys.argv by default
    program          as headers of YAML files name it (see `recipes`); None: the script that runs

    What can be foreseen (bad config, bad data, a full disk, too little memory) ends as one message on stderr and exit
    code 2, Ctrl-C as one word and exit code 130; with HYDRA_FULL_ERROR=1 their tracebacks are kept. Other exceptions
    pass through. Of several ranks the first speaks; another one only where the first has nothing to say.
    """
    given = _parse(sys.argv[1:] if arguments is None else arguments, default_config, description, schema)
    try:
        if given.config is None:
            raise ConfigError("which config? Say --config FILE" + recipes(program or Path(sys.argv[0]).name))
        if given.hydra_flags:
            _run_hydra(schema, task, given, description)
        else:
            task(load_config(schema, given.config, given.overrides))
    except Exception as error:
        message = foreseen(error)
        if message is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        rank = int(os.environ.get("RANK", "0"))
        if rank and isinstance(error, ConfigError):
            raise SystemExit(2) from None  # every rank reads the same config
        if rank:
            # What all ranks meet is said by the first, whose end makes the launcher end this one.
            time.sleep(_OTHER_RANKS_WAIT_S)
        sys.stderr.write(f"error: {f'rank {rank}: ' if rank else ''}{message}\n")
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun ends its own forty lines with what stands there
            noted = json.dumps({"message": f"error: {message}", "timestamp": int(time.time())})
            Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(noted, encoding="utf-8")
        if not isinstance(error, ConfigError):
            sys.stderr.write("(HYDRA_FULL_ERROR=1 shows where this comes from)\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write("interrupted\n")
        raise SystemExit(130) from None


def foreseen(error: Exception) -> str | None:
    """What to tell a person of an error whose cause lies outside the program, and what to do; None for any other."""
    if isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno is None):
        return str(error)  # of an OSError a library's own words, such as those of a file that a model lacks
    if isinstance(error, OSError):
        where = "" if error.filename is None else f"{error.filename}: "
        advice = _ADVICE.get(error.errno, "")
        return f"{where}{error.strerror or error}{f'; {advice}' if advice else ''}"
    # Of torch's own errors the kind is in the name or in the text alone; on the CPU it is a RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error):
        said = (str(error).strip().splitlines() or [""])[0]
        return f"out of memory{f' ({said})' if said else ''}; a smaller batch or model, or fewer workers, need less"
    return None


def recipes(script: str) -> str:
    """Lines with every config whose header runs this script, and what it is for."""
    root, found = cfgs_root(), []
    for file in sorted(root.rglob("*.yaml")):
        header = [line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines()[:12] if line[:1] == "#"]
        command = next((line for line in header if line.startswith("Command:")), "")
        if f" {script} " in command + " " and header[0].startswith("Purpose:"):
            purpose = " ".join(header[: header.index(command)]).removeprefix("Purpose:").strip()
            found.append(f"\n  {root.name}/{file.relative_to(root)}\n      {purpose}")
    return ", for instance one of:" + "".join(found) if found else ""


def _parse(arguments: list[str], default_config: str | None, description: str, schema: type) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", default=default_config)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"), help="show the composed config, do nothing")
    parser.add_argument("--package", "-p", help="with --cfg: only this part")
    parser.add_argument("--resolve", action="store_true", help="with --cfg: resolve interpolations")
    parser.add_argument("--info", "-i", nargs="?", const="all", help="Hydra's information, e.g. --info defaults")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true", help="one run per combination of a=1,2 b=3,4")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.error = lambda text: parser.exit(2, f"error: {text}; keys are said without dashes: key=value\n")
    given = parser.parse_intermixed_args(arguments)
    if given.help and given.config is None:
        sys.stdout.write(f"{parser.format_help()}\n{_every_key(schema)}\n")
        raise SystemExit(0)
    given.hydra_flags = []
    for name in ("cfg", "package", "info"):
        if getattr(given, name) is not None:
            given.hydra_flags += [f"--{name}", getattr(given, name)]
    given.hydra_flags += [f"--{name}" for name in ("resolve", "help", "multirun") if getattr(given, name)]
    return given


def _run_hydra(
    schema: type[SchemaT], task: Callable[[SchemaT], Any], given: argparse.Namespace, description: str
) -> None:
    file = find_config_file(given.config)
    overrides = prepare_overrides(schema, given.overrides, file, is_sweep=given.multirun)
    if not given.multirun:
        tree = compose(file, overrides)  # for its readable errors
        if given.cfg is not None and not OmegaConf.missing_keys(tree):
            build(schema, tree, where=str(file))

    def job(tree: DictConfig) -> None:
        try:
            task(build(schema, tree, where=str(file)))
        except Exception as error:
            raise _TaskFailed from error

    if given.multirun:
        _check_sweep(schema, file, overrides)

    flags = ["--config-path", str(file.parent), "--config-name", file.stem, "--config-dir", str(cfgs_root())]
    # Of a sweep Hydra wants to keep its own settings, which every run's config.json has already.
    sweep_dir = tempfile.TemporaryDirectory()
    help_text = quoted(_help_template(schema, description))
    fixed = [*_NO_RUN_FOLDERS, f"hydra.sweep.dir={quoted(sweep_dir.name)}", f"hydra.help.template={help_text}"]
    before = sys.argv
    sys.argv = [before[0], *flags, *given.hydra_flags, *fixed, *overrides]
    try:
        hydra.main(version_base="1.3", config_path=None)(job)()
    except _TaskFailed as failed:
        raise failed.__cause__ from None
    except SystemExit as ended:
        if ended.code not in (0, None):
            raise SystemExit(2) from None
    finally:
        sys.argv = before
        sweep_dir.cleanup()


def _check_sweep(schema: type, file: Path, overrides: list[str]) -> None:
    """Every run of a sweep composed and validated before the first begins. ConfigError where two share a folder.

    The second would go on from the first, or find it finished and train nothing.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    runs = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    folders: dict[str, Sequence[str]] = {}
    for run in (run for batch in runs for run in batch):
        config = build(schema, compose(file, run), where=str(file))
        folder = str(getattr(config, "output_dir", len(folders)))
        if folder in folders:
            raise ConfigError(
                f"two runs of this sweep have the output_dir {folder} ({' '.join(folders[folder])}, and "
                f"{' '.join(run)}); put what differs into it, for instance 'output_dir={folder}-${{training.lr}}'"
            )
        folders[folder] = run


def _help_template(schema: type, description: str) -> str:
    """What --help shows: purpose, every key in the schema's own words, and the composed config."""
    usage = f"{Path(sys.argv[0]).name} [--config FILE] key=value ...    (also --cfg job, --info, --multirun)"
    words = "\n\n".join(part for part in (description.strip(), usage, _every_key(schema)) if part)
    # Neither Hydra's template nor an interpolation may find a `$` of ours.
    return words.replace("${", "$ {").replace("$", "$$") + "\n\n== What this config sets ==\n\n$CONFIG"


def _every_key(schema: type) -> str:
    lines = key_lines(schema, width=max(40, shutil.get_terminal_size().columns))
    return "\n\n".join(
        part for part in (prose(schema), "== Every key, its default and what it means ==", "\n".join(lines)) if part
    )
