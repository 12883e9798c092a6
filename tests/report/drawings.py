"""The plots of a page: their SVG, and the contrast of colours."""

import base64
import re
from xml.etree import ElementTree

_PLOT = re.compile(r'<img class="plot" [^>]*src="data:image/svg\+xml;base64,([^"]*)">')


def sources(html):
    """Return the SVG text of each plot of a page."""
    return [base64.b64decode(data, validate=True).decode("utf-8") for data in _PLOT.findall(html)]


def drawings(html):
    """Return the root element of each plot of a page, with tags without a namespace."""
    roots = [ElementTree.fromstring(source) for source in sources(html)]
    for root in roots:
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return roots


def texts(html):
    return [(e.text or "").strip() for root in drawings(html) for e in root.iter("text")]


def styles(html):
    """Return what each element of the plots of a page has as its style, by property."""
    for root in drawings(html):
        for element in root.iter():
            rules = filter(None, map(str.strip, element.attrib.get("style", "").split(";")))
            yield element, dict(re.split(r":\s*", rule, maxsplit=1) for rule in rules)


def contrast(color, background):
    """Return WCAG's contrast ratio of two colours of 0 to 255 a channel, from 1 to 21."""
    light, dark = sorted((luminance(color), luminance(background)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(color):
    parts = [part / 255 for part in color]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
