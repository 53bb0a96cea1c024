"""Commands that a README tells its reader to type."""

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
