"""Encoded pictures to pixels, as TensorFlow ops: training and serving read by one function.

JPEG (turned as its EXIF says), PNG, WebP, BMP, and the first frame of a GIF; grey and palettes
become RGB, what is transparent is laid on white.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfft.spec import Picture

MAX_PIXELS = 100_000_000  # of one picture: a file of a few bytes can claim any size
_HEAD = 32  # bytes that hold the size in all formats but JPEG
_EXIF = 1 << 17  # bytes in which a JPEG's EXIF segment ends; it has 64 KiB at most
_EXIF_NAME = b"Exif\0\0"
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP")
SIZE = "its size is not between"
NOT_A_PICTURE = f"not a picture of a known kind ({', '.join(FORMATS)})"


def reader(picture: Picture) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function: encoded pictures, strings [B] -> uint8 [B, H, W, 3]."""
    spec = tf.TensorSpec([*picture.size, 3], tf.uint8)

    def each(one: Callable[[tf.Tensor], tf.Tensor], data: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda d: fit(one(d), picture), data, fn_output_signature=spec)

    def read(data: tf.Tensor) -> tf.Tensor:
        # To ask each picture for its kind takes as long as to decode a small one: the commonest
        # batches are asked at once.
        upright = tf.reduce_all(_kind(_head(data)) == 0) & ~_has_exif(data)
        return tf.cond(upright, lambda: each(_upright_jpeg, data), lambda: each(decode, data))

    return read


def decode(data: tf.Tensor) -> tf.Tensor:
    """One encoded picture, a scalar string -> uint8 [h, w, 3].

    Raises:
        tf.errors.InvalidArgumentError: it is of no known kind, broken, or has more than
            `MAX_PIXELS`.
    """
    kind = _kind(_head(data))
    known = tf.debugging.Assert(kind < len(FORMATS), [NOT_A_PICTURE])
    with tf.control_dependencies([known]):
        found = tf.switch_case(kind, [lambda one=one: one(data) for one in _DECODERS])
    return tf.ensure_shape(found, [None, None, 3])


