"""Encoded pictures to pixels, as TensorFlow ops: training and serving read by one function.

JPEG (turned as its EXIF says), PNG, BMP, and the first frame of a GIF or WebP; grey and palettes
become RGB, what is transparent is laid on white.

A file of a few bytes can claim any size and any number of frames. What a picture takes is bounded:
its size is checked before it is decoded, other frames than the first are cut off, no copy of all
its pixels has more than a byte for each colour, and of one that is long and thin only the part that
the model sees is resized.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from tfft.preprocess.graph import exif
from tfft.preprocess.graph.resizing import fit, resize
from tfft.spec import ImageSpec

__all__ = ["decode", "fit", "grey_bits", "reader", "reason", "resize", "tiny", "tolerant_reader"]

# Of one picture. Each takes 11 bytes at most (progressive JPEG of 4 colours). Cameras of telephones
# write JPEGs of up to 64 million.
MAX_PIXELS = {"JPEG": 2**26, "PNG": 2**25, "GIF": 2**25, "BMP": 2**25, "WebP": 2**25}
FORMATS = tuple(MAX_PIXELS)
MAX_SIDE = 2**16 - 1  # the most that JPEG and GIF can say
_STRIP = 2**20  # pixels that are blended at once
_BLOCKS = 4096  # steps over the blocks of a GIF, each over a run of blocks of one length
_CHUNKS = 64  # chunks of a WebP, or extensions of a GIF, before the first frame
_AT_ONCE = 4  # pictures that are decoded at once in a batch that has a bad one
_HEAD = 32  # bytes that hold the size in all formats but JPEG
OK = "ok"
EMPTY = "an empty file"
NOT_A_PICTURE = f"not a picture of a known kind ({', '.join(FORMATS)})"
SIZE = (
    f"its size is not between 1 and {MAX_PIXELS['PNG']:,} pixels (JPEG: {MAX_PIXELS['JPEG']:,}), "
    f"at most {MAX_SIDE:,} to a side"
)
_Read = Callable[[tf.Tensor], tf.Tensor]
# Traced once, however many batches, models and signatures read pictures.
_of_one = tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
BROKEN = "broken, cut off, or of a kind that TensorFlow does not decode"


def reader(image_spec: ImageSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function: encoded pictures, strings [B] -> uint8 [B, H, W, 3].

    It raises what `decode` raises.
    """
    functions = _functions(image_spec)
    return lambda data: _by_kind(data, functions, lambda one: _each(one, data, image_spec))


