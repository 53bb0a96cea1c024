"""Commands that a README, or the header of a YAML file, tells its reader to type."""

import ast
import importlib
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def commands_of(text: str) -> list[list[str]]:
    """Words of every line in the bash blocks of a page; continued lines are one, `<placeholders>` become a word."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(re.sub(r"<[^>]*>", "given", line), comments=True) for line in blocks.splitlines()]
    return [words for words in lines if words]


def config_and_overrides(arguments: list[str], default: str | Path | None) -> tuple[str | Path | None, list[str]]:
    """The config that `--config` names (else the default), and the other arguments."""
    if "--config" not in arguments:
        return default, arguments
    position = arguments.index("--config")
    return ROOT / arguments[position + 1], arguments[:position] + arguments[position + 2 :]


def header(file: Path) -> str:
    """The comment that a YAML file begins with."""
    lines = file.read_text().splitlines()
    return "\n".join(line[1:].strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")])


def command(file: Path) -> list[str] | None:
    """Words of the command in the header, without what starts python."""
    found = re.search(r"^Command:\s*((?:.*\\\n)*.*)$", header(file), re.MULTILINE)
    if found is None:
        return None
    words = shlex.split(re.sub(r"<[^>]*>", "given", found.group(1)).replace("\\\n", " "))
    programs = [i for i, word in enumerate(words) if word.endswith(".py") or word == "-m"]
    return words[programs[0] :] if programs else None  # a target of the Makefile


def entry_point(words: list[str]) -> tuple[type, str | None, list[str]]:
    """Schema and default config that the named program hands to `run_main`, and the arguments it gets."""
    is_module = words[0] == "-m"
    path = ROOT / (words[1].replace(".", "/") + ".py") if is_module else ROOT / words[0]
    tree = ast.parse(path.read_text())
    call = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run_main"
    )
    name = call.args[0].id
    defaults = [word.value.value for word in call.keywords if word.arg == "default_config"]
    imported = {
        alias.name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    schema = getattr(importlib.import_module(imported.get(name) or words[1]), name)
    return schema, defaults[0] if defaults else None, words[2 if is_module else 1 :]