def fit(pixels: tf.Tensor, picture: Picture) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [H, W, 3], as the backbone wants it."""
    height, width = picture.size
    if picture.resize == "stretch":
        scaled = tf.cast(tf.round(tf.constant(picture.size, tf.float32) / picture.keep), tf.int32)
        return _middle(resize(pixels, scaled, picture.interpolation), scaled, picture.size)
    now = tf.cast(tf.shape(pixels)[:2], tf.float32)
    factors = tf.constant(picture.size, tf.float32) / now
    if picture.resize == "pad":
        scaled = tf.round(now * tf.reduce_min(factors))
        scaled = tf.clip_by_value(tf.cast(scaled, tf.int32), 1, picture.size)
        small = resize(pixels, scaled, picture.interpolation)
        top, left = (height - scaled[0]) // 2, (width - scaled[1]) // 2
        return tf.image.pad_to_bounding_box(small, top, left, height, width)
    scaled = tf.cast(tf.round(now * tf.reduce_max(factors) / picture.keep), tf.int32)
    scaled = tf.maximum(scaled, picture.size)
    return _middle(resize(pixels, scaled, picture.interpolation), scaled, picture.size)


def _middle(pixels: tf.Tensor, now: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """uint8 [h, w, 3] of the size `now` -> the H x W in its middle."""
    (height, width), top, left = size, (now[0] - size[0]) // 2, (now[1] - size[1]) // 2
    return tf.ensure_shape(pixels[top : top + height, left : left + width], [height, width, 3])


def resize(pixels: tf.Tensor, size: tf.Tensor, interpolation: str) -> tf.Tensor:
    """uint8 [h, w, 3] -> uint8 [H, W, 3]; with antialiasing, rounded as image libraries do."""
    now = tf.shape(pixels)[:2]

    def resized(antialias: bool) -> tf.Tensor:
        made = tf.image.resize(pixels, size, interpolation, antialias=antialias)
        made = tf.round(tf.cast(made, tf.float32))
        # The other curves are means of pixels, which no rounding takes out of their range.
        beyond = interpolation == "bicubic"
        return tf.saturate_cast(made, tf.uint8) if beyond else tf.cast(made, tf.uint8)

    def changed() -> tf.Tensor:
        if interpolation == "bicubic":  # without antialiasing it is another curve
            return resized(True)
        # What gets larger is the same either way, and several times as fast without.
        smaller = tf.reduce_any(now > size) & (interpolation == "bilinear")
        return tf.cond(smaller, lambda: resized(True), lambda: resized(False))

    made = tf.cond(tf.reduce_all(now == size), lambda: pixels, changed)
    static = tf.get_static_value(size)
    return tf.ensure_shape(made, [*(map(int, static) if static is not None else (None, None)), 3])


def reason(error: tf.errors.InvalidArgumentError) -> str:
    """What `decode` found wrong, in a few words."""
    if NOT_A_PICTURE in error.message:
        return NOT_A_PICTURE
    if SIZE in error.message:
        return f"{SIZE} 1 and {MAX_PIXELS:,} pixels"
    if "WebP Animation" in error.message:
        return "an animated WebP without transparency, which TensorFlow does not decode"
    return "broken, cut off, or of a kind that TensorFlow does not decode"


def grey_bits(pixels: tf.Tensor) -> tf.Tensor:
    """The difference hash of a picture, bool [64]: like pictures differ in few bits.

    Whether each of 8 x 9 grey fields is darker than the one to its right (N. Krawetz, "Kind of Like
    That", 2013).
    """
    grey = tf.reduce_mean(tf.cast(pixels, tf.float32), axis=-1, keepdims=True)
    small = tf.image.resize(grey, [8, 9], "area")[..., 0]
    return tf.reshape(small[:, :-1] < small[:, 1:], [64])


def tiny(pixels: tf.Tensor) -> tf.Tensor:
    """The mean colours of 8 x 8 fields, uint8 [8, 8, 3]."""
    small = tf.image.resize(tf.cast(pixels, tf.float32), [8, 8], "area")
    return tf.saturate_cast(tf.round(small), tf.uint8)


def _of_size(size: tf.Tensor) -> Any:
    """Where what follows is done only if a picture's height and width may be decoded."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    small = tf.debugging.Assert((pixels > 0) & (pixels <= MAX_PIXELS), [SIZE, size])
    return tf.control_dependencies([small])


def _head(data: tf.Tensor) -> tf.Tensor:
    """The first bytes, strings of any shape, filled up with zeros."""
    return tf.strings.substr(tf.strings.substr(data, 0, _HEAD) + b"\0" * _HEAD, 0, _HEAD)


def _kind(head: tf.Tensor) -> tf.Tensor:
    """Indices into FORMATS, int32 of the shape of `head`; their number where there is none.

    The decoders look at the rest.
    """
    starts = [b"\xff\xd8", b"\x89P", b"GI", b"BM", b"RI"]
    found = tf.cast(tf.strings.substr(head, 0, 2)[..., None] == starts, tf.uint8)
    unknown = tf.ones_like(found[..., :1])
    return tf.argmax(tf.concat([found, unknown], -1), -1, output_type=tf.int32)


def _number(head: tf.Tensor, at: int, count: int, big: bool = False) -> tf.Tensor:
    """`count` bytes as an integer, int32."""
    raw = tf.cast(tf.io.decode_raw(tf.strings.substr(head, at, count), tf.uint8), tf.int32)
    powers = range(count)
    factors = tf.constant([256**p for p in (reversed(powers) if big else powers)], tf.int32)
    return tf.reduce_sum(raw * factors)


def _png_size(head: tf.Tensor) -> tf.Tensor:
    return tf.stack([_number(head, 20, 4, big=True), _number(head, 16, 4, big=True)])


def _gif_size(head: tf.Tensor) -> tf.Tensor:
    return tf.stack([_number(head, 8, 2), _number(head, 6, 2)])


def _bmp_size(head: tf.Tensor) -> tf.Tensor:
    return tf.abs(tf.stack([_number(head, 22, 4), _number(head, 18, 4)]))


def _webp_size(head: tf.Tensor) -> tf.Tensor:
    """The three kinds of WebP keep it in three places (RFC 9649, section 2.5 to 2.7)."""
    kind = tf.strings.substr(head, 12, 4)
    packed = _number(head, 21, 4)
    lossless = tf.stack([(packed // 2**14) % 2**14 + 1, packed % 2**14 + 1])
    lossy = tf.stack([_number(head, 28, 2) % 2**14, _number(head, 26, 2) % 2**14])
    extended = tf.stack([_number(head, 27, 3) + 1, _number(head, 24, 3) + 1])
    return tf.where(kind == b"VP8L", lossless, tf.where(kind == b"VP8X", extended, lossy))


def _on_white(pixels: tf.Tensor) -> tf.Tensor:
    """RGB or RGBA [h, w, 3 or 4] -> RGB, what is transparent laid on white."""
    colour = pixels[..., :3]

    def laid() -> tf.Tensor:
        alpha = tf.cast(pixels[..., 3:], tf.float32) / 255.0
        mixed = tf.cast(colour, tf.float32) * alpha + 255.0 * (1.0 - alpha)
        return tf.cast(tf.round(mixed), tf.uint8)

    clear = tf.reduce_any(pixels[..., 3:] < 255)
    return tf.cond(clear, laid, lambda: colour)


def _png(data: tf.Tensor) -> tf.Tensor:
    head = _head(data)
    with _of_size(_png_size(head)):
        pixels = tf.io.decode_png(data, channels=4)
    # Where a colour has fewer than 8 bits, TensorFlow's op fills the opacity that the file does not
    # give up to 2^bits - 1, not to 255.
    depth = _number(head, 24, 1)
    filled = tf.cast(2 ** tf.minimum(depth, 8) - 1, tf.uint8)
    unsaid = tf.reduce_all(pixels[..., 3] == filled)
    return tf.cond(unsaid, lambda: pixels[..., :3], lambda: _on_white(pixels))


def _webp(data: tf.Tensor) -> tf.Tensor:
    """The first frame. The op is told what the file holds: left to find out, it writes beyond its
    buffer for an animation without opacity, which it refuses when told (TensorFlow 2.21)."""
    head = _head(data)
    lossless = tf.strings.substr(head, 12, 4) == b"VP8L"
    extended = tf.strings.substr(head, 12, 4) == b"VP8X"
    clear = lossless & (_number(head, 24, 1) // 16 % 2 == 1)
    clear |= extended & (_number(head, 20, 1) // 16 % 2 == 1)
    with _of_size(_webp_size(head)):
        return tf.cond(
            clear,
            lambda: _on_white(tf.io.decode_webp(data, channels=4)[0]),
            lambda: tf.io.decode_webp(data, channels=3)[0],
        )


def _gif(data: tf.Tensor) -> tf.Tensor:
    with _of_size(_gif_size(_head(data))):
        return tf.io.decode_gif(data)[0]


def _bmp(data: tf.Tensor) -> tf.Tensor:
    """A BMP of one byte a pixel holds indices into its palette, which TensorFlow does not look up.

    The fourth byte of four is not opacity in the common kind, and is dropped.
    """
    head = tf.strings.substr(data, 0, 54)
    with _of_size(_bmp_size(head)):
        pixels = tf.io.decode_bmp(data)

    def looked_up() -> tf.Tensor:
        given = _number(head, 46, 4)
        count = tf.where(given == 0, 256, tf.minimum(given, 256))
        raw = tf.strings.substr(data, 14 + _number(head, 14, 4), 4 * count)
        palette = tf.gather(tf.reshape(tf.io.decode_raw(raw, tf.uint8), [-1, 4]), [2, 1, 0], axis=1)
        return tf.gather(palette, tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(tf.shape(pixels)[-1] == 1, looked_up, lambda: pixels[..., :3])


def _upright_jpeg(data: tf.Tensor) -> tf.Tensor:
    """A JPEG as it lies in the file."""
    with _of_size(tf.io.extract_jpeg_shape(data)[:2]):
        # The exact inverse transform: the default is faster by little and off by a few levels.
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _jpeg(data: tf.Tensor) -> tf.Tensor:
    pixels = _upright_jpeg(data)
    return tf.cond(_has_exif(data), lambda: _turned(pixels, _orientation(data)), lambda: pixels)


def _has_exif(data: tf.Tensor) -> tf.Tensor:
    """Whether there may be an EXIF segment in some of the files, strings of any shape."""
    start = tf.reshape(tf.strings.substr(data, 0, _EXIF), [-1])
    parts = tf.raw_ops.StringSplitV2(input=start, sep=_EXIF_NAME, maxsplit=1).values
    return tf.size(parts) > tf.size(start)


def _turned(pixels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """A picture as its EXIF orientation says that it is to be seen."""

    def turned() -> tf.Tensor:
        x = tf.cond(turn >= 5, lambda: tf.transpose(pixels, [1, 0, 2]), lambda: pixels)
        mirrored = tf.reduce_any(turn == [2, 3, 6, 7])
        x = tf.cond(mirrored, lambda: tf.reverse(x, [1]), lambda: x)
        upside = tf.reduce_any(turn == [3, 4, 7, 8])
        return tf.cond(upside, lambda: tf.reverse(x, [0]), lambda: x)

    return tf.cond((turn >= 2) & (turn <= 8), turned, lambda: pixels)


def _orientation(data: tf.Tensor) -> tf.Tensor:
    """The EXIF orientation of a JPEG, 1 to 8 (EXIF 2.32, section 4.6.4 A); 1 where it says none."""
    raw = tf.io.decode_raw(tf.strings.substr(data, 0, _EXIF), tf.uint8)
    size = tf.maximum(tf.shape(raw)[0] - 9, 0)
    mark = {0: 0xFF, 1: 0xE1, **dict(enumerate(_EXIF_NAME, 4))}  # APP1, its length, its name
    # All places at once: to go from segment to segment takes ten times as long.
    found = tf.fill([size], True)
    for at, byte in mark.items():
        found &= raw[at : at + size] == tf.constant(byte, tf.uint8)

    def orientation() -> tf.Tensor:
        at = tf.argmax(tf.cast(found, tf.uint8), output_type=tf.int32)
        return _tiff_orientation(tf.cast(raw[at + 10 :], tf.int32))

    return tf.cond(tf.reduce_any(found), orientation, lambda: tf.constant(1))


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
    found = (number(at, 2) == 0x0112) & (at + 12 <= size)
    return tf.reduce_max(tf.concat([tf.where(found, number(at + 8, 2), 1), [1]], 0))


_DECODERS = (_jpeg, _png, _gif, _bmp, _webp)  # as FORMATS
