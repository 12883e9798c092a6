"""Pixels to the size that a backbone reads, as TensorFlow ops.

What is computed is bounded by the model's size, whatever shape a picture has: of one that is long
and thin only the part that the model sees is resized.
"""

from typing import Any

import tensorflow as tf

from tfft.spec import ImageSpec

_LONG = 4  # times the pixels that the model sees, above which not all of a picture is resized
_ROOM = 2**23  # pixels of float32 between the two passes of a resize
_KERNELS = {"bilinear": ("triangle", 1), "bicubic": ("keyscubic", 2)}  # and their radius


def fit(pixels: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [H, W, 3], as the backbone wants it."""
    height, width = image_spec.size
    if image_spec.resize == "stretch":
        scaled = tf.cast(
            tf.round(tf.constant(image_spec.size, tf.float32) / image_spec.crop_fraction), tf.int32
        )
        return _middle(resize(pixels, scaled, image_spec.interpolation), scaled, image_spec.size)
    now = tf.cast(tf.shape(pixels)[:2], tf.float32)
    factors = tf.constant(image_spec.size, tf.float32) / now
    if image_spec.resize == "pad":
        scaled = tf.round(now * tf.reduce_min(factors))
        scaled = tf.clip_by_value(tf.cast(scaled, tf.int32), 1, image_spec.size)
        small = resize(pixels, scaled, image_spec.interpolation)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        return tf.image.pad_to_bounding_box(small, top, left, height, width)
    scaled = tf.cast(tf.round(now * tf.reduce_max(factors) / image_spec.crop_fraction), tf.int32)
    scaled = tf.maximum(scaled, image_spec.size)
    return tf.cond(
        tf.reduce_prod(tf.cast(scaled, tf.int64)) > _LONG * height * width,
        lambda: _resized_middle(pixels, scaled, image_spec),
        lambda: _middle(resize(pixels, scaled, image_spec.interpolation), scaled, image_spec.size),
    )


def _middle(pixels: tf.Tensor, now: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """uint8 [h, w, 3] of the size `now` -> the H x W in its middle."""
    (height, width), top, left = size, (now[0] - size[0]) // 2, (now[1] - size[1]) // 2
    return tf.ensure_shape(pixels[top : top + height, left : left + width], [height, width, 3])


def _resized_middle(pixels: tf.Tensor, scaled: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """`_middle` of what `resize` would give, of the pixels that it depends on."""
    now = tf.cast(tf.shape(pixels)[:2], tf.float64)
    scale = tf.cast(scaled, tf.float64) / now
    offset = tf.cast((scaled - image_spec.size) // 2, tf.float64)
    if image_spec.interpolation == "nearest":
        for axis, count in enumerate(image_spec.size):
            at = (offset[axis] + tf.range(count, dtype=tf.float64) + 0.5) / scale[axis]
            at = tf.minimum(tf.cast(at, tf.int32), tf.shape(pixels)[axis] - 1)
            pixels = tf.gather(pixels, at, axis=axis)
        return tf.ensure_shape(pixels, [*image_spec.size, 3])
    reach = _KERNELS[image_spec.interpolation][1] * tf.maximum(1 / scale, 1.0) + 1
    begin = tf.floor(tf.maximum(offset / scale - reach, 0.0))
    end = tf.math.ceil(tf.minimum((offset + image_spec.size) / scale + reach, now))
    (top, left), (bottom, right) = (tf.unstack(tf.cast(x, tf.int32)) for x in (begin, end))
    part = pixels[top:bottom, left:right]
    resized = _sampled(
        part, image_spec.size, scale, begin * scale - offset, image_spec.interpolation
    )
    return tf.ensure_shape(resized, [*image_spec.size, 3])


def resize(pixels: tf.Tensor, size: tf.Tensor, interpolation: str) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [H, W, 3]; with antialiasing, rounded as image libraries do."""
    now = tf.shape(pixels)[:2]

    def smooth() -> tf.Tensor:
        # It is resized from top to bottom first: of a wide one little would be gone after that.
        between = size * now[::-1]
        wide = (between[0] > _ROOM) & (between[1] < between[0])
        x, to = tf.cond(wide, lambda: (_transposed(pixels), size[::-1]), lambda: (pixels, size))
        scale = tf.cast(to, tf.float32) / tf.cast(tf.shape(x)[:2], tf.float32)
        resized = _sampled(x, to, scale, tf.zeros([2]), interpolation)
        return tf.cond(wide, lambda: _transposed(resized), lambda: resized)

    def sharp() -> tf.Tensor:
        options = {"images": pixels[None], "size": size, "half_pixel_centers": True}
        if interpolation == "nearest":
            return tf.raw_ops.ResizeNearestNeighbor(**options)[0]
        return _rounded(tf.raw_ops.ResizeBilinear(**options)[0], interpolation)

    def changed() -> tf.Tensor:
        if interpolation == "bicubic":  # without antialiasing it is another curve
            return smooth()
        # What gets larger is the same either way, and several times as fast without.
        smaller = tf.reduce_any(now > size)
        return sharp() if interpolation == "nearest" else tf.cond(smaller, smooth, sharp)

    resized = tf.cond(tf.reduce_all(now == size), lambda: pixels, changed)
    static = tf.get_static_value(size)
    shape = map(int, static) if static is not None else (None, None)
    return tf.ensure_shape(resized, [*shape, 3])


def _sampled(
    pixels: tf.Tensor, size: Any, scale: tf.Tensor, shift: tf.Tensor, interpolation: str
) -> tf.Tensor:
    """Pixels scaled, then shifted, with antialiasing: uint8 [h, w, 3] -> uint8 [H, W, 3]."""
    resized = tf.raw_ops.ScaleAndTranslate(
        images=pixels[None],
        size=size,
        scale=tf.cast(scale, tf.float32),
        translation=tf.cast(shift, tf.float32),
        kernel_type=_KERNELS[interpolation][0],
        antialias=True,
    )
    return _rounded(resized[0], interpolation)


def _rounded(values: tf.Tensor, interpolation: str) -> tf.Tensor:
    """Resized pixels, float32, as uint8: rounded as image libraries do."""
    levels = tf.round(values)
    # The other curves are means of pixels, which no rounding takes out of their range.
    beyond = interpolation == "bicubic"
    return tf.saturate_cast(levels, tf.uint8) if beyond else tf.cast(levels, tf.uint8)


def _transposed(pixels: tf.Tensor) -> tf.Tensor:
    return tf.transpose(pixels, [1, 0, 2])
