"""Train a tiny model in many settings, on several replicas or workers.

    python -m tests.model.matrix --checkpoint=FOLDER --out=FILE [--replicas=2] [--steps=20]
        [--settings=adamw,lora]

With TF_CONFIG it is one of several workers. It writes the final weights, losses and accuracies of
the epochs, metrics of `evaluate` and predictions. `test_matrix.py` compares them.
"""

import argparse
import dataclasses
import gc
import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import tensorflow as tf

from tfft import backbones
from tfft.config import DistributeConfig, ModelConfig, OptimizerConfig
from tfft.config.tasks import TextClassification
from tfft.distribute import strategies
from tfft.model import Loss, assemble, masks, rematerialise, stages
from tfft.spec import Rule
from tfft.tasks import TASKS
from tfft.training import optimizers
from tfft.training.phases import single

BATCH, TOKENS, EPOCHS = 16, 12, 2


@dataclasses.dataclass(frozen=True)
class Setting:
    """Differences of a setting from plain AdamW."""

    optimizer: dict = dataclasses.field(default_factory=dict)
    compile: dict = dataclasses.field(default_factory=dict)
    rules: tuple = (Rule("*", True),)
    rows: int = 0  # in the last batch; 0: a full batch
    lora: bool = False
    remat: bool = False
    xla: bool = False
    loss: Any = None  # default: that of the task
    precision: str = "float32"
    dropout: float = 0.0


class Repulsion(Loss):
    """Each row against all others of the global batch, by their logits."""

    scope, weights = "batch", {"repulsion": 1.0}

    def counts(self, y, weight):
        return {"repulsion": tf.shape(y)[0]}

    def sums(self, y, y_pred, weight):
        same = y[:, None] == y[None]
        scores = tf.nn.log_softmax(tf.matmul(y_pred, y_pred, transpose_b=True))
        return {"repulsion": -tf.reduce_sum(tf.where(same, scores, 0.0))}


SETTINGS = {
    "adamw": Setting(),
    "sgd": Setting({"name": "sgd", "learning_rate": 0.01}),
    "clipping": Setting({"name": "sgd", "learning_rate": 0.1, "clip_norm": 0.05}),
    "accumulation": Setting(compile={"micro_batch": 4}),
    "ema": Setting({"ema": 0.9}),
    "steps_per_execution": Setting(compile={"steps_per_execution": 8}),
    "partial": Setting(rows=5),
    "batch": Setting({"name": "sgd"}, {"micro_batch": 4}, rows=5, loss=Repulsion),
    "layer_wise": Setting(
        rules=(
            Rule("embeddings", False),
            Rule("block_0", True, 0.25),
            Rule("block_*", True, 0.5),
            Rule("*", True),
        )
    ),
    "lora": Setting(lora=True),
    "remat": Setting(remat=True),
    "xla": Setting(xla=True),
    "bfloat16": Setting(precision="mixed_bfloat16"),
    "float16": Setting(precision="mixed_float16"),
}


def data(setting: Setting, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    generator = np.random.default_rng(0)
    rows = steps // EPOCHS * BATCH
    rows = rows - BATCH + setting.rows if setting.rows else rows
    lengths = generator.integers(3, TOKENS + 1, rows)
    mask = (np.arange(TOKENS)[None, :] < lengths[:, None]).astype(np.int32)
    inputs = {
        "token_ids": generator.integers(5, 60, (rows, TOKENS)).astype(np.int32) * mask,
        "padding_mask": mask,
        "segment_ids": np.zeros((rows, TOKENS), np.int32),
    }
    return inputs, generator.integers(0, 3, rows)


def build(checkpoint: str, setting: Setting) -> keras.Model:
    task = TASKS["text_classification"]
    config = TextClassification(dropout=setting.dropout, pooling="pooled")
    model_config = ModelConfig(backbone=f"hf:{checkpoint}", dropout=setting.dropout)
    backbone = backbones.load(model_config, setting.precision)
    model = assemble(backbone, task, config, list("abc"))
    model_stages = stages(backbone, model)
    mask = masks.apply(model, model_stages, setting.rules)
    if setting.lora:  # adds variables that are not in the checkpoint
        for layer in model._flatten_layers():
            if layer.name == "qkv":
                layer.enable_lora(4)
    if setting.remat:
        assert rematerialise(model, [s for s in model_stages if s.name.startswith("block")])
    optimizer_config = OptimizerConfig(**{"learning_rate": 5e-5, **setting.optimizer})
    optimizer = optimizers.build(optimizer_config, single(mask, 20), 10, setting.precision)
    options = {"jit_compile": False, **setting.compile}
    loss = task.loss(config) if setting.loss is None else setting.loss()
    model.compile(optimizer, loss, metrics=["accuracy"], **options)
    model.configure(jit_compile=setting.xla)
    return model


def run(checkpoint: str, setting: Setting, steps: int, strategy) -> dict[str, np.ndarray]:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = build(checkpoint, setting)
    x, y = data(setting, steps)
    history = model.fit(x, y, batch_size=BATCH, epochs=EPOCHS, shuffle=False, verbose=0).history
    metrics = model.evaluate(x, y, batch_size=BATCH, verbose=0)
    arrays = {v.path: keras.ops.convert_to_numpy(v) for v in model.weights}
    arrays["history"] = np.array([history["loss"], history["accuracy"]])
    arrays["metrics"] = np.array(metrics)
    arrays["predictions"] = model.predict(x, batch_size=BATCH, verbose=0)
    return arrays


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    flags = parser.parse_args()
    config = {"strategy": "auto"}
    if flags.replicas > 1:
        devices = [f"CPU:{i}" for i in range(flags.replicas)]
        config = {"strategy": "mirrored", "devices": devices}
    strategy = strategies.setup(DistributeConfig(**config), 0, True)
    arrays = {}
    for name in flags.settings.split(","):
        results = run(flags.checkpoint, SETTINGS[name], flags.steps, strategy)
        arrays |= {f"{name}|{path}": value for path, value in results.items()}
        keras.backend.clear_session()
        gc.collect()  # a model and its traced functions reference each other
        print(name, flush=True)
    if strategies.workers().is_chief:
        np.savez(flags.out, **arrays)
    else:
        np.savez(f"{flags.out}.{strategies.workers().index}.npz", **arrays)
    tf.get_logger().setLevel("ERROR")


if __name__ == "__main__":
    main()
