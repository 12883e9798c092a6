"""Small plots as inline SVG: curves, bars, heat maps. Needs no dependency and no script.

Plots are 460 x 280 units with a legend below. The colours are safe for the colour-blind (Okabe &
Ito). Grey parts have a CSS class, which the page colours for light and dark mode (`page`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 26, 36  # margins
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str,
    marks: bool = False,
    dots: Collection[str] = (),
) -> str:
    """Draw lines through (x, y) points, one for each name.

    Args:
        title: title above the plot.
        series: name -> points.
        x_name: label of the x axis.
        marks: whether to draw the points too.
        dots: names of which only the points are drawn.
    """
    points = [p for line in series.values() for p in line]
    if not points:
        return ""
    axes = _Axes([x for x, _ in points], [y for _, y in points])
    parts = [axes.frame(title, x_name)]
    for (name, line), color in zip(series.items(), COLORS * 9, strict=False):
        if name not in dots:
            path = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in line)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>'
            )
        if marks or len(line) == 1 or name in dots:
            parts += [
                f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="2.6" fill="{color}">'
                f"<title>{escape(name)} {y:.4g} at {x:g}</title></circle>"
                for x, y in line
            ]
    legend, below = _legend(list(series))
    return _svg([*parts, legend], WIDTH, HEIGHT + below)


def reliability(title: str, bins: Mapping[str, np.ndarray]) -> str:
    """Draw accuracy against confidence, with the share of rows as bars and the diagonal."""
    axes = _Axes([0, 1], [0, 1])
    parts = [axes.frame(title, "confidence")]
    share = bins["count"] / max(1, bins["count"].sum())
    size = len(share)
    for index, height in enumerate(share):
        parts.append(_bar(axes, index / size, (index + 1) / size, float(height), 'class="s"'))
    line = f'x1="{axes.x(0)}" y1="{axes.y(0)}" x2="{axes.x(1)}" y2="{axes.y(1)}"'
    parts.append(f'<line {line} class="a" stroke-dasharray="4 3"/>')
    for count, x, y in zip(bins["count"], bins["confidence"], bins["accuracy"], strict=True):
        if count:
            parts.append(
                f'<circle cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4" fill="{COLORS[0]}">'
                f"<title>{count} rows: confidence {x:.3f}, accuracy {y:.3f}</title></circle>"
            )
    return _svg(parts)


def scatter(title: str, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> str:
    """Draw points, x across and y up."""
    points = list(zip(map(float, x), map(float, y), strict=True))[:2000]
    return curves(title, {y_name: points}, x_name, dots=(y_name,))


def histogram(title: str, values: np.ndarray, x_name: str, mark: float | None = None) -> str:
    """Draw rows in up to 30 bins, and a dashed line at `mark`, such as the truncation length."""
    # Lengths and sizes are integers: no more bins than integers in their range.
    counts, edges = np.histogram(values, bins=min(30, max(1, int(np.ptp(values)) + 1)))
    axes = _Axes([float(edges[0]), max(float(edges[-1]), mark or 0.0)], [0, float(counts.max())])
    parts = [axes.frame(title, x_name)]
    for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
        parts.append(_bar(axes, float(low), float(high), float(count), f'fill="{COLORS[0]}"'))
    if mark is not None:
        line = f'x1="{axes.x(mark):.1f}" x2="{axes.x(mark):.1f}" y1="{axes.y(0)}" y2="{_TOP}"'
        parts.append(f'<line {line} stroke="{COLORS[1]}" stroke-dasharray="4 3"/>')
    return _svg(parts)


def heat_map(title: str, counts: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> str:
    """Draw a confusion matrix: true classes down, predicted classes across.

    Args:
        title: title above the plot.
        counts: [C, C].
        rows: rows of each true class, [C]; a cell is shaded by its share of them.
        names: names of the classes.
    """
    size = len(names)
    # About 420 units wide, with cells of 14 to 44 units.
    cell = max(14, min(44, 420 // size))
    left, top = 110, 96  # room for names along both sides
    share = counts / np.maximum(1, rows)[:, None]
    parts = [f'<text x="12" y="14" class="t">{escape(title)}</text>']
    for row in range(size):
        y = top + row * cell
        parts.append(
            f'<text x="{left - 6}" y="{y + cell / 2 + 4}" text-anchor="end">'
            f"{escape(_short(names[row]))}</text>"
        )
        for column in range(size):
            x, count, cell_share = (
                left + column * cell,
                int(counts[row, column]),
                share[row, column],
            )
            # White on the darker half of the scale.
            text_color = ' style="fill:#fff"' if cell_share > 0.5 else ""
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="{COLORS[0]}" '
                f'fill-opacity="{cell_share:.3f}" class="a"><title>{escape(names[row])} as '
                f"{escape(names[column])}: {count}</title></rect>"
            )
            # A count needs 24 units.
            if cell >= 24 and count:
                parts.append(
                    f'<text x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle"'
                    f"{text_color}>{count}</text>"
                )
    for column in range(size):
        x = left + column * cell + cell / 2
        parts.append(
            f'<text x="{x}" y="{top - 6}" text-anchor="start" '
            f'transform="rotate(-40 {x} {top - 6})">{escape(_short(names[column]))}</text>'
        )
    return _svg(parts, max(340, left + size * cell + 60), top + size * cell + 12)


def bars(title: str, values: Mapping[str, float]) -> str:
    """Draw a horizontal bar for each name, with its value."""
    left, top, row = 170, 30, 22
    largest = max(values.values(), default=0.0) or 1.0
    parts = [f'<text x="12" y="14" class="t">{escape(title)}</text>']
    for index, (name, value) in enumerate(values.items()):
        y = top + index * row
        width = max(0.5, value / largest * (WIDTH - left - 60))
        parts.append(
            f'<text x="{left - 6}" y="{y + 12}" text-anchor="end">{escape(name[-26:])}</text>'
            f'<rect x="{left}" y="{y}" width="{width:.1f}" height="15" fill="{COLORS[0]}"/>'
            f'<text x="{left + width + 6:.1f}" y="{y + 12}">{value:.2f}</text>'
        )
    return _svg(parts, WIDTH, top + row * len(values) + 8)


def parallel(
    title: str,
    axes: Mapping[str, tuple[str, str]],
    lines: Sequence[tuple[str, Sequence[float | None], float]],
) -> str:
    """Draw parallel coordinates: a vertical axis for each name, a line for each trial.

    Args:
        title: title above the plot.
        axes: name -> labels at the bottom and at the top of the axis.
        lines: caption, position on each axis from 0 to 1 (None: no value), and goodness from 0 to
            1, which sets the opacity.
    """
    gap = 150
    width, height, bottom, top = gap * (len(axes) - 1) + 160, HEIGHT, HEIGHT - 40, 50

    def y(position: float) -> float:
        return bottom - position * (bottom - top)

    parts = [f'<text x="12" y="14" class="t">{escape(title)}</text>']
    for index, (name, (low, high)) in enumerate(axes.items()):
        x = 80 + gap * index
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{top}" y2="{bottom}" class="a"/>'
            f'<text x="{x}" y="{top - 20}" text-anchor="middle">{escape(name[-24:])}</text>'
            f'<text x="{x}" y="{top - 6}" text-anchor="middle">{escape(high)}</text>'
            f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{escape(low)}</text>'
        )
    # The best lines last, so that they lie on top.
    for caption, positions, goodness in sorted(lines, key=lambda line: line[2]):
        points = [(80 + gap * index, y(p)) for index, p in enumerate(positions) if p is not None]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        color = COLORS[1] if goodness >= 1 else COLORS[0]
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8" '
            f'stroke-opacity="{0.15 + 0.85 * goodness:.2f}"><title>{escape(caption)}</title>'
            "</polyline>"
        )
    return _svg(parts, width, height)


class _Axes:
    """Maps data to drawing units, and draws the frame."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float]):
        self._x0, self._x1 = _non_empty_range(min(xs), max(xs))
        self._y0, self._y1 = _non_empty_range(min(ys), max(ys))

    def x(self, value: float) -> float:
        return _LEFT + (value - self._x0) / (self._x1 - self._x0) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        span = HEIGHT - _TOP - _BOTTOM
        return HEIGHT - _BOTTOM - (value - self._y0) / (self._y1 - self._y0) * span

    def frame(self, title: str, x_name: str) -> str:
        parts = [f'<text x="{_LEFT}" y="14" class="t">{escape(title)}</text>']
        for tick in _ticks(self._y0, self._y1):
            y = self.y(tick)
            parts.append(
                f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
                f'class="g"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
                f"{tick:g}</text>"
            )
        for tick in _ticks(self._x0, self._x1):
            parts.append(
                f'<text x="{self.x(tick):.1f}" y="{HEIGHT - _BOTTOM + 16}" '
                f'text-anchor="middle">{tick:,g}</text>'
            )
        parts.append(
            f'<text x="{WIDTH / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_name)}</text>'
        )
        return "".join(parts)


