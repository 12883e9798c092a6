"""Encoded images to pixels, as TensorFlow ops: training and serving share one decoder.

It reads JPEG (oriented as its EXIF says), PNG, BMP, and the first frame of a GIF or WebP. Grey and
palette images become RGB; transparent pixels are blended onto white.

A file of a few bytes can declare any size and any number of frames, so the memory for an image is
bounded: its size is checked before it is decoded, frames after the first are cut off, no copy of
all its pixels has more than a byte per channel, and of a long, thin image only the part that the
model sees is resized.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import tensorflow as tf

from tfft.preprocess.graph import exif
from tfft.preprocess.graph.resizing import fit, resize
from tfft.spec import ImageSpec

__all__ = ["decode", "fit", "grey_bits", "reader", "reason", "resize", "tiny", "tolerant_reader"]

# Limits for one image. A pixel takes at most 11 bytes of memory (progressive JPEG of 4 channels).
# Phone cameras write JPEGs of up to 64 million pixels.
MAX_PIXELS = {"JPEG": 2**26, "PNG": 2**25, "GIF": 2**25, "BMP": 2**25, "WebP": 2**25}
FORMATS = tuple(MAX_PIXELS)
MAX_SIDE = 2**16 - 1  # the most that JPEG and GIF can declare
_STRIP_PIXELS = 2**20  # pixels that are blended in one step, which bounds the memory
_MAX_BLOCK_RUNS = 4096  # of a GIF: each is a run of blocks of equal length
_MAX_CHUNKS = 64  # of a WebP, or extensions of a GIF, before the first frame
_PARALLEL_DECODES = 4  # images decoded in parallel in a batch with a bad one
_HEADER_SIZE = 32  # contain the size in all formats but JPEG
OK = "ok"
EMPTY = "an empty file"
BROKEN = "broken, cut off, or of a kind that TensorFlow does not decode"
NOT_AN_IMAGE = f"not an image of a known format ({', '.join(FORMATS)})"
BAD_SIZE = (
    f"its size is not between 1 and {MAX_PIXELS['PNG']:,} pixels (JPEG: {MAX_PIXELS['JPEG']:,}), "
    f"at most {MAX_SIDE:,} to a side"
)
_Reader = Callable[[tf.Tensor], tf.Tensor]
# Decorates functions of one file: they are traced once, however many models use them.
_scalar_function = tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)


def reader(image_spec: ImageSpec) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function: encoded images, strings [B] -> uint8 [B, H, W, 3].

    It raises what `decode` raises.
    """
    functions = _read_functions(image_spec)
    return lambda data: _by_format(data, functions, lambda read: _read_all(read, data, image_spec))


