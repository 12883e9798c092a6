"""The leaderboard of a search: what was tried, what was best, what that is worth on fresh seeds."""

import csv
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfft.search import oracles
from tfft.search.space import Space
from tfft.search.trials import Outcome, interval
from tfft.utils.errors import UserError
from tfft.utils.files import write_atomic

SHOWN = 10  # trials in the table that is printed


@dataclass(frozen=True)
class Row:
    """A trial, with all parts in which it was trained.

    Attributes:
        trial: its name, and its folder's.
        values: of the space.
        outcome: of the part that came furthest; `seconds` is of all.
    """

    trial: str
    values: Mapping[str, Any]
    outcome: Outcome


@dataclass(frozen=True)
class Final:
    """A config trained again on fresh seeds."""

    name: str
    values: Mapping[str, Any]
    runs: Sequence[Outcome]

    def scores(self, figure: str) -> list[float]:
        """Of the runs that came to an end."""
        return [run.metrics[figure] for run in self.runs if figure in run.metrics]


@dataclass
class Leaderboard:
    """What a search found so far."""

    space: Space
    objective: str
    direction: str
    rows: list[Row] = field(default_factory=list)
    finals: list[Final] = field(default_factory=list)
    seconds: float = 0.0
    lock: Any = field(default_factory=threading.RLock)

    def take(self, oracle: Any) -> None:
        """Look at what the oracle knows; the trial that ended last comes last."""
        found: dict[str, Row] = {}
        for name in oracle.end_order:
            trial, notes = oracle.trials[name], oracle.notes[name]
            root = oracles.root(oracle, trial)
            before = found.pop(root, None)
            outcome = Outcome(**notes)
            if before is not None:
                outcome.seconds += before.outcome.seconds if before.trial != name else 0.0
                if outcome.status == "FAILED":  # what it reached before counts
                    before.outcome.reason, outcome = outcome.reason, before.outcome
            values = trial.hyperparameters.values
            own = {d.name: values[d.name] for d in self.space.dimensions if d.name in values}
            found[root] = Row(root, own, outcome)
        self.rows = list(found.values())
        self.seconds = oracle.elapsed

    @property
    def ranked(self) -> list[Row]:
        """The best first: those that were trained whole, then the others; failed ones last."""
        sign = -1 if self.direction == "max" else 1
        whole = max((row.outcome.epochs for row in self.rows), default=0)
        if any(d.name == "train.epochs" for d in self.space.dimensions):
            whole = 0

        def key(row: Row) -> tuple[bool, bool, float]:
            one = row.outcome
            score = one.score if one.score is not None else 0.0
            return one.status == "FAILED", one.epochs < whole, sign * score

        return sorted(self.rows, key=key)

    def best(self) -> Row:
        """The best trial."""
        return self.ranked[0]

    def kept(self, count: int) -> list[str]:
        """The names of the best trials."""
        return [row.trial for row in self.ranked if row.outcome.status != "FAILED"][:count]

    def check_some(self) -> None:
        """At least one trial came to an end.

        Raises:
            UserError: none did, and why.
        """
        if any(row.outcome.status != "FAILED" for row in self.rows):
            return
        if not self.rows:
            raise UserError("tune: no trial ended within the time; raise tune.time")
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            reasons.setdefault(row.outcome.reason or "unknown", []).append(row.trial)
        lines = [f"tune: trial {', '.join(names)}: {why}" for why, names in reasons.items()]
        raise UserError("\n".join([f"tune: all {len(self.rows)} trials failed", *lines]))

    def line(self) -> str:
        """The trial that ended last, and the best so far."""
        row = self.rows[-1]
        ended = (
            f"trial {row.trial} ({len(self.rows)} so far): {_result(row.outcome, self.objective)}"
        )
        values = ", ".join(f"{name}={_shown(v)}" for name, v in row.values.items())
        best = self.best()
        if best.outcome.score is None:
            return f"{ended}; {values}"
        return f"{ended}; {values}; best {best.outcome.score:.4f} of trial {best.trial}"

    def text(self) -> str:
        """The table that is printed at the end."""
        lines = self._table(self.ranked[:SHOWN])
        left = len(self.rows) - SHOWN
        if left > 0:
            lines.append(f"and {left} more in leaderboard.csv")
        return "\n".join([*lines, "", *self.told_of_best()])

    def _table(self, rows: Sequence[Row]) -> list[str]:
        names = list(dict.fromkeys(d.name for d in self.space.dimensions))
        head = ["trial", self.objective, "95%", "epochs", "seconds", *names]
        cells = [head]
        for row in rows:
            one = row.outcome
            score = "failed" if one.status == "FAILED" else f"{one.score:.4f}"
            bounds = f"[{one.low:.4f}, {one.high:.4f}]" if one.low is not None else ""
            values = [_shown(row.values.get(name, "")) for name in names]
            cells.append([row.trial, score, bounds, str(one.epochs), f"{one.seconds:.0f}", *values])
        widths = [max(len(line[at]) for line in cells) for at in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        failed = [row for row in rows if row.outcome.status == "FAILED"]
        return lines + [f"trial {row.trial} failed: {row.outcome.reason}" for row in failed]

    def told_of_best(self) -> list[str]:
        """What the best is worth: of many trials the best one's own figure is too good."""
        best = self.best()
        score = best.outcome.score or 0.0
        lines = [
            f"best of {len(self.rows)} trials: trial {best.trial}, validation {self.objective} "
            f"{score:.4f} (the best of many is partly luck)"
        ]
        for figure in self.figures():
            for final in self.finals:
                values = final.scores(figure)
                if values:
                    name = "the best" if final.name == "best" else "the advisor's choice"
                    lines.append(f"{figure}: {name} on {len(values)} fresh seeds {_mean(values)}")
            if (gain := self.gain(figure)) is not None:
                lines.append(f"{figure}: gained over the advisor's choice {_mean(gain)}")
        if self.finals and len(self.finals) == 1 and self.space.tune.advise:
            lines.append("the advisor's choice was the best: the search gained nothing over it")
        return lines

    def figures(self) -> list[str]:
        """The figures that are told of the final runs."""
        names = (f"validation/{self.objective}", f"test/{self.objective}")
        return [n for n in names if any(final.scores(n) for final in self.finals)]

    def gain(self, figure: str) -> list[float] | None:
        """Seed by seed, how much better the best is than the advisor's choice."""
        by_name = {final.name: final.scores(figure) for final in self.finals}
        if set(by_name) != {"best", "advised"} or len(set(map(len, by_name.values()))) != 1:
            return None
        sign = 1 if self.direction == "max" else -1
        return [sign * (a - b) for a, b in zip(by_name["best"], by_name["advised"], strict=True)]

    def write(self, workdir: Path) -> None:
        """`leaderboard.csv`: every trial."""
        names = list(dict.fromkeys(d.name for d in self.space.dimensions))
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        head = ["rank", "trial", "status", self.objective, "low", "high", "epochs", "seconds"]
        writer.writerow([*head, *names, "reason"])
        for rank, row in enumerate(self.ranked, 1):
            one = row.outcome
            cells = [rank, row.trial, one.status, one.score, one.low, one.high, one.epochs]
            values = [row.values.get(name) for name in names]
            writer.writerow([*cells, round(one.seconds, 1), *values, one.reason])
        write_atomic(workdir / "leaderboard.csv", buffer.getvalue())


def _result(one: Outcome, objective: str) -> str:
    if one.status == "FAILED":
        return f"failed: {one.reason}"
    return f"{objective} {one.score:.4f} at {one.epochs} epochs, {one.seconds:.0f} s"


def _mean(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:.4f}" if low is None else f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
