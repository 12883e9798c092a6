"""Orientation of a JPEG according to its EXIF segment, as TensorFlow ops."""

import tensorflow as tf

NAME = b"Exif\0\0"
_HEADER_BYTES = 1 << 17  # contain a JPEG's EXIF segment, which has at most 64 KiB


def header(data: tf.Tensor) -> tf.Tensor:
    """Return the leading bytes that contain an EXIF segment, strings of any shape."""
    return tf.strings.substr(data, 0, _HEADER_BYTES)


def apply_orientation(pixels: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Rotate and mirror the pixels of a JPEG as its EXIF orientation says.

    Args:
        pixels: uint8 [h, w, 3].
        data: the file, a scalar string.
    """
    orientation = _orientation(data)

    def oriented() -> tf.Tensor:
        # 5 to 8 swap the axes; 2, 3, 6, 7 mirror left to right; 3, 4, 7, 8 top to bottom.
        x = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
        x = tf.cond(mirrored, lambda: tf.reverse(x, [1]), lambda: x)
        flipped = tf.reduce_any(orientation == [3, 4, 7, 8])
        return tf.cond(flipped, lambda: tf.reverse(x, [0]), lambda: x)

    return tf.cond((orientation >= 2) & (orientation <= 8), oriented, lambda: pixels)


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """Return the EXIF orientation of a JPEG, 1 to 8 (EXIF 2.32, 4.6.4 A); 1 if it has none."""
    raw = tf.io.decode_raw(header(data), tf.uint8)
    # The marker (2 bytes), its length (2) and the name (6) take 10 bytes.
    size = tf.maximum(tf.shape(raw)[0] - 9, 0)
    pattern = {0: 0xFF, 1: 0xE1, **dict(enumerate(NAME, 4))}  # APP1, its length, its name
    # Compare at all offsets: a loop from segment to segment takes ten times as long in the graph.
    matches = tf.fill([size], True)
    for offset, byte in pattern.items():
        matches &= raw[offset : offset + size] == tf.constant(byte, tf.uint8)

    def read_orientation() -> tf.Tensor:
        offset = tf.argmax(tf.cast(matches, tf.uint8), output_type=tf.int32)
        return _tiff_orientation(tf.cast(raw[offset + 10 :], tf.int32))  # after the name

    return tf.cond(tf.reduce_any(matches), read_orientation, lambda: tf.constant(1))


def _tiff_orientation(raw: tf.Tensor) -> tf.Tensor:
    """Return entry 0x0112 of the first directory of the TIFF structure in a segment."""
    big_endian = raw[0] == 0x4D  # "MM"; "II" is little-endian
    # Padding keeps reads beyond the end within bounds: offsets in a file can be anything.
    raw = tf.concat([raw, tf.zeros([64], tf.int32)], 0)
    size = tf.shape(raw)[0] - 64

    def number(offset: tf.Tensor, count: int) -> tf.Tensor:
        digits = tf.gather(raw, tf.clip_by_value(offset[..., None] + tf.range(count), 0, size + 63))
        factors = [256**p for p in range(count)]
        return tf.reduce_sum(digits * tf.where(big_endian, factors[::-1], factors), -1)

    # Bytes 4 to 7 hold the offset of the first directory: a count (2 bytes), then entries of 12
    # bytes each: tag (2), type (2), count (4), value (4).
    first = tf.clip_by_value(number(tf.constant(4), 4), 0, size)
    entries = tf.clip_by_value(number(first, 2), 0, 512)
    offset = first + 2 + 12 * tf.range(entries)
    is_orientation = (number(offset, 2) == 0x0112) & (offset + 12 <= size)
    return tf.reduce_max(tf.concat([tf.where(is_orientation, number(offset + 8, 2), 1), [1]], 0))
