"""Decoding and resizing of encoded images, compared with Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfft.preprocess import ImageInputs, restore
from tfft.preprocess.graph import image_ops, resizing
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

DECODE = tf.function(image_ops.decode, [tf.TensorSpec([], tf.string)], autograph=False)


def photo(height=60, width=90, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.BICUBIC)


def transparent(image):
    """Return an image with an opacity that changes from row to row."""
    pixels = np.asarray(image.convert("RGBA")).copy()
    pixels[..., 3] = np.linspace(0, 255, len(pixels))[:, None]
    return Image.fromarray(pixels)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode_with_pillow(data):
    """Return the pixels, oriented and blended onto white, as Pillow decodes them."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


IMAGE = photo()
CASES = {
    "jpeg": encoded(IMAGE, "JPEG", quality=60),
    "jpeg 4:4:4": encoded(IMAGE, "JPEG", subsampling=0),
    "jpeg progressive": encoded(IMAGE, "JPEG", progressive=True),
    "jpeg grey": encoded(IMAGE.convert("L"), "JPEG"),
    "png": encoded(IMAGE, "PNG"),
    "png palette": encoded(IMAGE.convert("P"), "PNG"),
    "png palette of 4": encoded(IMAGE.quantize(4), "PNG", bits=2),
    "png grey": encoded(IMAGE.convert("L"), "PNG"),
    "png black and white": encoded(IMAGE.convert("1"), "PNG"),
    "png clear": encoded(transparent(IMAGE), "PNG"),
    "png grey clear": encoded(transparent(IMAGE).convert("LA"), "PNG"),
    "gif": encoded(IMAGE, "GIF"),
    "gif of two": encoded(IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(180)]),
    "bmp": encoded(IMAGE, "BMP"),
    "bmp palette": encoded(IMAGE.convert("P"), "BMP"),
    "bmp grey": encoded(IMAGE.convert("L"), "BMP"),
    "webp": encoded(IMAGE, "WEBP", quality=70),
    "webp lossless": encoded(IMAGE, "WEBP", lossless=True),
    "webp clear": encoded(transparent(IMAGE), "WEBP", lossless=True),
    "webp clear, lossy": encoded(transparent(IMAGE), "WEBP"),
    "webp of two": encoded(
        transparent(IMAGE), "WEBP", save_all=True, lossless=True, append_images=[IMAGE.rotate(180)]
    ),
    "webp of two, first opaque": encoded(
        IMAGE, "WEBP", save_all=True, lossless=True, append_images=[transparent(IMAGE)]
    ),
    "webp of two, lossy": encoded(
        transparent(IMAGE), "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]
    ),
    "webp of two without opacity": encoded(
        IMAGE, "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_equal_pillows(case):
    actual = DECODE(CASES[case]).numpy().astype(int)
    # Blending is rounded once here and twice by Pillow.
    assert np.abs(actual - decode_with_pillow(CASES[case])).max() <= (
        "clear" in case or "two" in case
    )


def test_cmyk_jpeg_and_16_bit_png():
    data = encoded(IMAGE.convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(DECODE(data), expected)
    grey = np.asarray(IMAGE.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(DECODE(data), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("endian", "<>")
def test_exif_orientation_is_applied(orientation, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    data = encoded(IMAGE, "JPEG", exif=exif, icc_profile=b"x" * 3000)
    np.testing.assert_array_equal(DECODE(data), decode_with_pillow(data))


BROKEN_FILES = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am no image", "not an image of a known format"),
    "cut jpeg": (CASES["jpeg"][:500], "broken"),
    "cut jpeg in the head": (CASES["jpeg"][:100], "broken"),
    "cut png": (CASES["png"][:500], "broken"),
    "cut webp": (CASES["webp"][:300], "broken"),
    "claims 60,000 x 60,000": (
        CASES["png"][:16] + (60000).to_bytes(4, "big") * 2 + CASES["png"][24:],
        "not between 1 and 33,554,432 pixels (JPEG: 67,108,864), at most 65,535",
    ),
    "exif that points nowhere": (
        b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff",
        "broken",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_images_are_described(case):
    data, reason = BROKEN_FILES[case]
    assert reason in ImageInputs(ImageSpec((32, 32))).check(data)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (20, 33), (300, 301)])
def test_resizing_equals_pillows_within_one_level(interpolation, size):
    image = photo(150, 260)
    actual = image_ops.fit(
        tf.constant(np.asarray(image)), ImageSpec(size, "stretch", interpolation)
    )
    expected = image.resize(size[::-1], getattr(Image, interpolation.upper()))
    assert np.abs(actual.numpy().astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (50, 50), (7, 300)])
def test_crop_keeps_the_middle_and_pad_keeps_everything(shape):
    image = photo(*shape)
    pixels = tf.constant(np.asarray(image))
    scale = 40 / min(shape)
    resized = image.resize([round(side * scale) for side in image.size], Image.BILINEAR)
    left, top = (resized.width - 40) // 2, (resized.height - 40) // 2
    expected = resized.crop((left, top, left + 40, top + 40))
    actual = image_ops.fit(pixels, ImageSpec((40, 40))).numpy().astype(int)
    assert np.abs(actual - np.asarray(expected)).max() <= 1
    padded = image_ops.fit(pixels, ImageSpec((40, 40), "pad")).numpy()
    scale = 40 / max(shape)
    scaled = image.resize([max(1, round(side * scale)) for side in image.size], Image.BILINEAR)
    top, left = (40 - scaled.height) // 2, (40 - scaled.width) // 2
    inside = padded[top : top + scaled.height, left : left + scaled.width].astype(int)
    assert np.abs(inside - np.asarray(scaled)).max() <= 1
    assert int(padded.sum()) == int(inside.sum())


def test_host_graph_and_restored_inputs_agree(tmp_path):
    inputs = ImageInputs(ImageSpec((32, 32), crop_fraction=0.875))
    rows = [CASES["jpeg"], CASES["png palette"], CASES["webp clear"]]
    host = inputs.batch(rows)["image"]
    assert host.dtype == np.float32 and host.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(inputs.graph()(tf.constant(rows))["image"], host)
    inputs.save(tmp_path)
    restored = restore(tmp_path)
    assert restored.fingerprint == inputs.fingerprint
    np.testing.assert_array_equal(restored.batch(rows)["image"], host)
    np.testing.assert_array_equal(inputs.inspect(rows[0]).pixels, host[0])


@pytest.mark.parametrize("with_orientation", [False, True])
def test_batch_of_jpegs_is_decoded_like_single_images(with_orientation):
    """Check the separate code path for batches of upright JPEGs."""
    inputs = ImageInputs(ImageSpec((32, 32)))
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encoded(IMAGE, "JPEG", quality=60, exif=exif)
    rows = [CASES["jpeg"], CASES["jpeg grey"], *([rotated] if with_orientation else [])]
    pixels = inputs.batch(rows)["image"]
    for index, row in enumerate(rows):
        beside_another_kind = inputs.batch([row, CASES["png"]])["image"]
        np.testing.assert_array_equal(pixels[index], beside_another_kind[0])
    if with_orientation:
        assert not np.array_equal(pixels[2], pixels[0])


def test_broken_image_in_a_batch_is_named(tmp_path):
    inputs = ImageInputs(ImageSpec((32, 32)))
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.jpg: not an image"):
        inputs.batch([CASES["png"], str(tmp_path / "bad.jpg")])
    with pytest.raises(UserError, match=r"nowhere\.jpg: cannot be read: No such file"):
        inputs.batch([str(tmp_path / "nowhere.jpg")])
    with pytest.raises(UserError, match="path or the bytes"):
        inputs.row(3)


def test_similar_images_have_similar_hashes():
    def bits(image):
        return image_ops.grey_bits(tf.constant(np.asarray(image))).numpy()

    reference = bits(IMAGE)
    assert (bits(IMAGE.resize((45, 30), Image.BILINEAR)) != reference).sum() <= 4
    assert (bits(photo(seed=1)) != reference).sum() > 15


# --- long, thin and large images ---

PILLOW_FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}


@pytest.mark.parametrize("interpolation", PILLOW_FILTERS)
@pytest.mark.parametrize("shape", [(1, 2000), (3000, 7), (100, 1500)])
def test_middle_of_a_thin_image_equals_pillows(shape, interpolation):
    image = photo(*shape)
    side, long = min(shape), max(shape)
    scaled = round(long * 40 / side)
    begin = (scaled - 40) // 2 * long / scaled
    end = begin + 40 * long / scaled
    box = (begin, 0, end, side) if shape[1] == long else (0, begin, side, end)
    expected = image.resize((40, 40), PILLOW_FILTERS[interpolation], box=box)
    actual = image_ops.fit(
        tf.constant(np.asarray(image)), ImageSpec((40, 40), "crop", interpolation)
    )
    assert np.abs(actual.numpy().astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_wide_image_is_resized_across_first(interpolation, monkeypatch):
    wide = tf.constant(np.asarray(photo(30, 700)))
    size = tf.constant([50, 40])
    expected = image_ops.resize(wide, size, interpolation).numpy().astype(int)
    monkeypatch.setattr(resizing, "_MAX_INTERMEDIATE_PIXELS", 1000)
    actual = image_ops.resize(wide, size, interpolation).numpy()
    assert np.abs(actual - expected).max() <= 1


def test_transparency_is_blended_in_strips(monkeypatch):
    monkeypatch.setattr(image_ops, "_STRIP_PIXELS", 1000)
    pixels = np.asarray(transparent(IMAGE))
    actual = image_ops._blend_on_white(tf.constant(pixels)).numpy().astype(int)
    white = np.array(255.0) * (1 - pixels[..., 3:] / 255)
    np.testing.assert_array_equal(
        actual, np.round(pixels[..., :3] * (pixels[..., 3:] / 255) + white)
    )


def blank_png(height, width, colour_type):
    """Return a PNG of zeros."""
    compressor = zlib.compressobj(1)
    row = bytes(1 + {2: 3, 6: 4}[colour_type] * width)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_parts(data):
    """Return the bytes before the first frame, the frame, and the rest."""
    start = 13 + 3 * 2 ** (data[10] % 8 + 1)
    while data[start] == ord("!"):
        start += 2
        while data[start]:
            start += 1 + data[start]
        start += 1
    end = start + 11
    while data[end]:
        end += 1 + data[end]
    return data[:start], data[start : end + 1], data[end + 1 :]


def gif_of_many_frames(frame, count, screen):
    header, frame_bytes, _ = gif_parts(encoded(frame, "GIF"))
    return header[:6] + struct.pack("<HH", *screen) + header[10:] + frame_bytes * count + b";"


def webp_of_many_frames(frame, count):
    content = encoded(frame, "WEBP", lossless=True, method=0)[12:]
    if content.startswith(b"VP8X"):
        content = content[18:]
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in frame.size)
    content = bytes(6) + size + bytes(4) + content
    chunks = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0x12) + size + b"ANIM\x06\0\0\0" + bytes(6)
    chunks += (b"ANMF" + struct.pack("<I", len(content)) + content) * count
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


HOSTILE_FILES = {  # without bounds each takes from 0.4 to 12 GiB
    "thin": lambda: blank_png(1, 20_000, 2),
    "thin, JPEG": lambda: encoded(Image.new("RGB", (2, 65_000)), "JPEG"),
    "GIF": lambda: gif_of_many_frames(Image.new("L", (2000, 2000)), 100, (10, 10)),
    "WebP": lambda: webp_of_many_frames(Image.new("RGBA", (1500, 1500)), 100),
    "PNG": lambda: blank_png(4000, 5000, 6),
}


def test_memory_of_one_image_is_bounded():
    inputs = ImageInputs(ImageSpec((224, 224)))
    inputs.inspect(CASES["png clear"])

    def memory(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

    for case, make in HOSTILE_FILES.items():
        data = make()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # reset the peak
        except OSError:
            pytest.skip("the peak of memory cannot be reset here")
        resident = memory("VmRSS")
        assert inputs.check(data) == "", case
        assert memory("VmHWM") - resident < 300, case


def test_only_the_first_frame_of_a_gif_is_decoded():
    small, large = photo(20, 30).convert("P"), photo(50, 70, 1).convert("P")
    header, first, _ = gif_parts(encoded(small, "GIF"))
    _, second, _ = gif_parts(encoded(large, "GIF"))
    comment = b"!\xfe" + b"\x05hello\x02hi\0"
    expected = decode_with_pillow(encoded(small, "GIF"))
    for data in (
        header + comment + first + comment + second + b";",
        header + first + b"!\xf9\x04 cut off",
        header + first,  # without the trailer
    ):
        np.testing.assert_array_equal(DECODE(data), expected)
    descriptor, blocks = first[:11], first[11:-1]
    stream = b"".join(
        blocks[start + 1 : start + 1 + blocks[start]] for start in range(0, len(blocks), 256)
    )
    for size in (1, 254, 7):  # block sizes of other encoders
        parts = [stream[start : start + size] for start in range(0, len(stream), size)]
        rewritten = b"".join(bytes([len(part)]) + part for part in parts)
        np.testing.assert_array_equal(DECODE(header + descriptor + rewritten + b"\0;"), expected)


TOO_LARGE = {
    "PNG": blank_png(1, 70_000, 2),
    "GIF, the frame": CASES["gif"].replace(
        struct.pack("<HHHH", 0, 0, 90, 60), struct.pack("<HHHH", 0, 0, 60_000, 60_000)
    ),
    "GIF, the screen": CASES["gif"][:6] + struct.pack("<HH", 60_000, 60_000) + CASES["gif"][10:],
    "WebP, a frame": webp_of_many_frames(Image.new("RGB", (8, 8)), 1).replace(
        b"\x2f\x07\xc0\x01\0", b"\x2f\xff\xff\xff\x0f"
    ),
}


@pytest.mark.parametrize("case", ["jpeg", "png", "gif", "bmp", "webp lossless"])
def test_declared_size_is_limited(case):
    """Check the limits; a JPEG may have twice as many pixels, as cameras write them."""
    limit = 8192 if case == "jpeg" else 5792  # pixels per side
    for side in (limit, limit + 1):
        data = with_declared_size(case, side)
        assert image_ops._declared_size(data).numpy().tolist() == [side, side]
        assert bool(image_ops._declared_size_allowed(data)) == (side == limit)
    with pytest.raises(tf.errors.InvalidArgumentError, match="its size is not between"):
        DECODE(data)


def with_declared_size(case, side):
    """Return an image whose header declares another size."""
    data, size = CASES[case], (60, 90)
    if case == "webp lossless":
        return data[:21] + struct.pack("<I", (side - 1) * (2**14 + 1)) + data[25:]
    form = {"jpeg": ">HH", "png": ">II", "gif": "<HH", "bmp": "<II"}[case]
    size = size if case == "jpeg" else size[::-1]
    return data.replace(struct.pack(form, *size), struct.pack(form, side, side))


def test_decoders_are_traced_once():
    """Check that more models do not trace the decoders again."""

    def traces():
        inputs = ImageInputs(ImageSpec((32, 32)))
        tf.function(inputs.decode, [tf.TensorSpec([None], tf.string)]).get_concrete_function()
        functions = image_ops._read_functions(inputs.image_spec)
        return [function.experimental_get_tracing_count() for function in functions]

    assert traces() == traces()


def test_bad_images_have_a_status_and_the_others_their_pixels():
    """Check that the graph agrees with the host on randomly damaged files, and does not raise."""
    inputs = ImageInputs(ImageSpec((32, 32)))
    generator = np.random.default_rng(0)
    rows = [*CASES.values(), *(data for data, _ in BROKEN_FILES.values()), *TOO_LARGE.values()]
    for data in CASES.values():
        for _ in range(4):
            damaged = bytearray(data)
            for index in generator.integers(0, min(len(data), generator.choice([60, 5000])), 3):
                damaged[index] = generator.integers(256)
            rows.append(bytes(damaged))
            rows.append(data[: generator.integers(len(data))])
    serve = tf.function(inputs.graph(), [tf.TensorSpec([None], tf.string)], autograph=False)
    outputs = {name: value.numpy() for name, value in serve(tf.constant(rows)).items()}
    inspected = [inputs.inspect(row) for row in rows]
    for index, host in enumerate(inspected):
        decodable = not isinstance(host, str)
        assert outputs["status"][index].decode() == ("ok" if decodable else host)
        np.testing.assert_array_equal(outputs["image"][index], host.pixels if decodable else 0)
    too_large = outputs["status"][len(CASES) + len(BROKEN_FILES) :][: len(TOO_LARGE)]
    assert all(b"its size is not between" in status for status in too_large), too_large
    assert 50 < (outputs["status"] == b"ok").sum() < len(rows) - 50
    assert serve(tf.constant([], tf.string))["status"].shape == [0]
    with pytest.raises(UserError, match="image 2: not an image"):
        inputs.batch([CASES["jpeg"], b"nothing"])
