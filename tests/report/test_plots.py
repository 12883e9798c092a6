"""Plots as images that hold SVG: what they show, and that they may stand in any page."""

import ast
import logging
import os
import re
import subprocess
import sys
import time
import warnings
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import tfft
from tests.report.drawings import contrast, drawings, sources, styles, texts
from tfft.report import page, plots

ODD_NAMES = [
    "$x^2$",
    "<b>&amp;\"'",
    "$\\alpha_{",
    "a\nb\x00\ud800",
    "東京",
    "_hidden",
    "",
    "n" * 40,
]
FUNCTIONS = [
    "curves",
    "reliability",
    "histogram",
    "heat_map",
    "bars",
    "parallel",
    "scatter",
    "hexagons",
]


def heat_map(size, names=None, dense=False):
    random = np.random.default_rng(0)
    counts = random.integers(1, 50, (size, size)) if dense else np.zeros((size, size), np.int64)
    counts = counts + np.diag(random.integers(100, 900, size))
    names = names or [f"class {index}" for index in range(size)]
    return plots.heat_map("confusion", counts, counts.sum(axis=1), names)


def scatter(size, **options):
    x = np.random.default_rng(0).normal(size=size)
    return plots.scatter("values", x, x + 0.1, "true", "predicted", **options)


def all_plots(names=tuple("abcdefgh")):
    """Return one plot by each function, with these names wherever names are shown."""
    series = {name: [(0.0, 1.0 + i), (10.0, 2.0 + i)] for i, name in enumerate(names)}
    bins = np.arange(1, 11)
    lines = [([0.5, None, 1.0], 0.1 * i) for i in range(len(names))]
    return {
        "curves": plots.curves(names[0], series, names[1], marks=True),
        "reliability": plots.reliability(
            names[0], {"count": bins, "confidence": bins / 10, "accuracy": bins / 10}
        ),
        "histogram": plots.histogram(names[0], np.arange(50), names[1], 30.0),
        "heat_map": heat_map(len(names), names),
        "bars": plots.bars(names[0], {name: i / 2 for i, name in enumerate(names)}),
        "parallel": plots.parallel(
            names[0], {f"{name}{i}": (name, name) for i, name in enumerate(names[:3])}, lines
        ),
        "scatter": plots.scatter(names[0], bins, bins, names[1], names[2], diagonal=True),
        "hexagons": scatter(5000),
    }


def points_of(path):
    numbers = re.findall(r"-?[\d.]+", path.attrib["d"])
    return np.array(numbers, float).reshape(-1, 2)


def lines_of(html, color=plots.COLORS[0]):
    """Return the corners of the lines and shapes of a colour."""
    return [
        points_of(element)
        for element, style in styles(html)
        if color.lower() in (style.get("stroke"), style.get("fill"))
        and "clip-path" in element.attrib
        if element.tag == "path"
    ]


def ticks(html, axis):
    """Return where the values of an axis are: x by the labels' centers, y by the grid lines."""
    positions = {}
    (root,) = drawings(html)
    for group in root.iter("g"):
        if group.attrib.get("id", "").startswith(f"{axis}tick"):
            (label,) = group.iter("text")
            value = float(label.text.strip().replace(",", "").replace("−", "-"))
            positions[value] = (
                float(label.attrib["x"])
                if axis == "x"
                else points_of(next(group.iter("path")))[0, 1]
            )
    return positions


def position(html, axis, value):
    (low, start), *_, (high, end) = sorted(ticks(html, axis).items())
    return start + (value - low) / (high - low) * (end - start)


@pytest.mark.parametrize("size", [2, 5])
def test_lines_go_through_the_points(size):
    values = [(100.0 * index, 0.5 + 0.07 * index**2) for index in range(1, size + 1)]
    drawing = plots.curves("validation", {"accuracy": values}, "step")
    (line,) = lines_of(drawing)
    expected = [(position(drawing, "x", x), position(drawing, "y", y)) for x, y in values]
    np.testing.assert_allclose(line, expected, atol=0.1)


