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
import tensorflow as tf

from tfft import backbones, export, preprocess
from tfft.config import Config, EvaluateConfig, ModelConfig, Source, load_saved, section
from tfft.data import Dataset, Datasets, batches, dataset_builder, model_inputs
from tfft.distribute import strategies
from tfft.evaluation import evaluate
from tfft.evaluation.evaluate import Evaluation
from tfft.export import Servable, StoredWeight
from tfft.methods import METHODS
from tfft.model import Model, assemble, stages, weight_file
from tfft.preprocess import Inputs
from tfft.spec import Backbone, Fitted, Task
from tfft.tasks import TASKS, answers, decode_rows, predict_logits, prepare_rows
from tfft.utils import console
from tfft.utils.errors import UserError
from tfft.utils.files import remove_abandoned, write_atomic
from tfft.utils.reading import library_errors, read_json

DESCRIPTION = "model.json"  # in best/: the data from which `load_run` rebuilds the model
WEIGHTS = "weights.safetensors"


class Run:
    """A trained model with its config, preprocessing, labels and run directory.

    Attributes:
        workdir: the run directory.
        config: the resolved config of the run.
        model: a plain `keras.Model`: the inputs of `spec.Backbone.model` -> logits [B, C].
        backbone: the backbone within the model.
        inputs: the preprocessing of raw rows into inputs of the model.
        labels: names of the outputs: classes, or columns of predicted numbers.
        task: the task of the config.
        trained: paths of the variables that differ from the backbone's files; only these are
            saved. None: all.
        targets: training targets that hold more than the labels (distillation); None: the labels.
        depends_on: digests of the data and the backbone (`fingerprint.of`).
        fitted: values that were fitted on the data, by name, such as `thresholds` [C] of a
            multi-label task.
    """

    targets: np.ndarray | None = None
    depends_on: Mapping[str, str] = MappingProxyType({})
    fitted: Fitted = MappingProxyType({})

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
        """Final metrics of the run, such as `test/accuracy`; empty if it is not finished."""
        path = self.workdir / "metrics.json"
        return read_json(path) if path.is_file() else {}

    def logits(self, rows: Iterable[Any], batch_size: int = 64) -> np.ndarray:
        """Compute the logits of raw rows.

        Args:
            rows: each a text or a pair of texts, or an image: the path of its file or the file's
                bytes; with both, a tuple of the texts and the image, or a mapping by column.
            batch_size: rows at once.

        Returns:
            Logits, float32 [N, C], in the order of the rows; of a task of tokens [E, T, C], those
            of the windows of each row in order, with zeros beyond the tokens of a batch.
        """
        rows = [self.inputs.row(row) for row in rows]
        by_row: list[list[np.ndarray]] = [[] for _ in rows]
        for indices, logits, tokens in self._batch_logits(rows, batch_size):
            for window, row in zip(logits, tokens.get("row", range(len(indices))), strict=True):
                by_row[indices[row]].append(window)
        examples = [window for windows in by_row for window in windows]
        width = max((len(window) for window in examples), default=len(self.labels))
        rest = examples[0].shape[1:] if examples else ()
        result = np.zeros((len(examples), width, *rest), np.float32)
        for index, window in enumerate(examples):
            result[index, : len(window)] = window
        return result

    def _batch_logits(
        self, rows: Sequence[tuple[Any, ...]], batch_size: int
    ) -> Iterator[tuple[list[int], np.ndarray, dict[str, np.ndarray]]]:
        """Yield indices of rows, their logits and, for a task of tokens, where their tokens are.

        Of a task of tokens they are the logits of the windows of these rows.
        """
        inputs = self.inputs
        # Rows of similar length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lambda i: inputs.length_hint(rows[i]))
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            columns = zip(*(rows[i] for i in indices), strict=True)
            batch, tokens = prepare_rows(self.task, inputs, columns)
            yield indices, predict_logits(self.model, batch, batch_size), tokens

    def predict(self, rows: Iterable[Any], batch_size: int = 64) -> list[dict[str, Any]]:
        """Predict the answers to raw rows.

        Args:
            rows: raw rows, as for `logits`.
            batch_size: rows at once.

        Returns:
            The answer to each row as the task gives it, such as `{"label": ...,
            "probabilities": {label: p}}`.
        """
        rows = [self.inputs.row(row) for row in rows]
        result: list[Any] = [None] * len(rows)
        for indices, logits, tokens in self._batch_logits(rows, batch_size):
            outputs = decode_rows(self.task, tf.constant(logits), tokens, self.labels, self.fitted)
            in_batch = {name: value.numpy() for name, value in outputs.items()}
            for index, answer in zip(
                indices, answers(self.task, in_batch, self.labels), strict=True
            ):
                result[index] = answer
        return result

    def evaluate(self, split: str = "test", **changes: Any) -> Evaluation:
        """Evaluate the model on a split of the config.

        Args:
            split: `train`, `validation` or `test`.
            changes: fields of the section `evaluate` that replace the config's.

        Raises:
            UserError: the config has no such split.
        """
        # Through the constructor, which validates the changes; `model_copy` does not.
        config = EvaluateConfig(**{**self.config.evaluate.model_dump(), **changes})
        datasets = self.datasets
        dataset = getattr(datasets, split, None)
        if dataset is None:
            raise UserError(f"data.{split}: the config of {self.workdir} has no such split")
        return self.evaluate_on(dataset, config, datasets.train)

    def evaluate_source(self, source: Source, config: EvaluateConfig) -> Evaluation:
        """Evaluate the model on a source that is not part of the config."""
        data = self.config.data.model_copy(update={"test": source})
        settings = dataset_builder.DatasetSettings.of(self.config, self.labels)
        dataset = dataset_builder.of_source(data, "test", source, self.inputs, settings)
        return self.evaluate_on(dataset, config, None)

    def evaluate_on(
        self, split: Dataset, config: EvaluateConfig, train: Dataset | None
    ) -> Evaluation:
        """Evaluate the model on a prepared split.

        Args:
            split: the rows.
            config: the section `evaluate`.
            train: training rows for the baselines; None: no baselines.
        """
        rows = model_inputs.unaugmented_rows(split, self.inputs)
        records = self._records(split, rows, config.batch_size)
        if config.test_time_augmentation == "mirrored":
            mirrored = self._records(split, model_inputs.MirroredRows(rows), config.batch_size)
            records = self.task.average([records, mirrored])
        seed, fitted = self.config.train.seed, self.fitted
        return evaluate.evaluate(
            self.task, records, split, self.labels, config, train, seed, fitted
        )

    def _records(self, split: Dataset, rows: batches.Rows, batch_size: int) -> Any:
        return evaluate.predict(self.task, self.model, split, rows, batch_size, self.fitted)

    def fit(self, split: Dataset | None) -> None:
        """Fit what the task fits after the training, such as thresholds; save it in `best/`.

        Args:
            split: rows that were not trained on; None: the task's defaults are used.
        """
        if not self.task.is_fitted(self.fitted):
            return
        if split is None:
            console.log(self.task.unfitted)
            return
        batch_size = self.config.evaluate.batch_size
        rows = model_inputs.unaugmented_rows(split, self.inputs)
        records = self._records(split, rows, batch_size)
        self.fitted = self.task.fit(records, split.targets, self.fitted)
        if strategies.workers().is_chief:
            self._write_description()

    def export(
        self,
        folder: str | Path | None = None,
        weight_dtype: str | None = None,
        republish: bool = True,
    ) -> Path:
        """Publish a verified SavedModel as a new version.

        Args:
            folder: folder of the versions, numbered from 1; default: WORKDIR/export.
            weight_dtype: dtype of the stored weights: `float32`, `float16`, `bfloat16` or `int8`;
                default: `export.weight_dtype` of the config.
            republish: whether to publish another version if these weights were published there
                before.

        Returns:
            The folder of the version.
        """
        if self.model.distribute_strategy.num_replicas_in_sync > 1:
            # A SavedModel holds one copy of each variable, so export a run without replicas.
            single = load_run(self.workdir)
            single.datasets = self.datasets
            return single.export(folder, weight_dtype, republish)
        sample, config = self._sample, self.config.export
        dtype = weight_dtype or config.weight_dtype
        folder = Path(folder) if folder is not None else self.workdir / "export"
        name, source = export.serving_config.model_name(self.workdir.name), self._digest(dtype)
        if not republish and (path := export.find_version(folder, source)) is not None:
            # An export that was killed after it published may not have cleaned up.
            remove_abandoned(folder, "export")
            export.serving_config.write(folder, name, self._servable)
            return path
        # Adapters are merged before the weights are rounded, so each kernel is rounded once.
        with self._merged(sample[: config.verify_rows]), self._rounded(dtype) as stored_weights:
            path = export.publish(
                self._servable,
                sample,
                folder,
                config,
                self.config.distribute.precision,
                stored_weights,
                self._training_inputs,
                source,
            )
        # The serving configuration last: it must name a version that exists.
        export.serving_config.write(folder, name, self._servable)
        return path

    def _digest(self, dtype: str) -> str:
        """Return a digest of `best/` and of the dtype of its weights in an export."""
        digest = hashlib.sha256(dtype.encode())
        for name in (DESCRIPTION, WEIGHTS):
            with open(self.workdir / "best" / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def export_as(self, form: str, folder: str | Path | None = None) -> Path:
        """Write the model in another format, verified on training rows.

        Args:
            form: `huggingface`, `litert`, `onnx` or `keras`.
            folder: where to write it; default: WORKDIR/<form>.

        Raises:
            UserError: the model cannot be written in this format, or the written model does not
                give the outputs of the live one.
        """
        from tfft.export import formats

        rows = self._sample[: self.config.export.verify_rows]
        precision = self.config.distribute.precision
        folder = Path(folder) if folder is not None else self.workdir / form
        with self._merged(rows):
            return formats.write(form, self._servable, rows, folder, precision)

    def export_huggingface(self, folder: str | Path | None = None) -> Path:
        """Write a checkpoint for transformers, with its tokenizer or image processor.

        Returns:
            The folder of the checkpoint.

        Raises:
            UserError: transformers has no equal of the backbone or the head.
        """
        return self.export_as("huggingface", folder).parent

    @contextmanager
    def _rounded(self, dtype: str) -> Iterator[list[StoredWeight]]:
        """Round the weights to a dtype within the context; log the size and the metrics."""
        split = self.datasets.validation or self.datasets.test or self.datasets.train
        metrics_only = EvaluateConfig(bootstrap=0, baselines=False, worst=0)
        original = self.evaluate_on(split, metrics_only, None).metrics if dtype != "float32" else {}
        with export.rounded_weights(self.model, dtype) as stored_weights:
            if stored_weights:
                rounded = self.evaluate_on(split, metrics_only, None).metrics
                float32_size = (
                    sum(4 * int(np.prod(weight.variable.shape)) for weight in stored_weights) / 1e6
                )
                size = sum(weight.size for weight in stored_weights) / 1e6
                changes = ", ".join(f"{n} {original[n]:.4f} -> {rounded[n]:.4f}" for n in original)
                console.log(
                    f"export: {dtype} weights take {size:.1f} MB instead of {float32_size:.1f}; on "
                    f"{len(split):,} rows {changes}"
                )
            yield stored_weights

    @property
    def _servable(self) -> Servable:
        return Servable(
            self.model,
            self.inputs,
            self.task,
            self.labels,
            self.fitted,
            self.backbone,
            self.config.task,
        )

    @cached_property
    def _sample(self) -> list[tuple[Any, ...]]:
        """Raw training rows that exports are verified on."""
        train = self.datasets.train
        return [train.raw_row(index) for index in range(min(len(train), export.PARITY_ROWS))]

    def _training_inputs(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Return the inputs that the model was trained on for some rows, without augmentation."""
        train = self.datasets.train
        examples = np.flatnonzero(np.isin(train.example_rows, positions))
        batch = batches.Batch(examples, int(train.lengths[examples].max()))
        return model_inputs.unaugmented_rows(train, self.inputs).arrays(batch)

    @contextmanager
    def _merged(self, sample: Sequence[tuple[str, ...]]) -> Iterator[None]:
        """Merge the adapters into the kernels within the context, where a method allows it.

        Args:
            sample: raw rows on which the merged model is compared with the unmerged one.

        Raises:
            UserError: an answer changes by more than the bound of the precision.
        """
        original = self.task.activate(self.logits(sample), self.fitted)
        with self.model.merged() as layers:
            if layers:
                merged = self.task.activate(self.logits(sample), self.fitted)
                unit = self.task.unit(original, self.fitted)
                difference = export.largest_difference(merged, original, unit)
                bound = export.BOUNDS[self.config.distribute.precision]
                if not difference <= bound:  # `not`: NaN is an error too
                    raise UserError(
                        f"export: merging the {self.config.method.name} weights changes "
                        f"{self.task.output} by {difference:.1e}; the bound is {bound:.0e}. Not "
                        "published"
                    )
                console.log(f"export: {len(layers)} layers merged (difference {difference:.1e})")
            yield

    @cached_property
    def datasets(self) -> Datasets:
        """Splits of the config, read from the cache if they are prepared."""
        settings = dataset_builder.DatasetSettings.of(self.config, self.labels)
        return dataset_builder.build(self.config.data, self.inputs, settings)

    def save(self) -> None:
        """Write `best/`: trained weights, labels, tokenizer, architecture and fingerprint.

        A run that trained all variables can be loaded without the files of its backbone.
        """
        folder = self.workdir / "best"
        folder.mkdir(parents=True, exist_ok=True)
        self._write_description()
        self.inputs.save(folder)
        self.save_weights()

    def _write_description(self) -> None:
        """Write `best/model.json`."""
        description = {
            "backbone": dict(self.backbone.description),
            "labels": self.labels,
            "fingerprint": self.backbone.fingerprint,
            "trained": None if self.trained is None else sorted(self.trained),
            "fitted": {name: values.tolist() for name, values in self.fitted.items()},
        }
        path = self.workdir / "best" / DESCRIPTION
        write_atomic(path, json.dumps(description, ensure_ascii=False, indent=1))

    def save_weights(self) -> None:
        """Replace the weights in `best/` by the model's."""
        path = self.workdir / "best" / WEIGHTS
        weight_file.save(self.model, path, {"format": "tfft"}, self.trained)

    def load_weights(self) -> None:
        """Load the weights in `best/` into the model."""
        weight_file.load(self.model, self.workdir / "best" / WEIGHTS, self.trained)


def load_run(workdir: str | Path, backbone: str | None = None) -> Run:
    """Load the run in a directory, with its best weights.

    Args:
        workdir: the run directory.
        backbone: where the backbone's files are now, as in `model.backbone`; default: where they
            were during the training. They are needed unless the run trained the whole backbone.

    Raises:
        UserError: the directory holds no run, or one without weights, or the backbone is not the
            one that the run was trained on.
    """
    workdir = Path(workdir)
    config, description = read_description(workdir)
    if backbone is not None:
        if len(config.model.towers) > 1:
            raise UserError(f"{workdir}: has two backbones; change their paths in its config.yaml")
        keys = config.model.model_dump() | {"backbone": backbone}
        model = section(ModelConfig, keys, str(workdir))
        config = config.model_copy(update={"model": model})
    # 1. All weights are in `best/`: only the architecture is rebuilt.
    if description["trained"] is None:
        with library_errors(f"{workdir}: the backbone in best/{DESCRIPTION} cannot be built"):
            loaded = backbones.rebuild(description["backbone"], config.distribute.precision)
        # The rebuilt backbone has no pretrained weights to digest.
        loaded = replace(loaded, fingerprint=description["fingerprint"])
    else:
        # 2. Only changed weights are: the backbone comes from its files, which must be the same.
        try:
            loaded = backbones.load(config.model, config.distribute.precision)
        except UserError as error:
            place = "--backbone=hf:FOLDER (backbone= in Python)"
            place = place if len(config.model.towers) == 1 else "the paths in its config.yaml"
            message = f"{workdir} holds only the trained weights and needs its backbone's files"
            raise UserError(f"{error}. {message}; set {place} to their place") from None
        check_fingerprint(loaded.fingerprint, description["fingerprint"], workdir)
    return build_on_backbone(workdir, config, description, loaded)


def build_on_backbone(
    workdir: Path, config: Config, description: dict[str, Any], backbone: Backbone
) -> Run:
    """Build the run of a directory on a loaded backbone.

    Args:
        workdir: the run directory.
        config: its config.
        description: what `read_description` returned of it.
        backbone: the backbone that it was trained on.
    """
    task, labels = TASKS[config.task.name], description["labels"]
    # The same steps as in the training, without surgery: its results are among the weights.
    model = assemble(backbone, task, config.task, labels)
    model_stages = stages(backbone, model)
    # The method injects its layers again; `load_weights` then gives them the trained values.
    METHODS[config.method.name].apply(model, model_stages, config.method)
    inputs = preprocess.restore(workdir / "best")
    if task.of_tokens and getattr(inputs, "windows", None) is None:
        raise UserError(f"{workdir}: was trained by a version of tfft without windows; train again")
    run = Run(workdir, config, model, backbone, inputs, labels, description["trained"])
    run.fitted = description["fitted"]
    run.load_weights()
    return run


def check_fingerprint(actual: str, expected: str, workdir: Path) -> None:
    """Check that a backbone has the weights that a run was trained on.

    The weights of the run fit no others.

    Raises:
        UserError: the fingerprints differ.
    """
    if actual != expected:
        raise UserError(
            f"{workdir}: was trained on another backbone (fingerprint {expected}, this one has "
            f"{actual}); load it with the files it was trained on"
        )


def read_description(workdir: Path) -> tuple[Config, dict[str, Any]]:
    """Read the config of a run and the description of its model in `best/`.

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
    return load_saved(workdir / "config.yaml"), {"trained": None, **description}
