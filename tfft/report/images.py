"""Images on the report page: training images, and saliency maps of the most wrong predictions."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfft.config import Config
from tfft.data import Dataset, Datasets, batches, dataset_builder, model_inputs
from tfft.evaluation.evaluate import Evaluation
from tfft.preprocess import Inputs
from tfft.report.page import PageImages, format_cell, write_page

NUM_TRAIN_IMAGES = 24  # training images on the page
IMAGE_HEIGHT = 112  # height of an image on the page in pixels
NUM_PREVIEW_IMAGES, NUM_DRAWS = 12, 6  # images on a preview, draws of the augmentation for each
NUM_WRONG = 20  # wrongly predicted images of each split
MAX_CAPTION = 100  # characters of a text beside an image


def build_page_images(
    model: keras.Model,
    inputs: Inputs,
    data: Datasets,
    train_rows: batches.Rows,
    evaluations: Mapping[str, Evaluation],
) -> PageImages:
    """Build the image sections of a run's page.

    Args:
        model: trained model.
        inputs: preprocessing of the run.
        data: splits of the run.
        train_rows: training rows after augmentation, of which a batch is drawn.
        evaluations: evaluation of each split by name; their `worst` rows are drawn.
    """
    count = min(NUM_TRAIN_IMAGES, len(data.train))
    positions = np.random.default_rng(0).permutation(len(data.train))[:count]
    pixels = train_rows.arrays(_batch(data.train, positions))["image"]
    names = [data.train.target_text(position, data.labels) for position in positions]
    worst = {}
    for split, evaluation in evaluations.items():
        rows = evaluation.worst[:NUM_WRONG]
        if rows and inputs.text is None:
            worst[split] = _wrong_gallery(model, inputs, rows)
        elif rows:
            worst[split] = _wrong_pairs(inputs, rows)
    return PageImages(gallery(pixels, names), worst)


def _batch(split: Dataset, positions: np.ndarray, draw: int = 0) -> batches.Batch:
    """Return some rows of a split as a batch."""
    return batches.Batch(positions, int(split.lengths[positions].max()), draw)


def write_augmentation_preview(path: Path, config: Config, inputs: Inputs) -> None:
    """Write a page of training images: each unchanged, then under `NUM_DRAWS` augmentations.

    Args:
        path: HTML file to write.
        config: config with the data and the section `augmentation`.
        inputs: preprocessing of rows with images.
    """
    data = dataset_builder.build(config.data, inputs, dataset_builder.DatasetSettings.of(config))
    count = min(NUM_PREVIEW_IMAGES, len(data.train))
    positions = np.random.default_rng(0).permutation(len(data.train))[:count]
    augmented_rows = model_inputs.augmented_rows(
        data.train, inputs, config.augmentation, len(data.labels), config.train.seed
    )
    unaugmented_rows = model_inputs.unaugmented_rows(data.train, inputs)
    unaugmented = unaugmented_rows.arrays(_batch(data.train, positions))["image"]
    augmented = [
        augmented_rows.arrays(_batch(data.train, positions, draw))["image"]
        for draw in range(NUM_DRAWS)
    ]
    names = [data.train.target_text(position, data.labels) for position in positions]
    # Axis 2 is the width.
    side_by_side = np.concatenate([unaugmented, *augmented], axis=2)
    write_page(path, "Training images: unchanged and augmented", gallery(side_by_side, names), "")


def _wrong_gallery(model: keras.Model, inputs: Inputs, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return each image beside its saliency map for the predicted class, as HTML."""
    pixels = inputs.batch([row["row"][0] for row in rows])["image"]
    captions = [
        f"{row['label'] or 'nothing'}, not {row['predicted'] or 'nothing'} "
        f"({row['confidence']:.2f})"
        for row in rows
    ]
    predicted = np.array([row["about"] for row in rows])
    heat, note = (
        grad_cam(model, pixels, predicted),
        "what speaks for the predicted class (Grad-CAM)",
    )
    if heat is None:
        heat, note = roll_out(model, pixels), "what the model attended to (attention roll-out)"
    if heat is None:
        return gallery(pixels, captions)
    side_by_side = np.concatenate([pixels, overlay(pixels, heat)], axis=2)
    return f"<p>Beside each image: {note}.</p>" + gallery(side_by_side, captions)


