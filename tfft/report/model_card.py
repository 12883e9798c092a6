"""MODEL_CARD.md: what a model is, how it was trained and how well it performs, for its users.

The sections follow Mitchell et al. 2019, the front matter is Hugging Face's. All facts come from
the run. What a run cannot know, such as the intended use, is left for the author to fill in.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tfft.config import Config, Source
from tfft.evaluation.evaluate import Evaluation
from tfft.report.page import format_cell
from tfft.spec import Table
from tfft.tasks import TASKS
from tfft.training.checkpoints import TrainingState
from tfft.utils import markdown
from tfft.utils.files import write_atomic

MAX_CLASSES = 30  # classes in a list at most
MAX_ROWS = 30  # rows of a table at most
HUGGINGFACE_NAMES = {  # tfft's name of a metric -> Hugging Face's
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "weighted_f1": "f1",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "r2": "r_squared",
}


def write(
    workdir: Path,
    config: Config,
    facts: Mapping[str, Any],
    state: TrainingState,
    evaluations: Mapping[str, Evaluation],
    mask_totals: str,
) -> Path:
    """Write `workdir/MODEL_CARD.md` and return its path.

    Args:
        workdir: run directory.
        config: config of the run.
        facts: content of run.json.
        state: state at the end of the training.
        evaluations: evaluation of each split by name.
        mask_totals: line of the mask table with the totals.
    """
    name = workdir.resolve().name
    header = front_matter(name, config, evaluations)
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---",
        f"# {markdown.text(name)}",
        _model(config, facts),
        _data(config, facts),
        _training(config, facts, state, mask_totals),
        *(_metrics_table(split, e, config) for split, e in evaluations.items()),
        *(_tables(split, e) for split, e in evaluations.items()),
        _limitations(config, facts, evaluations),
    ]
    path = workdir / "MODEL_CARD.md"
    write_atomic(path, "\n\n".join(parts) + "\n")
    return path


def front_matter(
    name: str, config: Config, evaluations: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """Return the front matter in the form that the Hugging Face hub reads."""
    task = {"type": TASKS[config.task.name].pipeline}
    matter: dict[str, Any] = {"library_name": "keras", "pipeline_tag": task["type"]}
    models = [tower.backbone.partition(":") for tower in config.model.towers.values()]
    # Repositories of the hub, not folders of this machine.
    repositories = [
        location
        for provider, _, location in models
        if provider in ("hf", "timm") and location.count("/") == 1 and not Path(location).exists()
    ]
    if repositories:
        matter["base_model"] = repositories if len(repositories) > 1 else repositories[0]
    matter["tags"] = ["tfft", "tensorflow", config.task.name, config.method.name]
    results = [
        {
            "task": dict(task),
            "dataset": {"name": _dataset(config, split), "type": "own", "split": split},
            "metrics": [
                {"type": HUGGINGFACE_NAMES.get(key, key), "name": key, "value": round(value, 4)}
                for key, value in evaluation.metrics.items()
                if "/" not in key
            ],
        }
        for split, evaluation in evaluations.items()
    ]
    return {**matter, "model-index": [{"name": name, "results": results}]}


def _dataset(config: Config, split: str) -> str:
    source = getattr(config.data, split)
    if not isinstance(source, Source):  # a fraction of the training rows
        source = config.data.train
    location = source.path if isinstance(source.path, str) else source.path[0]
    return location if source.source == "tfds" else Path(location).name


def _model(config: Config, facts: Mapping[str, Any]) -> str:
    labels = facts["data"]["labels"]
    names = ", ".join(labels[:MAX_CLASSES]) + (", ..." if len(labels) > MAX_CLASSES else "")
    kinds = " and ".join(f"{kind}s" for kind in config.reads)
    answer = TASKS[config.task.name].answers_with.format(count=len(labels))
    return f"""## Model

- Backbone: {markdown.code(_backbone(config))} (fingerprint {facts["backbone"]})
- Reads {kinds}, answers with {answer}: {markdown.text(names)}
- Method: {config.method.name}; trained with {_versions(facts)}"""


def _backbone(config: Config) -> str:
    """Return the configured backbones; of a folder only the name, as its path is private."""
    names = []
    for tower in config.model.towers.values():
        provider, _, location = tower.backbone.partition(":")
        is_folder = Path(location).exists()
        names.append(f"{provider}:{Path(location).name}" if is_folder else tower.backbone)
    return " + ".join(names)


def _versions(facts: Mapping[str, Any]) -> str:
    names = ("tfft", "tensorflow", "keras")
    return ", ".join(f"{name} {facts['versions'][name]}" for name in names)


def _data(config: Config, facts: Mapping[str, Any]) -> str:
    rows = [[k, _dataset(config, k), f"{v:,}"] for k, v in facts["data"]["rows"].items()]
    return f"""## Data

