"""Augment training images with Keras' own layers where it has them.

All randomness in a batch derives from its seed, so that a resumed run draws what an uninterrupted
run draws. For that the layers take their seeds from a stream that restarts with each batch, in
place of a state that the number of earlier calls would change.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfft.config import AugmentationConfig
from tfft.config.augmentation import Crop
from tfft.preprocess.graph import image_ops
from tfft.spec import ImageSpec
from tfft.utils import keras_internals


class Augmentation:
    """Random changes of encoded images, or of pixels at the model's size, as TensorFlow ops.

    Args:
        config: the changes and their strength.
        image_spec: size of the result.
        classes: C, the number of classes, for labels that MixUp or CutMix mixes.
        seed: of the run.
    """

    def __init__(self, config: AugmentationConfig, image_spec: ImageSpec, classes: int, seed: int):
        self._config, self._image_spec, self._classes = config, image_spec, classes
        self._seeds = _SeedStream(seed)
        self._layers = [_with_seeds(layer, self._seeds) for layer in _build_layers(config)]
        mixing = _build_mixing(config)
        self._mixing = _with_seeds(mixing, self._seeds) if mixing is not None else None

    def __call__(
        self, image: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the changed images, float32 [B, H, W, 3] from 0 to 255, and their targets.

        Args:
            image: encoded images, strings [B], or pixels, uint8 [B, H, W, 3].
            targets: class ids [B], or probabilities [B, C].
            seed: int32 [2]: the number of the batch, and the replica.
        """
        # The seed derives from the run, the batch and the replica, and from no earlier batch.
        draw, replica = tf.unstack(seed)
        seed = tf.random.experimental.stateless_fold_in([self._seeds.run, 0], draw)
        seed = tf.cast(tf.random.experimental.stateless_fold_in(seed, replica), tf.int32)
        pixels = tf.cast(self._read(image, seed), tf.float32)
        self._seeds.start_batch(seed)
        for layer in self._layers:
            transformation = layer.get_random_transformation(pixels, training=True)
            pixels = layer.transform_images(pixels, transformation, training=True)
        if self._mixing is not None:
            if targets.shape.rank == 1:
                # Mixed labels are probabilities.
                targets = tf.one_hot(tf.cast(targets, tf.int32), self._classes)
            transformation = self._mixing.get_random_transformation(
                {"images": pixels, "labels": targets}, training=True
            )
            if "batch_masks" in transformation:
                # Keras weighs the labels by the box that it drew, but the edges of the box that it
                # pastes are rounded: weigh them by the latter.
                uncovered = 1.0 - tf.cast(transformation["batch_masks"][..., 0], tf.float32)
                transformation["mix_weight"] = tf.reduce_mean(uncovered, axis=(1, 2))
            pixels = self._mixing.transform_images(pixels, transformation, training=True)
            targets = self._mixing.transform_labels(targets, transformation, training=True)
        pixels = tf.ensure_shape(pixels, [None, *self._image_spec.size, 3])
        return tf.clip_by_value(pixels, 0.0, 255.0), targets

    def _read(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Decode the images if encoded, and crop them if configured; uint8 [B, H, W, 3]."""
        crop, image_spec = self._config.crop, self._image_spec
        if crop is None:
            return image_ops.reader(image_spec)(image) if image.dtype == tf.string else image

        def read_image(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            data, index = element
            decoded = image_ops.decode(data) if data.dtype == tf.string else data
            image_seed = tf.random.experimental.stateless_fold_in(seed, index)
            return random_resized_crop(decoded, crop, image_spec, image_seed)

        spec = tf.TensorSpec([*image_spec.size, 3], tf.uint8)
        return tf.map_fn(
            read_image, (image, tf.range(tf.shape(image)[0])), fn_output_signature=spec
        )


def random_resized_crop(
    pixels: tf.Tensor, crop: Crop, image_spec: ImageSpec, seed: tf.Tensor
) -> tf.Tensor:
    """Crop a random part of an image and resize it.

    Args:
        pixels: uint8 [h, w, 3].
        crop: the range of the part's area, as a share of the image, and of its aspect ratio.
        image_spec: size [H, W] of the result, and the interpolation.
        seed: int32 [2].

    Returns:
        uint8 [H, W, 3].
    """
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


class _SeedStream(keras.random.SeedGenerator):
    """Seed generator for Keras layers: each `next` while tracing is the next seed of the batch.

    Which seed a layer gets is fixed by the order in which the graph is traced, not by a variable.
    """

    def __init__(self, run: int):
        super().__init__(seed=run)
        self.run = run
        self._batch_seed: Any = None
        self._count = 0

    def start_batch(self, seed: tf.Tensor) -> None:
        """Restart the stream from the seed of a batch, int32 [2]."""
        self._batch_seed, self._count = seed, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Return the next seed, uint32 [2]; `ordered` is part of Keras' interface and unused."""
        self._count += 1
        seed = tf.random.experimental.stateless_fold_in(self._batch_seed, self._count)
        return tf.bitcast(seed, tf.uint32)


def _with_seeds(layer: keras.layers.Layer, stream: _SeedStream) -> keras.layers.Layer:
    """Make a layer, and the layers that it consists of, draw from the stream."""
    for sublayer in keras_internals.flat_layers(layer):
        # Keras' image layers draw from the seed generator in their attribute `generator`.
        sublayer.generator = stream
    return layer


def _build_layers(config: AugmentationConfig) -> Sequence[keras.layers.Layer]:
    layers: list[keras.layers.Layer] = []
    keras_layers = keras.layers
    value_range = {"value_range": (0, 255)}
    if config.flip:
        mode = "horizontal_and_vertical" if config.flip == "both" else config.flip
        layers.append(keras_layers.RandomFlip(mode))
    if config.rotation:
        # RandomRotation takes a share of a full turn; the config has degrees.
        layers.append(keras_layers.RandomRotation(config.rotation / 360, fill_mode="reflect"))
    if config.brightness:
        layers.append(keras_layers.RandomBrightness(config.brightness, **value_range))
    if config.contrast:
        layers.append(keras_layers.RandomContrast(config.contrast, **value_range))
    if config.saturation:
        # In Keras a factor of 0.5 leaves the saturation unchanged.
        delta = config.saturation / 2
        layers.append(keras_layers.RandomSaturation((0.5 - delta, 0.5 + delta), **value_range))
    if config.hue:
        layers.append(keras_layers.RandomHue(config.hue, **value_range))
    if (rand := config.rand_augment) is not None:
        layers.append(
            keras_layers.RandAugment(num_ops=rand.layers, factor=rand.magnitude, **value_range)
        )
    if config.erasing:
        # A single number would be the upper end of a range: on average half as many images erased.
        layers.append(keras_layers.RandomErasing((config.erasing, config.erasing), **value_range))
    return layers


def _build_mixing(config: AugmentationConfig) -> keras.layers.Layer | None:
    if config.mixup:
        return keras.layers.MixUp(alpha=config.mixup)
    return keras.layers.CutMix(factor=config.cutmix) if config.cutmix else None