def _wrong_pairs(inputs: Inputs, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return each image with its text and what was predicted, as HTML."""
    pixels = inputs.image.batch([row["row"][-1] for row in rows])["image"]
    captions = []
    for row in rows:
        cells = {k: v for k, v in row.items() if k not in ("row", "about", "loss", "text")}
        described = ", ".join(f"{name} {format_cell(value)}" for name, value in cells.items())
        captions.append(f"{' | '.join(row['row'][:-1])[:MAX_CAPTION]}: {described}")
    return gallery(pixels, captions)


def grad_cam(model: keras.Model, pixels: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
    """Compute how much each position of the last feature map speaks for a class, scaled to 0..1.

    Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2.

    Args:
        model: classifier of images.
        pixels: float32 [B, H, W, 3].
        classes: class id for each image, [B].

    Returns:
        Float32 [B, h, w], or None where the model has no global average pooling of a feature map.
    """
    averages = [x for x in model.layers if isinstance(x, keras.layers.GlobalAveragePooling2D)]
    poolings = [x for x in averages if len(x.input.shape) == 4]
    if not poolings:
        return None
    feature_map = poolings[-1].input  # earlier ones belong to squeeze-and-excitation blocks
    to_map = keras.Model(model.inputs, feature_map)
    to_logits = keras.Model(feature_map, model.output)
    maps = tf.convert_to_tensor(to_map([tf.constant(pixels)], training=False))  # [B, h, w, D]
    with tf.GradientTape() as tape:
        tape.watch(maps)
        # The logit of one class per image, [B].
        score = tf.gather(to_logits(maps, training=False), classes, axis=1, batch_dims=1)
    gradient = tape.gradient(score, maps)
    # Equation 1: the weight of each channel, [B, 1, 1, D].
    weights = tf.reduce_mean(tf.cast(gradient, tf.float32), axis=(1, 2), keepdims=True)
    # Equation 2: [B, h, w].
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, tf.float32), axis=-1)).numpy()
    # 1e-9: a map without positive evidence stays 0.
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-9)


def roll_out(model: keras.Model, pixels: np.ndarray) -> np.ndarray | None:
    """Compute how much of each position reaches the first token, scaled to 0..1.

    Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers", section 3. The residual
    connection is modelled as half identity, half attention.

    Args:
        model: vision transformer.
        pixels: float32 [B, H, W, 3].

    Returns:
        [B, h, w], or None where the model is no vision transformer.
    """
    blocks = [layer for layer in model.layers if hasattr(layer, "attended")]
    if not blocks:
        return None
    embeddings = model.get_layer("embeddings")
    to_block_inputs = keras.Model(model.inputs, [block.input for block in blocks])
    inputs = to_block_inputs([tf.constant(pixels)], training=False)
    inputs = inputs if isinstance(inputs, list | tuple) else [inputs]
    flow = None
    for block, x in zip(blocks, inputs, strict=True):
        attention = 0.5 * (keras.ops.convert_to_numpy(block.attended(x)) + np.eye(x.shape[1]))
        flow = attention if flow is None else attention @ flow  # [B, T, T]
    # From the first token, the class token, to the patches: [B, h, w].
    heat = flow[:, 0, embeddings.extra :].reshape(-1, *embeddings.grid)
    # Every position receives some attention: subtract the least to use the full range.
    heat = heat - heat.min(axis=(1, 2), keepdims=True)
    return heat / np.maximum(heat.max(axis=(1, 2), keepdims=True), 1e-9)


def overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return the images in grey with the heat in red over them: float32 [B, H, W, 3], 0 to 255."""
    resized = tf.image.resize(heat[..., None], pixels.shape[1:3], "bilinear").numpy()
    grey = pixels.mean(axis=-1, keepdims=True) * 0.7
    return grey + resized * (np.array([255.0, 60.0, 0.0]) - grey) * 0.75


def gallery(pixels: np.ndarray, captions: Sequence[str]) -> str:
    """Return images with captions as self-contained HTML."""
    figures = [
        f'<figure><img height="{IMAGE_HEIGHT}" alt="" src="data:image/jpeg;base64,{jpeg(image)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in zip(pixels, captions, strict=True)
    ]
    return f'<div class="images">{"".join(figures)}</div>'


def jpeg(pixels: np.ndarray) -> str:
    """Return an image [H, W, 3] from 0 to 255 as a base64-encoded JPEG."""
    height, width = pixels.shape[:2]
    new_height = min(height, 2 * IMAGE_HEIGHT)
    resized = tf.image.resize(
        pixels, [new_height, max(1, width * new_height // height)], antialias=True
    )
    encoded = tf.io.encode_jpeg(tf.saturate_cast(tf.round(resized), tf.uint8), quality=85)
    return base64.b64encode(encoded.numpy()).decode()
