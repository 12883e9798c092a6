"""Plots of a page as images: curves, bars, heat maps, points.

Each is an `img` element that holds matplotlib's SVG, whose ids and styles cannot collide with those
of other plots. Matplotlib is imported by the first drawing: that takes half a second.
"""

import base64
import contextlib
import io
import logging
import re
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

WIDTH, HEIGHT = 480, 280  # in points of matplotlib, which are pixels of the page
MAX_POINTS = 2000  # points of a scatter plot; more are counted in hexagons
MAX_COUNTS = 1500  # written counts in a heat map: each takes 400 bytes of the page
# Safe for the colour-blind (Okabe & Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#010101"  # becomes the colour of the text, which depends on the mode
# Matplotlib would quote `system-ui`, which then is no generic family.
_STYLE = """<style>text{font-family:system-ui,sans-serif!important}
svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"""
_SETTINGS = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    **dict.fromkeys((f"axes.spines.{side}" for side in ("top", "bottom", "left", "right")), False),
    **dict.fromkeys(("xtick.major.size", "ytick.major.size"), 0),
    "axes.axisbelow": True,
    "axes.prop_cycle": f"cycler(color={COLORS})",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: equal layouts everywhere
    "font.size": 12,
    "grid.color": INK + "28",
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "svg.hashsalt": "tfft",
    "text.parse_math": False,  # names come from users' data: a dollar sign begins no formula
}
_LOCK = threading.Lock()  # the settings of matplotlib and the filters of warnings are global
_Lines = Sequence[tuple[Sequence[float | None], float]]
_Series = Mapping[str, Sequence[tuple[float, float]]]
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set matplotlib up for a drawing, silently.

    It would report that it builds a cache of fonts, that it has no home folder to write to, and
    that its font lacks a letter of a name, which the font of the browser may have.
    """
    logger = logging.getLogger("matplotlib")
    with _LOCK, warnings.catch_warnings(action="ignore"), contextlib.ExitStack() as stack:
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL)
        from matplotlib import style

        stack.enter_context(style.context(_SETTINGS, after_reset=True))
        yield


@_settings()
def curves(
    title: str, series: _Series, x_name: str, marks: bool = False, dots: Collection[str] = ()
) -> str:
    """Draw lines through (x, y) points, one for each name; with `marks` the points too.

    Of the names in `dots` only the points are drawn. A series of one point is a dot, with its value
    in the legend.
    """
    if not any(series.values()):
        return ""
    names = [
        _plain(f"{name}: {line[0][1]:.4g}" if len(line) == 1 else name)
        for name, line in series.items()
    ]
    columns = max(1, WIDTH // (8 * max(map(len, names)) + 52))
    axes = _axes(title, WIDTH, HEIGHT + 20 * -(-len(names) // columns))
    for (name, line), label in zip(series.items(), names, strict=True):
        x, y = np.array(line, np.float64).reshape(-1, 2).T
        shape = "o" if name in dots or len(line) == 1 else "o-" if marks else "-"
        # The space: matplotlib's legend leaves out names that begin with an underscore.
        axes.plot(x, y, shape, label=f" {label}")
    axes.grid(axis="y")
    axes.set_xlabel(_plain(x_name))
    axes.figure.legend(loc="outside lower left", ncols=columns)
    return _image(axes)


@_settings()
def reliability(title: str, bins: Mapping[str, np.ndarray]) -> str:
    """Draw accuracy against confidence, with the share of rows as bars and the diagonal."""
    axes = _axes(title)
    size, full = len(bins["count"]), bins["count"] > 0
    share = bins["count"] / max(1, bins["count"].sum())
    axes.bar((np.arange(size) + 0.5) / size, share, 0.94 / size, color=INK + "30")
    axes.plot([0, 1], [0, 1], "--", color=INK + "90", linewidth=1)
    axes.plot(bins["confidence"][full], bins["accuracy"][full], "o", markersize=8, clip_on=False)
    axes.grid(axis="y")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy")
    return _image(axes)


@_settings()
def histogram(title: str, values: np.ndarray, x_name: str, mark: float | None = None) -> str:
    """Draw rows in up to 30 bins, and a dashed line at `mark`, such as the truncation length."""
    axes = _axes(title)
    # Lengths and sizes are integers: no more bins than integers in their range.
    bins = min(30, max(1, int(np.ptp(values)) + 1))
    axes.hist(values, bins, rwidth=0.94)
    if mark is not None:
        axes.axvline(mark, color=COLORS[1], linestyle="--")
    axes.grid(axis="y")
    axes.set(xlabel=_plain(x_name), ylabel="rows")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _image(axes)


@_settings()
def scatter(
    title: str, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str, diagonal: bool = False
) -> str:
    """Draw a point for each pair of values, [N] each; with many, hexagons shaded by their number.

    Pairs with a value that is not finite are left out. `diagonal` draws the line of equal values.
    """
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = np.asarray(x, np.float64)[finite], np.asarray(y, np.float64)[finite]
    if not len(x):
        return ""
    axes = _axes(title, WIDTH, HEIGHT + 60)
    axes.grid()
    if len(x) > MAX_POINTS:
        # The logarithm shows the rare points too.
        axes.hexbin(x, y, gridsize=30, bins="log", mincnt=1, cmap=_shades(), linewidths=0)
    else:
        axes.plot(x, y, "o", alpha=0.5, markeredgewidth=0)
    if diagonal:
        ends = (min(x.min(), y.min()), max(x.max(), y.max()))
        axes.plot(ends, ends, "--", color=INK + "90", linewidth=1)
    axes.set(xlabel=_plain(x_name), ylabel=_plain(y_name))
    return _image(axes)


@_settings()
def heat_map(title: str, counts: np.ndarray, rows: np.ndarray, names: Sequence[str]) -> str:
    """Draw a confusion matrix [C, C]: true classes down, predicted classes across.

    Counts are written into cells where they fit. A cell is shaded by its share of the `rows` of the
    true class, [C].
    """
    size, labels = len(names), [_plain(name, 16) for name in names]
    cell, longest = max(14, min(60, WIDTH // size)), 8 * max(map(len, labels))
    angle = 60 if longest > cell else 0
    extent = size * cell + longest + 30
    axes = _axes(title, max(300, extent), extent if angle else size * cell + 50)
    share = np.where(counts > 0, counts / np.maximum(1, rows)[:, None], np.nan)
    # Without interpolation the SVG holds a PNG of a pixel a cell.
    axes.imshow(share, _shades(), vmin=0, vmax=1, aspect="auto", interpolation="none")
    axes.xaxis.tick_top()
    side = "left" if angle else "center"
    axes.set_xticks(range(size), labels, rotation=angle, ha=side, rotation_mode="anchor")
    axes.set_yticks(range(size), labels)
    edges = np.arange(size + 1) - 0.5
    for draw_lines in (axes.hlines, axes.vlines):
        draw_lines(edges, edges[0], edges[-1], INK + "28", linewidth=0.8)
    true, predicted = np.nonzero(counts)
    font_size = min(12, (cell - 4) / (0.6 * len(f"{int(counts.max())}")))
    if font_size >= 8 and len(true) <= MAX_COUNTS:
        center = {"ha": "center", "va": "center", "in_layout": False}
        for i, j in zip(true, predicted, strict=True):
            axes.text(j, i, f"{int(counts[i, j])}", fontsize=font_size, **center)
    return _image(axes)


@_settings()
def bars(title: str, values: Mapping[str, float]) -> str:
    """Draw a horizontal bar for each name, with its value."""
    if not values:
        return ""
    axes = _axes(title, WIDTH, 24 * len(values) + 40)
    drawn = axes.barh(range(len(values)), list(values.values()), 0.7)
    axes.bar_label(drawn, fmt="%.2f", padding=5)
    axes.set(xlim=(0, max(values.values()) or 1.0), ylim=(len(values) - 0.5, -0.5), xticks=[])
    axes.set_yticks(range(len(values)), [_plain(name)[-26:] for name in values])
    return _image(axes)


@_settings()
def parallel(title: str, axes: Mapping[str, tuple[str, str]], lines: _Lines) -> str:
    """Draw parallel coordinates: a vertical axis for each name, a line for each trial.

    An axis has labels at its bottom and top. A line has a position on each axis from 0 to 1 (None:
    no value), and a goodness from 0 to 1, which sets its opacity.
    """
    area = _axes(title, max(WIDTH, 180 * len(axes)), HEIGHT)
    area.vlines(range(len(axes)), 0, 1, color=INK + "80", linewidth=1)
    # The best lines last, so that they lie on top.
    for positions, goodness in sorted(lines, key=lambda line: line[1]):
        color, opacity = COLORS[int(goodness >= 1)], 0.15 + 0.85 * goodness
        points = [(x, y) for x, y in enumerate(positions) if y is not None]
        area.plot(*np.array(points).T, color=color, alpha=opacity, clip_on=False)
    area.set(ylim=(0, 1), yticks=[])
    area.set_xticks(range(len(axes)), [_plain(low, 24) for low, _ in axes.values()])
    labels = [f"{_plain(name)[-26:]}\n{_plain(high, 24)}" for name, (_, high) in axes.items()]
    top = area.secondary_xaxis("top")
    top.set_xticks(range(len(axes)), labels)
    top.spines.top.set_visible(False)
    return _image(area)


def _axes(title: str, width: float = WIDTH, height: float = HEIGHT) -> "Axes":
    """Return the axes of a new figure."""
    from matplotlib.figure import Figure

    figure = Figure((width / 72, height / 72), layout="constrained")
    figure.suptitle(_plain(title, 200), x=0.01, ha="left", weight="bold", wrap=True)
    axes = figure.add_subplot()
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_major_formatter("{x:,g}")
    return axes


def _image(axes: "Axes") -> str:
    """Return the figure of axes as an `img` element; in a scrolled box if it is wide."""
    figure, file = axes.figure, io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue().replace(INK, "currentColor").replace("<defs>", f"{_STYLE}<defs>", 1)
    data = base64.b64encode(svg.encode()).decode()
    width, height = np.rint(72 * figure.get_size_inches()).astype(int)
    image = (
        f'<img class="plot" alt="{escape(figure.get_suptitle())}" width="{width}" '
        f'height="{height}" src="data:image/svg+xml;base64,{data}">'
    )
    return f'<div class="scroll">{image}</div>' if width > WIDTH else image


def _shades() -> "Colormap":
    """Return shades on all of which a text is readable, in both modes."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", [COLORS[0] + "20", COLORS[0] + "c0"])


def _plain(text: str, length: int = 60) -> str:
    """Return a text on one line, shortened, without what XML or a font cannot represent."""
    text = _UNPRINTABLE.sub(" ", text)
    return text if len(text) <= length else text[: length - 1] + "…"