def tolerant_reader(image_spec: ImageSpec) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Return a function that does not raise: encoded images, strings [B] -> pixels and statuses.

    The pixels are uint8 [B, H, W, 3]. A status, string [B], is `OK` or why an image could not be
    decoded, whose pixels are 0 then.
    """
    functions = _read_functions(image_spec)

    def read_tolerantly(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = _by_format(data, functions, lambda read: _read_all_or_none(read, data, image_spec))
        return tf.cond(
            tf.shape(pixels)[0] == tf.shape(data)[0],
            lambda: (pixels, tf.fill(tf.shape(data), OK)),
            lambda: _read_with_status(functions[1], data, image_spec),
        )

    return read_tolerantly


@cache
def _read_functions(image_spec: ImageSpec) -> tuple[_Reader, _Reader]:
    """Return what reads an upright JPEG, and what reads any image: string -> uint8 [H, W, 3].

    Both are traced once per `ImageSpec`.
    """
    pixels = tf.TensorSpec([None, None, 3], tf.uint8)
    fitted = tf.function(lambda x: fit(x, image_spec), [pixels], autograph=False)

    def function(decoder: _Reader) -> _Reader:
        spec = [tf.TensorSpec([], tf.string)]
        return tf.function(lambda data: fitted(decoder(data)), spec, autograph=False)

    return function(_upright_jpeg), function(decode)


def _by_format(
    data: tf.Tensor, functions: tuple[_Reader, _Reader], run: Callable[[_Reader], tf.Tensor]
) -> tf.Tensor:
    """Return what `run` returns for the cheapest function that can read all of these images.

    Args:
        data: encoded images, strings [B].
        functions: for upright JPEGs, and for any image.
        run: applies one of them to the batch.
    """
    # Dispatching on the format of each image takes as long as decoding a small one. So batches of
    # upright JPEGs, the most common ones, are recognised by a few ops over the batch.
    upright = tf.reduce_all(_format_id(_header(data)) == 0) & ~_contains(
        exif.header(data), exif.NAME
    )
    return tf.cond(upright, lambda: run(functions[0]), lambda: run(functions[1]))


def _read_all(read: _Reader, data: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    spec = tf.TensorSpec([*image_spec.size, 3], tf.uint8)
    return tf.map_fn(read, data, fn_output_signature=spec)


def _read_all_or_none(read: _Reader, data: tf.Tensor, image_spec: ImageSpec) -> tf.Tensor:
    """Return uint8 [B, H, W, 3], or no rows if reading one of them raises.

    A dataset is the only place in a graph where an error can be ignored. One element for all rows
    costs a millisecond; one for each row would cost as much as decoding a small image.
    """
    none = tf.data.Dataset.from_tensors(tf.zeros([0, *image_spec.size, 3], tf.uint8))
    read_batch = _without_autograph(lambda rows: _read_all(read, rows, image_spec))
    read_rows = tf.data.Dataset.from_tensors(data).map(read_batch).ignore_errors()
    return _only_element(read_rows.concatenate(none).take(1))


def _read_with_status(
    read: _Reader, data: tf.Tensor, image_spec: ImageSpec
) -> tuple[tf.Tensor, tf.Tensor]:
    """Do the work of `tolerant_reader` for a batch in which some images are bad."""
    decoded, pixels = _try_each(read, data, tf.TensorSpec([*image_spec.size, 3], tf.uint8))
    readable, allowed = _try_each(_declared_size_allowed, data, tf.TensorSpec([], tf.bool))
    status = tf.fill(tf.shape(data), BROKEN)
    status = tf.where(readable & ~allowed, BAD_SIZE, status)
    status = tf.where(_format_id(_header(data)) == len(FORMATS), NOT_AN_IMAGE, status)
    status = tf.where(tf.strings.length(data) == 0, EMPTY, status)
    return pixels, tf.where(decoded, OK, status)


def _try_each(
    function: _Reader, data: tf.Tensor, spec: tf.TensorSpec
) -> tuple[tf.Tensor, tf.Tensor]:
    """Apply a function to each row; return whether it did not raise, bool [B], and the results.

    The result of a row that raised is 0.
    """
    rows = tf.shape(data)[0]
    apply = _without_autograph(lambda index, value: (index, function(value)))
    numbered = tf.data.Dataset.from_tensor_slices((tf.range(rows), data))
    results = numbered.map(
        apply, num_parallel_calls=_PARALLEL_DECODES, deterministic=True
    ).ignore_errors()
    sentinel = tf.data.Dataset.from_tensors((rows, tf.zeros(spec.shape, spec.dtype)))
    index, values = _only_element(results.concatenate(sentinel).batch(tf.cast(rows, tf.int64) + 1))
    count = tf.shape(index)[0] - 1
    positions = tf.fill([rows], count)  # rows that raised point at the sentinel, which is 0
    positions = tf.tensor_scatter_nd_update(positions, index[:-1, None], tf.range(count))
    return positions < count, tf.gather(values, positions)


def _without_autograph(function: Callable[..., Any]) -> Callable[..., Any]:
    return tf.autograph.experimental.do_not_convert(function)


def _only_element(dataset: tf.data.Dataset) -> Any:
    """Return the only element of a dataset."""
    # Optimising the dataset takes longer than running it.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options).get_single_element()


@_scalar_function
def decode(data: tf.Tensor) -> tf.Tensor:
    """Decode one image, a scalar string -> uint8 [h, w, 3].

    Raises:
        tf.errors.InvalidArgumentError: the format is unknown, the file is broken, or the image
        exceeds `MAX_PIXELS` of its format or `MAX_SIDE`.
    """
    format_id = _format_id(_header(data))
    known = tf.debugging.Assert(format_id < len(FORMATS), [NOT_AN_IMAGE])
    with tf.control_dependencies([known]):
        pixels = tf.switch_case(
            format_id, [lambda decoder=decoder: decoder(data) for decoder in _DECODERS]
        )
    return tf.ensure_shape(pixels, [None, None, 3])


def reason(error: tf.errors.InvalidArgumentError) -> str:
    """Return briefly why `decode` refused an image."""
    return next(
        (message for message in (NOT_AN_IMAGE, BAD_SIZE) if message in error.message), BROKEN
    )


def grey_bits(pixels: tf.Tensor) -> tf.Tensor:
    """Return the difference hash of an image, bool [64]: similar images differ in few bits.

    A bit is whether one of 8 x 9 grey fields is darker than the one to its right (N. Krawetz, "Kind
    of Like That", 2013).
    """
    small = tf.reduce_mean(tf.image.resize(pixels, [8, 9], "area"), axis=-1)
    return tf.reshape(small[:, :-1] < small[:, 1:], [64])


def tiny(pixels: tf.Tensor) -> tf.Tensor:
    """Return the mean colours of 8 x 8 fields, uint8 [8, 8, 3]."""
    small = tf.image.resize(pixels, [8, 8], "area")
    return tf.saturate_cast(tf.round(small), tf.uint8)


def _size_allowed(size: tf.Tensor, max_pixels: Any) -> tf.Tensor:
    """Return whether an image of this height and width may be decoded."""
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    return tf.reduce_all((size > 0) & (size <= MAX_SIDE)) & (pixels <= max_pixels)


def _assert_size(size: tf.Tensor, format_name: str) -> Any:
    """Return a context whose ops run only if an image's height and width may be decoded."""
    allowed = _size_allowed(size, MAX_PIXELS[format_name])
    return tf.control_dependencies([tf.debugging.Assert(allowed, [BAD_SIZE, size])])


def _declared_size_allowed(data: tf.Tensor) -> tf.Tensor:
    """Return whether an image of a known format declares a size that may be decoded."""
    max_pixels = tf.constant(list(MAX_PIXELS.values()), tf.int64)
    return _size_allowed(_declared_size(data), max_pixels[_format_id(_header(data))])


@_scalar_function
def _declared_size(data: tf.Tensor) -> tf.Tensor:
    """Return the height and width in the header of an image of a known format, int32 [2]."""
    return tf.switch_case(
        _format_id(_header(data)), [lambda read=read: read(data) for read in _SIZE_READERS]
    )


def _header(data: tf.Tensor) -> tf.Tensor:
    """Return the leading bytes, strings of any shape, padded with zeros."""
    return tf.strings.substr(
        tf.strings.substr(data, 0, _HEADER_SIZE) + b"\0" * _HEADER_SIZE, 0, _HEADER_SIZE
    )


def _format_id(head: tf.Tensor) -> tf.Tensor:
    """Return indices into FORMATS, int32 of the shape of `head`; len(FORMATS) if unknown."""
    # Two bytes decide: the decoders check the rest.
    starts = [b"\xff\xd8", b"\x89P", b"GI", b"BM", b"RI"]
    matches = tf.cast(tf.strings.substr(head, 0, 2)[..., None] == starts, tf.uint8)
    unknown = tf.ones_like(matches[..., :1])
    return tf.argmax(tf.concat([matches, unknown], -1), -1, output_type=tf.int32)


def _number(data: tf.Tensor, offset: Any, count: int, big_endian: bool = False) -> tf.Tensor:
    """Return `count` bytes as an integer, int32; bytes beyond the end are zeros."""
    part = tf.strings.substr(_substring(data, offset, count) + b"\0" * count, 0, count)
    raw = tf.cast(tf.io.decode_raw(part, tf.uint8), tf.int32)
    powers = range(count)
    factors = tf.constant([256**p for p in (reversed(powers) if big_endian else powers)], tf.int32)
    return tf.reduce_sum(raw * factors)


def _substring(data: tf.Tensor, offset: Any, count: Any) -> tf.Tensor:
    """Return up to `count` bytes from an offset, none beyond the end."""
    # Beyond the end the op would raise, with the file in its message.
    return tf.strings.substr(data, tf.clip_by_value(offset, 0, tf.strings.length(data)), count)


def _contains(data: tf.Tensor, word: bytes) -> tf.Tensor:
    """Return whether any of the strings, of any shape, contains a word."""
    flat = tf.reshape(data, [-1])
    parts = tf.raw_ops.StringSplitV2(input=flat, sep=word, maxsplit=1).values
    return tf.size(parts) > tf.size(flat)


def _jpeg_size(data: tf.Tensor) -> tf.Tensor:
    return tf.io.extract_jpeg_shape(data)[:2]


def _png_size(data: tf.Tensor) -> tf.Tensor:
    # IHDR holds the width at byte 16 and the height at byte 20.
    return tf.stack([_number(data, 20, 4, big_endian=True), _number(data, 16, 4, big_endian=True)])


def _gif_size(data: tf.Tensor) -> tf.Tensor:
    """Return the maximum of the screen and the first frame, as either may be the larger one."""
    offset = _gif_frame(tf.io.decode_raw(data, tf.uint8))
    screen = tf.stack([_number(data, 8, 2), _number(data, 6, 2)])  # height, width
    return tf.maximum(
        screen, tf.stack([_number(data, offset + 7, 2), _number(data, offset + 5, 2)])
    )


def _bmp_size(data: tf.Tensor) -> tf.Tensor:
    # The height is negative if the rows are stored from top to bottom.
    return tf.abs(tf.stack([_number(data, 22, 4), _number(data, 18, 4)]))


def _webp_size(data: tf.Tensor) -> tf.Tensor:
    return _webp_still_size(_header(_webp_frame(data)))


def _webp_still_size(head: tf.Tensor) -> tf.Tensor:
    """Return the size of a still WebP, which its three kinds store differently (RFC 9649, 2.5)."""
    kind = tf.strings.substr(head, 12, 4)
    packed = _number(head, 21, 4)  # 14 bits, minus one
    lossless = tf.stack([(packed // 2**14) % 2**14 + 1, packed % 2**14 + 1])
    lossy = tf.stack([_number(head, 28, 2) % 2**14, _number(head, 26, 2) % 2**14])
    extended = tf.stack([_number(head, 27, 3) + 1, _number(head, 24, 3) + 1])
    return tf.where(kind == b"VP8L", lossless, tf.where(kind == b"VP8X", extended, lossy))


def _blend_on_white(pixels: tf.Tensor) -> tf.Tensor:
    """Blend RGBA [h, w, 4] onto white: uint8 [h, w, 3]."""
    height, width = tf.unstack(tf.shape(pixels)[:2])
    rows = tf.clip_by_value(_STRIP_PIXELS // width, 1, height)  # in a strip

    def blend_strip(top: tf.Tensor, target: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        top = tf.minimum(top, height - rows)  # the last strip overlaps
        strip_pixels = tf.cast(pixels[top : top + rows], tf.uint16)
        colour, alpha = strip_pixels[..., :3], strip_pixels[..., 3:]
        # At most 255 * 255 + 127, which fits uint16; the 127 rounds to the nearest level.
        strip = tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)
        return top + rows, tf.raw_ops.InplaceUpdate(x=target, i=top + tf.range(rows), v=strip)

    def blended() -> tf.Tensor:
        empty = tf.raw_ops.Empty(shape=[height, width, 3], dtype=tf.uint8)
        shapes = [tf.TensorShape([]), tf.TensorShape([None, None, 3])]
        empty = tf.ensure_shape(empty, shapes[1])
        return tf.while_loop(lambda top, _: top < height, blend_strip, [0, empty], shapes)[1]

    transparent = tf.reduce_any(pixels[..., 3] < 255)
    return tf.cond(transparent, blended, lambda: pixels[..., :3])


def _png(data: tf.Tensor) -> tf.Tensor:
    colour_type, depth = _number(data, 25, 1), _number(data, 24, 1)
    may_be_transparent = (colour_type == 4) | (colour_type == 6) | _contains(data, b"tRNS")

    def with_alpha() -> tf.Tensor:
        pixels = tf.io.decode_png(data, channels=4)
        # If a file has no alpha values and fewer than 8 bits per channel, TensorFlow's op sets
        # alpha to 2^bits - 1, not to 255.
        filler = tf.cast(2 ** tf.minimum(depth, 8) - 1, tf.uint8)
        no_alpha = tf.reduce_all(pixels[..., 3] == filler)
        return tf.cond(no_alpha, lambda: pixels[..., :3], lambda: _blend_on_white(pixels))

    with _assert_size(_png_size(data), "PNG"):
        return tf.cond(may_be_transparent, with_alpha, lambda: tf.io.decode_png(data, channels=3))


def _webp(data: tf.Tensor) -> tf.Tensor:
    """Decode the first frame, with alpha if the file has it: the op does not check for that."""
    data = _webp_frame(data)
    head = _header(data)
    lossless = tf.strings.substr(head, 12, 4) == b"VP8L"
    extended = tf.strings.substr(head, 12, 4) == b"VP8X"
    transparent = lossless & (_number(head, 24, 1) // 16 % 2 == 1)  # alpha_is_used
    transparent |= extended & (_number(head, 20, 1) // 16 % 2 == 1)  # flag L
    with _assert_size(_webp_still_size(head), "WebP"):
        return tf.cond(
            transparent,
            lambda: _blend_on_white(tf.io.decode_webp(data, channels=4)[0]),
            lambda: tf.io.decode_webp(data, channels=3)[0],
        )


@_scalar_function
def _webp_frame(data: tf.Tensor) -> tf.Tensor:
    """Return the first frame of an animation as a separate file; a still image unchanged."""
    head = _header(data)
    animated = (tf.strings.substr(head, 12, 4) == b"VP8X") & (_number(head, 20, 1) // 2 % 2 == 1)

    def length(offset: tf.Tensor) -> tf.Tensor:
        return _number(data, offset + 4, 4)

    def frame() -> tf.Tensor:
        def next_chunk(offset: tf.Tensor) -> tf.Tensor:
            return offset + 8 + length(offset) + length(offset) % 2  # padded to even lengths

        def is_other_chunk(offset: tf.Tensor) -> tf.Tensor:
            return _substring(data, offset, 4) != b"ANMF"

        offset = tf.while_loop(
            is_other_chunk, next_chunk, [tf.constant(12)], maximum_iterations=_MAX_CHUNKS
        )[0]
        # An ANMF chunk holds the frame's position (6 bytes), its width and height minus one (6
        # bytes, as in a VP8X header), duration and flags (4 bytes), then the chunks of a still
        # image. An alpha chunk requires a VP8X header.
        chunk = _substring(data, offset + 8, length(offset))
        content = _substring(chunk, 16, length(offset))
        header = b"VP8X\x0a\0\0\0\x10\0\0\0" + _substring(chunk, 6, 6)
        body = (
            b"WEBP" + tf.where(tf.strings.substr(content, 0, 4) == b"ALPH", header, b"") + content
        )
        return b"RIFF" + _little_endian(tf.strings.length(body)) + body

    return tf.cond(animated, frame, lambda: data)


def _little_endian(number: tf.Tensor) -> tf.Tensor:
    """Return a number from 0 to 2^31 - 1 as a string of 4 bytes, the lowest first."""
    all_bytes = tf.constant([bytes([value]) for value in range(256)])
    return tf.strings.reduce_join(tf.gather(all_bytes, number // [1, 256, 256**2, 256**3] % 256))


def _gif(data: tf.Tensor) -> tf.Tensor:
    """Decode the first frame: the op would decode all, so the others are cut off."""
    raw = tf.io.decode_raw(data, tf.uint8)
    offset = _gif_frame(raw)
    with _assert_size(_gif_size(data), "GIF"):
        # Descriptor (10 bytes), colour table, LZW code size (1 byte), then the data blocks.
        end = _end_of_blocks(raw, offset + 10 + _palette_bytes(raw[offset + 9]) + 1)
        return tf.io.decode_gif(tf.strings.substr(data, 0, end) + b";")[0]


@tf.function(input_signature=[tf.TensorSpec([None], tf.uint8)], autograph=False)
def _gif_frame(raw: tf.Tensor) -> tf.Tensor:
    """Return the offset of the descriptor of a GIF's first frame (GIF89a, sections 18 to 26)."""
    offset = 13 + _palette_bytes(raw[10])  # after the header (6 bytes) and screen descriptor (7)
    (offset,) = tf.while_loop(
        lambda offset: raw[offset] == 0x21,  # extension
        lambda offset: _end_of_blocks(raw, offset + 2),
        [offset],
        maximum_iterations=_MAX_CHUNKS,
    )
    with tf.control_dependencies([tf.debugging.Assert(raw[offset] == 0x2C, [BROKEN])]):
        return tf.identity(offset)


def _palette_bytes(flags: tf.Tensor) -> tf.Tensor:
    """Return the bytes of the colour table that these flags announce."""
    flags = tf.cast(flags, tf.int32)
    return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _end_of_blocks(raw: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Return the offset after the data blocks that begin at an offset.

    A block is its length and that many bytes; the last one is empty. Encoders write blocks of equal
    length except for the last, so one step skips a run of them.
    """

    def skip_run(offset: tf.Tensor) -> tf.Tensor:
        step = tf.cast(raw[offset], tf.int32) + 1
        same_length = raw[offset : offset + 1024 * step : step] == raw[offset]
        return offset + step * tf.reduce_sum(tf.math.cumprod(tf.cast(same_length, tf.int32)))

    (offset,) = tf.while_loop(
        lambda offset: raw[offset] != 0, skip_run, [offset], maximum_iterations=_MAX_BLOCK_RUNS
    )
    with tf.control_dependencies([tf.debugging.Assert(raw[offset] == 0, [BROKEN])]):
        return offset + 1


def _bmp(data: tf.Tensor) -> tf.Tensor:
    """Decode a BMP.

    With one byte per pixel it holds indices into a palette, which TensorFlow does not look up. With
    four bytes the fourth is dropped: in the common variant it is not alpha.
    """
    head = tf.strings.substr(data, 0, 54)
    with _assert_size(_bmp_size(data), "BMP"):
        pixels = tf.io.decode_bmp(data)

    def apply_palette() -> tf.Tensor:
        colours = _number(head, 46, 4)  # biClrUsed
        count = tf.where(colours == 0, 256, tf.minimum(colours, 256))
        raw = _substring(data, 14 + _number(head, 14, 4), 4 * count)
        palette = tf.gather(tf.reshape(tf.io.decode_raw(raw, tf.uint8), [-1, 4]), [2, 1, 0], axis=1)
        return tf.gather(palette, tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(tf.shape(pixels)[-1] == 1, apply_palette, lambda: pixels[..., :3])


@_scalar_function
def _upright_jpeg(data: tf.Tensor) -> tf.Tensor:
    """Decode a JPEG without applying its orientation."""
    with _assert_size(_jpeg_size(data), "JPEG"):
        # The default transform is hardly faster, and off by a few levels.
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _jpeg(data: tf.Tensor) -> tf.Tensor:
    pixels = _upright_jpeg(data)
    has_exif = _contains(exif.header(data), exif.NAME)
    return tf.cond(has_exif, lambda: exif.apply_orientation(pixels, data), lambda: pixels)


_SIZE_READERS = (_jpeg_size, _png_size, _gif_size, _bmp_size, _webp_size)  # in the order of FORMATS
_DECODERS = (_jpeg, _png, _gif, _bmp, _webp)
