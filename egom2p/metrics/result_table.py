"""Tables of results: JSON, Markdown and the pages of `viewing` show the same frozen `ResultTable`.

`measurements.py` makes one of the values of every clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from egom2p.metrics.bootstrap import Interval
from egom2p.metrics.calibration import STRETCHED_SHARE, Calibration
from egom2p.metrics.perceptual import STABLE_VIDEOS
from egom2p.storage import atomic_file, load_json, save_json

MethodKind = Literal["baseline", "ceiling", "bound", "model"]
Drawn = Literal["recordings", "clips"]


@dataclass(frozen=True)
class Metric:
    """One column of a table.

    key        unique in its task, e.g. `abs_rel/median`
    protocol   how it is measured, in words: alignment, unit, over what it is averaged
    is_primary used for the one-line verdict of a task
    """

    key: str
    label: str
    unit: str
    protocol: str
    higher_is_better: bool = False
    is_primary: bool = False
    decimals: int = 3

    @property
    def title(self) -> str:
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit} {'↑' if self.higher_is_better else '↓'}"

    def best(self, means: Sequence[float]) -> float:
        return max(means) if self.higher_is_better else min(means)


@dataclass(frozen=True)
class TokenLoss:
    """Mean -log p of the true tokens, beside what a model that ignores its input can reach (None: not known, why)."""

    checkpoint: str
    target: str
    nats: Interval
    accuracy: Interval
    uniform_nats: float
    unigram_nats: float | None
    position_entropy_nats: float | None
    unigram_note: str

    def __str__(self) -> str:
        text = (
            f"{self.checkpoint}: token loss of {self.target} {format_interval(self.nats, 3)} nats, "
            f"accuracy {self.accuracy.mean:.1%}; uniform {self.uniform_nats:.3f}"
        )
        if self.unigram_nats is None:
            return text + f"; unigram baseline per position not known ({self.unigram_note})"
        difference = self.nats.mean - self.unigram_nats
        side = "below" if difference < 0 else "above"
        return text + f"; unigram baseline per position {self.unigram_nats:.3f}: {abs(difference):.3f} {side} it"


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Calibration):
    """Whether the spread of an estimator's samples tells the error."""

    checkpoint: str
    estimator: str

    def __str__(self) -> str:
        text = (
            f"{self.checkpoint}, {self.estimator}: the range of {self.num_samples} samples should hold "
            f"{self.levels[-1]:.0%} of the true values, it holds {self.coverage[-1]:.0%}"
        )
        if self.stretch is not None and self.stretched is not None:
            text += (
                f"; {self.stretch:.2f} times as far from their mean it holds {self.stretched:.0%} of clips that the "
                f"factor was not fitted to (wanted {STRETCHED_SHARE:.0%})"
            )
        if self.correlation is None:
            return text
        return text + f"; rank correlation of spread and error over clips {self.correlation:.2f}"


@dataclass(frozen=True)
class Comparison:
    """Paired difference to another row; better or worse only when its 95 % interval leaves out 0."""

    baseline: str
    difference: Interval
    verdict: Literal["better", "worse", "tie"]


@dataclass(frozen=True)
class CheckpointComparison:
    """The same estimator of the checkpoint named first, metric by metric."""

    checkpoint: str
    metrics: Mapping[str, Comparison]


@dataclass(frozen=True)
class Difference:
    """Paired differences of two rows, metric by metric, of tables that compare more than model and baseline."""

    minuend: str
    subtrahend: str
    values: Mapping[str, Interval]


@dataclass(frozen=True)
class Row:
    """What is concluded of a method; `against_baseline` has an entry per metric that a baseline has a value of."""

    label: str
    kind: MethodKind
    checkpoint: str | None
    values: Mapping[str, Interval]
    against_baseline: Mapping[str, Comparison]
    failures: Mapping[str, str]
    of_the_set: Mapping[str, float]
    against_checkpoint: CheckpointComparison | None = None

    @property
    def title(self) -> str:
        return f"{self.checkpoint}: {self.label}" if self.checkpoint else self.label

    def mean(self, metric: Metric) -> float | None:
        return self.values[metric.key].mean if metric.key in self.values else None

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Row":
        first = found["against_checkpoint"]
        known = {
            "values": {key: Interval(**value) for key, value in found["values"].items()},
            "against_baseline": _comparisons(found["against_baseline"]),
            "against_checkpoint": first and CheckpointComparison(first["checkpoint"], _comparisons(first["metrics"])),
        }
        return cls(**dict(found) | known)


