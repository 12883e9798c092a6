"""The pages of runs and searches in Chromium, in light and dark mode."""

import re
import shutil

import numpy as np
import pytest
import yaml

import tfft
from tests.conftest import write_csv
from tests.report.drawings import contrast, texts
from tests.report.test_plots import all_plots
from tests.search.test_oracles import RAW, FakeRunner, finish, make_oracle
from tfft.evaluation import metrics
from tfft.report import page as report_page
from tfft.search import report
from tfft.search.leaderboard import Leaderboard
from tfft.search.space import Space
from tfft.tasks import classification

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CONTRAST = 4.5  # of text to its background: WCAG 2.1, level AA

# Texts, their colours and backgrounds, as the browser computes them.
READ_TEXTS = """() => {
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const e of document.querySelectorAll('h1, h2, h3, td, th, pre, figcaption, svg text')) {
    if (!e.textContent.trim()) continue;
    const svg = e.closest('svg'), style = getComputedStyle(e), box = e.getBoundingClientRect();
    const ink = svg ? style.fill : style.color;
    found.push([e.textContent.trim().slice(0, 40), ink, behind(svg || e), box.width * box.height]);
  }
  return found;
}"""
# Headers of one word on more than one line.
BROKEN_HEADERS = """() => [...document.querySelectorAll('th')].filter(th => {
  const range = document.createRange();
  range.selectNodeContents(th);
  return !/\\s/.test(th.textContent.trim()) && range.getClientRects().length > 1;
}).map(th => th.textContent)"""
# Replaces images of plots by their SVG, whose texts are seen so.
OPEN_PLOTS = """() => document.querySelectorAll('img.plot').forEach(img => {
  const bytes = Uint8Array.from(atob(img.src.split(',')[1]), c => c.charCodeAt(0));
  const text = new TextDecoder().decode(bytes);
  const svg = new DOMParser().parseFromString(text, 'image/svg+xml').documentElement;
  svg.setAttribute('width', img.width);
  svg.setAttribute('height', img.height);
  img.replaceWith(svg);
})"""
# Texts of one plot that overlap or leave it.
OVERLAPS = """() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg')) {
    const isTurned = (t) => /rotate\\((?!-?0[ )])/.test(t.getAttribute('transform'));
    const texts = [...svg.querySelectorAll('text')].filter(t => !isTurned(t));
    const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()]);
    const all = svg.getBoundingClientRect();
    boxes.forEach(([a, p]) => {
      const inside = p.left > all.left - 1 && p.right < all.right + 1 && p.bottom < all.bottom + 1;
      if (!inside || p.top < all.top - 1) found.push([a, 'outside']);
    });
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      const x = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const y = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (x > 2 && y > 4) found.push([a, b]);
    }));
  }
  return found;
}"""


def test_confusion_matrix_of_many_classes_shows_those_with_errors():
    labels = np.repeat(np.arange(1000), 3)
    predicted = labels.copy()
    predicted[labels == 731] = 44
    section = classification.confusion_section(
        metrics.confusion(predicted, labels, 1000), [f"c{index}" for index in range(1000)]
    )
    drawing = report_page._render(section)
    assert "the 60 of 1,000 classes with the most errors" in drawing
    assert {"c731", "c44"} <= set(texts(drawing))
    assert texts(drawing).count("3") == 60  # the rows of each class are in one cell
    assert len(drawing) < 2**20


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: pages are not rendered (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tiny, tmp_path_factory):
    """The pages of a run and of a search of 30 trials."""
    folder = tmp_path_factory.mktemp("pages")
    config = {
        "data": {
            "train": str(write_csv(folder / "t.csv", 200)),
            "validation": {"fraction": 0.2},
            "test": str(write_csv(folder / "test.csv", 60, 1)),
            "max_length": 12,
        },
        "model": {"backbone": f"hf:{tiny}"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 4, "batch_size": 16},
        "export": {"enabled": False},
    }
    run = tfft.train(config, folder / "run")
    search_oracle = finish(
        make_oracle(folder, trials=30, halving={"factor": 3, "min_epochs": 1}), FakeRunner()
    )
    leaderboard = Leaderboard(Space(yaml.safe_load(RAW)), "accuracy", "max")
    leaderboard.update(search_oracle)
    report.write(leaderboard, folder / "search.html")
    names = [f"{size}: a name of {'many ' * size}words" for size in range(8)]
    examples = "".join([*all_plots(names).values(), *all_plots().values()])
    report_page.write_page(folder / "plots.html", "plots", examples, "text")
    paths = {name: folder / f"{name}.html" for name in ("search", "plots")}
    return {"run": run.workdir / "report.html", **paths}


def test_the_most_wrong_rows_show_their_passage_or_their_beginning():
    cells = {"label": "yes", "predicted": "no", "loss": 1.0}
    html = report_page._worst_rows([{"row": ("where?", "a" * 900), "text": "a passage", **cells}])
    assert "a passage" in html and "aaa" not in html
    assert all(f">{name}<" in html for name in ("text", "label", "predicted"))
    html = report_page._worst_rows([{"row": ("where?", "a" * 900), **cells}])
    assert f">where? | {'a' * 391}<" in html


@pytest.mark.parametrize(("scheme", "width"), [("light", 1100), ("dark", 1100), ("dark", 400)])
@pytest.mark.parametrize("name", ["run", "search", "plots"])
def test_page_is_self_contained_and_readable(browser, pages, tmp_path, name, scheme, width):
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page_view, messages, urls = context.new_page(), [], []
    page_view.on("console", lambda message: messages.append(message.text))
    page_view.on("pageerror", lambda error: messages.append(str(error)))
    page_view.on("request", lambda request: urls.append(request.url))
    page_view.goto(pages[name].as_uri())
    page_view.screenshot(path=tmp_path / f"{name}_{scheme}.png", full_page=True)
    assert messages == []
    assert urls == [pages[name].as_uri()]  # no other request
    page_width = page_view.evaluate("document.documentElement.scrollWidth")
    assert page_width <= width  # no sideways scrolling
    assert page_view.evaluate(BROKEN_HEADERS) == []
    ids = page_view.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    drawn = page_view.evaluate("[...document.images].every(i => i.complete && i.naturalWidth)")
    assert drawn
    page_view.evaluate(OPEN_PLOTS)
    shown = page_view.evaluate(READ_TEXTS)
    assert len(shown) > 40
    low_contrast = [
        (text, ink, paper)
        for text, ink, paper, _ in shown
        if contrast(channels(ink), channels(paper)) < CONTRAST
    ]
    assert low_contrast == []
    assert all(area > 0 for *_, area in shown)
    assert page_view.evaluate(OVERLAPS) == []
    context.close()


@pytest.mark.parametrize(("scheme", "ink"), [("light", 0x22), ("dark", 0xDD)])
def test_images_follow_the_mode(browser, tmp_path, scheme, ink):
    image_library = pytest.importorskip("PIL.Image")
    report_page.write_page(tmp_path / "page.html", "", all_plots()["heat_map"], "")
    context = browser.new_context(color_scheme=scheme)
    page_view = context.new_page()
    page_view.goto((tmp_path / "page.html").as_uri())
    page_view.locator("img.plot").screenshot(path=tmp_path / "plot.png")
    context.close()
    pixels = np.asarray(image_library.open(tmp_path / "plot.png").convert("RGB"))
    assert (np.abs(pixels.astype(int) - ink).max(axis=-1) < 3).sum() > 50


def channels(color):
    return [int(part) for part in re.findall(r"\d+", color)[:3]]