def _non_empty_range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return four to nine ticks in a range: multiples of 1, 2 or 5 times a power of ten."""
    rough_step = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough_step * 0.75)
    # The tolerance keeps a tick at an end of the range in spite of rounding errors.
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def _bar(axes: _Axes, low: float, high: float, height: float, fill: str) -> str:
    x, y = axes.x(low), axes.y(height)
    # One unit less, which leaves a gap between two bars.
    size = f'width="{max(0.5, axes.x(high) - x - 1):.1f}" height="{axes.y(0) - y:.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} {fill}/>'


def _legend(names: Sequence[str]) -> tuple[str, int]:
    """Return the legend below the plot and its height."""
    parts, x, y = [], _LEFT, HEIGHT + 12
    for name, color in zip(names, COLORS * 9, strict=False):
        width = 30 + round(6.2 * len(name))  # approximate width of the text
        if x + width > WIDTH and x > _LEFT:
            x, y = _LEFT, y + 16
        parts.append(
            f'<rect x="{x}" y="{y - 8}" width="9" height="9" fill="{color}"/>'
            f'<text x="{x + 14}" y="{y}">{escape(name)}</text>'
        )
        x += width
    return "".join(parts), y + 8 - HEIGHT if parts else 0


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _svg(parts: Sequence[str], width: float = WIDTH, height: float = HEIGHT) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'role="img">{"".join(parts)}</svg>'
    )