def tolerant_reader(image_spec: ImageSpec) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A function: encoded pictures, strings [B] -> uint8 [B, H, W, 3] and a status, string [B].

    It does not raise: a status is `OK` or why a picture could not be decoded, which is zeros then.
    """
    functions = _functions(image_spec)

    def read(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = _by_kind(data, functions, lambda one: _all_or_none(one, data, image_spec))
        return tf.cond(
            tf.shape(pixels)[0] == tf.shape(data)[0],
            lambda: (pixels, tf.fill(tf.shape(data), OK)),
            lambda: _one_by_one(functions[1], data, image_spec),
        )

    return read


@cache
def _functions(image_spec: ImageSpec) -> tuple[_Read, _Read]:
    """What reads an upright JPEG, and what reads any picture: string -> uint8 [H, W, 3].

    Each is traced once, whatever calls it.
    """
    pixels = tf.TensorSpec([None, None, 3], tf.uint8)
    fitted = tf.function(lambda x: fit(x, image_spec), [pixels], autograph=False)

    def function(decoder: _Read) -> _Read:
        spec = [tf.TensorSpec([], tf.string)]
        return tf.function(lambda data: fitted(decoder(data)), spec, autograph=False)

    return function(_upright_jpeg), function(decode)


def _by_kind(
    data: tf.Tensor, functions: tuple[_Read, _Read], run: Callable[[_Read], tf.Tensor]
) -> tf.Tensor:
    """What `run` returns for the function that reads all of these pictures."""
    # To ask each picture for its kind takes as long as to decode a small one: the commonest
    # batches are asked at once.
    upright = tf.reduce_all(_kind(_head(data)) == 0) & ~_contains(exif.start(data), exif.NAME)
    return tf.cond(upright, lambda: run(functions[0]), lambda: run(functions[1]))


def _each(read: _Read, data: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    spec = tf.TensorSpec([*image_spec.size, 3], tf.uint8)
    return tf.map_fn(read, data, fn_output_signature=spec)


def _all_or_none(read: _Read, data: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """uint8 [B, H, W, 3]; no row where reading one of them raises.

    A dataset is the only place of a graph in which an error can be ignored. One element for all
    rows takes a millisecond; one for each row would take as long as decoding a small picture.
    """
    none = tf.data.Dataset.from_tensors(tf.zeros([0, *image_spec.size, 3], tf.uint8))
    every = _plain(lambda rows: _each(read, rows, image_spec))
    read_rows = tf.data.Dataset.from_tensors(data).map(every).ignore_errors()
    return _single(read_rows.concatenate(none).take(1))


def _one_by_one(read: _Read, data: tf.Tensor, image_spec: ImageSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """As `tolerant_reader`, for rows of which some are bad."""
    good, pixels = _attempt(read, data, tf.TensorSpec([*image_spec.size, 3], tf.uint8))
    header, allowed = _attempt(_claims_allowed, data, tf.TensorSpec([], tf.bool))
    status = tf.fill(tf.shape(data), BROKEN)
    status = tf.where(header & ~allowed, SIZE, status)
    status = tf.where(_kind(_head(data)) == len(FORMATS), NOT_A_PICTURE, status)
    status = tf.where(tf.strings.length(data) == 0, EMPTY, status)
    return pixels, tf.where(good, OK, status)


def _attempt(function: _Read, data: tf.Tensor, spec: tf.TensorSpec) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether a function did not raise, bool [B], and what it returned, zeros where it raised."""
    rows = tf.shape(data)[0]
    read = _plain(lambda at, one: (at, function(one)))
    numbered = tf.data.Dataset.from_tensor_slices((tf.range(rows), data))
    results = numbered.map(read, num_parallel_calls=_AT_ONCE, deterministic=True).ignore_errors()
    last = tf.data.Dataset.from_tensors((rows, tf.zeros(spec.shape, spec.dtype)))
    at, values = _single(results.concatenate(last).batch(tf.cast(rows, tf.int64) + 1))
    count = tf.shape(at)[0] - 1
    places = tf.fill([rows], count)  # of the rows that raised: that of the zeros
    places = tf.tensor_scatter_nd_update(places, at[:-1, None], tf.range(count))
    return places < count, tf.gather(values, places)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.autograph.experimental.do_not_convert(function)


def _single(dataset: tf.data.Dataset) -> Any:
    """The only element of a dataset. To optimise it takes longer than it does."""
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options).get_single_element()


@_of_one
def decode(data: tf.Tensor) -> tf.Tensor:
    """One encoded picture, a scalar string -> uint8 [h, w, 3].

    Raises:
        tf.errors.InvalidArgumentError: it is of no known kind, broken, or larger than
            `MAX_PIXELS` of its kind or `MAX_SIDE`.
    """
    kind = _kind(_head(data))
    known = tf.debugging.Assert(kind < len(FORMATS), [NOT_A_PICTURE])
    with tf.control_dependencies([known]):
        pixels = tf.switch_case(kind, [lambda one=one: one(data) for one in _DECODERS])
    return tf.ensure_shape(pixels, [None, None, 3])


def reason(error: tf.errors.InvalidArgumentError) -> str:
    """Why `decode` refused a picture, in a few words."""
    return next((why for why in (NOT_A_PICTURE, SIZE) if why in error.message), BROKEN)


def grey_bits(pixels: tf.Tensor) -> tf.Tensor:
    """The difference hash of a picture, bool [64]: like pictures differ in few bits.

    Whether each of 8 x 9 grey fields is darker than the one to its right (N. Krawetz, "Kind of Like
    That", 2013).
    """
    small = tf.reduce_mean(tf.image.resize(pixels, [8, 9], "area"), axis=-1)
    return tf.reshape(small[:, :-1] < small[:, 1:], [64])


def tiny(pixels: tf.Tensor) -> tf.Tensor:
    """The mean colours of 8 x 8 fields, uint8 [8, 8, 3]."""
    small = tf.image.resize(pixels, [8, 8], "area")
    return tf.saturate_cast(tf.round(small), tf.uint8)


