"""Export a trained model as LiteRT, ONNX or `.keras`, or as a Hugging Face checkpoint.

    WORKDIR/onnx/   model.onnx    prepared inputs -> `probabilities` float32 [B, C], or another
                                  output of the task (`Task.output`)
                    tfft.json     task, labels, columns, fitted values
                    ...           files of the preprocessing (`preprocess.restore`)

All formats take prepared inputs (token ids, pixels), because their runtimes lack the TensorFlow ops
of the preprocessing. transformers prepares them with the tokenizer or image processor of the
checkpoint. Each model is written to a temporary folder, run there on real rows and compared with
the live model. It is published only if the two agree.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft import backbones
from tfft import model as model_lib
from tfft.config import TASK_SECTIONS, ModelConfig
from tfft.export import exported_model
from tfft.export.saved_model import BOUNDS, largest_difference
from tfft.export.signatures import Servable
from tfft.spec import Fitted
from tfft.tasks import TASKS
from tfft.utils import console
from tfft.utils.errors import UserError, require
from tfft.utils.files import temporary_folder

_DESCRIPTION = "tfft.json"
Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """An export format: how to write a model and how to run the written file.

    Attributes:
        file: name of the model file.
        packages: packages that writing and verifying it need.
        extra: the extra of setup.cfg that installs `packages`.
        write: writes a model to a path.
        run: runs the file at a path on a prepared batch and returns the output, [B, C].
    """

    file: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[Servable, Path], None]
    run: Callable[[Path, Servable, Batch], np.ndarray]


def write(
    name: str,
    servable: Servable,
    rows: Sequence[tuple[Any, ...]],
    folder: Path,
    precision: str,
) -> Path:
    """Write the model in a format into `folder`, replacing an earlier export of that format.

    Args:
        name: a key of `FORMATS`.
        servable: the model to export.
        rows: raw rows on which the file is compared with the live model.
        folder: the output folder; it must be absent, empty, or an earlier export.
        precision: the training precision, a key of `BOUNDS`.

    Returns:
        The path of the model file.

    Raises:
        UserError: a package is missing, the folder contains other files, the format cannot express
            the model, or its output differs from the live model's by more than the bound.
    """
    export_format = FORMATS[name]
    for package in export_format.packages:
        # Check what can be checked before the model is converted.
        require(package, export_format.extra)
    is_export = all((folder / file).is_file() for file in (export_format.file, _DESCRIPTION))
    if folder.exists() and not is_export and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: must be empty or an exported {export_format.file}. Received: other "
            "content; choose another --output"
        )
    rows = [servable.inputs.request_row(row) for row in rows]
    # Write to a temporary folder, compare with the live model, and publish.
    with temporary_folder(folder.parent, name) as temporary:
        path = temporary / export_format.file
        with _plain_gelu():
            export_format.write(servable, path)
        difference = _largest_difference(export_format, servable, path, rows)
        # `not <=` also refuses NaN.
        if not difference <= BOUNDS[precision]:
            raise UserError(
                f"export: {export_format.file}'s {servable.task.output} differ by "
                f"{difference:.1e} from the live model's; the bound for {precision} is "
                f"{BOUNDS[precision]:.0e}. Not published"
            )
        servable.inputs.save(temporary)
        exported_model.describe(temporary, servable, _DESCRIPTION)
        if folder.exists():  # keep files that the user added, such as a model card
            for file in temporary.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.rename(temporary, folder)
    console.log(
        f"export: {folder / export_format.file} (largest difference {difference:.1e} over "
        f"{len(rows)} rows)"
    )
    return folder / export_format.file


def _largest_difference(
    export_format: Format, servable: Servable, path: Path, rows: Sequence[Any]
) -> float:
    """Return the largest difference of an output from the live model's.

    The batches have one, three and all rows: a file with a fixed batch size or padded length
    would pass with one of them only.
    """
    largest = 0.0
    for subset in (rows[:1], rows[1:4], rows):
        if not subset:
            continue
        batch = servable.inputs.batch(*zip(*subset, strict=True))
        live = _activate(servable, servable.model.predict_on_batch(batch), servable.fitted)
        try:
            output = export_format.run(path, servable, batch)
        except (RuntimeError, ValueError) as error:  # the runtime lacks an op
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"export: {export_format.file} does not run: {reason}") from None
        unit = servable.task.unit(live, servable.fitted)
        largest = max(largest, largest_difference(output, live, unit))
    return largest


def _activate(servable: Servable, logits: Any, fitted: Fitted) -> np.ndarray:
    """Return the output of the task for logits [B, C]."""
    return servable.task.activate(np.asarray(logits, np.float32), fitted)


def _folded_head(servable: Servable) -> dict[str, np.ndarray]:
    """Return the weights of the head by path; they need no fitted values."""
    weights = {v.path: np.asarray(v.value) for v in servable.model.weights}
    head = {path: value for path, value in weights.items() if path.startswith("head/")}
    return servable.task.folded_head(head, servable.fitted)


def _with_activation(servable: Servable) -> keras.Model:
    """Return the model with the output of the task in place of logits."""
    name = servable.task.output
    layer = servable.task.activation(servable.fitted, dtype="float32", name=name)
    model = keras.Model(servable.model.inputs, {name: layer(servable.model.output)})
    specs = servable.inputs.input_specs()
    model({n: tf.zeros([size or 1 for size in s.shape], s.dtype) for n, s in specs.items()})
    return model  # Keras exports only a model that was called


@contextlib.contextmanager
def _plain_gelu() -> Iterator[None]:
    """Replace TensorFlow's gelu by an equal one with erf within the context.

    TensorFlow computes it with erfc, for which neither LiteRT nor ONNX has an op.
    """

    def gelu(features: tf.Tensor, approximate: bool = False, name: str | None = None) -> tf.Tensor:
        if approximate:
            return original(features, approximate=True, name=name)
        half = tf.cast(0.5, features.dtype)
        # x / 2 * (1 + erf(x / sqrt(2)))
        return half * features * (1 + tf.math.erf(features * tf.cast(0.5**0.5, features.dtype)))

    original = tf.nn.gelu
    tf.nn.gelu = gelu  # Keras looks it up at each call
    try:
        yield
    finally:
        tf.nn.gelu = original


def _write_litert(servable: Servable, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # Keras 3.14 prints despite verbose=False
        _with_activation(servable).export(str(path), format="litert", verbose=False)


def _run_litert(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (output,) = runner(**batch).values()
    return np.asarray(output)


def _write_onnx(servable: Servable, path: Path) -> None:
    _with_activation(servable).export(str(path), format="onnx", verbose=False)


def _run_onnx(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    # The names of the file's inputs may end in ":0", as those of TensorFlow's tensors.
    input_names = {node.name: node.name.split(":")[0] for node in session.get_inputs()}
    (output,) = session.run(
        None, {node_name: batch[input_name] for node_name, input_name in input_names.items()}
    )
    return np.asarray(output)


@keras.saving.register_keras_serializable(package="tfft")
class RebuiltBackbone(keras.Model):
    """A backbone with its head, rebuilt from their descriptions; the model of a `.keras` file.

        import tfft.export.formats   # registers it
        model = keras.models.load_model("model.keras")   # prepared inputs -> logits or numbers

    Args:
        backbone: `spec.Backbone.description`.
        task: the config section `task`, as plain data.
        labels: class names, in the order of the outputs.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        task: Mapping[str, Any],
        labels: Sequence[str],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._description = {"backbone": dict(backbone), "task": dict(task), "labels": list(labels)}
        config = TASK_SECTIONS[task["name"]].model_validate(task)
        loaded = backbones.rebuild(backbone)
        self.network = model_lib.assemble(loaded, TASKS[config.name], config, labels)
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        """Return the logits, [B, C], of prepared inputs."""
        return self.network(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), **self._description}


