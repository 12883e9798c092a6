"""Plots as inline SVG: what they show, and that they may stand in any page."""

import logging
import os
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest

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
    lines = [(name, [0.5, None, 1.0], 0.1 * i) for i, name in enumerate(names)]
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
        "grid": scatter(5000),
    }


def elements(drawing, tag):
    return [e for e in ElementTree.fromstring(drawing).iter() if e.tag == tag]


def texts(drawing):
    return [(element.text or "").strip() for element in elements(drawing, "text")]


def position(drawing, attribute, value):
    """Return where a value of an axis is, by two of its tick labels."""
    numbers = {}
    for element in elements(drawing, "text"):
        is_y = element.attrib.get("text-anchor") == "end"
        if is_y == (attribute == "y") and re.fullmatch(r"-?[\d.,]+(e-?\d+)?", element.text):
            numbers[float(element.text.replace(",", ""))] = float(element.attrib[attribute])
    (low, start), *_, (high, end) = sorted(numbers.items())
    return start + (value - low) / (high - low) * (end - start)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_points_are_where_the_axes_say(size):
    points = [(100.0 * index, 0.5 + 0.07 * index) for index in range(1, size + 1)]
    drawing = plots.curves("validation", {"accuracy": points}, "step", marks=True)
    dots = [e for e in ElementTree.fromstring(drawing).iter() if e.find("title") is not None]
    assert [dot.find("title").text for dot in dots] == [
        f"accuracy {y:.4g} at {x:g}" for x, y in points
    ]
    offset = position(drawing, "y", points[0][1]) - center(dots[0])[1]
    for dot, (x, y) in zip(dots, points, strict=True):
        assert center(dot)[0] == pytest.approx(position(drawing, "x", x), abs=0.5)
        # Labels are lower than their lines by part of a letter.
        assert center(dot)[1] == pytest.approx(position(drawing, "y", y) - offset, abs=0.5)
    assert 2 < offset < 6


def center(shape):
    if shape.tag == "circle":
        return float(shape.attrib["cx"]), float(shape.attrib["cy"])
    numbers = np.array(re.findall(r"-?[\d.]+", shape.attrib["d"]), float).reshape(-1, 2)
    return tuple((numbers.min(axis=0) + numbers.max(axis=0)) / 2)


def test_a_single_point_is_a_dot_with_its_value_amid_the_axes():
    drawing = plots.curves("validation", {"accuracy": [(120, 0.912)]}, "step")
    assert "accuracy: 0.912" in texts(drawing)
    (dot,) = [e for e in ElementTree.fromstring(drawing).iter() if e.find("title") is not None]
    assert center(dot)[0] == pytest.approx(plots.WIDTH / 2, abs=40)
    ticks = [float(t) for t in texts(drawing) if re.fullmatch(r"[\d.]+", t)]
    assert {120.0} < set(ticks) and len(ticks) >= 6
    assert all(80 < tick < 160 or 0.8 < tick < 1.02 for tick in ticks)


def test_values_that_are_not_finite_leave_gaps():
    line = [(0, 1.0), (1, float("nan")), (2, float("inf")), (3, 2.0)]
    for drawing in (
        plots.curves("loss", {"train": line}, "step", marks=True),
        plots.curves("loss", {"train": [(0, float("nan"))]}, "step"),
        plots.scatter("values", *np.array(line).T, "x", "y"),
    ):
        for element in ElementTree.fromstring(drawing).iter():
            assert not re.search("nan|inf", "".join(element.attrib.values()))
    assert plots.scatter("values", np.array([np.nan]), np.zeros(1), "x", "y") == ""
    assert plots.curves("loss", {}, "step") == plots.bars("none", {}) == ""


FUNCTIONS = [
    "curves",
    "reliability",
    "histogram",
    "heat_map",
    "bars",
    "parallel",
    "scatter",
    "grid",
]


@pytest.fixture(scope="module")
def drawings():
    return all_plots()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_plot_stands_in_a_page(drawings, function):
    drawing = drawings[function]
    root = ElementTree.fromstring(drawing)
    (svg,) = [root] if root.tag == "svg" else list(root)
    assert svg.tag == "svg" and svg.attrib["role"] == "img" and svg.attrib["aria-label"]
    width, height = map(float, svg.attrib["viewBox"].split()[2:])
    assert (width, height) == (float(svg.attrib["width"]), float(svg.attrib["height"]))
    for element in root.iter():
        assert element.tag in {"div", "svg", "g", "path", "text", "circle", "title"}
        # Nothing that two plots of a page could share, or that comes from elsewhere.
        assert not {"id", "clip-path", "style", "class"} & set(element.attrib) or element is root
        assert not any("href" in key or "url(" in v for key, v in element.attrib.items())
        # In the colour of the page, of a series, or white on a dark cell: black is not seen in
        # dark mode.
        colors = {element.attrib.get(key, "none") for key in ("fill", "stroke")}
        allowed = {"none", "currentColor", "#ffffff", *map(str.lower, plots.COLORS)}
        assert colors <= allowed
    assert svg.attrib["fill"] == "currentColor"  # inherited by the texts