@dataclass(frozen=True)
class ResultTable:
    """One task, concluded: a row per method with 95 % intervals, against the best baseline and the first checkpoint."""

    task: str
    quantity: str
    num_clips: int
    num_recordings: int
    stream: str
    metrics: tuple[Metric, ...]
    rows: tuple[Row, ...]
    token_losses: tuple[TokenLoss, ...] = ()
    uncertainty: tuple[Uncertainty, ...] = ()
    differences: tuple[Difference, ...] = ()
    drawn: Drawn = "recordings"

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "ResultTable":
        """From the values of `asdict`, as results.json has them."""
        differences = (
            Difference(
                one["minuend"], one["subtrahend"], {key: Interval(**value) for key, value in one["values"].items()}
            )
            for one in found.get("differences", ())
        )
        rows = tuple(Row.from_plain(row) for row in found["rows"])
        return cls(**common_from_plain(found) | {"rows": rows, "differences": tuple(differences)})

    @property
    def primary(self) -> Metric:
        return next((metric for metric in self.metrics if metric.is_primary), self.metrics[0])

    @property
    def counted_clips(self) -> str:
        return f"{self.num_clips} held-out clips of {self.num_recordings} recordings"

    def best_row(self, kind: MethodKind, metric: Metric, *, checkpoint: str | None = None) -> Row | None:
        """The row of a kind (and checkpoint) with the best mean, the first of equal ones; None without any value."""
        rows = [row for row in self.rows if row.kind == kind and checkpoint in (None, row.checkpoint)]
        known = [row for row in rows if row.mean(metric) is not None]
        return (max if metric.higher_is_better else min)(known, key=lambda row: row.mean(metric), default=None)

    def sentences(self) -> list[str]:
        """What stands below the rows: checkpoints compared, token losses, and distances of the whole set."""
        return [*self.checkpoints_compared(), *map(str, self.token_losses), *self.set_distances()]

    def medians(self) -> list[str]:
        """The primary metric's median over clips, which a few lost clips do not carry away; nothing where none is."""
        metric = self.primary
        values = [(row.title, row.values[metric.key].median) for row in self.rows if metric.key in row.values]
        shown = ", ".join(f"{title} {value:.{metric.decimals}f}" for title, value in values if value is not None)
        return [f"Medians over clips of {metric.label}: {shown}."] if shown else []

    def checkpoints_compared(self) -> list[str]:
        """How every further checkpoint stands to the one named first, clip by clip, in the primary metric."""
        metric, sentences = self.primary, []
        for row in self.rows:
            if row.against_checkpoint is None:
                continue
            found = row.against_checkpoint.metrics[metric.key]
            if found.difference.mean is None:
                continue
            words = {"tie": "no difference shown"}.get(found.verdict, found.verdict)
            difference = format_interval(found.difference, metric.decimals)
            first = row.against_checkpoint.checkpoint
            sentences.append(f"{row.title} minus {first}: {metric.title} {difference}, {words}")
        return sentences

    def set_distances(self) -> list[str]:
        """One line per metric of all clips together; without interval, because clips have no value of their own."""
        names = dict.fromkeys(name for row in self.rows for name in row.of_the_set)
        sentences = []
        for name in names:
            values = [(row.title, row.of_the_set[name]) for row in self.rows if name in row.of_the_set]
            shown = ", ".join(f"{title} {value:.2f}" for title, value in values)
            sentences.append(f"{name} over {self.num_clips} clips (lower is better): {shown}")
        if names and self.num_clips < STABLE_VIDEOS:
            sentences.append(
                f"with fewer than {STABLE_VIDEOS} clips such a distance moves more by chance than by quality"
            )
        return sentences

    def markdown(self) -> list[str]:
        """Lines of a section."""
        lines = [f"## {self.task}: {self.counted_clips}", ""]
        lines += ["| method | kind | " + " | ".join(metric.title for metric in self.metrics) + " |"]
        lines += ["|---|---|" + "---|" * len(self.metrics)]
        for row in self.rows:
            cells = [_cell(row, metric) for metric in self.metrics]
            lines.append(f"| {row.title} | {row.kind} | " + " | ".join(cells) + " |")
        protocol = "; ".join(f"{metric.label}: {metric.protocol}" for metric in self.metrics)
        lines += ["", f"Columns: {protocol}.", "", *(word for line in self.medians() for word in (line, ""))]
        reported = [*self.checkpoints_compared(), *self.token_losses, *self.uncertainty, *self.set_distances()]
        lines += [f"- {sentence}" for sentence in reported]
        failures = sum(len(row.failures) for row in self.rows)
        return [*lines, "", f"Clips that could not be scored, over all methods: {failures}.", ""]


