"""Matplotlib figures as SVG elements inside of an HTML page.

Matplotlib writes SVG files. An element of a page must differ from them: without ids, which would
collide with those of other plots, without style sheets, which would apply to the whole page, in the
page's font, and in its ink colour (`currentColor`), which is light in dark mode. Matplotlib is
imported by the first drawing, since its import takes half a second.
"""

import contextlib
import io
import logging
import re
import threading
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

FONT_SIZE = 12  # in units of the drawing, which are pixels where the page has room
INK = "#010101"  # drawn as the colour of the page's text; other colours are drawn as they are
TITLE_HEIGHT = 18  # of a line
SCROLLED_WIDTH = 640  # wider drawings scroll on small screens instead of shrinking
_PAD = 6  # on all sides

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tfft",
    # Names come from users' data; a dollar sign in them begins no formula.
    "text.parse_math": False,
    "text.usetex": False,
    "font.size": FONT_SIZE,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": FONT_SIZE,
    "axes.edgecolor": INK + "80",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "grid.color": INK + "28",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": FONT_SIZE,
    "ytick.labelsize": FONT_SIZE,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": FONT_SIZE,
    "legend.handlelength": 1.2,
    "legend.borderaxespad": 0.3,
}
# The settings of matplotlib and the filters of warnings belong to the process.
_LOCK = threading.Lock()
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffe\uffff]+")


_DRAWN = ("path", "text", "use")
_GEOMETRY = ("d", "x", "y", "cx", "cy", "r", "transform")  # not inherited from a group


class Canvas:
    """A figure of a given size, with a title above its axes.

    Attributes:
        width, height: size in units; the title comes on top of the height.
        figure: matplotlib's figure, in which a point is a unit.
        top: height of the title.
    """

    def __init__(self, title: str, width: float, height: float):
        from matplotlib.figure import Figure

        self._title = plain(title)
        lines = _wrap(self._title, width - 2 * _PAD)
        self.top = TITLE_HEIGHT * len(lines) + _PAD
        self.width, self.height = round(width), round(height + self.top)
        self.figure = Figure((self.width / 72, self.height / 72), dpi=72)
        for index, line in enumerate(lines):
            y = 1 - (_PAD + TITLE_HEIGHT * (index + 0.5)) / self.height
            self.figure.text(_PAD / width, y, line, weight="bold", va="center_baseline")
        self._tips: dict[str, Sequence[str]] = {}

    def axes(self) -> "Axes":
        """Add axes that fill the figure with their labels, over horizontal grid lines."""
        pad = _PAD / 72
        self.figure.set_layout_engine(
            "constrained", rect=(0, 0, 1, 1 - self.top / self.height), w_pad=pad, h_pad=pad
        )
        axes = self.figure.add_subplot()
        axes.grid(axis="y")
        axes.margins(0.02, 0.04)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        return axes

    def axes_within(self, left: float, top: float, right: float, bottom: float) -> "Axes":
        """Add axes with these margins in units, `top` being counted from below the title."""
        width = self.width - left - right
        height = self.height - self.top - top - bottom
        axes = self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )
        axes.spines[:].set_visible(False)
        return axes

    def add_tips(self, artist: "Artist", texts: Sequence[str]) -> None:
        """Show a text while the pointer is on a part of an artist: the n-th text on the n-th."""
        name = f"tips-{len(self._tips)}"
        artist.set_gid(name)
        self._tips[name] = [plain(text) for text in texts]

    def to_html(self) -> str:
        """Return the drawing as an `svg` element; in a scrolled box where it is wide."""
        file = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self.figure.savefig(file, format="svg", transparent=True, metadata=metadata)
        root = ElementTree.fromstring(file.getvalue())
        markers = {e.attrib["id"]: e for e in root.iter() if _tag(e) == "path" and "id" in e.attrib}
        body = _markup(root, markers, self._tips)
        svg = (
            f'<svg viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{escape(self._title)}" '
            f'fill="currentColor" stroke-linejoin="round" font-size="{FONT_SIZE}">{body}</svg>'
        )
        return f'<div class="scroll">{svg}</div>' if self.width > SCROLLED_WIDTH else svg


@contextlib.contextmanager
def canvas(title: str, width: float, height: float) -> Iterator[Canvas]:
    """Give a canvas to draw on, with the settings of matplotlib that it needs.

    Matplotlib is silent meanwhile: that it builds a cache of fonts, that it has no home folder to
    write to, and that its font lacks a letter of a name, which the page's font may have.
    """
    logger = logging.getLogger("matplotlib")
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            from matplotlib import style

            with style.context(["default", _SETTINGS]):
                yield Canvas(title, width, height)
        finally:
            logger.setLevel(level)


def plain(text: str) -> str:
    """Return a text on one line, without characters that XML or a font cannot represent."""
    return _UNPRINTABLE.sub(" ", text)


