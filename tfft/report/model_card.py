"""MODEL_CARD.md: what a model is, what it was made of and what it is worth, for its readers.

The sections are those of Mitchell et al. 2019, the front matter is Hugging Face's. Every figure is
the run's; what a run cannot know, its author's purpose above all, is asked for and not made up.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tfft.config import Config, Source
from tfft.evaluation.evaluate import Evaluation
from tfft.training.checkpoints import TrainingState
from tfft.utils import markdown
from tfft.utils.files import write_atomic

CLASSES = 30  # of so many there is a table at most
PIPELINES = {"text": "text-classification", "image": "image-classification"}
TOLD = {  # Hugging Face's names of figures
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "weighted_f1": "f1",
}


def write(
    workdir: Path,
    config: Config,
    facts: Mapping[str, Any],
    state: TrainingState,
    evaluations: Mapping[str, Evaluation],
    moved: str,
) -> Path:
    """Write `workdir/MODEL_CARD.md`.

    Args:
        facts: of run.json.
        moved: the line of the mask table that sums it up.
    """
    name = workdir.resolve().name
    matter = front(name, config, evaluations)
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---",
        f"# {markdown.text(name)}",
        _model(config, facts),
        _data(config, facts),
        _training(config, facts, state, moved),
        *(_figures(split, e, config) for split, e in evaluations.items()),
        *(_slices(split, e, facts["data"]["labels"]) for split, e in evaluations.items()),
        _limits(config, facts, evaluations),
    ]
    path = workdir / "MODEL_CARD.md"
    write_atomic(path, "\n\n".join(parts) + "\n")
    return path


def front(name: str, config: Config, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The front matter, as Hugging Face's hub reads it."""
    provider, _, place = config.model.backbone.partition(":")
    task = {"type": PIPELINES[config.task.modality]}
    found: dict[str, Any] = {"library_name": "keras", "pipeline_tag": task["type"]}
    if provider in ("hf", "timm") and place.count("/") == 1 and not Path(place).exists():
        found["base_model"] = place
    found["tags"] = ["tfft", "tensorflow", config.task.name, config.method.name]
    results = [
        {
            "task": dict(task),
            "dataset": {"name": _dataset(config, split), "type": "own", "split": split},
            "metrics": [
                {"type": TOLD.get(key, key), "name": key, "value": round(value, 4)}
                for key, value in evaluation.metrics.items()
                if "/" not in key
            ],
        }
        for split, evaluation in evaluations.items()
    ]
    return {**found, "model-index": [{"name": name, "results": results}]}


def _dataset(config: Config, split: str) -> str:
    source = getattr(config.data, split)
    if not isinstance(source, Source):  # a part of the training rows
        source = config.data.train
    place = source.path if isinstance(source.path, str) else source.path[0]
    return place if source.source == "tfds" else Path(place).name


def _model(config: Config, facts: Mapping[str, Any]) -> str:
    labels = facts["data"]["labels"]
    names = ", ".join(labels[:CLASSES]) + (", ..." if len(labels) > CLASSES else "")
    reads = "texts" if config.task.modality == "text" else "pictures"
    several = "any number of" if config.task.multi_label else "one of"
    return f"""## Model

- Backbone: {markdown.code(_backbone(config))} (fingerprint {facts["backbone"]})
- Reads {reads}, answers with {several} {len(labels)} classes: {markdown.text(names)}
- Method: {config.method.name}; made with {_versions(facts)}"""


def _backbone(config: Config) -> str:
    """As configured; of a folder its name: where it lies is its owner's matter."""
    provider, _, place = config.model.backbone.partition(":")
    return f"{provider}:{Path(place).name}" if Path(place).exists() else config.model.backbone


def _versions(facts: Mapping[str, Any]) -> str:
    names = ("tfft", "tensorflow", "keras")
    return ", ".join(f"{name} {facts['versions'][name]}" for name in names)


def _data(config: Config, facts: Mapping[str, Any]) -> str:
    rows = [[k, _dataset(config, k), f"{v:,}"] for k, v in facts["data"]["rows"].items()]
    return f"""## Data

{_table(["split", "from", "rows"], rows)}

Fingerprint of the prepared training rows: {facts["data"]["train"]}. Where they come from, who wrote
and labelled them, what licence they have: *to be filled in by whoever publishes the model.*"""


