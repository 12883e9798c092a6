"""The orientation of a JPEG by its EXIF segment, as TensorFlow ops."""

import tensorflow as tf

NAME = b"Exif\0\0"
_END = 1 << 17  # bytes in which a JPEG's EXIF segment ends; it has 64 KiB at most


def start(data: tf.Tensor) -> tf.Tensor:
    """The bytes in which an EXIF segment is, strings of any shape."""
    return tf.strings.substr(data, 0, _END)


def turned(pixels: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """The pixels of a JPEG as its orientation says that they are to be seen."""
    turn = _orientation(data)

    def upright() -> tf.Tensor:
        x = tf.cond(turn >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        mirrored = tf.reduce_any(turn == [2, 3, 6, 7])
        x = tf.cond(mirrored, lambda: tf.reverse(x, [1]), lambda: x)
        upside = tf.reduce_any(turn == [3, 4, 7, 8])
        return tf.cond(upside, lambda: tf.reverse(x, [0]), lambda: x)

    return tf.cond((turn >= 2) & (turn <= 8), upright, lambda: pixels)


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 to 8 (EXIF 2.32, section 4.6.4 A); 1 where it says none."""
    raw = tf.io.decode_raw(start(data), tf.uint8)
    size = tf.maximum(tf.shape(raw)[0] - 9, 0)
    mark = {0: 0xFF, 1: 0xE1, **dict(enumerate(NAME, 4))}  # APP1, its length, its name
    # All places at once: to go from segment to segment takes ten times as long.
    marked = tf.fill([size], True)
    for at, byte in mark.items():
        marked &= raw[at : at + size] == tf.constant(byte, tf.uint8)

    def orientation() -> tf.Tensor:
        at = tf.argmax(tf.cast(marked, tf.uint8), output_type=tf.int32)
        return _tiff_orientation(tf.cast(raw[at + 10 :], tf.int32))

    return tf.cond(tf.reduce_any(marked), orientation, lambda: tf.constant(1))


def _tiff_orientation(raw: tf.Tensor) -> tf.Tensor:
    """Of the TIFF structure that a segment holds: the entry 0x0112 of its first directory."""
    big = raw[0] == 0x4D
    raw = tf.concat([raw, tf.zeros([64], tf.int32)], 0)
    size = tf.shape(raw)[0] - 64

    def number(at: tf.Tensor, count: int) -> tf.Tensor:
        own = tf.gather(raw, tf.clip_by_value(at[..., None] + tf.range(count), 0, size + 63))
        factors = [256**p for p in range(count)]
        return tf.reduce_sum(own * tf.where(big, factors[::-1], factors), -1)

    first = tf.clip_by_value(number(tf.constant(4), 4), 0, size)
    entries = tf.clip_by_value(number(first, 2), 0, 512)
    at = first + 2 + 12 * tf.range(entries)
    own = (number(at, 2) == 0x0112) & (at + 12 <= size)
    return tf.reduce_max(tf.concat([tf.where(own, number(at + 8, 2), 1), [1]], 0))
