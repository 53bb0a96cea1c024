"""The house counted: files and their sizes, files in one row, import circles, names used twice.

python tests/house/house.py prints the table; `test_house.py` holds it against its budgets.
"""

import ast
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL = 80


@dataclass(frozen=True)
class House:
    """Counts of a package, without `__init__` files and without readers.

    Readers (`data/recordings/*.py`) are one file per format, as they should be: they count neither as files nor as a
    crowd. Their names and imports count like any other's.

    circles   groups of files that import each other, by a late import too
    escaping  files that import the experiments
    """

    num_files: int
    num_lines: int
    num_small: int
    crowd: tuple[str, int]
    circles: list[list[str]]
    names_twice: list[str]
    escaping: list[str]

    def rows(self) -> dict[str, str]:
        return {
            "files": str(self.num_files),
            "lines": f"{self.num_lines:,}",
            f"files under {SMALL} lines": str(self.num_small),
            "most files in one row": f"{self.crowd[1]} ({self.crowd[0]})",
            "import circles, late imports counted": str(len(self.circles)),
            "file names used twice": ", ".join(self.names_twice) or "none",
            "files that import experiments": ", ".join(self.escaping) or "none",
        }


def count_house(root: Path = ROOT, package: str = "egom2p") -> House:
    """Counts of a package below `root`, from its text alone: nothing is imported."""
    modules = {_dotted(path.relative_to(root)): path for path in sorted((root / package).rglob("*.py"))}
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in modules.items()}
    plain = {module: path for module, path in modules.items() if path.name != "__init__.py"}
    counted = [path for path in plain.values() if path.parent != root / package / "data" / "recordings"]
    sizes = [len(path.read_text(encoding="utf-8").splitlines()) for path in counted]
    rows = Counter(path.parent.relative_to(root).as_posix() for path in counted)
    names = Counter(path.stem for path in plain.values())
    graph = {module: _imported(tree) for module, tree in trees.items()}
    inside = {module: {name for name in found if name in plain and name != module} for module, found in graph.items()}
    return House(
        num_files=len(counted),
        num_lines=sum(sizes),
        num_small=sum(size < SMALL for size in sizes),
        crowd=rows.most_common(1)[0],
        circles=circles_of(inside),
        names_twice=sorted(name for name, count in names.items() if count > 1),
        escaping=sorted(module for module, found in graph.items() if any("experiments" in n.split(".") for n in found)),
    )


def circles_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other: nothing imports in a circle exactly when there is none."""
    reach = {node: _reached(graph, node) for node in graph}
    groups = {
        frozenset(other for other in reach[node] if node in reach[other]) for node in graph if node in reach[node]
    }
    return sorted(sorted(group) for group in groups)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += graph[node]
    return found


def _imported(tree: ast.Module) -> set[str]:
    """Names of all modules that a file may mean, wherever in it they are imported."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


if __name__ == "__main__":
    print("\n".join(f"| {name} | {value} |" for name, value in count_house().rows().items()))
