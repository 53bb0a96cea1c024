"""Does this code compute what the published code computes? A table of errors beside their tolerances.

    python benchmarks/parity.py --fixtures DIR [--only model,generation] [--verbose]

DIR holds numbers of the reference: `model/<variant>`, `masking`, `tokenizer/<name>`, `cosmos/<name>`, `generation`,
`misc`, lists of names; its FORMAT.md describes them. Sizes are read from the folder. Parts that are missing are left
out. Exit code 1 when an error exceeds its tolerance or a part cannot be compared, 2 when there is nothing to compare.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from parity_checks.check import Check, Checks, Finding, Skipped
from parity_checks.generation_folder import generation_checks
from parity_checks.masking_folder import masking_checks
from parity_checks.misc_folder import misc_checks, name_checks
from parity_checks.model_folder import model_checks
from parity_checks.reference_like_folder import reference_like_checks
from parity_checks.tokenizer_folders import cosmos_checks, tokenizer_checks

# Part -> (what marks it in the folder, its comparisons). Each match of the pattern is one part of the table.
PARTS: dict[str, tuple[str, Checks]] = {
    "model": ("model/*/info.json", model_checks),
    "masking": ("masking/stats.json", masking_checks),
    "tokenizer": ("tokenizer/representations.json", tokenizer_checks),
    "cosmos": ("cosmos/units.safetensors", cosmos_checks),
    "generation": ("generation/cases.json", generation_checks),
    "misc": ("misc/arithmetic.json", misc_checks),
    "names": ("*_state_dict_keys.txt", name_checks),
    "reference_like": ("model/*/info.json", reference_like_checks),
}
# The last is about the yardstick of benchmarks/training.py, not about the project: compared when asked for.
_DEFAULT = [name for name in PARTS if name != "reference_like"]


def main(words: list[str] | None = None) -> int:
    """Exit code; `words` replaces the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixtures", type=Path, required=True, metavar="DIR")
    parser.add_argument("--only", default=",".join(_DEFAULT), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--verbose", action="store_true", help="every comparison, not only the worst of each kind")
    arguments = parser.parse_args(words)
    names = arguments.only.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        parser.error(f"--only knows {', '.join(PARTS)}, got {', '.join(unknown)}")
    print(f"{'part':<34} {'comparison':<66} {'error':>9} {'allowed':>9}")
    num_checks = num_failed = 0
    skipped: list[tuple[str, Skipped]] = []
    for label, folder, checks in _found(arguments.fixtures, names):
        findings = list(_guarded(checks, folder))
        skipped += [(label, finding) for finding in findings if isinstance(finding, Skipped)]
        compared = [finding for finding in findings if isinstance(finding, Check)]
        num_checks += len(compared)
        num_failed += sum(not check.is_met for check in compared)
        for check in compared if arguments.verbose else _worst(compared):
            verdict = "" if check.is_met else "  EXCEEDS"
            print(f"{label:<34} {check.name:<66} {check.error:>9.2g} {check.tolerance:>9.2g}{verdict}")
    for label, finding in skipped:
        print(f"{label:<34} not compared: {finding.name}: {finding.reason}")
    if num_checks == 0:
        print(f"{arguments.fixtures}: nothing to compare; looked for {', '.join(PARTS[name][0] for name in names)}")
        return 2
    print(f"{num_checks} comparisons, {num_failed} exceed their tolerance")
    return 1 if num_failed else 0


def _found(root: Path, names: list[str]) -> Iterator[tuple[str, Path, Checks]]:
    for name in names:
        pattern, checks = PARTS[name]
        for folder in sorted({marker.parent for marker in root.glob(pattern)}):
            yield str(folder.relative_to(root)) if folder != root else name, folder, checks


def _guarded(checks: Checks, folder: Path) -> Iterator[Finding]:
    """A part that cannot be compared to its end has failed, and the others still are."""
    try:
        yield from checks(folder)
    except (KeyError, ValueError, RuntimeError, OSError, IndexError, StopIteration) as error:
        yield Check(f"stopped by {type(error).__name__}: {error}", math.inf)


def _worst(checks: list[Check]) -> list[Check]:
    """All that exceed their tolerance, and of the others the one nearest to it for each tolerance."""
    failed = [check for check in checks if not check.is_met]
    nearest: dict[float, Check] = {}
    for check in (check for check in checks if check.is_met):
        known = nearest.get(check.tolerance)
        if known is None or check.error > known.error:
            nearest[check.tolerance] = check
    return failed + list(nearest.values())


if __name__ == "__main__":
    sys.exit(main())