def test_names_are_shown_as_they_are():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = all_plots(ODD_NAMES)
    for function in ("curves", "heat_map", "bars"):
        shown = set(texts(drawings[function]))
        assert {"$x^2$", "<b>&amp;\"'", "$\\alpha_{", "a b", "東京", "_hidden"} <= shown
    assert "&lt;b&gt;&amp;amp;" in drawings["heat_map"] and "<b>" not in "".join(drawings.values())
    assert "$x^2$ as $x^2$: " in drawings["heat_map"]
    "".join(drawings.values()).encode("utf-8")  # write_atomic does


def test_equal_values_draw_equal_plots():
    assert all_plots() == all_plots()


def test_settings_of_the_process_stay():
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 31, "axes.grid": True}):
        settings = dict(matplotlib.rcParams)
        styled = all_plots()
        assert dict(matplotlib.rcParams) == settings
    assert styled == all_plots()
    assert logging.getLogger("matplotlib").level != logging.CRITICAL


@pytest.mark.parametrize("size", [2, 3, 10, 25, 60])
def test_heat_map_counts_fit_and_the_size_is_bounded(size):
    drawing = heat_map(size, dense=True)
    assert len(drawing) < 600_000
    svg = next(ElementTree.fromstring(drawing).iter("svg"))
    assert float(svg.attrib["width"]) < 1000
    # Three digits fit from about 20 units on.
    assert len(texts(drawing)) == 1 + 2 * size + (size**2 if size <= 25 else 0)
    titles = {e.text for e in elements(drawing, "title")}
    assert len(titles) == size**2
    assert len(heat_map(size)) < 40_000


def test_many_points_are_counted_in_a_grid():
    few, many = scatter(plots.MAX_POINTS), scatter(200_000, diagonal=True)
    assert len(elements(few, "circle")) == plots.MAX_POINTS
    assert len(few) < 100_000 and len(many) < 100_000
    counts = [int(e.text.split()[0]) for e in elements(many, "title")]
    assert sum(counts) == 200_000 and not elements(many, "circle")


def test_bars_and_bins_are_as_large_as_their_values():
    drawing = plots.bars("importance", {"a": 0.5, "b": 0.25, "c": 0.0})
    widths = []
    for element in elements(drawing, "path"):
        numbers = np.array(re.findall(r"-?[\d.]+", element.attrib["d"]), float).reshape(-1, 2)
        widths.append(np.ptp(numbers[:, 0]))
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.3)
    assert [t for t in texts(drawing) if "." in t] == ["0.50", "0.25", "0.00"]
    bins = plots.histogram("lengths", np.repeat([1, 2, 3], [5, 2, 9]), "tokens")
    assert [e.text.split(": ")[1] for e in elements(bins, "title")] == ["5", "2", "9"]


def test_typical_plots_are_small():
    random = np.random.default_rng(0)
    losses = [(10 * step, random.random()) for step in range(1000)]
    scores = {n: [(500 * s, random.random()) for s in range(20)] for n in ("accuracy", "macro_f1")}
    drawings = [
        plots.curves("loss", {"train": losses}, "step"),
        plots.curves("validation", scores, "step", marks=True),
        *all_plots().values(),
    ]
    assert sum(map(len, drawings)) < 150_000


def test_the_first_drawing_is_silent_without_a_home(tmp_path):
    """Matplotlib then builds a cache of fonts in a temporary folder."""
    script = (
        "import sys, tfft; tfft.train\n"
        "from tfft.report import plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert '<svg' in plots.bars('title', {'東京': 1.0})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    file = tmp_path / "file"
    file.touch()
    variables = {**os.environ, "HOME": str(file), "MPLCONFIGDIR": str(file / "none")}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_headers_are_whole_and_wide_tables_scroll():
    table = page._table(["class", "average precision"], [["a<b", "0.5"]])
    assert table.startswith('<div class="scroll"><table>') and "a&lt;b" in table
    rule = re.search(r"td,th\{[^}]*\}", page._STYLE)[0]
    assert "overflow-wrap" not in rule and ".scroll{overflow-x:auto" in page._STYLE
