"""report.html of a search: what was tried, how much each hyperparameter mattered, what it took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfft.report import plots, write_page
from tfft.search.leaderboard import Leaderboard, Row
from tfft.search.space import Dimension

ENOUGH = 8  # trials below which nothing is said of what mattered
LINES = 8  # learning curves in the plot


def write(board: Leaderboard, path: Path) -> None:
    """Write the page."""
    ended = [row for row in board.ranked if row.outcome.score is not None]
    sections = [_coordinates(board, ended), _curves(board, ended), _progress(board, ended)]
    mattered = importance(board)
    if mattered:
        sections.append(plots.bars("share of what the values explain", mattered))
    sections.append(_time(board))
    title = f"search: {board.objective} ({board.direction})"
    write_page(path, title, "".join(sections), board.text())


def importance(board: Leaderboard) -> dict[str, float]:
    """How much each hyperparameter mattered: impurity importance in a random forest from values to
    scores (Breiman 2001), the larger the more; empty without scikit-learn or of a few trials."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ModuleNotFoundError:
        return {}
    rows = [row for row in board.rows if row.outcome.score is not None]
    if len(rows) < ENOUGH:
        return {}
    dimensions = list({d.name: d for d in board.space.dimensions}.values())
    x = [[_place(d, row.values.get(d.name)) for d in dimensions] for row in rows]
    x = np.array([[0.5 if v is None else v for v in line] for line in x])  # says nothing
    forest = RandomForestRegressor(200, random_state=0, min_samples_leaf=2)
    forest.fit(x, [row.outcome.score for row in rows])
    found = dict(zip((d.name for d in dimensions), forest.feature_importances_, strict=True))
    return {k: float(v) for k, v in sorted(found.items(), key=lambda item: -item[1])}


def _coordinates(board: Leaderboard, rows: Sequence[Row]) -> str:
    dimensions = list({d.name: d for d in board.space.dimensions}.values())
    scores = [row.outcome.score or 0.0 for row in rows]
    if not scores:
        return ""
    low, high = min(scores), max(scores)
    axes = {d.name: _ends(d) for d in dimensions}
    axes[board.objective] = (f"{low:.4f}", f"{high:.4f}")
    lines = []
    for row, score in zip(rows, scores, strict=True):
        share = (score - low) / (high - low) if high > low else 1.0
        places = [_place(d, row.values.get(d.name)) for d in dimensions]
        caption = ", ".join(f"{k}={v}" for k, v in row.values.items())
        good = share if board.direction == "max" else 1.0 - share
        lines.append((f"trial {row.trial}: {score:.4f}; {caption}", [*places, share], good))
    return plots.parallel("every trial; the best in orange", axes, lines)


def _curves(board: Leaderboard, rows: Sequence[Row]) -> str:
    best = {row.trial: row.outcome.curve for row in rows[:LINES] if row.outcome.curve}
    short = {name: [(float(s), v) for s, v in curve] for name, curve in best.items()}
    return plots.curves(f"{board.objective} of the best", short, "step", marks=True)


def _progress(board: Leaderboard, rows: Sequence[Row]) -> str:
    """The best so far, by the number of trials that ended."""
    better = max if board.direction == "max" else min
    scores = [r.outcome.score for r in board.rows if r.outcome.score is not None]
    so_far = [(float(at + 1), better(scores[: at + 1])) for at in range(len(scores))]
    dots = [(float(at + 1), score) for at, score in enumerate(scores)]
    return plots.curves("in turn", {"best so far": so_far, "each": dots}, "trial", dots=["each"])


def _time(board: Leaderboard) -> str:
    seconds = {f"trial {row.trial}": row.outcome.seconds for row in board.rows}
    longest = dict(sorted(seconds.items(), key=lambda item: -item[1])[:20])
    return plots.bars("seconds, the longest trials", longest)


def _ends(one: Dimension) -> tuple[str, str]:
    if one.search.search == "choice":
        return str(one.labels[0]), str(one.labels[-1])
    return f"{one.search.min:.3g}", f"{one.search.max:.3g}"


def _place(one: Dimension, value: Any) -> float | None:
    """Where a value stands between the ends, from 0 to 1."""
    if value is None:
        return None
    if one.search.search == "choice":
        labels = one.labels
        return labels.index(value) / max(1, len(labels) - 1) if value in labels else None
    low, high, own = float(one.search.min or 0), float(one.search.max or 0), float(value)
    if one.search.search.startswith("log"):
        low, high, own = np.log(low), np.log(high), np.log(own)
    return float((own - low) / (high - low))
