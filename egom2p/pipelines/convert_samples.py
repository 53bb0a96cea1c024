"""Command line: turn video files, RGB-D frames or Aria MPS output into plain-folder recordings.

python -m egom2p.pipelines.convert_samples SOURCE OUT [--name NAME] [--rate-hz 30] [--image-size 1408]
"""

import argparse
import sys
from typing import NoReturn

from egom2p.data.recordings.conversion import FORMATS, convert
from egom2p.jobs.progress import say


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help=f"a file or folder in one of the formats {', '.join(sorted(FORMATS))}")
    parser.add_argument("out", help="folder of recordings to write into")
    parser.add_argument("--name", help="name of the recording; by default the source's")
    parser.add_argument("--rate-hz", type=float, help="frame rate of RGB-D frames, which carry no times (default 30)")
    parser.add_argument("--image-size", type=int, help="side of the Aria RGB picture (default: from the calibration)")
    parser.add_argument("--device-size", choices=("L", "S"), help="size of the Aria glasses (default L)")
    given = vars(parser.parse_args(arguments))
    source, out = given.pop("source"), given.pop("out")
    options = {name: value for name, value in given.items() if value is not None}
    try:
        folders = convert(source, out, **options)
    except TypeError:
        wrong = sorted(set(options) - {"name"})
        _fail(f"the format of {source} does not take {wrong}")
    except (ValueError, FileNotFoundError) as error:
        _fail(str(error))
    say("\n".join(f"wrote {folder}" for folder in folders))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
