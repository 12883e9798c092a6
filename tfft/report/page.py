"""report.html: one self-contained page with the config and the results of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from tfft.config import Config, dump
from tfft.data import Datasets
from tfft.evaluation.evaluate import Evaluation
from tfft.evaluation.metrics import Confusion
from tfft.report import plots
from tfft.utils.files import write_atomic

HEAT_MAP_CLASSES = 60  # classes in a confusion matrix; more are unreadable and make a huge page

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
.images{display:flex;flex-wrap:wrap;gap:8px}figure{margin:0}figcaption{font-size:12px}
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
        _section("Training", _curves(history)),
        *(_class_section(name, e, data.labels, images) for name, e in evaluations.items()),
        *([_section("Training images", images.batch)] if images.batch else []),
        _section("Data", _data(data, config)),
        _section("Trainable variables", f"<pre>{escape(mask_table)}</pre>"),
        _section("Use it", f"<pre>{escape(_usage(workdir, config, exported))}</pre>"),
        _section("Config", f"<pre>{escape(dump(config))}</pre>"),
    ]
    title = escape(f"{config.task.name}: {config.model.backbone}, {config.method.name}")
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


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 1) -> str:
    """Return an HTML table; columns from `numbers` on are right-aligned.

    With several columns before them, the first one holds texts, whose words may be broken.
    """
    attributes = [' class="n"' if column >= numbers else "" for column in range(len(header))]
    if numbers > 1:
        attributes[0] = ' class="w"'
    head = "".join(f"<th{k}>{escape(h)}</th>" for k, h in zip(attributes, header, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(c)}</td>" for k, c in zip(attributes, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _metrics_section(name: str, evaluation: Evaluation, config: Config) -> str:
    """Return the table of metrics, intervals and baselines of a split."""
    metrics = evaluation.metrics
    rows = []
    # Keys with a slash are the bounds of other metrics.
    for key in (key for key in metrics if "/" not in key):
        low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
        interval = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        baseline_values = [f"{baseline[key]:.4f}" for baseline in evaluation.baselines.values()]
        rows.append([key, f"{metrics[key]:.4f}", interval, *baseline_values])
    interval_title = f"{config.evaluate.confidence:.0%} bootstrap interval"
    header = ["", "model", interval_title, *evaluation.baselines]
    return _section(f"Metrics: {name}", _table(header, rows))


def _curves(history: Sequence[Mapping[str, float]]) -> str:
    def series(name: str) -> list[tuple[float, float]]:
        return [(entry["step"], entry[name]) for entry in history if name in entry]

    losses = {"train": series("train/loss"), "validation": series("validation/log_loss")}
    scores = {
        name: series(f"validation/{name}")
        for name in ("accuracy", "mean_average_precision", "micro_f1", "macro_f1", "weighted_f1")
    }
    return (
        plots.curves("loss", {k: v for k, v in losses.items() if v}, "step")
        + plots.curves("validation", {k: v for k, v in scores.items() if v}, "step", marks=True)
        + plots.curves("learning rate", {"learning rate": series("learning_rate")}, "step")
    )


def _class_section(
    name: str, evaluation: Evaluation, labels: Sequence[str], images: "PageImages"
) -> str:
    """Return the tables and plots by class, and the most wrong rows, of a split."""
    by_class = {k: v for k, v in evaluation.details.by_class.items() if k != "support"}
    support = evaluation.details.by_class["support"]
    rows = [
        [label, *(f"{values[index]:.4f}" for values in by_class.values()), f"{support[index]:.0f}"]
        for index, label in enumerate(labels)
    ]
    body = _table(["class", *(k.replace("_", " ") for k in by_class), "rows"], rows)
    matrix = evaluation.details.confusion
    if matrix is not None:
        body += _heat_map(matrix, labels)
    body += plots.reliability("reliability (bars: share of rows)", evaluation.details.reliability)
    if evaluation.worst:
        body += "<h3>Most wrong</h3>"
        if name in images.worst:
            body += images.worst[name]
        else:
            worst_rows = [
                [" | ".join(w["row"])[:400], w["label"], w["predicted"], f"{w['confidence']:.3f}"]
                for w in evaluation.worst
            ]
            body += _table(["text", "label", "predicted", "confidence"], worst_rows, numbers=3)
    return _section(f"By class: {name}", body)


def _heat_map(confusion: Confusion, labels: Sequence[str]) -> str:
    """Draw the confusion matrix; with many classes, of those with the most errors."""
    classes, title = np.arange(len(labels)), "confusion: true class down, predicted across"
    if len(labels) > HEAT_MAP_CLASSES:
        # False negatives and false positives of each class.
        errors = confusion.by_true() + confusion.by_predicted() - 2 * confusion.hits()
        classes = np.sort(np.argsort(-errors, kind="stable")[:HEAT_MAP_CLASSES])
        title += f"; the {len(classes)} of {len(labels):,} classes with the most errors"
    names = [labels[index] for index in classes]
    return plots.heat_map(title, confusion.matrix(classes), confusion.by_true()[classes], names)


def _data(data: Datasets, config: Config) -> str:
    """Return the table of class counts and a histogram of lengths or sizes."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    rows = []
    counts = [s.counts(len(data.labels)) if s else None for s in splits.values()]
    for index, label in enumerate(data.labels):
        rows.append([label, *("" if c is None else str(c[index]) for c in counts)])
    rows.append(["all", *(str(len(s)) if s else "" for s in splits.values())])
    table = _table(["class", *splits], rows)
    if config.task.modality == "image":
        edges = np.sqrt(data.train.prepared.sizes[data.train.rows].prod(axis=1))
        return table + plots.histogram(
            "size of the training images", edges, "root of height times width, in pixels", None
        )
    return table + plots.histogram(
        "tokens per row (train)",
        np.asarray(data.train.lengths),
        "tokens (dashed line: max_length)",
        float(config.data.max_length),
    )


def _usage(workdir: Path, config: Config, exported: Path | None) -> str:
    """Return example calls in Python, on the command line and for TF Serving."""
    is_pair, is_image = config.data.text_pair is not None, config.task.modality == "image"
    row = '["first text", "second text"]' if is_pair else '"a text"'
    row = '"image.jpg"' if is_image else row
    file, item = ("images.txt", "path of an image") if is_image else ("texts.txt", "text")
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
        instance = '{"text": "first", "text_pair": "second"}' if is_pair else '{"text": "a text"}'
        instance = '{"image": {"b64": "..."}}' if is_image else instance
        lines += [
            "",
            "# TF Serving",
            f"docker run -p 8501:8501 -v {exported.parent.resolve()}:/models/tfft \\",
            "  -e MODEL_NAME=tfft tensorflow/serving",
            f"curl -d '{{\"instances\": [{instance}]}}' \\",
            "  http://localhost:8501/v1/models/tfft:predict",
        ]
    return "\n".join(lines)
