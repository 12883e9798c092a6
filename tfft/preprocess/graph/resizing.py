"""Resize pixels to the size that a backbone reads, as TensorFlow ops.

The cost is bounded by the model's size, whatever shape an image has: of a long, thin one only the
part that the model sees is resized.
"""

from typing import Any

import tensorflow as tf

from tfft.spec import ImageSpec

_MAX_SCALED_RATIO = 4  # scaled pixels / model pixels above which only the visible part is resized
_MAX_INTERMEDIATE_PIXELS = 2**23  # float32 pixels between the two passes of a resize
_KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}  # kernel of the op, radius


def fit(pixels: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """Resize an image as the backbone requires: uint8 [h, w, 3] -> uint8 [H, W, 3].

    `image_spec.resize` says how an image of another shape is fitted.
    """
    height, width = image_spec.size
    if image_spec.resize == "stretch":
        scaled = tf.cast(
            tf.round(tf.constant(image_spec.size, tf.float32) / image_spec.crop_fraction), tf.int32
        )
        return _crop_middle(
            resize(pixels, scaled, image_spec.interpolation), scaled, image_spec.size
        )
    current_size = tf.cast(tf.shape(pixels)[:2], tf.float32)
    factors = tf.constant(image_spec.size, tf.float32) / current_size
    if image_spec.resize == "pad":
        scaled = tf.round(current_size * tf.reduce_min(factors))
        # At least one pixel: the short side of a very long image rounds to zero.
        scaled = tf.clip_by_value(tf.cast(scaled, tf.int32), 1, image_spec.size)
        resized = resize(pixels, scaled, image_spec.interpolation)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        return tf.image.pad_to_bounding_box(resized, top, left, height, width)
    scaled = tf.cast(
        tf.round(current_size * tf.reduce_max(factors) / image_spec.crop_fraction), tf.int32
    )
    # Rounding must not leave fewer pixels than the model reads.
    scaled = tf.maximum(scaled, image_spec.size)
    return tf.cond(
        tf.reduce_prod(tf.cast(scaled, tf.int64)) > _MAX_SCALED_RATIO * height * width,
        lambda: _resize_middle(pixels, scaled, image_spec),
        lambda: _crop_middle(
            resize(pixels, scaled, image_spec.interpolation), scaled, image_spec.size
        ),
    )


def _crop_middle(pixels: tf.Tensor, current_size: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Crop the central H x W of an image of the size `current_size`, uint8 [h, w, 3]."""
    height, width = size
    top, left = (current_size[0] - height) // 2, (current_size[1] - width) // 2
    return tf.ensure_shape(pixels[top : top + height, left : left + width], [height, width, 3])


def _resize_middle(pixels: tf.Tensor, scaled: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """Compute `_crop_middle` of the resized image from the source pixels that it depends on."""
    current_size = tf.cast(tf.shape(pixels)[:2], tf.float64)
    scale = tf.cast(scaled, tf.float64) / current_size
    offset = tf.cast((scaled - image_spec.size) // 2, tf.float64)
    if image_spec.interpolation == "nearest":
        for axis, count in enumerate(image_spec.size):
            # + 0.5: pixel centres, as with `half_pixel_centers` below.
            source_index = (offset[axis] + tf.range(count, dtype=tf.float64) + 0.5) / scale[axis]
            source_index = tf.minimum(tf.cast(source_index, tf.int32), tf.shape(pixels)[axis] - 1)
            pixels = tf.gather(pixels, source_index, axis=axis)
        return tf.ensure_shape(pixels, [*image_spec.size, 3])
    # Antialiasing widens the kernel by 1 / scale where the image shrinks.
    margin = _KERNELS[image_spec.interpolation][1] * tf.maximum(1 / scale, 1.0) + 1
    begin = tf.floor(tf.maximum(offset / scale - margin, 0.0))
    end = tf.math.ceil(tf.minimum((offset + image_spec.size) / scale + margin, current_size))
    (top, left), (bottom, right) = (tf.unstack(tf.cast(x, tf.int32)) for x in (begin, end))
    visible = pixels[top:bottom, left:right]
    resized = _scale_and_shift(
        visible, image_spec.size, scale, begin * scale - offset, image_spec.interpolation
    )
    return tf.ensure_shape(resized, [*image_spec.size, 3])


def resize(pixels: tf.Tensor, size: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Resize uint8 [h, w, 3] -> uint8 [H, W, 3], antialiased and rounded as image libraries do."""
    current_size = tf.shape(pixels)[:2]

    def antialiased() -> tf.Tensor:
        # The op scales the height first. A wide image hardly shrinks in that pass: transpose it.
        # Pixels between the two passes: [height first, width first].
        intermediate = size * current_size[::-1]
        wide = (intermediate[0] > _MAX_INTERMEDIATE_PIXELS) & (intermediate[1] < intermediate[0])
        x, target_size = tf.cond(
            wide, lambda: (_transpose(pixels), size[::-1]), lambda: (pixels, size)
        )
        scale = tf.cast(target_size, tf.float32) / tf.cast(tf.shape(x)[:2], tf.float32)
        resized = _scale_and_shift(x, target_size, scale, tf.zeros([2]), interpolation)
        return tf.cond(wide, lambda: _transpose(resized), lambda: resized)

    def not_antialiased() -> tf.Tensor:
        options = {"images": pixels[None], "size": size, "half_pixel_centers": True}
        if interpolation == "nearest":
            return tf.raw_ops.ResizeNearestNeighbor(**options)[0]
        return _round(tf.raw_ops.ResizeBilinear(**options)[0], interpolation)

    def resize_changed() -> tf.Tensor:
        if interpolation == "bicubic":  # without antialiasing the op uses another kernel
            return antialiased()
        if interpolation == "nearest":
            return not_antialiased()
        # Antialiasing does not change an enlarged image, and costs several times as much.
        shrinks = tf.reduce_any(current_size > size)
        return tf.cond(shrinks, antialiased, not_antialiased)

    resized = tf.cond(tf.reduce_all(current_size == size), lambda: pixels, resize_changed)
    # `cond` loses a static size.
    static_size = tf.get_static_value(size)
    shape = map(int, static_size) if static_size is not None else (None, None)
    return tf.ensure_shape(resized, [*shape, 3])


def _scale_and_shift(
    pixels: tf.Tensor, size: Any, scale: tf.Tensor, shift: tf.Tensor, interpolation: str
) -> tf.Tensor:
    """Scale pixels, then shift them, with antialiasing: uint8 [h, w, 3] -> uint8 [H, W, 3]."""
    resized = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=size,
        scale=tf.cast(scale, tf.float32),
        translation=tf.cast(shift, tf.float32),
        kernel_type=_KERNELS[interpolation][0],
        antialias=True,
    )
    return _round(resized[0], interpolation)


def _round(values: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Round resized pixels, float32, to uint8 as image libraries do."""
    levels = tf.round(values)
    # The weights of the other kernels are not negative, so their results stay within 0 to 255.
    overshoots = interpolation == "bicubic"
    return tf.saturate_cast(levels, tf.uint8) if overshoots else tf.cast(levels, tf.uint8)


def _transpose(pixels: tf.Tensor) -> tf.Tensor:
    return tf.transpose(pixels, [1, 0, 2])
