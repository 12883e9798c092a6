"""report.html: one self-contained page with the config and the results of a run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tfft.config import Config, dump
from tfft.data import Datasets
from tfft.evaluation.evaluate import Evaluation
from tfft.report import plots
from tfft.spec import Matrix, Reliability, Scatter, Section, Table
from tfft.utils.files import write_atomic

LOG_LOSS = "log_loss"  # the metric that is drawn beside the loss of the training
_ALIGN = {False: "", True: ' class="n"'}  # whether a cell is a number -> its attribute

_STYLE = """
:root{color-scheme:light dark;--ink:#222;--soft:#777;--line:#ddd;--paper:#fff;--box:#f6f6f6}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#999;--line:#444;--paper:#161616;--box:#222}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;
color:var(--ink);background:var(--paper)}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em;border-bottom:1px solid var(--line)}
h1{overflow-wrap:anywhere}
/* Wide tables and plots scroll by themselves, not with the page. */
.scroll{overflow-x:auto;margin:.6em 0}
table{border-collapse:collapse}
td,th{padding:.2em .7em;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
td.n{white-space:nowrap}
td.w{overflow-wrap:anywhere;min-width:12em}
pre{background:var(--box);padding:.8em;overflow-x:auto;font-size:13px}
.plot{margin:.4em .4em .4em 0;max-width:100%;height:auto;vertical-align:top}
.scroll .plot{max-width:none}
.images{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0}figcaption{font-size:12px;max-width:28em}
"""


def write(
    workdir: Path,
    config: Config,
    history: Sequence[Mapping[str, float]],
    evaluations: Mapping[str, Evaluation],
    mask_table: str,
    data: Datasets,
    exported: Path | None,
    images: "PageImages",
) -> Path:
    """Write `workdir/report.html` and return its path.

    Args:
        workdir: run directory.
        config: config of the run.
        history: entries of metrics.jsonl.
        evaluations: evaluation of each split by name.
        mask_table: table of trainable variables, as text.
        data: splits of the run.
        exported: folder of the export, or None.
        images: image sections of the page.
    """
    sections = [
        *(_metrics_section(name, e, config) for name, e in evaluations.items()),
        _section("Training", _curves(history, config)),
        *(_details_section(name, e, images) for name, e in evaluations.items()),
        *([_section("Training images", images.batch)] if images.batch else []),
        _section("Data", _data(data, config)),
        _section("Trainable variables", f"<pre>{escape(mask_table)}</pre>"),
        _section("Use it", f"<pre>{escape(_usage(workdir, config, exported))}</pre>"),
        _section("Config", f"<pre>{escape(dump(config))}</pre>"),
    ]
    title = escape(f"{config.task.name}: {config.model.title}, {config.method.name}")
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(sections)}</html>\n"
    )
    path = workdir / "report.html"
    write_atomic(path, page)
    return path


@dataclass(frozen=True)
class PageImages:
    """Image sections of the page as HTML; empty for tasks on text.

    Attributes:
        batch: training images after augmentation.
        worst: split -> its most wrong images.
    """

    batch: str = ""
    worst: Mapping[str, str] = field(default_factory=dict)


def write_page(path: Path, title: str, plot: str, text: str) -> None:
    """Write a page with one plot and a text."""
    write_atomic(
        path,
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>{plot}<pre>{escape(text)}</pre></html>\n",
    )


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}"


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str | int | float]], texts: bool = False
) -> str:
    """Return an HTML table; numbers are right-aligned, and so are the heads of their columns.

    Args:
        header: names of the columns.
        rows: the cells.
        texts: whether the first column holds texts, whose words may be broken.
    """
    numeric = [
        any(isinstance(row[column], int | float) for row in rows) for column in range(len(header))
    ]
    attributes = [_ALIGN[is_number] for is_number in numeric]
    if texts:
        attributes[0] = ' class="w"'
    head = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(attributes, header, strict=True))
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{k}>{escape(format_cell(c))}</td>" for k, c in zip(attributes, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def format_cell(value: str | int | float) -> str:
    """Return a cell of a table as text: numbers of any unit with four decimals or five digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.4f}"
    return f"{value:,.5g}" if abs(value) < 1e6 else f"{value:.4e}"


def _metrics_section(name: str, evaluation: Evaluation, config: Config) -> str:
    """Return the table of metrics, intervals and baselines of a split."""
    metrics = evaluation.metrics
    rows = []
    # Keys with a slash are the bounds of other metrics.
    for key in (key for key in metrics if "/" not in key):
        low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
        interval = ""
        if low is not None and high is not None:
            interval = f"{format_cell(low)} to {format_cell(high)}"
        baseline_values = [baseline[key] for baseline in evaluation.baselines.values()]
        rows.append([key, metrics[key], interval, *baseline_values])
    interval_title = f"{config.evaluate.confidence:.0%} bootstrap interval"
    header = ["", "model", interval_title, *evaluation.baselines]
    return _section(f"Metrics: {name}", _table(header, rows))