def _write_keras(servable: Servable, path: Path) -> None:
    description, task = servable.backbone.description, servable.config.model_dump(mode="json")
    rebuilt = RebuiltBackbone(description, task, servable.labels)
    trained = {variable.path: variable for variable in servable.model.weights}
    trained |= _folded_head(servable)
    for variable in rebuilt.network.weights:
        if variable.path not in trained:
            raise UserError(
                f"export: {path.name} has no place for the weight {variable.path} of this model"
            )
        variable.assign(trained[variable.path])
    rebuilt.save(path)


def _run_keras(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    loaded = keras.models.load_model(path)
    return _activate(servable, loaded.predict_on_batch(batch), {})


def _write_huggingface(servable: Servable, path: Path) -> None:
    if (provider := servable.backbone.description["provider"]) != "hf":
        received = "two backbones" if provider == "towers" else f"{provider}:"
        raise UserError(
            f"export: a Hugging Face checkpoint needs an hf: backbone. Received: {received}"
        )
    backbones.huggingface.save(
        servable.model,
        servable.backbone,
        servable.labels,
        path.parent,
        None if servable.inputs.image is None else servable.inputs.image.image_spec,
        servable.config.problem_type,
        _folded_head(servable),
        servable.task.head_kind,
    )


def _run_huggingface(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    image = servable.inputs.image
    size = (
        # `model.image_size` is one number; a checkpoint of another shape keeps its own size.
        image.image_spec.size[0]
        if image is not None and image.image_spec.size[0] == image.image_spec.size[1]
        else None
    )
    config = ModelConfig(backbone=f"hf:{path.parent}", head="checkpoint", image_size=size)
    loaded = backbones.load(config)
    model = model_lib.assemble(loaded, servable.task, servable.config, servable.labels)
    return _activate(servable, model.predict_on_batch(batch), {})


FORMATS: Mapping[str, Format] = {
    "huggingface": Format("model.safetensors", (), "", _write_huggingface, _run_huggingface),
    "litert": Format("model.tflite", ("ai_edge_litert",), "litert", _write_litert, _run_litert),
    "onnx": Format(
        "model.onnx", ("tf2onnx", "onnx", "onnxruntime"), "onnx", _write_onnx, _run_onnx
    ),
    "keras": Format("model.keras", (), "", _write_keras, _run_keras),
}
