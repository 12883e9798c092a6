"""Plots of a page as inline SVG: curves, bars, heat maps, points.

The colours are safe for the colour-blind (Okabe & Ito). Lines, texts and grids have the colour of
the page's text, in light and in dark mode (`inline_svg`).
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfft.report.inline_svg import FONT_SIZE, INK, Canvas, canvas, plain, text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection

WIDTH, HEIGHT = 480, 280
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MAX_TIPS = 200  # points of a line that show their values; with more they touch each other
MAX_POINTS = 2000  # points of a scatter plot; more are counted in a grid
_GRID = (40, 30)  # cells of such a grid across and up
_LEGEND_ROW = 18  # height


def curves(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str,
    marks: bool = False,
    dots: Collection[str] = (),
) -> str:
    """Draw lines through (x, y) points, one for each name.

    A series of one point is a dot, with its value in the legend.

    Args:
        title: title above the plot.
        series: name -> points.
        x_name: label of the x axis.
        marks: whether to draw the points too.
        dots: names of which only the points are drawn.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    names = [
        f"{name}: {line[0][1]:.4g}" if len(line) == 1 else name for name, line in series.items()
    ]
    columns = max(1, int(WIDTH / (max(map(text_width, names)) + 40)))
    rows = math.ceil(len(names) / columns)
    with canvas(title, WIDTH, HEIGHT + rows * _LEGEND_ROW) as drawing:
        from matplotlib.lines import Line2D

        axes, handles = drawing.axes(), []
        for (name, line), color in zip(series.items(), COLORS * 9, strict=False):
            values = np.array(line, np.float64).reshape(-1, 2)
            has_dots = marks or name in dots or len(line) == 1
            style = "none" if name in dots or len(line) == 1 else "-"
            size = 7 if len(line) == 1 else 5
            axes.plot(*values.T, linestyle=style, color=color, linewidth=1.8, clip_on=False)
            if has_dots:
                _draw_dots(drawing, axes, name, values, color, size)
            marker = {"marker": "o", "markersize": size, "markeredgewidth": 0} if has_dots else {}
            handles.append(Line2D([], [], linestyle=style, color=color, linewidth=1.8, **marker))
        _set_limits(axes, points)
        axes.set_xlabel(plain(x_name))
        legend = drawing.figure.legend(
            handles, [str(i) for i in range(len(names))], loc="outside lower left", ncols=columns
        )
        # Set afterwards: a legend leaves out names that begin with an underscore.
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(plain(name))
        return drawing.to_html()


def reliability(title: str, bins: Mapping[str, np.ndarray]) -> str:
    """Draw accuracy against confidence, with the share of rows as bars and the diagonal."""
    share = bins["count"] / max(1, bins["count"].sum())
    width = 1 / len(share)
    with canvas(title, WIDTH, HEIGHT) as drawing:
        axes = drawing.axes()
        edges = np.arange(len(share)) * width
        drawn = share > 0
        axes.bar(edges[drawn], share[drawn], width * 0.94, align="edge", color=INK + "30")
        axes.plot([0, 1], [0, 1], color=INK + "90", linewidth=1, linestyle=(0, (4, 3)))
        full = bins["count"] > 0
        x, y = bins["confidence"][full], bins["accuracy"][full]
        dots = axes.scatter(x, y, 64, COLORS[0], linewidths=0, clip_on=False)
        tips = zip(bins["count"][full], x, y, strict=True)
        drawing.add_tips(
            dots, [f"{count} rows: confidence {a:.3f}, accuracy {b:.3f}" for count, a, b in tips]
        )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
        return drawing.to_html()


def histogram(title: str, values: np.ndarray, x_name: str, mark: float | None = None) -> str:
    """Draw rows in up to 30 bins, and a dashed line at `mark`, such as the truncation length."""
    # Lengths and sizes are integers: no more bins than integers in their range.
    counts, edges = np.histogram(values, bins=min(30, max(1, int(np.ptp(values)) + 1)))
    with canvas(title, WIDTH, HEIGHT) as drawing:
        axes = drawing.axes()
        for count, low, high in zip(counts, edges[:-1], edges[1:], strict=True):
            if count:
                (bar,) = axes.bar(
                    low, count, 0.94 * (high - low), align="edge", color=COLORS[0], clip_on=False
                )
                drawing.add_tips(bar, [f"{low:g} to {high:g}: {count}"])
        if mark is not None:
            axes.axvline(mark, color=COLORS[1], linewidth=1.6, linestyle=(0, (4, 3)))
        axes.set_xlim(float(edges[0]), max(float(edges[-1]), mark or 0.0))
        axes.set(ylim=(0, None), xlabel=plain(x_name), ylabel="rows")
        axes.yaxis.get_major_locator().set_params(integer=True)
        return drawing.to_html()


