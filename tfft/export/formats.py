"""Other forms of a trained model: LiteRT, ONNX and `.keras`, by Keras' own exporters, and the
checkpoint of Hugging Face's transformers.

    WORKDIR/onnx/   model.onnx    prepared inputs -> `probabilities` float32 [B, C]
                    tfft.json     task, labels, columns, thresholds
                    ...           what the preparation reads (`preprocess.restore`)

They take prepared inputs (token ids, pixels), as no runtime of theirs has the ops that prepare raw
ones; transformers prepares them with the tokenizer or image processor that lies beside.
Each is written to a temporary name, run there on real rows, compared with the live model, and only
then renamed.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import tensorflow as tf

from tfft import backbones
from tfft import model as model_room
from tfft.config import ModelConfig, TaskConfig
from tfft.export import exported_model
from tfft.export.saved_model import BOUNDS
from tfft.export.signatures import Servable
from tfft.tasks import TASKS
from tfft.utils import console
from tfft.utils.errors import UserError, require
from tfft.utils.files import temporary_folder

OUTPUT = "probabilities"
_ABOUT = "tfft.json"
Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Format:
    """A form.

    Attributes:
        file: its name.
        packages: that it needs, the first to write it, all to run it.
        extra: of setup.cfg, which installs them.
        write: writes a model to a path.
        answer: runs what was written, on prepared inputs -> probabilities [B, C].
    """

    file: str
    packages: tuple[str, ...]
    extra: str
    write: Callable[[Servable, Path], None]
    answer: Callable[[Path, Servable, Batch], np.ndarray]


def write(
    name: str,
    servable: Servable,
    rows: Sequence[tuple[Any, ...]],
    folder: Path,
    precision: str,
) -> Path:
    """Write a form of the model into `folder`, in place of one that was written there before.

    Args:
        name: of the form, in `FORMATS`.
        rows: raw, on which it is compared with the live model.

    Raises:
        UserError: a package is missing, the folder holds something else, the model cannot be
            written in this form, or its answers are further off than the bound of the precision.
    """
    form = FORMATS[name]
    for package in form.packages:
        require(package, form.extra)
    ours = all((folder / file).is_file() for file in (form.file, _ABOUT))
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"{folder}: holds something else than an exported {form.file}; choose another --output"
        )
    rows = [servable.inputs.request_row(row) for row in rows]
    with temporary_folder(folder.parent, name) as made:
        path = made / form.file
        with _plain_gelu():
            form.write(servable, path)
        difference = _difference(form, servable, path, rows)
        if not difference <= BOUNDS[precision]:
            raise UserError(
                f"export: {form.file}'s probabilities differ by {difference:.1e} from the live "
                f"model's; the bound for {precision} is {BOUNDS[precision]:.0e}. Not published"
            )
        servable.inputs.save(made)
        exported_model.describe(made, servable, _ABOUT)
        if folder.exists():  # what else was put beside it stays
            for file in made.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.rename(made, folder)
    console.log(
        f"export: {folder / form.file} (largest difference {difference:.1e} over {len(rows)} rows)"
    )
    return folder / form.file


def _difference(form: Format, servable: Servable, path: Path, rows: Sequence[Any]) -> float:
    """The largest of a probability: rows one by one, three together, all together."""
    worst = 0.0
    for chosen in (rows[:1], rows[1:4], rows):
        if not chosen:
            continue
        batch = servable.inputs.batch(*zip(*chosen, strict=True))
        live = servable.task.probabilities(_float(servable.model.predict_on_batch(batch)))
        try:
            found = form.answer(path, servable, batch)
        except (RuntimeError, ValueError) as error:  # of a runtime that lacks an op
            line = str(error).strip().splitlines()[0]
            raise UserError(f"export: {form.file} does not run: {line}") from None
        worst = max(worst, float(np.abs(found - live).max()))
    return worst


def _float(logits: Any) -> np.ndarray:
    return np.asarray(logits, np.float32)


def _scored(servable: Servable) -> keras.Model:
    """The model with probabilities in place of logits."""
    kind = "sigmoid" if servable.task.multi_label else "softmax"
    last = keras.layers.Activation(kind, dtype="float32", name=OUTPUT)
    made = keras.Model(servable.model.inputs, {OUTPUT: last(servable.model.output)})
    specs = servable.inputs.input_specs()
    made({n: tf.zeros([size or 1 for size in s.shape], s.dtype) for n, s in specs.items()})
    return made  # the exporters want a model that was called


@contextlib.contextmanager
def _plain_gelu() -> Iterator[None]:
    """TensorFlow writes gelu with erfc, which neither form has an op for; erf is the same."""

    def gelu(features: tf.Tensor, approximate: bool = False, name: str | None = None) -> tf.Tensor:
        if approximate:
            return original(features, approximate=True, name=name)
        half = tf.cast(0.5, features.dtype)
        return half * features * (1 + tf.math.erf(features * tf.cast(0.5**0.5, features.dtype)))

    original = tf.nn.gelu
    with mock.patch.object(tf.nn, "gelu", gelu):
        yield


def _write_litert(servable: Servable, path: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # Keras 3.14 prints all the same
        _scored(servable).export(str(path), format="litert", verbose=False)


def _answer_litert(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    (found,) = runner(**batch).values()
    return np.asarray(found)


def _write_onnx(servable: Servable, path: Path) -> None:
    _scored(servable).export(str(path), format="onnx", verbose=False)


def _answer_onnx(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = {given.name: given.name.split(":")[0] for given in session.get_inputs()}
    (found,) = session.run(None, {name: batch[own] for name, own in names.items()})
    return np.asarray(found)


@keras.saving.register_keras_serializable(package="tfft")
class RebuiltBackbone(keras.Model):
    """A backbone with its head, made anew from their descriptions: what a `.keras` file holds.

        import tfft.export.formats   # registers it
        model = keras.models.load_model("model.keras")   # prepared inputs -> logits

    Args:
        backbone: `spec.Backbone.description`.
        task: the section `task`.
        labels: in the order of the outputs.
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
        config = TaskConfig(**task)
        made = backbones.rebuild(backbone)
        self.network = model_room.assemble(made, TASKS[config.name], config, labels)
        self.built = True

    def call(self, inputs: Mapping[str, Any], training: bool = False) -> Any:
        """Prepared inputs -> logits [B, C]."""
        return self.network(inputs, training=training)

    def get_config(self) -> dict[str, Any]:
        """What makes it anew."""
        return {**super().get_config(), **self._description}


