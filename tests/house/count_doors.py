"""The files of egom2p that a command runs: `python tests/house/count_doors.py run_training_egom2p.py --config FILE`.

A file counts where one of its functions is called; importing it is not running it. Prints a JSON object: `command`, the
files up to the first optimizer step (without one: up to the end), and `step`, those of the next step alone, from one
update of the weights to the next, the fetching of its batch included.
"""

import json
import runpy
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT / 'egom2p'}/"
_IS_FUNCTION = 1  # CO_OPTIMIZED: not the body of a module or class


def count(script: str, arguments: list[str]) -> dict[str, list[str]]:
    """Files (relative to egom2p) that a top-level script runs, in this process."""
    running: set[str] = set()
    between_steps: list[list[str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code, caller = frame.f_code, frame.f_back.f_code
        # A comprehension in the body of a module is a function to Python; it runs when the file is imported.
        is_import = caller.co_filename == code.co_filename and not caller.co_flags & _IS_FUNCTION
        if event == "call" and code.co_flags & _IS_FUNCTION and not is_import and code.co_filename.startswith(PACKAGE):
            running.add(code.co_filename.removeprefix(PACKAGE))

    take_step = torch.optim.AdamW.step

    def step(self: torch.optim.Optimizer, *args: Any) -> Any:
        between_steps.append(sorted(running))
        running.clear()
        return take_step(self, *args)

    torch.optim.AdamW.step = step
    sys.argv = [script, *arguments]
    sys.setprofile(note)
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    finally:
        sys.setprofile(None)
    first, *others = between_steps or [sorted(running)]
    return {"command": first, "step": others[0] if others else []}


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    found = count(sys.argv[1], sys.argv[2:])
    sys.stdout.write(json.dumps(found) + "\n")