def _training(config: Config, facts: Mapping[str, Any], state: TrainingState, moved: str) -> str:
    optimizer, train = config.optimizer, config.train
    method = markdown.code(json.dumps(config.method.model_dump(mode="json")))
    return f"""## Training

- {state.step:,} steps of {train.batch_size} rows, seed {train.seed}, {config.distribute.precision}
- {optimizer.name}, peak rate {optimizer.learning_rate:g}, {optimizer.schedule} schedule
- Method: {method}
- What moved: {markdown.text(moved)}
- Hardware: {markdown.text(_hardware(facts["device"]))}; {_time(state.seconds)} of training
- Energy: {_energy(state, facts["device"])}"""


def _hardware(device: Mapping[str, Any]) -> str:
    gpus = device["gpus"]
    what = f"{len(gpus)} x {gpus[0]}" if gpus else f"CPU ({device['cpu']})"
    if device["replicas"] == 1:
        return what
    return f"{what}, {device['replicas']} replicas, {device['workers']} workers"


def _energy(state: TrainingState, device: Mapping[str, Any]) -> str:
    """By the machine's counters; what no counter saw is said."""
    if not state.metered:
        return "not measured (no counter of CPU or GPU could be read)"
    missing = state.seconds - state.metered
    return (
        f"{state.joules / 3600:.2f} Wh by {' and '.join(state.meters)}"
        + (f", without {_time(missing)} that were not measured" if missing >= 1 else "")
        + (", of the first worker" if device["workers"] > 1 else "")
        + "; other work of the machine counts too"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.1f} minutes"


def _figures(split: str, evaluation: Evaluation, config: Config) -> str:
    figures, rows = evaluation.metrics, []
    for key in (key for key in figures if "/" not in key):
        low, high = figures.get(f"{key}/low"), figures.get(f"{key}/high")
        between = f"{low:.4f} to {high:.4f}" if low is not None and high is not None else ""
        others = [f"{baseline[key]:.4f}" for baseline in evaluation.baselines.values()]
        rows.append([key.replace("_", " "), f"{figures[key]:.4f}", between, *others])
    head = ["", "model", f"{config.evaluate.confidence:.0%} interval", *evaluation.baselines]
    text = f"## Figures: {split}\n\n{_table(head, rows)}"
    if config.evaluate.bootstrap:
        text += f"\n\nIntervals: {config.evaluate.bootstrap:,} bootstrap resamples of the rows."
    return text


def _slices(split: str, evaluation: Evaluation, labels: Sequence[str]) -> str:
    by_class = evaluation.details.by_class
    support = by_class["support"]
    # Of a class without rows there is no recall.
    order = sorted(range(len(labels)), key=lambda at: (support[at] == 0, by_class["f1"][at]))
    rows = [
        [
            labels[at],
            *(
                _number(name, values[at]) if support[at] or name == "support" else ""
                for name, values in by_class.items()
            ),
        ]
        for at in order[:CLASSES]
    ]
    which = "weakest first" + (f", {CLASSES} of {len(labels)}" if len(labels) > CLASSES else "")
    head = ["class", *(name.replace("_", " ") for name in by_class)]
    return f"### By class, {which}: {split}\n\n{_table(head, rows)}"


def _number(name: str, value: float) -> str:
    return f"{value:,.0f}" if name == "support" else f"{value:.4f}"


def _limits(config: Config, facts: Mapping[str, Any], evaluations: Mapping[str, Evaluation]) -> str:
    lines = []
    for split, evaluation in evaluations.items():
        if (error := evaluation.metrics.get("calibration_error")) is not None:
            lines.append(
                f"Its confidence is off by {error:.3f} on average on {split} (expected calibration "
                "error)."
            )
    if config.task.modality == "text":
        lines.append(f"What is longer than {config.data.max_length} tokens is cut.")
    if "test" not in evaluations:
        lines.append("There was no test split: the figures are of rows that chose the weights.")
    if not config.task.multi_label:
        lines.append(
            "It answers with one of its classes whatever it is given, far from its data too."
        )
    lines.append("What it is meant for, and what not: *to be filled in by whoever publishes it.*")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown.text, cells))} |"

    return "\n".join([line(head), f"|{' --- |' * len(head)}", *map(line, rows)])