{_table(["split", "from", "rows"], rows)}

Fingerprint of the prepared training rows: {facts["data"]["train"]}. Their origin, authors,
annotators and licence: *to be filled in by whoever publishes the model.*"""


def _training(
    config: Config, facts: Mapping[str, Any], state: TrainingState, mask_totals: str
) -> str:
    optimizer, train = config.optimizer, config.train
    method = markdown.code(json.dumps(config.method.model_dump(mode="json")))
    return f"""## Training

- {state.step:,} steps of {train.batch_size} rows, seed {train.seed}, {config.distribute.precision}
- {optimizer.name}, peak rate {optimizer.learning_rate:g}, {optimizer.schedule} schedule
- Method: {method}
- Trainable: {markdown.text(mask_totals)}
- Hardware: {markdown.text(_hardware(facts["device"]))}; {_time(state.seconds)} of training
- Energy: {_energy(state, facts["device"])}"""


def _hardware(device: Mapping[str, Any]) -> str:
    gpus = device["gpus"]
    hardware = f"{len(gpus)} x {gpus[0]}" if gpus else f"CPU ({device['cpu']})"
    if device["replicas"] == 1:
        return hardware
    return f"{hardware}, {device['replicas']} replicas, {device['workers']} workers"


def _energy(state: TrainingState, device: Mapping[str, Any]) -> str:
    """Describe the measured energy, and the time that no counter covered."""
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


def _metrics_table(split: str, evaluation: Evaluation, config: Config) -> str:
    """Return a table with metrics, intervals and baselines of a split."""
    metrics, rows = evaluation.metrics, []
    for key in (key for key in metrics if "/" not in key):
        low, high = metrics.get(f"{key}/low"), metrics.get(f"{key}/high")
        interval = ""
        if low is not None and high is not None:
            interval = f"{format_cell(low)} to {format_cell(high)}"
        values = [metrics[key], *(baseline[key] for baseline in evaluation.baselines.values())]
        value, *baseline_values = map(format_cell, values)
        rows.append([key.replace("_", " "), value, interval, *baseline_values])
    header = ["", "model", f"{config.evaluate.confidence:.0%} interval", *evaluation.baselines]
    text = f"## Metrics: {split}\n\n{_table(header, rows)}"
    if config.evaluate.bootstrap:
        text += f"\n\nIntervals: {config.evaluate.bootstrap:,} bootstrap resamples of the rows."
    return text


def _tables(split: str, evaluation: Evaluation) -> str:
    """Return the tables of the task, the most noteworthy rows first."""
    parts = []
    for section in evaluation.details.sections:
        if isinstance(section, Table):
            rows = [list(map(format_cell, section.rows[i])) for i in section.order[:MAX_ROWS]]
            total = len(section.rows)
            subtitle = "weakest first" + (f", {MAX_ROWS} of {total}" if total > MAX_ROWS else "")
            table = _table(section.header, rows)
            parts.append(f"### {section.title}, {subtitle}: {split}\n\n{table}")
    return "\n\n".join(parts)


def _limitations(
    config: Config, facts: Mapping[str, Any], evaluations: Mapping[str, Evaluation]
) -> str:
    lines = []
    for split, evaluation in evaluations.items():
        if (error := evaluation.metrics.get("calibration_error")) is not None:
            lines.append(
                f"Its confidence is off by {error:.3f} on average on {split} (expected calibration "
                "error)."
            )
    if "text" in config.reads and not TASKS[config.task.name].of_tokens:
        lines.append(f"Texts longer than {config.data.max_length} tokens are truncated.")
    if "test" not in evaluations:
        lines.append(
            "There was no test split: the metrics are of the rows that selected the weights."
        )
    lines += TASKS[config.task.name].limits
    lines.append(
        "Intended use and out-of-scope use: *to be filled in by whoever publishes the model.*"
    )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markdown.text, cells))} |"

    return "\n".join([line(header), f"|{' --- |' * len(header)}", *map(line, rows)])