def _curves(history: Sequence[Mapping[str, float]], config: Config) -> str:
    """Draw the losses, the validation metrics by direction, and the learning rate."""

    def validation(names: Iterable[str]) -> dict[str, list[tuple[float, float]]]:
        return {name: points for name in names if (points := series(f"validation/{name}"))}

    def series(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in history if name in entry]

    directions = config.task.metrics
    losses = {"train": series("train/loss"), "validation": series(f"validation/{LOG_LOSS}")}
    higher = validation(name for name, direction in directions.items() if direction == "max")
    lower = validation(
        name for name, direction in directions.items() if direction == "min" and name != LOG_LOSS
    )
    return (
        plots.curves("loss", {k: v for k, v in losses.items() if v}, "step")
        + plots.curves("validation: higher is better", higher, "step", marks=True)
        + plots.curves("validation: lower is better", lower, "step", marks=True)
        + plots.curves("learning rate", {"learning rate": series("learning_rate")}, "step")
    )


def _details_section(name: str, evaluation: Evaluation, images: "PageImages") -> str:
    """Return the sections of the task, and the most wrong rows, of a split."""
    body = "".join(map(_render, evaluation.details.sections))
    if evaluation.worst:
        body += "<h3>Most wrong</h3>"
        body += images.worst[name] if name in images.worst else _worst_rows(evaluation.worst)
    return _section(f"Details: {name}", body)


def _worst_rows(worst: Sequence[Mapping[str, Any]]) -> str:
    names = [name for name in worst[0] if name not in ("row", "about", "loss", "text")]
    # An image is shown by its path, if it has one.
    values = [[value for value in w["row"] if isinstance(value, str)] for w in worst]
    texts = [w.get("text") or " | ".join(v)[:400] for w, v in zip(worst, values, strict=True)]
    rows = [[text, *(w[name] for name in names)] for text, w in zip(texts, worst, strict=True)]
    return _table(["text", *names], rows, texts=True)


@singledispatch
def _render(section: Section) -> str:
    """Return a section of a task's results as HTML."""
    raise TypeError(f"`section` has no form in HTML. Received: {type(section).__name__}")


@_render.register
def _(section: Table) -> str:
    return f"<h3>{escape(section.title)}</h3>{_table(section.header, section.rows)}"


@_render.register
def _(section: Matrix) -> str:
    return plots.heat_map(section.title, section.counts, section.totals, section.names)


@_render.register
def _(section: Reliability) -> str:
    return plots.reliability(section.title, section.bins)


@_render.register
def _(section: Scatter) -> str:
    return plots.scatter(
        section.title, section.true, section.predicted, "true", "predicted", diagonal=True
    )


def _data(data: Datasets, config: Config) -> str:
    """Return the table of targets and a histogram of lengths or sizes."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    summaries = [split.summary(data.labels) if split else {} for split in splits.values()]
    rows = [[name, *(s.get(name, "") for s in summaries)] for name in summaries[0]]
    rows.append(["rows", *(len(split) if split else "" for split in splits.values())])
    table = _table(["", *splits], rows)
    if "image" in config.reads:
        edges = np.sqrt(data.train.prepared.sizes[data.train.rows].prod(axis=1))
        table += plots.histogram(
            "size of the training images", edges, "root of height times width, in pixels", None
        )
    if "text" in config.reads:
        table += plots.histogram(
            "tokens per row (train)",
            np.asarray(data.train.lengths),
            "tokens (dashed line: max_length)",
            float(config.data.max_length),
        )
    return table


def _usage(workdir: Path, config: Config, exported: Path | None) -> str:
    """Return example calls in Python, on the command line and for TF Serving."""
    columns = config.columns
    example = {name: f"a {name.replace('_', ' ')}" for name in columns}
    instance: dict[str, Any] = dict(example)
    if "image" in columns:
        example["image"], instance["image"] = "image.jpg", {"b64": "..."}
    row = json.dumps(list(example.values()) if len(columns) > 1 else example[columns[0]])
    file, item = {
        ("text",): ("texts.txt", "text"),
        ("image",): ("images.txt", "path of an image"),
    }.get(columns, ("rows.jsonl", f"object with {' and '.join(columns)}"))
    lines = [
        "# Python",
        "import tfft",
        f"run = tfft.load({str(workdir)!r})",
        f"run.predict([{row}])",
        "",
        f"# Command line: one {item} per line in, jsonl out",
        f"tfft predict --workdir={workdir} --input={file}",
    ]
    if exported is not None:
        lines += [
            "",
            "# TF Serving",
            f"docker run -p 8501:8501 -v {exported.parent.resolve()}:/models/tfft \\",
            "  -e MODEL_NAME=tfft tensorflow/serving",
            f"curl -d '{{\"instances\": [{json.dumps(instance)}]}}' \\",
            "  http://localhost:8501/v1/models/tfft:predict",
        ]
    return "\n".join(lines)