def _allowed(size: tf.Tensor, most: Any) -> tf.Tensor:
    """Whether a picture of this height and width, and so many pixels at most, is decoded."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    return tf.reduce_all((size > 0) & (size <= MAX_SIDE)) & (pixels <= most)


def _of_size(size: tf.Tensor, kind: str) -> Any:
    """Where what follows is done only if a picture's height and width may be decoded."""
    allowed = _allowed(size, MAX_PIXELS[kind])
    return tf.control_dependencies([tf.debugging.Assert(allowed, [SIZE, size])])


def _claims_allowed(data: tf.Tensor) -> tf.Tensor:
    """Whether an encoded picture of a known kind claims a size that is decoded."""
    most = tf.constant(list(MAX_PIXELS.values()), tf.int64)
    return _allowed(_size(data), most[_kind(_head(data))])


@_of_one
def _size(data: tf.Tensor) -> tf.Tensor:
    """Height and width that an encoded picture of a known kind claims, int32 [2]."""
    return tf.switch_case(_kind(_head(data)), [lambda size=size: size(data) for size in _SIZES])


def _head(data: tf.Tensor) -> tf.Tensor:
    """The first bytes, strings of any shape, filled up with zeros."""
    return tf.strings.substr(tf.strings.substr(data, 0, _HEAD) + b"\0" * _HEAD, 0, _HEAD)


def _kind(head: tf.Tensor) -> tf.Tensor:
    """Indices into FORMATS, int32 of the shape of `head`; their number where there is none.

    The decoders look at the rest.
    """
    starts = [b"\xff\xd8", b"\x89P", b"GI", b"BM", b"RI"]
    matches = tf.cast(tf.strings.substr(head, 0, 2)[..., None] == starts, tf.uint8)
    unknown = tf.ones_like(matches[..., :1])
    return tf.argmax(tf.concat([matches, unknown], -1), -1, output_type=tf.int32)


def _number(data: tf.Tensor, at: Any, count: int, big: bool = False) -> tf.Tensor:
    """`count` bytes as an integer, int32; zeros follow the end."""
    part = tf.strings.substr(_part(data, at, count) + b"\0" * count, 0, count)
    raw = tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int32)
    powers = range(count)
    factors = tf.constant([256**p for p in (reversed(powers) if big else powers)], tf.int32)
    return tf.reduce_sum(raw * factors)


def _part(data: tf.Tensor, at: Any, count: Any) -> tf.Tensor:
    """Up to `count` bytes; none after the end, where the op would put the file in its message."""
    return tf.strings.substr(data, tf.clip_by_value(at, 0, tf.strings.length(data)), count)


def _contains(data: tf.Tensor, word: bytes) -> tf.Tensor:
    """Whether a word is in some of the strings, of any shape."""
    flat = tf.reshape(data, [-1])
    parts = tf.raw_ops.StringSplitV2(input=flat, sep=word, maxsplit=1).values
    return tf.size(parts) > tf.size(flat)


def _jpeg_size(data: tf.Tensor) -> tf.Tensor:
    return tf.io.extract_jpeg_shape(data)[:2]


def _png_size(data: tf.Tensor) -> tf.Tensor:
    return tf.stack([_number(data, 20, 4, big=True), _number(data, 16, 4, big=True)])


def _gif_size(data: tf.Tensor) -> tf.Tensor:
    """Of the screen or the first frame, whichever is more: either may be the larger one."""
    at = _gif_frame(tf.io.decode_raw(data, tf.uint8))
    screen = tf.stack([_number(data, 8, 2), _number(data, 6, 2)])
    return tf.maximum(screen, tf.stack([_number(data, at + 7, 2), _number(data, at + 5, 2)]))


def _bmp_size(data: tf.Tensor) -> tf.Tensor:
    return tf.abs(tf.stack([_number(data, 22, 4), _number(data, 18, 4)]))


def _webp_size(data: tf.Tensor) -> tf.Tensor:
    return _still_size(_head(_webp_frame(data)))


