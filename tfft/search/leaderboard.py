"""The leaderboard of a search: its trials, the best one, and its score on fresh seeds."""

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

NUM_PRINTED = 10  # trials in the printed table


@dataclass(frozen=True)
class Row:
    """A trial, with all runs that continue it merged.

    Attributes:
        trial: name of the trial and of its folder.
        values: values of the search space by name.
        outcome: outcome of the run that trained longest; `seconds` is the total over all runs.
    """

    trial: str
    values: Mapping[str, Any]
    outcome: Outcome


@dataclass(frozen=True)
class Final:
    """A config that is trained again on fresh seeds."""

    name: str
    values: Mapping[str, Any]
    runs: Sequence[Outcome]

    def scores(self, metric: str) -> list[float]:
        """Return the value of `metric` for each run that completed."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]


@dataclass
class Leaderboard:
    """The results of a search so far."""

    space: Space
    objective: str
    direction: str
    rows: list[Row] = field(default_factory=list)
    finals: list[Final] = field(default_factory=list)
    seconds: float = 0.0
    lock: Any = field(default_factory=threading.RLock)

    def update(self, oracle: Any) -> None:
        """Read the ended trials from the oracle; the trial that ended last comes last."""
        rows: dict[str, Row] = {}
        for name in oracle.end_order:
            trial, notes = oracle.trials[name], oracle.notes[name]
            root_id = oracles.root_trial(oracle, trial)
            # Popped and inserted again, so that the row of the trial that ended last is last.
            previous = rows.pop(root_id, None)
            outcome = Outcome(**notes)
            if previous is not None:
                # The oracle adds up the runs of one trial; add those of the trials before it.
                outcome.seconds += previous.outcome.seconds if previous.trial != name else 0.0
                if outcome.status == "FAILED":  # the last score before the failure counts
                    previous.outcome.reason, outcome = outcome.reason, previous.outcome
            all_values = trial.hyperparameters.values
            # Without KerasTuner's own keys.
            values = {
                d.name: all_values[d.name] for d in self.space.dimensions if d.name in all_values
            }
            rows[root_id] = Row(root_id, values, outcome)
        self.rows = list(rows.values())
        self.seconds = oracle.elapsed

    @property
    def ranked(self) -> list[Row]:
        """Rows from best to worst: fully trained trials, partly trained ones, failed ones."""
        sign = -1 if self.direction == "max" else 1
        full_epochs = max((row.outcome.epochs for row in self.rows), default=0)
        if any(d.name == "train.epochs" for d in self.space.dimensions):
            full_epochs = 0  # epochs differ on purpose: no trial counts as partly trained

        def key(row: Row) -> tuple[bool, bool, float]:
            outcome = row.outcome
            score = outcome.score if outcome.score is not None else 0.0
            return outcome.status == "FAILED", outcome.epochs < full_epochs, sign * score

        return sorted(self.rows, key=key)

    def best(self) -> Row:
        """Return the row of the best trial."""
        return self.ranked[0]

    def best_names(self, count: int) -> list[str]:
        """Return the names of the best `count` trials."""
        return [row.trial for row in self.ranked if row.outcome.status != "FAILED"][:count]

    def require_success(self) -> None:
        """Check that at least one trial completed.

        Raises:
            UserError: no trial completed; the message lists the reasons.
        """
        if any(row.outcome.status != "FAILED" for row in self.rows):
            return
        if not self.rows:
            raise UserError("tune: no trial ended within the time; raise tune.time")
        reasons: dict[str, list[str]] = {}
        for row in self.rows:
            # One line for each reason, with all trials that it stopped.
            reasons.setdefault(row.outcome.reason or "unknown", []).append(row.trial)
        lines = [f"tune: trial {', '.join(names)}: {reason}" for reason, names in reasons.items()]
        raise UserError("\n".join([f"tune: all {len(self.rows)} trials failed", *lines]))

    def progress_line(self) -> str:
        """Return a log line with the trial that ended last and the best one so far."""
        row = self.rows[-1]
        result = (
            f"trial {row.trial} ({len(self.rows)} so far): {_result(row.outcome, self.objective)}"
        )
        values = ", ".join(f"{name}={_format_value(v)}" for name, v in row.values.items())
        best = self.best()
        if best.outcome.score is None:
            return f"{result}; {values}"
        return f"{result}; {values}; best {best.outcome.score:.4f} of trial {best.trial}"

    def to_text(self) -> str:
        """Return the table that is printed at the end of the search."""
        lines = self._table(self.ranked[:NUM_PRINTED])
        num_hidden = len(self.rows) - NUM_PRINTED
        if num_hidden > 0:
            lines.append(f"and {num_hidden} more in leaderboard.csv")
        return "\n".join([*lines, "", *self.describe_best()])

    def _table(self, rows: Sequence[Row]) -> list[str]:
        names = list(dict.fromkeys(d.name for d in self.space.dimensions))
        header = ["trial", self.objective, "95%", "epochs", "seconds", *names]
        cells = [header]
        for row in rows:
            outcome = row.outcome
            score = "failed" if outcome.status == "FAILED" else f"{outcome.score:.4f}"
            bounds = f"[{outcome.low:.4f}, {outcome.high:.4f}]" if outcome.low is not None else ""
            values = [_format_value(row.values.get(name, "")) for name in names]
            cells.append(
                [row.trial, score, bounds, str(outcome.epochs), f"{outcome.seconds:.0f}", *values]
            )
        widths = [max(len(line[column]) for line in cells) for column in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        ]
        failed = [row for row in rows if row.outcome.status == "FAILED"]
        return lines + [f"trial {row.trial} failed: {row.outcome.reason}" for row in failed]

    def describe_best(self) -> list[str]:
        """Describe the best trial and its scores on fresh seeds, as lines.

        The best score of many trials is biased upwards; the scores on fresh seeds are not.
        """
        best = self.best()
        score = best.outcome.score or 0.0
        lines = [
            f"best of {len(self.rows)} trials: trial {best.trial}, validation {self.objective} "
            f"{score:.4f} (the best of many is partly luck)"
        ]
        for metric in self.final_metrics():
            for final in self.finals:
                values = final.scores(metric)
                if values:
                    name = "the best" if final.name == "best" else "the advisor's choice"
                    lines.append(f"{metric}: {name} on {len(values)} fresh seeds {_mean(values)}")
            if (gain := self.gain(metric)) is not None:
                lines.append(f"{metric}: gained over the advisor's choice {_mean(gain)}")
        if self.finals and len(self.finals) == 1 and self.space.tune.advise:
            lines.append("the advisor's choice was the best: the search gained nothing over it")
        return lines

    def final_metrics(self) -> list[str]:
        """Return the names of the metrics that are reported for the final runs."""
        names = (f"validation/{self.objective}", f"test/{self.objective}")
        return [n for n in names if any(final.scores(n) for final in self.finals)]

    def gain(self, metric: str) -> list[float] | None:
        """Return the gain of the best config over the advised one, seed by seed.

        Positive values mean that the best config is better. None where either has no complete set
        of runs.
        """
        by_name = {final.name: final.scores(metric) for final in self.finals}
        if set(by_name) != {"best", "advised"} or len(set(map(len, by_name.values()))) != 1:
            return None
        sign = 1 if self.direction == "max" else -1
        return [sign * (a - b) for a, b in zip(by_name["best"], by_name["advised"], strict=True)]

    def write(self, workdir: Path) -> None:
        """Write `leaderboard.csv`, with a line for each trial."""
        names = list(dict.fromkeys(d.name for d in self.space.dimensions))
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        header = ["rank", "trial", "status", self.objective, "low", "high", "epochs", "seconds"]
        writer.writerow([*header, *names, "reason"])
        for rank, row in enumerate(self.ranked, 1):
            outcome = row.outcome
            cells = [
                rank,
                row.trial,
                outcome.status,
                outcome.score,
                outcome.low,
                outcome.high,
                outcome.epochs,
            ]
            values = [row.values.get(name) for name in names]
            writer.writerow([*cells, round(outcome.seconds, 1), *values, outcome.reason])
        write_atomic(workdir / "leaderboard.csv", buffer.getvalue())


def _result(outcome: Outcome, objective: str) -> str:
    if outcome.status == "FAILED":
        return f"failed: {outcome.reason}"
    return f"{objective} {outcome.score:.4f} at {outcome.epochs} epochs, {outcome.seconds:.0f} s"


def _mean(values: Sequence[float]) -> str:
    mean, low, high = interval(values)
    return f"{mean:.4f}" if low is None else f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def _format_value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