def test_a_single_point_is_a_dot_with_its_value_amid_the_axes():
    drawing = plots.curves("validation", {"accuracy": [(120, 0.912)]}, "step")
    assert "accuracy: 0.912" in texts(drawing)
    (root,) = drawings(drawing)
    dot, _ = root.iter("use")  # and the legend's
    assert float(dot.attrib["x"]) == pytest.approx(position(drawing, "x", 120.0), abs=0.1)
    assert float(dot.attrib["y"]) == pytest.approx(position(drawing, "y", 0.912), abs=0.1)
    for axis, value in (("x", 120.0), ("y", 0.912)):
        shown = ticks(drawing, axis)
        assert min(shown) < value < max(shown)
        assert all(0.8 * value < tick < 1.2 * value for tick in shown)


def test_values_that_are_not_finite_leave_gaps():
    line = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    for drawing in (
        plots.curves("loss", {"train": line}, "step", marks=True),
        plots.curves("loss", {"train": [(0, float("nan"))]}, "step"),
        plots.scatter("values", *np.array(line).T, "x", "y"),
    ):
        for root in drawings(drawing):
            for element in root.iter():
                assert not re.search(r"\b(nan|inf)\b", "".join(element.attrib.values()))
    assert plots.scatter("values", np.array([np.nan]), np.zeros(1), "x", "y") == ""
    assert plots.curves("loss", {}, "step") == plots.bars("none", {}) == ""


@pytest.fixture(scope="module")
def examples():
    return all_plots()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_plot_stands_in_a_page(examples, function):
    html = examples[function]
    (source,), (root,) = sources(html), drawings(html)
    assert root.tag == "svg" and re.search(r' alt="[^"]+" ', html)
    width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', html).groups())
    assert list(map(float, root.attrib["viewBox"].split())) == [0, 0, width, height]
    assert ('<div class="scroll">' in html) == (width > plots.WIDTH)
    # Nothing comes from elsewhere: the only addresses are names of formats.
    rest = re.sub(r'xmlns(:xlink)?="[^"]*"|<!DOCTYPE[^>]*>', "", source)
    assert "http" not in rest and "<metadata" not in rest and "<script" not in rest
    for element, style in styles(html):
        for key, value in element.attrib.items():
            if key.endswith("href"):
                assert value.startswith(("#", "data:image/png;base64,"))
        # In the colour of texts or of a series: black is not seen in dark mode.
        allowed = {"none", "currentColor", *map(str.lower, plots.COLORS)}
        assert {style.get(key, "none") for key in ("fill", "stroke")} <= allowed
        if element.tag == "text":
            assert style["fill"] == "currentColor"


def test_texts_are_readable_on_the_page_and_on_all_shades():
    inks = re.findall(r"color:#(\w)(\w)(\w)\}", plots._STYLE)
    papers = re.findall(r"--paper:#(\w+)", page._STYLE)
    ends = plots._shades()([0.0, 1.0])
    for ink, paper in zip(inks, papers, strict=True):
        ink = [int(digit * 2, 16) for digit in ink]
        full = paper if len(paper) == 6 else "".join(digit * 2 for digit in paper)
        behind = np.array(list(bytes.fromhex(full)))
        assert contrast(ink, behind) > 7
        for *color, opacity in ends:
            assert contrast(ink, 255 * np.array(color) * opacity + behind * (1 - opacity)) >= 4.5


def test_names_are_shown_as_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = all_plots(ODD_NAMES)
    for function in ("curves", "heat_map", "bars"):
        shown = set(texts(odd[function]))
        assert {"$x^2$", "<b>&amp;\"'", "$\\alpha_{", "a b", "東京", "_hidden"} <= shown
    titled = plots.bars(ODD_NAMES[1], {"a": 1.0})
    assert "<b>" not in titled and unescape(re.search('alt="([^"]*)"', titled)[1]) == ODD_NAMES[1]
    "".join(odd.values()).encode("utf-8")  # write_atomic does


def test_equal_values_draw_equal_plots(examples):
    assert all_plots() == examples