def _still_size(head: tf.Tensor) -> tf.Tensor:
    """The three kinds of WebP keep it in three places (RFC 9649, section 2.5 to 2.7)."""
    kind = tf.strings.substr(head, 12, 4)
    packed = _number(head, 21, 4)
    lossless = tf.stack([(packed // 2**14) % 2**14 + 1, packed % 2**14 + 1])
    lossy = tf.stack([_number(head, 28, 2) % 2**14, _number(head, 26, 2) % 2**14])
    extended = tf.stack([_number(head, 27, 3) + 1, _number(head, 24, 3) + 1])
    return tf.where(kind == b"VP8L", lossless, tf.where(kind == b"VP8X", extended, lossy))


def _on_white(pixels: tf.Tensor) -> tf.Tensor:
    """RGBA [h, w, 4] -> RGB, what is transparent laid on white."""
    height, width = tf.unstack(tf.shape(pixels)[:2])
    rows = tf.clip_by_value(_STRIP // width, 1, height)  # of a strip

    def blended(top: tf.Tensor, onto: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        top = tf.minimum(top, height - rows)
        part = tf.cast(pixels[top : top + rows], tf.uint16)
        colour, alpha = part[..., :3], part[..., 3:]
        strip = tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)
        return top + rows, tf.raw_ops.InplaceUpdate(x=onto, i=top + tf.range(rows), v=strip)

    def laid() -> tf.Tensor:
        empty = tf.raw_ops.Empty(shape=[height, width, 3], dtype=tf.uint8)
        shapes = [tf.TensorShape([]), tf.TensorShape([None, None, 3])]
        empty = tf.ensure_shape(empty, shapes[1])
        return tf.while_loop(lambda top, _: top < height, blended, [0, empty], shapes)[1]

    clear = tf.reduce_any(pixels[..., 3] < 255)
    return tf.cond(clear, laid, lambda: pixels[..., :3])


def _png(data: tf.Tensor) -> tf.Tensor:
    kind, depth = _number(data, 25, 1), _number(data, 24, 1)
    clear = (kind == 4) | (kind == 6) | _contains(data, b"tRNS")

    def blended() -> tf.Tensor:
        pixels = tf.io.decode_png(data, channels=4)
        # Where a colour has fewer than 8 bits, TensorFlow's op fills the opacity that the file does
        # not give up to 2^bits - 1, not to 255.
        filled = tf.cast(2 ** tf.minimum(depth, 8) - 1, tf.uint8)
        unsaid = tf.reduce_all(pixels[..., 3] == filled)
        return tf.cond(unsaid, lambda: pixels[..., :3], lambda: _on_white(pixels))

    with _of_size(_png_size(data), "PNG"):
        return tf.cond(clear, blended, lambda: tf.io.decode_png(data, channels=3))


def _webp(data: tf.Tensor) -> tf.Tensor:
    """The first frame, with opacity where the file has it: the op does not look for that."""
    data = _webp_frame(data)
    head = _head(data)
    lossless = tf.strings.substr(head, 12, 4) == b"VP8L"
    extended = tf.strings.substr(head, 12, 4) == b"VP8X"
    clear = lossless & (_number(head, 24, 1) // 16 % 2 == 1)
    clear |= extended & (_number(head, 20, 1) // 16 % 2 == 1)
    with _of_size(_still_size(head), "WebP"):
        return tf.cond(
            clear,
            lambda: _on_white(tf.io.decode_webp(data, channels=4)[0]),
            lambda: tf.io.decode_webp(data, channels=3)[0],
        )


@_of_one
def _webp_frame(data: tf.Tensor) -> tf.Tensor:
    """The first frame of an animation as a file of its own; another file as it is."""
    head = _head(data)
    moving = (tf.strings.substr(head, 12, 4) == b"VP8X") & (_number(head, 20, 1) // 2 % 2 == 1)

    def length(at: tf.Tensor) -> tf.Tensor:
        return _number(data, at + 4, 4)

    def frame() -> tf.Tensor:
        def after(at: tf.Tensor) -> tf.Tensor:
            return at + 8 + length(at) + length(at) % 2

        def other(at: tf.Tensor) -> tf.Tensor:
            return _part(data, at, 4) != b"ANMF"

        at = tf.while_loop(other, after, [tf.constant(12)], maximum_iterations=_CHUNKS)[0]
        # Its offset, 6 bytes; its width and height less one, 6 bytes, as a header has them; its
        # duration and more, 4 bytes; chunks as of a still picture. One of opacity needs a header.
        chunk = _part(data, at + 8, length(at))
        own = _part(chunk, 16, length(at))
        header = b"VP8X\x0a\0\0\0\x10\0\0\0" + _part(chunk, 6, 6)
        body = b"WEBP" + tf.where(tf.strings.substr(own, 0, 4) == b"ALPH", header, b"") + own
        return b"RIFF" + _four_bytes(tf.strings.length(body)) + body

    return tf.cond(moving, frame, lambda: data)


def _four_bytes(number: tf.Tensor) -> tf.Tensor:
    """A number from 0 to 2^31 as a string, the lowest byte first."""
    every = tf.constant([bytes([value]) for value in range(256)])
    return tf.strings.reduce_join(tf.gather(every, number // [1, 256, 256**2, 256**3] % 256))


def _gif(data: tf.Tensor) -> tf.Tensor:
    """The first frame: the op would decode all."""
    raw = tf.io.decode_raw(data, tf.uint8)
    at = _gif_frame(raw)
    with _of_size(_gif_size(data), "GIF"):
        end = _after_blocks(raw, at + 10 + _palette(raw[at + 9]) + 1)
        return tf.io.decode_gif(tf.strings.substr(data, 0, end) + b";")[0]


@tf.function(input_signature=[tf.TensorSpec([None], tf.uint8)], autograph=False)
def _gif_frame(raw: tf.Tensor) -> tf.Tensor:
    """Where the descriptor of a GIF's first frame begins (GIF89a, sections 18 to 26)."""
    at = 13 + _palette(raw[10])
    (at,) = tf.while_loop(
        lambda at: raw[at] == 0x21,
        lambda at: _after_blocks(raw, at + 2),
        [at],
        maximum_iterations=_CHUNKS,
    )
    with tf.control_dependencies([tf.debugging.Assert(raw[at] == 0x2C, [BROKEN])]):
        return tf.identity(at)


def _palette(flags: tf.Tensor) -> tf.Tensor:
    """Bytes of the colour table that these flags announce."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _after_blocks(raw: tf.Tensor, at: tf.Tensor) -> tf.Tensor:
    """Where the blocks that begin here end: each is its length and so many bytes, the last empty.

    Encoders write blocks of one length but for the last: a run of them is one step.
    """

    def after(at: tf.Tensor) -> tf.Tensor:
        step = tf.cast(raw[at], tf.int32) + 1
        like = raw[at : at + 1024 * step : step] == raw[at]
        return at + step * tf.reduce_sum(tf.math.cumprod(tf.cast(like, tf.int32)))

    (at,) = tf.while_loop(lambda at: raw[at] != 0, after, [at], maximum_iterations=_BLOCKS)
    with tf.control_dependencies([tf.debugging.Assert(raw[at] == 0, [BROKEN])]):
        return at + 1


def _bmp(data: tf.Tensor) -> tf.Tensor:
    """A BMP of one byte a pixel holds indices into its palette, which TensorFlow does not look up.

    The fourth byte of four is not opacity in the common kind, and is dropped.
    """
    head = tf.strings.substr(data, 0, 54)
    with _of_size(_bmp_size(data), "BMP"):
        pixels = tf.io.decode_bmp(data)

    def looked_up() -> tf.Tensor:
        colours = _number(head, 46, 4)
        count = tf.where(colours == 0, 256, tf.minimum(colours, 256))
        raw = _part(data, 14 + _number(head, 14, 4), 4 * count)
        palette = tf.gather(tf.reshape(tf.io.decode_raw(raw, tf.uint8), [-1, 4]), [2, 1, 0], axis=1)
        return tf.gather(palette, tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(tf.shape(pixels)[-1] == 1, looked_up, lambda: pixels[..., :3])


@_of_one
def _upright_jpeg(data: tf.Tensor) -> tf.Tensor:
    """A JPEG as it lies in the file."""
    with _of_size(_jpeg_size(data), "JPEG"):
        # The exact inverse transform: the default is faster by little and off by a few levels.
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _jpeg(data: tf.Tensor) -> tf.Tensor:
    pixels = _upright_jpeg(data)
    turned = _contains(exif.start(data), exif.NAME)
    return tf.cond(turned, lambda: exif.turned(pixels, data), lambda: pixels)


_SIZES = (_jpeg_size, _png_size, _gif_size, _bmp_size, _webp_size)  # as FORMATS
_DECODERS = (_jpeg, _png, _gif, _bmp, _webp)