@dataclass(frozen=True)
class Results:
    """Tables of one evaluation, as results.json has them.

    description   one paragraph for people; about: what else is to be known: config, hardware, checkpoints ...
    """

    description: str
    tables: tuple[ResultTable, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "Results":
        return cls.from_plain(load_json(Path(folder) / "results.json"))

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "Results":
        about = {name: value for name, value in found.items() if name not in ("description", "tasks")}
        return cls(found["description"], tuple(ResultTable.from_plain(table) for table in found["tasks"]), about)

    def to_plain(self) -> dict[str, Any]:
        tables = [asdict(table) for table in self.tables]
        return {"description": self.description, **self.about, "tasks": tables}

    def write(self, folder: Path) -> None:
        """results.json and results.md below `folder`."""
        save_json(folder / "results.json", self.to_plain())
        with atomic_file(folder / "results.md") as unfinished:
            Path(unfinished).write_text(self.markdown(), encoding="utf-8")

    def _drawn(self) -> str:
        if any(table.drawn == "clips" for table in self.tables):
            return "clips are drawn one by one, so they speak of these recordings and of no other"
        return "clips of one recording are drawn together"

    def markdown(self) -> str:
        """The tables as a Markdown page."""
        lines = ["# Evaluation", "", self.description, ""]
        for table in self.tables:
            lines += table.markdown()
        lines += [
            f"Brackets are 95 % bootstrap intervals; {self._drawn()}. ✓ / ✗: better / worse "
            "than the best trivial baseline of that column (95 % interval of the paired difference leaves out 0); "
            "≈: no difference shown.",
            "",
        ]
        return "\n".join(lines)


def format_interval(found: Interval, decimals: int, *, sign: str = "") -> str:
    """`0.123 [0.110, 0.140]`; without brackets where the spread is unknown."""
    text = f"{found.mean:{sign}.{decimals}f}"
    if found.low is None:
        return text
    return f"{text} [{found.low:{sign}.{decimals}f}, {found.high:{sign}.{decimals}f}]"


def common_from_plain(found: Mapping[str, Any]) -> dict[str, Any]:
    losses = [
        TokenLoss(**loss | {name: Interval(**loss[name]) for name in ("nats", "accuracy")})
        for loss in found["token_losses"]
    ]
    return dict(found) | {
        "metrics": tuple(Metric(**metric) for metric in found["metrics"]),
        "token_losses": tuple(losses),
        "uncertainty": tuple(
            Uncertainty(**{name: tuple(value) if isinstance(value, list) else value for name, value in one.items()})
            for one in found["uncertainty"]
        ),
    }


def _comparisons(found: Mapping[str, Any]) -> dict[str, Comparison]:
    return {
        key: Comparison(one["baseline"], Interval(**one["difference"]), one["verdict"]) for key, one in found.items()
    }


_MARKS = {"better": " ✓", "worse": " ✗", "tie": " ≈"}


def _cell(row: Row, metric: Metric) -> str:
    value, against = row.values.get(metric.key), row.against_baseline.get(metric.key)
    if value is None or value.mean is None:
        return "n/a"
    missing = f" ({value.num_missing} n/a)" if value.num_missing else ""
    return format_interval(value, metric.decimals) + missing + (_MARKS[against.verdict] if against else "")