def test_settings_of_the_process_stay(examples):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 31, "axes.grid": True}):
        settings = dict(matplotlib.rcParams)
        styled = all_plots()
        assert dict(matplotlib.rcParams) == settings
    assert styled == examples
    assert logging.getLogger("matplotlib").level != logging.CRITICAL


@pytest.mark.parametrize("size", [1, 2, 3, 10, 25, 60])
def test_heat_map_counts_fit_and_the_size_is_bounded(size):
    start, drawing = time.monotonic(), heat_map(size, dense=True)
    assert time.monotonic() - start < 30
    assert len(drawing) < 400_000
    assert int(re.search(r'width="(\d+)"', drawing)[1]) < 1000
    # Three digits fit from about 19 units on.
    assert len(texts(drawing)) == 1 + 2 * size + (size**2 if size <= 25 else 0)
    assert len(heat_map(size)) < 120_000
    ones = plots.heat_map("errors", np.ones((size, size)), np.full(size, size), ["n" * 40] * size)
    assert len(ones) < 900_000


def test_many_points_are_counted_in_hexagons():
    few, many = scatter(plots.MAX_POINTS), scatter(200_000, diagonal=True)
    (root,) = drawings(few)
    assert len(list(root.iter("use"))) == plots.MAX_POINTS
    assert len(few) < 400_000 and len(many) < 200_000


def test_bars_and_bins_are_as_large_as_their_values():
    drawing = plots.bars("importance", {"a": 0.5, "b": 0.25, "c": 0.0})
    widths = [np.ptp(bar[:, 0]) for bar in lines_of(drawing)]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1) and widths[2] == 0
    assert [t for t in texts(drawing) if "." in t] == ["0.50", "0.25", "0.00"]
    bins = plots.histogram("lengths", np.repeat([1, 2, 3], [5, 2, 9]), "tokens")
    unit = position(bins, "y", 0.0) - position(bins, "y", 1.0)
    heights = [np.ptp(bar[:, 1]) / unit for bar in lines_of(bins)]
    np.testing.assert_allclose(heights, [5, 2, 9], rtol=0.01)


def test_a_parallel_line_skips_axes_without_a_value():
    axes = dict.fromkeys("abc", ("low", "high"))
    drawing = plots.parallel("trials", axes, [([0.0, None, 1.0], 0.5)])
    colors = [e for e, s in styles(drawing) if s.get("stroke") == plots.COLORS[0].lower()]
    (start, end) = points_of(colors[0])
    assert start[1] > end[1] and end[0] - start[0] > 300
    assert texts(drawing).count("low") == texts(drawing).count("high") == 3


def test_typical_plots_are_small():
    random = np.random.default_rng(0)
    losses = [(10 * step, random.random()) for step in range(1000)]
    scores = {n: [(500 * s, random.random()) for s in range(20)] for n in ("accuracy", "macro_f1")}
    typical = [
        plots.curves("loss", {"train": losses}, "step"),
        plots.curves("validation", scores, "step", marks=True),
        *all_plots().values(),
    ]
    assert sum(map(len, typical)) < 300_000


def test_the_first_drawing_is_silent_without_a_home(tmp_path):
    """Matplotlib then builds a cache of fonts in a temporary folder."""
    script = (
        "import tfft; tfft.train\n"
        "from tfft.report import plots\n"
        "assert '<img' in plots.bars('title', {'東京': 1.0})"
    )
    file = tmp_path / "file"
    file.touch()
    variables = {**os.environ, "HOME": str(file), "MPLCONFIGDIR": str(file / "none")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_matplotlib_is_imported_by_what_draws():
    for path in Path(tfft.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                assert not any((name or "").startswith("matplotlib") for name in names), path


def test_headers_are_whole_and_wide_tables_scroll():
    table = page._table(["class", "average precision"], [["a<b", "0.5"]])
    assert table.startswith('<div class="scroll"><table>') and "a&lt;b" in table
    rule = re.search(r"td,th\{[^}]*\}", page._STYLE)[0]
    assert "overflow-wrap" not in rule and ".scroll{overflow-x:auto" in page._STYLE
