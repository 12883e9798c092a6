"""Pictures on a page: what was trained on, and where the model looked where it was most wrong."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.config import Config
from tfft.data import Datasets, batches, dataset_builder, model_inputs
from tfft.evaluation.evaluate import Evaluation
from tfft.preprocess import ImageInputs, Inputs
from tfft.report.page import PageImages, write_page

BATCH = 24  # training pictures shown
HIGH = 112  # pixels of a picture on the page
SHEET, DRAWS = 12, 6  # pictures of a sheet, and how often each is changed
WRONG = 20  # pictures shown of each split


def shown(
    model: keras.Model,
    inputs: Inputs,
    data: Datasets,
    train_rows: batches.Rows,
    evaluations: Mapping[str, Evaluation],
) -> PageImages:
    """The pictures of a run's page: a batch of `train_rows`, and the most wrong of each split."""
    count = min(BATCH, len(data.train))
    chosen = np.random.default_rng(0).permutation(len(data.train))[:count]
    pixels = train_rows.arrays(batches.Batch(chosen, 8))["image"]
    names = [data.train.named(at, data.labels) for at in chosen]
    worst = {}
    for split, evaluation in evaluations.items():
        wrong = evaluation.worst[:WRONG]
        if wrong:
            worst[split] = _wrong(model, inputs, wrong)
    return PageImages(gallery(pixels, names), worst)


def write_sheet(path: Path, config: Config, inputs: ImageInputs) -> None:
    """A page of training pictures: each as it is, then as `DRAWS` epochs would change it."""
    data = dataset_builder.build(config.data, inputs, dataset_builder.DatasetSettings.of(config))
    count = min(SHEET, len(data.train))
    chosen = np.random.default_rng(0).permutation(len(data.train))[:count]
    found = model_inputs.changed(
        data.train, inputs, config.augmentation, len(data.labels), config.train.seed
    )
    plain = model_inputs.plain(data.train, inputs).arrays(batches.Batch(chosen, 8))["image"]
    drawn = [found.arrays(batches.Batch(chosen, 8, draw))["image"] for draw in range(DRAWS)]
    names = [data.train.named(at, data.labels) for at in chosen]
    both = np.concatenate([plain, *drawn], axis=2)
    write_page(path, "Training pictures: as they are, and changed", gallery(both, names), "")


def _wrong(model: keras.Model, inputs: Inputs, wrong: Sequence[Mapping[str, Any]]) -> str:
    """Each picture, and beside it where the class that was predicted was seen."""
    pixels = inputs.batch([w["row"][0] for w in wrong])["image"]
    captions = [
        f"{w['label'] or 'nothing'}, not {w['predicted'] or 'nothing'} ({w['confidence']:.2f})"
        for w in wrong
    ]
    predicted = np.array([w["about"] for w in wrong])
    heat, note = grad_cam(model, pixels, predicted), "where the predicted class was seen (Grad-CAM)"
    if heat is None:
        heat, note = roll_out(model, pixels), "what the model looked at (attention roll-out)"
    if heat is None:
        return gallery(pixels, captions)
    both = np.concatenate([pixels, overlaid(pixels, heat)], axis=2)
    return f"<p>Beside each picture: {note}.</p>" + gallery(both, captions)


def grad_cam(model: keras.Model, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """How much each place speaks for a class, from 0 to 1: [B, h, w], of the last map.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2. None where the model averages no map.

    Args:
        pixels: float32 [B, H, W, 3].
        classes: the class id for each, [B].
    """
    averages = [x for x in model.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
    found = [x for x in averages if len(x.input.shape) == 4]
    if not found:
        return None
    last = found[-1].input  # those below it are of squeeze-and-excitation
    below, above = keras.Model(model.inputs, last), keras.Model(last, model.output)
    maps = tf.convert_to_tensor(below([tf.constant(pixels)], training=False))
    with tf.GradientTape() as tape:
        tape.watch(maps)
        score = tf.gather(above(maps, training=False), classes, axis=1, batch_dims=1)
    gradient = tape.gradient(score, maps)
    weights = tf.reduce_mean(tf.cast(gradient, tf.float32), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1)).numpy()
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-9)


def roll_out(model: keras.Model, pixels: np.ndarray) -> np.ndarray | None:
    """How much of each place reaches the first token, from 0 to 1: [B, h, w].

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3: half of what a
    block puts out counts as its input. None where the model is no vision transformer.
    """
    blocks = [layer for layer in model.layers if hasattr(layer, "attended")]
    if not blocks:
        return None
    embeddings = model.get_layer("embeddings")
    below = keras.Model(model.inputs, [block.input for block in blocks])
    inputs = below([tf.constant(pixels)], training=False)
    inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
    flow = None
    for block, x in zip(blocks, inputs, strict=True):
        looked = 0.5 * (keras.ops.convert_to_numpy(block.attended(x)) + np.eye(x.shape[1]))
        flow = looked if flow is None else looked @ flow
    heat = flow[:, 0, embeddings.extra :].reshape(-1, *embeddings.grid)
    heat = heat - heat.min(axis=(1, 2), keepdims=True)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-9)


def overlaid(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Pictures in grey with the heat in red on them: float32 [B, H, W, 3] from 0 to 255."""
    large = tf.image.resize(heat[..., None], pixels.shape[1:3], "bilinear").numpy()
    grey = pixels.mean(axis=-1, keepdims=True) * 0.7
    return grey + large * (np.array([255.0, 60.0, 0.0]) - grey) * 0.75


def gallery(pixels: np.ndarray, captions: Sequence[str]) -> str:
    """Pictures with captions, as HTML that needs no other file."""
    figures = [
        f'<figure><img height="{HIGH}" alt="" src="data:image/jpeg;base64,{jpeg(one)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for one, caption in zip(pixels, captions, strict=True)
    ]
    return f'<div class="pictures">{"".join(figures)}</div>'


def jpeg(pixels: np.ndarray) -> str:
    """A picture [H, W, 3] from 0 to 255 as a JPEG in base64."""
    height, width = pixels.shape[:2]
    high = min(height, 2 * HIGH)
    small = tf.image.resize(pixels, [high, max(1, width * high // height)], antialias=True)
    encoded = tf.io.encode_jpeg(tf.saturate_cast(tf.round(small), tf.uint8), quality=85)
    return base64.b64encode(encoded.numpy()).decode()