def scatter(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    x_name: str,
    y_name: str,
    diagonal: bool = False,
) -> str:
    """Draw a point for each pair of values; with many, a grid shaded by the number of points.

    Args:
        title: title above the plot.
        x: values on the x axis, [N]; pairs with a value that is not finite are left out.
        y: values on the y axis, [N].
        x_name: label of the x axis.
        y_name: label of the y axis.
        diagonal: whether to draw the line of equal values; both axes then have one range.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, np.float64)[finite], np.asarray(y, np.float64)[finite]
    if not len(x):
        return ""
    with canvas(title, WIDTH, HEIGHT + 60) as drawing:
        axes = drawing.axes()
        axes.grid(axis="x")
        _set_limits(axes, list(zip(x, y, strict=True)))
        if diagonal:
            limits = [*axes.get_xlim(), *axes.get_ylim()]
            ends = (min(limits), max(limits))
            axes.set(xlim=ends, ylim=ends)
            axes.plot(ends, ends, color=INK + "90", linewidth=1, linestyle=(0, (4, 3)))
        if len(x) > MAX_POINTS:
            limits = np.array([axes.get_xlim(), axes.get_ylim()])
            counts, *edges = np.histogram2d(x, y, _GRID, limits)
            # The logarithm shows the rare points too.
            shades = np.log1p(counts) / np.log1p(counts.max())
            columns, rows = np.nonzero(counts)
            low = np.stack([edges[0][columns], edges[1][rows]], axis=1)
            high = np.stack([edges[0][columns + 1], edges[1][rows + 1]], axis=1)
            cells = _draw_cells(axes, low, high, 0.1 + 0.9 * shades[columns, rows])
            drawing.add_tips(cells, [f"{count:.0f} rows" for count in counts[columns, rows]])
        else:
            axes.scatter(x, y, 20, COLORS[0], alpha=0.5, linewidths=0, clip_on=False)
        axes.set(xlabel=plain(x_name), ylabel=plain(y_name))
        return drawing.to_html()


def heat_map(title: str, counts: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> str:
    """Draw a confusion matrix: true classes down, predicted classes across.

    Args:
        title: title above the plot.
        counts: [C, C].
        rows: rows of each true class, [C]; a cell is shaded by its share of them.
        names: names of the classes.
    """
    size = len(names)
    labels = [_short(plain(name)) for name in names]
    # About 480 units wide, with cells of 14 to 60 units.
    cell = max(14, min(60, 480 // size))
    longest = max(map(text_width, labels))
    # Names across: level where they fit, else slanted, or upright where lines would overlap.
    angle = 0 if longest <= cell - 4 else 40 if cell >= 20 else 90
    slope = math.radians(angle)
    left, right = longest + 14, math.cos(slope) * longest + 6 if angle else 10
    top = math.sin(slope) * longest + 22
    share = counts / np.maximum(1, rows)[:, None]
    width = max(WIDTH * 0.6, left + size * cell + right)
    with canvas(title, width, top + size * cell + 8) as drawing:
        axes = drawing.axes_within(left, top, width - left - size * cell, 8)
        true, predicted = np.nonzero(counts)
        low = np.stack([predicted, true], axis=1)
        # Rare errors are seen too.
        opacity = 0.12 + 0.88 * share[true, predicted]
        cells = _draw_cells(axes, low, low + 1, opacity)
        tips = [
            f"{names[i]} as {names[j]}: {int(counts[i, j])}"
            for i, j in zip(true, predicted, strict=True)
        ]
        drawing.add_tips(cells, tips)
        # One path: to and fro along each line.
        ends = np.repeat(np.arange(size + 1.0), 3)
        span = np.tile([0, size, np.nan], size + 1)
        axes.plot(ends, span, color=INK + "40", linewidth=0.7, clip_on=False)
        axes.plot(span, ends, color=INK + "40", linewidth=0.7, clip_on=False)
        font_size = min(FONT_SIZE, (cell - 4) / (0.57 * len(f"{int(counts.max())}")))
        if font_size >= 8:
            for i, j, dark in zip(true, predicted, opacity > 0.75, strict=True):
                color = "#ffffff" if dark else INK
                text = axes.text(j + 0.5, i + 0.5, f"{int(counts[i, j])}", color=color)
                text.set(ha="center", va="center_baseline", fontsize=font_size)
        axes.set(xlim=(0, size), ylim=(size, 0))
        axes.xaxis.tick_top()
        middles = np.arange(size) + 0.5
        axes.set_yticks(middles, labels, va="center_baseline")
        axes.set_xticks(middles, labels)
        if angle:
            for label in axes.get_xticklabels():
                label.set(rotation=angle, ha="left", rotation_mode="anchor")
                if angle == 90:
                    label.set_va("center_baseline")
        return drawing.to_html()


def bars(title: str, values: Mapping[str, float]) -> str:
    """Draw a horizontal bar for each name, with its value."""
    if not values:
        return ""
    labels = [plain(name)[-26:] for name in values]
    left, row = max(map(text_width, labels)) + 14, 24
    largest = max(values.values()) or 1.0
    with canvas(title, WIDTH, row * len(values) + 8) as drawing:
        axes = drawing.axes_within(left, 0, 64, 8)
        drawn = axes.barh(range(len(values)), list(values.values()), 0.7, color=COLORS[0])
        axes.bar_label(drawn, [f"{value:.2f}" for value in values.values()], padding=5)
        axes.set(xlim=(0, largest), ylim=(len(values) - 0.5, -0.5), xticks=[])
        axes.set_yticks(range(len(values)), labels, va="center_baseline")
        return drawing.to_html()


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
    gap, side = 160, 84
    with canvas(title, gap * (len(axes) - 1) + 2 * side, HEIGHT) as drawing:
        area = drawing.axes_within(side, 44, side, 26)
        area.set(xlim=(0, max(1, len(axes) - 1)), ylim=(0, 1), xticks=[], yticks=[])
        for x, (name, (low, high)) in enumerate(axes.items()):
            area.plot([x, x], [0, 1], color=INK + "80", linewidth=1, clip_on=False)
            for text, y, offset in ((name[-24:], 1, 24), (high, 1, 7), (low, 0, -16)):
                area.annotate(
                    plain(text), (x, y), (0, offset), textcoords="offset points", ha="center"
                )
        # The best lines last, so that they lie on top.
        for caption, positions, goodness in sorted(lines, key=lambda line: line[2]):
            points = [(x, y) for x, y in enumerate(positions) if y is not None]
            color = COLORS[1] if goodness >= 1 else COLORS[0]
            (line,) = area.plot(*np.array(points).reshape(-1, 2).T, color=color, linewidth=1.8)
            line.set(alpha=0.15 + 0.85 * goodness, clip_on=False)
            drawing.add_tips(line, [caption])
        return drawing.to_html()


def _draw_dots(
    drawing: Canvas, axes: "Axes", name: str, values: np.ndarray, color: str, size: float
) -> None:
    """Draw the points [N, 2] of a series, with their values as tips."""
    values = values[np.isfinite(values).all(axis=1)]
    dots = axes.scatter(*values.T, size**2, color, linewidths=0, zorder=3, clip_on=False)
    if len(values) <= MAX_TIPS:
        drawing.add_tips(dots, [f"{name} {y:.4g} at {x:g}" for x, y in values])


def _draw_cells(
    axes: "Axes", low: np.ndarray, high: np.ndarray, opacity: np.ndarray
) -> "PolyCollection":
    """Draw a rectangle for each pair of opposite corners, [N, 2] each, with an opacity [N]."""
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    x, y = np.stack([low, high], axis=-1).transpose(1, 0, 2)  # [N, 2] each
    corners = np.stack([x[:, [0, 1, 1, 0]], y[:, [0, 0, 1, 1]]], axis=-1)  # [N, 4, 2]
    colors = np.tile(to_rgba(COLORS[0]), (len(low), 1))
    colors[:, 3] = opacity
    return axes.add_collection(
        PolyCollection(corners, facecolors=colors, edgecolors="none", clip_on=False)
    )


def _set_limits(axes: "Axes", points: Sequence[tuple[float, float]]) -> None:
    """Show the range of the points with a margin; a wide one around points at a single place."""
    values = np.array(points, np.float64)
    share = 0.04 if np.ptp(values[:, 0]) else 0.5
    for axis, column in ((axes.xaxis, values[:, 0]), (axes.yaxis, values[:, 1])):
        column = column[np.isfinite(column)]
        if not len(column):
            continue
        low, high = float(column.min()), float(column.max())
        pad = max(share * (high - low), 0.0 if high > low else 0.1 * abs(high)) or 0.5
        axis.set_view_interval(low - pad, high + pad, ignore=True)
        if (column == column.round()).all():
            axis.get_major_locator().set_params(integer=True)


def _short(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"
