"""Pictures changed for training, by Keras' own layers where it has them.

Everything random in a batch follows from its seed, so that a resumed run draws what an
uninterrupted one does: the layers draw from a stream that begins anew with each batch, in place
of a state of their own.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfft.config import AugmentationConfig
from tfft.config.augmentation import Crop
from tfft.preprocess.graph import image_ops
from tfft.spec import ImageSpec


class Augmentation:
    """Encoded pictures, or pixels of the model's size -> changed pixels, in TensorFlow.

    Args:
        config: what is changed, and how much.
        picture: the size that comes out.
        classes: C, for labels that are mixed.
        seed: of the run.
    """

    def __init__(self, config: AugmentationConfig, image_spec: ImageSpec, classes: int, seed: int):
        self._config, self._picture, self._classes = config, image_spec, classes
        self._stream = _Stream(seed)
        self._layers = [_seeded(layer, self._stream) for layer in _layers(config)]
        mixing = _mixing(config)
        self._mixing = _seeded(mixing, self._stream) if mixing is not None else None

    def __call__(
        self, image: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Changed pictures, float32 [B, H, W, 3] from 0 to 255, and their targets.

        Args:
            image: strings [B], or uint8 [B, H, W, 3].
            targets: class ids [B], or [B, C].
            seed: int32 [2], of the batch.
        """
        draw, own = tf.unstack(seed)
        seed = tf.random.experimental.stateless_fold_in([self._stream.run, 0], draw)
        seed = tf.cast(tf.random.experimental.stateless_fold_in(seed, own), tf.int32)
        pixels = tf.cast(self._read(image, seed), tf.float32)
        self._stream.begin(seed)
        for layer in self._layers:
            drawn = layer.get_random_transformation(pixels, training=True)
            pixels = layer.transform_images(pixels, drawn, training=True)
        if self._mixing is not None:
            if targets.shape.rank == 1:
                targets = tf.one_hot(tf.cast(targets, tf.int32), self._classes)
            drawn = self._mixing.get_random_transformation(
                {"images": pixels, "labels": targets}, training=True
            )
            if "batch_masks" in drawn:
                # Of the box that is cut, not of the one that was drawn: its edges are rounded.
                kept = 1.0 - tf.cast(drawn["batch_masks"][..., 0], tf.float32)
                drawn["mix_weight"] = tf.reduce_mean(kept, axis=(1, 2))
            pixels = self._mixing.transform_images(pixels, drawn, training=True)
            targets = self._mixing.transform_labels(targets, drawn, training=True)
        pixels = tf.ensure_shape(pixels, [None, *self._picture.size, 3])
        return tf.clip_by_value(pixels, 0.0, 255.0), targets

    def _read(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Decoded, where that is left to do, and cut, where that is wanted; uint8."""
        crop, image_spec = self._config.crop, self._picture
        if crop is None:
            return image_ops.reader(image_spec)(image) if image.dtype == tf.string else image

        def one(given: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            data, at = given
            decoded = image_ops.decode(data) if data.dtype == tf.string else data
            own = tf.random.experimental.stateless_fold_in(seed, at)
            return cut(decoded, crop, image_spec, own)

        spec = tf.TensorSpec([*image_spec.size, 3], tf.uint8)
        return tf.map_fn(one, (image, tf.range(tf.shape(image)[0])), fn_output_signature=spec)


def cut(pixels: tf.Tensor, crop: Crop, image_spec: ImageSpec, seed: tf.Tensor) -> tf.Tensor:
    """A random part of a picture, resized: uint8 [h, w, 3] -> uint8 [H, W, 3]."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(pixels),
        tf.zeros([0, 0, 4]),
        seed,
        min_object_covered=0.0,
        area_range=crop.area,
        aspect_ratio_range=crop.ratio,
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    part = tf.slice(pixels, begin, size)
    return image_ops.resize(part, tf.constant(image_spec.size), image_spec.interpolation)


class _Stream(keras.random.SeedGenerator):
    """Seeds that follow from the seed of a batch, one after another while a graph is traced."""

    def __init__(self, run: int):
        super().__init__(seed=run)
        self.run = run
        self._batch: Any = None
        self._count = 0

    def begin(self, batch: tf.Tensor) -> None:
        """Start again, for a batch."""
        self._batch, self._count = batch, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """The next seed, uint32 [2]."""
        self._count += 1
        made = tf.random.experimental.stateless_fold_in(self._batch, self._count)
        return tf.bitcast(made, tf.uint32)


def _seeded(layer: keras.layers.Layer, stream: _Stream) -> keras.layers.Layer:
    """Let a layer, and those that it is made of, draw from the stream."""
    for own in layer._flatten_layers():
        own.generator = stream
    return layer


def _layers(config: AugmentationConfig) -> Sequence[keras.layers.Layer]:
    made: list[keras.layers.Layer] = []
    kinds = keras.layers
    pixels = {"value_range": (0, 255)}
    if config.flip:
        mode = "horizontal_and_vertical" if config.flip == "both" else config.flip
        made.append(kinds.RandomFlip(mode))
    if config.rotation:
        made.append(kinds.RandomRotation(config.rotation / 360, fill_mode="reflect"))
    if config.brightness:
        made.append(kinds.RandomBrightness(config.brightness, **pixels))
    if config.contrast:
        made.append(kinds.RandomContrast(config.contrast, **pixels))
    if config.saturation:
        # Keras takes 0.5 for no change.
        half = config.saturation / 2
        made.append(kinds.RandomSaturation((0.5 - half, 0.5 + half), **pixels))
    if config.hue:
        made.append(kinds.RandomHue(config.hue, **pixels))
    if (rand := config.rand_augment) is not None:
        made.append(kinds.RandAugment(num_ops=rand.layers, factor=rand.magnitude, **pixels))
    if config.erasing:
        # With one number Keras erases in half as many pictures, on average.
        made.append(kinds.RandomErasing((config.erasing, config.erasing), **pixels))
    return made


def _mixing(config: AugmentationConfig) -> keras.layers.Layer | None:
    if config.mixup:
        return keras.layers.MixUp(alpha=config.mixup)
    return keras.layers.CutMix(factor=config.cutmix) if config.cutmix else None
