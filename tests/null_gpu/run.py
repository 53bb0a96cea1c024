"""`python tests/null_gpu/run.py SCRIPT [ARGUMENTS]`: a script under the stand-in for a GPU, by hand."""

import os
import sys
import tempfile
from pathlib import Path

import null_gpu

if __name__ == "__main__":
    if reason := null_gpu.why_not():
        sys.exit(reason)
    folder = Path(tempfile.gettempdir()) / f"null_gpu_{os.getuid()}"
    script = Path(sys.argv[1])
    script = script if script.is_file() else Path(__file__).parent / script
    os.execve(sys.executable, [sys.executable, str(script), *sys.argv[2:]], null_gpu.environment(folder))
