"""report.html of a search: its trials, the importance of each hyperparameter, and the time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfft.report import plots, write_page
from tfft.search.leaderboard import Leaderboard, Row
from tfft.search.space import Dimension

MIN_TRIALS = 8  # scored trials that the importance needs at least
MAX_CURVES = 8  # learning curves in the plot


def write(leaderboard: Leaderboard, path: Path) -> None:
    """Write the page to `path`."""
    scored = [row for row in leaderboard.ranked if row.outcome.score is not None]
    sections = [
        _parallel_coordinates(leaderboard, scored),
        _curves(leaderboard, scored),
        _progress(leaderboard, scored),
    ]
    importances = importance(leaderboard)
    if importances:
        sections.append(plots.bars("importance of the hyperparameters", importances))
    sections.append(_time(leaderboard))
    title = f"search: {leaderboard.objective} ({leaderboard.direction})"
    write_page(path, title, "".join(sections), leaderboard.to_text())


def importance(leaderboard: Leaderboard) -> dict[str, float]:
    """Return the importance of each hyperparameter for the score, largest first; they sum to 1.

    Impurity importance in a random forest from values to scores (Breiman 2001). Empty without
    scikit-learn, or with fewer than `MIN_TRIALS` scored trials.
    """
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ModuleNotFoundError:
        return {}
    rows = [row for row in leaderboard.rows if row.outcome.score is not None]
    if len(rows) < MIN_TRIALS:
        return {}
    dimensions = list({d.name: d for d in leaderboard.space.dimensions}.values())
    x = [[_position(d, row.values.get(d.name)) for d in dimensions] for row in rows]
    # A hyperparameter that a trial did not have gets the middle, which says nothing.
    x = np.array([[0.5 if v is None else v for v in row_values] for row_values in x])
    forest = RandomForestRegressor(200, random_state=0, min_samples_leaf=2)
    forest.fit(x, [row.outcome.score for row in rows])
    importances = dict(zip((d.name for d in dimensions), forest.feature_importances_, strict=True))
    return {k: float(v) for k, v in sorted(importances.items(), key=lambda item: -item[1])}


def _parallel_coordinates(leaderboard: Leaderboard, rows: Sequence[Row]) -> str:
    # Dimensions of one path with different conditions share an axis.
    dimensions = list({d.name: d for d in leaderboard.space.dimensions}.values())
    scores = [row.outcome.score or 0.0 for row in rows]
    if not scores:
        return ""
    low, high = min(scores), max(scores)
    axes = {d.name: _ends(d) for d in dimensions}
    axes[leaderboard.objective] = (f"{low:.4f}", f"{high:.4f}")
    lines = []
    for row, score in zip(rows, scores, strict=True):
        position = (score - low) / (high - low) if high > low else 1.0
        positions = [_position(d, row.values.get(d.name)) for d in dimensions]
        goodness = position if leaderboard.direction == "max" else 1.0 - position
        lines.append(([*positions, position], goodness))
    return plots.parallel("all trials; the best in orange", axes, lines)


def _curves(leaderboard: Leaderboard, rows: Sequence[Row]) -> str:
    curves = {row.trial: row.outcome.curve for row in rows[:MAX_CURVES] if row.outcome.curve}
    series = {name: [(float(s), v) for s, v in curve] for name, curve in curves.items()}
    return plots.curves(f"{leaderboard.objective} of the best trials", series, "step", marks=True)


def _progress(leaderboard: Leaderboard, rows: Sequence[Row]) -> str:
    """Plot the best score so far by the number of ended trials."""
    better = max if leaderboard.direction == "max" else min
    scores = [r.outcome.score for r in leaderboard.rows if r.outcome.score is not None]
    running_best = [(float(index + 1), better(scores[: index + 1])) for index in range(len(scores))]
    points = [(float(index + 1), score) for index, score in enumerate(scores)]
    return plots.curves(
        "score by trial", {"best so far": running_best, "each": points}, "trial", dots=["each"]
    )


def _time(leaderboard: Leaderboard) -> str:
    seconds = {f"trial {row.trial}": row.outcome.seconds for row in leaderboard.rows}
    longest = dict(sorted(seconds.items(), key=lambda item: -item[1])[:20])
    return plots.bars("seconds, the longest trials", longest)


def _ends(dimension: Dimension) -> tuple[str, str]:
    if dimension.search.search == "choice":
        return str(dimension.labels[0]), str(dimension.labels[-1])
    return f"{dimension.search.min:.3g}", f"{dimension.search.max:.3g}"


def _position(dimension: Dimension, value: Any) -> float | None:
    """Return the position of a value between the ends of its dimension, from 0 to 1."""
    if value is None:
        return None
    if dimension.search.search == "choice":
        labels = dimension.labels
        return labels.index(value) / max(1, len(labels) - 1) if value in labels else None
    low, high, position = (
        float(dimension.search.min or 0),
        float(dimension.search.max or 0),
        float(value),
    )
    if dimension.search.search.startswith("log"):
        low, high, position = np.log(low), np.log(high), np.log(position)
    return float((position - low) / (high - low))