def _write_keras(servable: Servable, path: Path) -> None:
    description, task = servable.backbone.description, servable.config.model_dump(mode="json")
    made = RebuiltBackbone(description, task, servable.labels)
    values = {variable.path: variable for variable in servable.model.weights}
    for variable in made.network.weights:
        if variable.path not in values:
            raise UserError(
                f"export: {path.name}: there is no form for {variable.path} of this model"
            )
        variable.assign(values[variable.path])
    made.save(path)


def _answer_keras(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    loaded = keras.models.load_model(path)
    return servable.task.probabilities(_float(loaded.predict_on_batch(batch)))


def _write_huggingface(servable: Servable, path: Path) -> None:
    if servable.backbone.description["provider"] != "hf":
        raise UserError("export: only hf: backbones can be written as a checkpoint")
    backbones.huggingface.save(
        servable.model,
        servable.backbone,
        servable.labels,
        path.parent,
        getattr(servable.inputs, "image_spec", None),
        servable.task.multi_label,
    )


def _answer_huggingface(path: Path, servable: Servable, batch: Batch) -> np.ndarray:
    image_spec = getattr(servable.inputs, "image_spec", None)
    size = (
        image_spec.size[0]
        if image_spec is not None and image_spec.size[0] == image_spec.size[1]
        else None
    )
    config = ModelConfig(backbone=f"hf:{path.parent}", head="checkpoint", image_size=size)
    loaded = backbones.load(config)
    model = model_room.assemble(loaded, servable.task, servable.config, servable.labels)
    return servable.task.probabilities(_float(model.predict_on_batch(batch)))


FORMATS: Mapping[str, Format] = {
    "huggingface": Format("model.safetensors", (), "", _write_huggingface, _answer_huggingface),
    "litert": Format("model.tflite", ("ai_edge_litert",), "litert", _write_litert, _answer_litert),
    "onnx": Format(
        "model.onnx", ("tf2onnx", "onnx", "onnxruntime"), "onnx", _write_onnx, _answer_onnx
    ),
    "keras": Format("model.keras", (), "", _write_keras, _answer_keras),
}