def text_width(text: str) -> float:
    """Estimate the width of a text in units; generous, since the page chooses the font."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return FONT_SIZE * (wide + 0.57 * (len(text) - wide))


def _wrap(text: str, width: float) -> list[str]:
    """Break a text at spaces into lines of a width."""
    lines: list[str] = []
    for word in text.split():
        # 0.9: bold letters are wider.
        if lines and text_width(f"{lines[-1]} {word}") <= 0.9 * width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _markup(
    group: ElementTree.Element,
    markers: Mapping[str, ElementTree.Element],
    tips: Mapping[str, Sequence[str]],
) -> str:
    """Return what a group of matplotlib's SVG draws, as elements of a page.

    Args:
        group: the group.
        markers: shapes that `use` elements repeat, by id.
        tips: texts for the parts of groups, by id.
    """
    texts = tips.get(group.attrib.get("id", ""))
    if texts is None and any(_tag(child) == "g" for child in group):
        return "".join(
            _markup(child, markers, tips) if _tag(child) == "g" else _joined([child], markers)
            for child in group
        )
    return _joined(list(_parts(group)), markers, texts)


def _parts(group: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """Return the drawn elements of a group, without the definitions of shapes."""
    for element in group:
        if _tag(element) == "g":
            yield from _parts(element)
        elif _tag(element) in _DRAWN:
            yield element


def _joined(
    elements: Sequence[ElementTree.Element],
    markers: Mapping[str, ElementTree.Element],
    texts: Sequence[str] | None = None,
) -> str:
    """Return drawn elements, the n-th with the n-th text; what they share is written once."""
    parts = [(e, _attributes(e, markers)) for e in elements if _tag(e) in _DRAWN]
    parts = [(element, attributes) for element, attributes in parts if attributes]
    shared: set[tuple[str, str]] = set()
    if len(parts) > 1:
        shared = set.intersection(*(set(attributes.items()) for _, attributes in parts))
        shared = {(key, value) for key, value in shared if key not in _GEOMETRY}
    body = ""
    for (element, attributes), tip in zip(parts, texts or [""] * len(parts), strict=True):
        name = "circle" if _tag(element) == "use" else _tag(element)
        inner = f"<title>{escape(tip)}</title>" if tip else escape((element.text or "").strip())
        start = _start(name, sorted(set(attributes.items()) - shared))
        body += f"{start}>{inner}</{name}>" if inner else f"{start}/>"
    return f"{_start('g', sorted(shared))}>{body}</g>" if shared else body


def _start(name: str, attributes: Sequence[tuple[str, str]]) -> str:
    return f"<{name}" + "".join(f' {key}="{value}"' for key, value in attributes)


def _attributes(
    element: ElementTree.Element, markers: Mapping[str, ElementTree.Element]
) -> dict[str, str]:
    """Return the attributes of an element for a page; none if nothing is to be seen."""
    rules = filter(None, map(str.strip, element.attrib.get("style", "").split(";")))
    style = dict(rule.split(": ", 1) for rule in rules)
    if _tag(element) == "text":
        return _text_attributes(element, style)
    style = {key: value.replace(INK, "currentColor") for key, value in style.items()}
    if style.get("fill") == "none" and "stroke" not in style:
        return {}
    if style.get("stroke") is None:
        style = {key: value for key, value in style.items() if not key.startswith("stroke")}
    if _tag(element) == "path":
        path = re.sub(r"\s*([A-Za-z])\s*", r"\1", element.attrib["d"].strip())
        return {"d": _rounded(path, 1), **{k: _rounded(v, 3) for k, v in style.items()}}
    # The one marker that is drawn is a circle around the origin: without the shape there is no id.
    (href,) = (value for key, value in element.attrib.items() if key.endswith("href"))
    numbers = re.findall(r"[\d.]+", markers[href[1:]].attrib["d"])
    return {
        "cx": _rounded(element.attrib["x"], 1),
        "cy": _rounded(element.attrib["y"], 1),
        "r": _rounded(max(numbers, key=float), 1),
        **{k: _rounded(v, 3) for k, v in style.items()},
    }


def _text_attributes(element: ElementTree.Element, style: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of a text, in the font of the page."""
    attributes = {key: _rounded(element.attrib[key], 1) for key in ("x", "y")}
    # Size and weight are rules of their own or, before matplotlib 3.11, parts of `font`.
    font = " ".join(style.get(key, "") for key in ("font", "font-size", "font-weight"))
    size = re.search(r"([\d.]+)px", font)
    if size and float(size[1]) != FONT_SIZE:
        attributes["font-size"] = _rounded(size[1], 1)
    if re.search(r"\b(bold|[67]00)\b", font):
        attributes["font-weight"] = "600"
    if style.get("fill", INK) != INK:
        attributes["fill"] = style["fill"]
    if style.get("text-anchor", "start") != "start":
        attributes["text-anchor"] = style["text-anchor"]
    transform = element.attrib.get("transform", "")
    if not transform.startswith(("rotate(-0 ", "rotate(0 ")):
        attributes["transform"] = _rounded(transform, 1)
    return attributes


def _rounded(text: str, digits: int) -> str:
    """Round the numbers with a point in a text."""
    return re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda m: f"{round(float(m[0]), digits):g}", text)
