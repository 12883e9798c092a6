"""A finished run: what `tfft.train` and `tfft.load` return."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from tfft import backbones, export, preprocess
from tfft import model as model_room
from tfft.config import Config, EvaluateConfig, ModelConfig, Source, load, section
from tfft.data import Dataset, Datasets, batches, dataset_builder, model_inputs
from tfft.distribute import strategies
from tfft.evaluation import evaluate
from tfft.evaluation.evaluate import Evaluation
from tfft.export import Servable, StoredWeight
from tfft.methods import METHODS
from tfft.model import Model, weight_file
from tfft.preprocess import Inputs
from tfft.spec import Backbone, Task
from tfft.tasks import TASKS
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.files import remove_abandoned, write_atomic
from tfft.utils.reading import library_errors, read_json

DESCRIPTION = "model.json"  # in best/: what rebuilds the model
WEIGHTS = "weights.safetensors"


class Run:
    """A trained model with all that belongs to it.

    Attributes:
        workdir: the run directory.
        config: as the run was configured.
        model: a plain `keras.Model`: the inputs of `spec.Backbone.model` -> logits [B, C].
        inputs: what turns raw rows into them.
        labels: class names in the order of the outputs.
        trained: paths of the variables that are not as the backbone's files have them; those
            alone are saved. None: all.
        targets: of the training rows, where they are more than the labels (distillation).
        depends_on: what the training depends on beside the config (`identity.of`).
        thresholds: of each class, where a row may have several; None until they are tuned (0.5),
            or where a row has one class.
    """

    targets: np.ndarray | None = None
    depends_on: Mapping[str, str] = MappingProxyType({})
    thresholds: np.ndarray | None = None

    def __init__(
        self,
        workdir: Path,
        config: Config,
        model: Model,
        backbone: Backbone,
        inputs: Inputs,
        labels: Sequence[str],
        trained: Collection[str] | None = None,
    ):
        self.workdir, self.config = workdir, config
        self.trained = None if trained is None else frozenset(trained)
        self.model, self.backbone, self.inputs = model, backbone, inputs
        self.labels = list(labels)
        self.task: Task = TASKS[config.task.name]

    @property
    def metrics(self) -> dict[str, float]:
        """The last figures of the run, such as `test/accuracy`; empty before there are any."""
        path = self.workdir / "metrics.json"
        return read_json(path) if path.is_file() else {}

    def logits(self, rows: Iterable[Any], batch_size: int = 64) -> np.ndarray:
        """Logits [N, C] of raw rows: each a text or a pair of texts; or a picture, as the path of
        its file or the file's bytes."""
        inputs = self.inputs
        rows = [inputs.row(row) for row in rows]
        out = np.zeros((len(rows), len(self.labels)), np.float32)
        order = sorted(range(len(rows)), key=lambda i: inputs.length_hint(rows[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = inputs.batch(*zip(*(rows[i] for i in chosen), strict=True))
            out[chosen] = self.model.predict_on_batch(batch)
        return out

    def predict(self, rows: Iterable[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """The decoded answer to each raw row (as for `logits`): its label, or list of labels, and
        the probability of every class."""
        probabilities = self.task.probabilities(self.logits(rows, batch_size))
        limits = self.thresholds
        if self.task.multi_label and limits is None:
            limits = np.full(len(self.labels), 0.5)
        return answers(probabilities, self.labels, limits)

    def evaluate(self, split: str = "test", **changes: Any) -> Evaluation:
        """The figures of a split of the config; `changes` are fields of the section `evaluate`.

        Raises:
            UserError: the config has no such split.
        """
        config = EvaluateConfig(**{**self.config.evaluate.model_dump(), **changes})
        datasets = self.datasets
        chosen = getattr(datasets, split, None)
        if chosen is None:
            raise UserError(f"data.{split}: the config of {self.workdir} has no such split")
        return self.evaluate_on(chosen, config, datasets.train)

    def evaluate_source(self, source: Source, config: EvaluateConfig) -> Evaluation:
        """The figures of a file that is not part of the config."""
        data = self.config.data.model_copy(update={"test": source})
        want = dataset_builder.DatasetSettings.of(self.config, self.labels)
        chosen = dataset_builder.of_source(data, "test", source, self.inputs, want)
        return self.evaluate_on(chosen, config, None)

    def evaluate_on(
        self, split: Dataset, config: EvaluateConfig, train: Dataset | None
    ) -> Evaluation:
        """The figures of a split."""
        plain = model_inputs.plain(split, self.inputs)
        logits = evaluate.predict(self.model, split, plain, config.batch_size)
        if config.test_time_augmentation == "mirrored":
            mirrored = model_inputs.Mirrored(plain)
            other = evaluate.predict(self.model, split, mirrored, config.batch_size)
            mean = (self.task.probabilities(logits) + self.task.probabilities(other)) / 2
            logits = self.task.to_logits(mean)
        seed, limits = self.config.train.seed, self.thresholds
        return evaluate.evaluate(self.task, logits, split, self.labels, config, train, seed, limits)

    def fit_thresholds(self, split: Dataset | None) -> None:
        """Choose the thresholds of a task that has them by rows that were not trained on, and keep
        them in `best/`."""
        if self.task.fit_thresholds is None:
            return
        if split is None:
            console.log(
                "thresholds: 0.5 for every tag, as there is no validation split to tune them on"
            )
            return
        size = self.config.evaluate.batch_size
        logits = evaluate.predict(self.model, split, model_inputs.plain(split, self.inputs), size)
        self.thresholds = self.task.fit_thresholds(logits, split.labels)
        if strategies.workers().first:
            self._describe()

    def export(
        self, folder: Path | None = None, weight_dtype: str | None = None, again: bool = True
    ) -> Path:
        """Publish a verified SavedModel.

        Args:
            folder: the next number under it; default: WORKDIR/export.
            weight_dtype: of the stored weights: `float32`, `float16`, `bfloat16` or `int8`; default: what
                the config says in `export.weight_dtype`.
            again: publish another version if the same weights were published there before.
        """
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            plain = load_run(self.workdir)  # a SavedModel holds one copy of each variable
            plain.datasets = self.datasets
            return plain.export(folder, weight_dtype, again)
        sample, config = self._sample, self.config.export
        kind, folder = weight_dtype or config.weight_dtype, folder or self.workdir / "export"
        name, source = export.serving_config.model_name(self.workdir.name), self._digest(kind)
        if not again and (path := export.exported_from(folder, source)) is not None:
            remove_abandoned(folder, "export")  # as after its end, where it was interrupted
            export.serving_config.write(folder, name, self._servable)
            return path
        with self._merged(sample[: config.verify_rows]), self._stored(kind) as stored:
            path = export.publish(
                self._servable,
                sample,
                folder,
                config,
                self.config.distribute.precision,
                stored,
                self._trained_on,
                source,
            )
        export.serving_config.write(folder, name, self._servable)
        return path

    def _digest(self, kind: str) -> str:
        """Return a digest of `best/` and of how its weights are stored in an export."""
        digest = hashlib.sha256(kind.encode())
        for name in (DESCRIPTION, WEIGHTS):
            with open(self.workdir / "best" / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def export_as(self, form: str, folder: Path | None = None) -> Path:
        """Write the model as `huggingface`, `litert`, `onnx` or `keras`, verified on rows of the
        training data; default: into WORKDIR/<form>.

        Raises:
            UserError: it cannot be written in this form, or does not answer as the live model.
        """
        from tfft.export import formats

        rows = self._sample[: self.config.export.verify_rows]
        precision = self.config.distribute.precision
        with self._merged(rows):
            return formats.write(
                form, self._servable, rows, folder or self.workdir / form, precision
            )

    def export_huggingface(self, folder: Path | None = None) -> Path:
        """Write a checkpoint for transformers, tokenizer or image processor included: `export_as`
        with `huggingface`; its folder.

        Raises:
            UserError: the backbone or the head has no form in transformers.
        """
        return self.export_as("huggingface", folder).parent

    @contextmanager
    def _stored(self, kind: str) -> Iterator[list[StoredWeight]]:
        """Within: the weights are as they are stored; what that costs is said."""
        split = self.datasets.validation or self.datasets.test or self.datasets.train
        plain = EvaluateConfig(bootstrap=0, baselines=False, worst=0)
        before = self.evaluate_on(split, plain, None).metrics if kind != "float32" else {}
        with export.rounded(self.model, kind) as stored:
            if stored:
                after = self.evaluate_on(split, plain, None).metrics
                size = sum(4 * int(np.prod(one.variable.shape)) for one in stored) / 1e6
                now = sum(one.size for one in stored) / 1e6
                lost = ", ".join(f"{n} {before[n]:.4f} -> {after[n]:.4f}" for n in before)
                console.log(
                    f"export: {kind} weights take {now:.1f} MB in place of {size:.1f}; over "
                    f"{len(split):,} rows {lost}"
                )
            yield stored

    @property
    def _servable(self) -> Servable:
        return Servable(
            self.model,
            self.inputs,
            self.task,
            self.labels,
            self.thresholds,
            self.backbone,
            self.config.task,
        )

    @cached_property
    def _sample(self) -> list[tuple[Any, ...]]:
        """Training rows that exports are verified on."""
        train = self.datasets.train
        return [train.raw(at) for at in range(min(len(train), export.PARITY_ROWS))]

    def _trained_on(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """What the model was given for some training rows, unchanged."""
        train = self.datasets.train
        batch = batches.Batch(positions, int(train.lengths[positions].max()))
        return model_inputs.plain(train, self.inputs).arrays(batch)

    @contextmanager
    def _merged(self, sample: Sequence[tuple[str, ...]]) -> Iterator[None]:
        """Within: additions are merged into the kernels, where that is exact; checked on rows.

        Raises:
            UserError: the merged model's probabilities are not the model's.
        """
        before = self.task.probabilities(self.logits(sample))
        with self.model.merged() as layers:
            if layers:
                after = self.task.probabilities(self.logits(sample))
                difference = np.abs(after - before).max()
                bound = export.BOUNDS[self.config.distribute.precision]
                if not difference <= bound:
                    raise UserError(
                        f"export: merging the {self.config.method.name} additions changes a "
                        f"probability by {difference:.1e}; the bound is {bound:.0e}. Not published"
                    )
                console.log(f"export: {len(layers)} layers merged (difference {difference:.1e})")
            yield

    @cached_property
    def datasets(self) -> Datasets:
        """The splits of the config, from the cache where they are prepared."""
        want = dataset_builder.DatasetSettings.of(self.config, self.labels)
        return dataset_builder.build(self.config.data, self.inputs, want)

    def save(self) -> None:
        """Write `best/`: what was trained, labels, tokenizer, architecture and the backbone's
        fingerprint. Where all was trained nothing else of the backbone is needed to load it."""
        folder = self.workdir / "best"
        folder.mkdir(parents=True, exist_ok=True)
        self._describe()
        self.inputs.save(folder)
        self.save_weights()

    def _describe(self) -> None:
        limits = self.thresholds
        description = {
            "backbone": dict(self.backbone.description),
            "labels": self.labels,
            "fingerprint": self.backbone.fingerprint,
            "trained": None if self.trained is None else sorted(self.trained),
            "thresholds": None if limits is None else limits.tolist(),
        }
        path = self.workdir / "best" / DESCRIPTION
        write_atomic(path, json.dumps(description, ensure_ascii=False, indent=1))

    def save_weights(self) -> None:
        """Write the weights of `best/` anew."""
        path = self.workdir / "best" / WEIGHTS
        weight_file.save(self.model, path, {"format": "tfft"}, self.trained)

    def load_weights(self) -> None:
        """Take the weights of `best/`."""
        weight_file.load(self.model, self.workdir / "best" / WEIGHTS, self.trained)


def load_run(workdir: str | Path, backbone: str | None = None) -> Run:
    """The run in a directory, with its best weights.

    Args:
        backbone: where the backbone's files are now, as in `model.backbone`; default: where they
            were. They are needed if not all of it was trained.

    Raises:
        UserError: the directory holds no run, or one without weights, or the backbone is not the
            one that the run was trained on.
    """
    workdir = Path(workdir)
    config, description = described(workdir)
    if backbone is not None:
        model = config.model.model_dump() | {"backbone": backbone}
        model = section(ModelConfig, model, str(workdir))
        config = config.model_copy(update={"model": model})
    if description["trained"] is None:
        with library_errors(f"{workdir}: the backbone in best/{DESCRIPTION} cannot be built"):
            loaded = backbones.rebuild(description["backbone"], config.distribute.precision)
        loaded = replace(loaded, fingerprint=description["fingerprint"])
    else:
        try:
            loaded = backbones.load(config.model, config.distribute.precision)
        except UserError as error:
            raise UserError(
                f"{error}. {workdir} saved only what it trained and needs its backbone's files: "
                "--backbone=hf:FOLDER (backbone= in Python) says where they are now"
            ) from None
        same_backbone(loaded.fingerprint, description["fingerprint"], workdir)
    return on_backbone(workdir, config, description, loaded)


def on_backbone(
    workdir: Path, config: Config, description: dict[str, Any], backbone: Backbone
) -> Run:
    """The run of a directory on a backbone that is already loaded."""
    task, labels = TASKS[config.task.name], description["labels"]
    model = model_room.assemble(backbone, task, config.task, labels)
    stages = model_room.stages(backbone, model)
    METHODS[config.method.name].apply(model, stages, config.method)  # what it adds, not yet trained
    inputs = preprocess.restore(workdir / "best")
    run = Run(workdir, config, model, backbone, inputs, labels, description["trained"])
    run.thresholds = description["thresholds"]
    run.load_weights()
    return run


def same_backbone(found: str, expected: str, workdir: Path) -> None:
    """What a run trained fits the weights that it was trained on, and no others.

    Raises:
        UserError: the fingerprints differ.
    """
    if found != expected:
        raise UserError(
            f"{workdir}: was trained on another backbone (fingerprint {expected}, this one has "
            f"{found}); load it with the files it was trained on"
        )


def described(workdir: Path) -> tuple[Config, dict[str, Any]]:
    """The config of a run and what `best/` says of its model.

    Raises:
        UserError: the directory holds no run, or one without weights.
    """
    if not (workdir / "config.yaml").is_file():
        raise UserError(f"{workdir}: holds no run (no config.yaml)")
    folder = workdir / "best"
    if not (folder / DESCRIPTION).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{workdir}: the run has no weights yet (no best/{WEIGHTS})")
    kinds = {"backbone": dict, "fingerprint": str, "trained": list[str] | None}
    description = export.read_description(folder / DESCRIPTION, **kinds)
    return load(workdir / "config.yaml"), {"trained": None, **description}


def answers(
    probabilities: np.ndarray, labels: Sequence[str], thresholds: np.ndarray | None
) -> list[dict[str, Any]]:
    """Decoded predictions: `{label, probabilities: {label: p}}` for each row; with thresholds
    `labels`, a list, in place of `label`."""

    def decoded(row: np.ndarray) -> dict[str, Any]:
        if thresholds is None:
            return {"label": labels[int(row.argmax())]}
        return {"labels": [labels[i] for i in np.flatnonzero(row >= thresholds)]}

    return [
        decoded(row) | {"probabilities": {n: float(p) for n, p in zip(labels, row, strict=True)}}
        for row in probabilities
    ]
