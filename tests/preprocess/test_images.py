"""Encoded pictures to pixels, against Pillow."""

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


def clear(image):
    """With an opacity that changes from row to row."""
    pixels = np.asarray(image.convert("RGBA")).copy()
    pixels[..., 3] = np.linspace(0, 255, len(pixels))[:, None]
    return Image.fromarray(pixels)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def expected(data):
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
    "png clear": encoded(clear(IMAGE), "PNG"),
    "png grey clear": encoded(clear(IMAGE).convert("LA"), "PNG"),
    "gif": encoded(IMAGE, "GIF"),
    "gif of two": encoded(IMAGE, "GIF", save_all=True, append_images=[IMAGE.rotate(180)]),
    "bmp": encoded(IMAGE, "BMP"),
    "bmp palette": encoded(IMAGE.convert("P"), "BMP"),
    "bmp grey": encoded(IMAGE.convert("L"), "BMP"),
    "webp": encoded(IMAGE, "WEBP", quality=70),
    "webp lossless": encoded(IMAGE, "WEBP", lossless=True),
    "webp clear": encoded(clear(IMAGE), "WEBP", lossless=True),
    "webp clear, lossy": encoded(clear(IMAGE), "WEBP"),
    "webp of two": encoded(
        clear(IMAGE), "WEBP", save_all=True, lossless=True, append_images=[IMAGE.rotate(180)]
    ),
    "webp of two, first opaque": encoded(
        IMAGE, "WEBP", save_all=True, lossless=True, append_images=[clear(IMAGE)]
    ),
    "webp of two, lossy": encoded(
        clear(IMAGE), "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]
    ),
    "webp of two without opacity": encoded(
        IMAGE, "WEBP", save_all=True, append_images=[IMAGE.rotate(180)]
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_are_pillows(case):
    found = DECODE(CASES[case]).numpy().astype(int)
    # What is transparent is rounded once here and twice by Pillow.
    assert np.abs(found - expected(CASES[case])).max() <= ("clear" in case or "two" in case)


def test_cmyk_and_sixteen_bits():
    data = encoded(IMAGE.convert("CMYK"), "JPEG")
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(DECODE(data), want)
    grey = np.asarray(IMAGE.convert("L"))
    data = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")
    np.testing.assert_array_equal(DECODE(data), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("endian", "<>")
def test_exif_turns_the_picture(turn, endian):
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F] = "a maker"
    exif[0x0112] = turn
    data = encoded(IMAGE, "JPEG", exif=exif, icc_profile=b"x" * 3000)
    np.testing.assert_array_equal(DECODE(data), expected(data))


BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am no picture", "not a picture of a known kind"),
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


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pictures_are_told(case):
    data, reason = BROKEN[case]
    assert reason in ImageInputs(ImageSpec((32, 32))).check(data)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (20, 33), (300, 301)])
def test_resizing_is_pillows_within_a_level(interpolation, size):
    big = photo(150, 260)
    found = image_ops.fit(tf.constant(np.asarray(big)), ImageSpec(size, "stretch", interpolation))
    want = big.resize(size[::-1], getattr(Image, interpolation.upper()))
    assert np.abs(found.numpy().astype(int) - np.asarray(want)).max() <= 1


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (50, 50), (7, 300)])
def test_crop_keeps_the_middle_and_pad_keeps_all(shape):
    image = photo(*shape)
    pixels = tf.constant(np.asarray(image))
    scale = 40 / min(shape)
    resized = image.resize([round(side * scale) for side in image.size], Image.BILINEAR)
    left, top = (resized.width - 40) // 2, (resized.height - 40) // 2
    want = resized.crop((left, top, left + 40, top + 40))
    found = image_ops.fit(pixels, ImageSpec((40, 40))).numpy().astype(int)
    assert np.abs(found - np.asarray(want)).max() <= 1
    padded = image_ops.fit(pixels, ImageSpec((40, 40), "pad")).numpy()
    scale = 40 / max(shape)
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.BILINEAR)
    top, left = (40 - small.height) // 2, (40 - small.width) // 2
    inside = padded[top : top + small.height, left : left + small.width].astype(int)
    assert np.abs(inside - np.asarray(small)).max() <= 1
    assert int(padded.sum()) == int(inside.sum())


def test_host_graph_and_what_was_saved_agree(tmp_path):
    inputs = ImageInputs(ImageSpec((32, 32), crop_fraction=0.875))
    rows = [CASES["jpeg"], CASES["png palette"], CASES["webp clear"]]
    host = inputs.batch(rows)["image"]
    assert host.dtype == np.float32 and host.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(inputs.graph()(tf.constant(rows))["image"], host)
    inputs.save(tmp_path)
    again = restore(tmp_path)
    assert again.fingerprint == inputs.fingerprint
    np.testing.assert_array_equal(again.batch(rows)["image"], host)
    np.testing.assert_array_equal(inputs.inspect(rows[0]).pixels, host[0])


@pytest.mark.parametrize("turned", [False, True])
def test_a_batch_of_jpegs_is_decoded_as_each_alone(turned):
    """Batches of JPEGs that are upright have a way of their own."""
    inputs = ImageInputs(ImageSpec((32, 32)))
    exif = Image.Exif()
    exif[0x0112] = 6
    on_its_side = encoded(IMAGE, "JPEG", quality=60, exif=exif)
    rows = [CASES["jpeg"], CASES["jpeg grey"], *([on_its_side] if turned else [])]
    found = inputs.batch(rows)["image"]
    for at, row in enumerate(rows):
        beside_another_kind = inputs.batch([row, CASES["png"]])["image"]
        np.testing.assert_array_equal(found[at], beside_another_kind[0])
    if turned:
        assert not np.array_equal(found[2], found[0])


def test_a_broken_picture_of_a_batch_is_named(tmp_path):
    inputs = ImageInputs(ImageSpec((32, 32)))
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.jpg: not a picture"):
        inputs.batch([CASES["png"], str(tmp_path / "bad.jpg")])
    with pytest.raises(UserError, match=r"nowhere\.jpg: cannot be read: No such file"):
        inputs.batch([str(tmp_path / "nowhere.jpg")])
    with pytest.raises(UserError, match="path or the bytes"):
        inputs.row(3)


def test_like_pictures_have_like_hashes():
    def bits(image):
        return image_ops.grey_bits(tf.constant(np.asarray(image))).numpy()

    own = bits(IMAGE)
    assert (bits(IMAGE.resize((45, 30), Image.BILINEAR)) != own).sum() <= 4
    assert (bits(photo(seed=1)) != own).sum() > 15


# --- what is long, thin or large ---

PILLOWS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}


@pytest.mark.parametrize("interpolation", PILLOWS)
@pytest.mark.parametrize("shape", [(1, 2000), (3000, 7), (100, 1500)])
def test_the_middle_of_a_thin_picture_is_pillows(shape, interpolation):
    image = photo(*shape)
    side, long = min(shape), max(shape)
    scaled = round(long * 40 / side)
    begin = (scaled - 40) // 2 * long / scaled
    end = begin + 40 * long / scaled
    box = (begin, 0, end, side) if shape[1] == long else (0, begin, side, end)
    want = image.resize((40, 40), PILLOWS[interpolation], box=box)
    found = image_ops.fit(
        tf.constant(np.asarray(image)), ImageSpec((40, 40), "crop", interpolation)
    )
    assert np.abs(found.numpy().astype(int) - np.asarray(want)).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_is_wide_is_resized_across_first(interpolation, monkeypatch):
    wide = tf.constant(np.asarray(photo(30, 700)))
    size = tf.constant([50, 40])
    want = image_ops.resize(wide, size, interpolation).numpy().astype(int)
    monkeypatch.setattr(resizing, "_ROOM", 1000)
    found = image_ops.resize(wide, size, interpolation).numpy()
    assert np.abs(found - want).max() <= 1


def test_transparency_is_blended_in_strips(monkeypatch):
    monkeypatch.setattr(image_ops, "_STRIP", 1000)
    pixels = np.asarray(clear(IMAGE))
    found = image_ops._on_white(tf.constant(pixels)).numpy().astype(int)
    white = np.array(255.0) * (1 - pixels[..., 3:] / 255)
    np.testing.assert_array_equal(
        found, np.round(pixels[..., :3] * (pixels[..., 3:] / 255) + white)
    )


def blank_png(height, width, kind):
    """A PNG of zeros."""
    packed = zlib.compressobj(1)
    row = bytes(1 + {2: 3, 6: 4}[kind] * width)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif_parts(data):
    """What comes before the first frame, the frame, and the rest."""
    at = 13 + 3 * 2 ** (data[10] % 8 + 1)
    while data[at] == ord("!"):
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    end = at + 11
    while data[end]:
        end += 1 + data[end]
    return data[:at], data[at : end + 1], data[end + 1 :]


def gif_of_many(frame, count, screen):
    before, own, _ = gif_parts(encoded(frame, "GIF"))
    return before[:6] + struct.pack("<HH", *screen) + before[10:] + own * count + b";"


def webp_of_many(frame, count):
    own = encoded(frame, "WEBP", lossless=True, method=0)[12:]
    if own.startswith(b"VP8X"):
        own = own[18:]
    size = b"".join(struct.pack("<I", side - 1)[:3] for side in frame.size)
    own = bytes(6) + size + bytes(4) + own
    chunks = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0x12) + size + b"ANIM\x06\0\0\0" + bytes(6)
    chunks += (b"ANMF" + struct.pack("<I", len(own)) + own) * count
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


HOSTILE = {  # each took from 0.4 to 12 GiB
    "thin": lambda: blank_png(1, 20_000, 2),
    "thin, JPEG": lambda: encoded(Image.new("RGB", (2, 65_000)), "JPEG"),
    "GIF": lambda: gif_of_many(Image.new("L", (2000, 2000)), 100, (10, 10)),
    "WebP": lambda: webp_of_many(Image.new("RGBA", (1500, 1500)), 100),
    "PNG": lambda: blank_png(4000, 5000, 6),
}


def test_memory_of_one_picture_is_bounded():
    inputs = ImageInputs(ImageSpec((224, 224)))
    inputs.inspect(CASES["png clear"])

    def memory(name):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

    for case, make in HOSTILE.items():
        data = make()
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak from here on
        except OSError:
            pytest.skip("the peak of memory cannot be reset here")
        before = memory("VmRSS")
        assert inputs.check(data) == "", case
        assert memory("VmHWM") - before < 300, case


def test_the_first_frame_of_a_gif_alone_is_looked_at():
    small, large = photo(20, 30).convert("P"), photo(50, 70, 1).convert("P")
    before, own, _ = gif_parts(encoded(small, "GIF"))
    _, other, _ = gif_parts(encoded(large, "GIF"))
    comment = b"!\xfe" + b"\x05hello\x02hi\0"
    want = expected(encoded(small, "GIF"))
    for data in (
        before + comment + own + comment + other + b";",
        before + own + b"!\xf9\x04 cut off",
        before + own,  # the mark of the end left out
    ):
        np.testing.assert_array_equal(DECODE(data), want)
    start, blocks = own[:11], own[11:-1]
    stream = b"".join(blocks[at + 1 : at + 1 + blocks[at]] for at in range(0, len(blocks), 256))
    for size in (1, 254, 7):  # as other encoders write them
        parts = [stream[at : at + size] for at in range(0, len(stream), size)]
        again = b"".join(bytes([len(part)]) + part for part in parts)
        np.testing.assert_array_equal(DECODE(before + start + again + b"\0;"), want)


TOO_LARGE = {
    "PNG": blank_png(1, 70_000, 2),
    "GIF, the frame": CASES["gif"].replace(
        struct.pack("<HHHH", 0, 0, 90, 60), struct.pack("<HHHH", 0, 0, 60_000, 60_000)
    ),
    "GIF, the screen": CASES["gif"][:6] + struct.pack("<HH", 60_000, 60_000) + CASES["gif"][10:],
    "WebP, a frame": webp_of_many(Image.new("RGB", (8, 8)), 1).replace(
        b"\x2f\x07\xc0\x01\0", b"\x2f\xff\xff\xff\x0f"
    ),
}


@pytest.mark.parametrize("case", ["jpeg", "png", "gif", "bmp", "webp lossless"])
def test_the_size_that_a_header_may_claim(case):
    """Twice as many pixels in a JPEG, as cameras write them, as in the other kinds."""
    limit = 8192 if case == "jpeg" else 5792  # to a side
    for side in (limit, limit + 1):
        data = claiming(case, side)
        assert image_ops._size(data).numpy().tolist() == [side, side]
        assert bool(image_ops._claims_allowed(data)) == (side == limit)
    with pytest.raises(tf.errors.InvalidArgumentError, match="its size is not between"):
        DECODE(data)


def claiming(case, side):
    """A picture whose header claims another size."""
    data, size = CASES[case], (60, 90)
    if case == "webp lossless":
        return data[:21] + struct.pack("<I", (side - 1) * (2**14 + 1)) + data[25:]
    form = {"jpeg": ">HH", "png": ">II", "gif": "<HH", "bmp": "<II"}[case]
    size = size if case == "jpeg" else size[::-1]
    return data.replace(struct.pack(form, *size), struct.pack(form, side, side))


def test_decoders_are_traced_once():
    """However often they are asked for."""

    def traces():
        inputs = ImageInputs(ImageSpec((32, 32)))
        tf.function(inputs.decode, [tf.TensorSpec([None], tf.string)]).get_concrete_function()
        functions = image_ops._functions(inputs.image_spec)
        return [one.experimental_get_tracing_count() for one in functions]

    assert traces() == traces()


def test_a_bad_picture_has_a_status_and_the_others_their_pixels():
    """For what is broken at random too the graph says what the host says, and does not raise."""
    inputs = ImageInputs(ImageSpec((32, 32)))
    draw = np.random.default_rng(0)
    rows = [*CASES.values(), *(data for data, _ in BROKEN.values()), *TOO_LARGE.values()]
    for data in CASES.values():
        for _ in range(4):
            bytes_ = bytearray(data)
            for at in draw.integers(0, min(len(data), draw.choice([60, 5000])), 3):
                bytes_[at] = draw.integers(256)
            rows.append(bytes(bytes_))
            rows.append(data[: draw.integers(len(data))])
    serve = tf.function(inputs.graph(), [tf.TensorSpec([None], tf.string)], autograph=False)
    found = {name: value.numpy() for name, value in serve(tf.constant(rows)).items()}
    seen = [inputs.inspect(row) for row in rows]
    for at, host in enumerate(seen):
        good = not isinstance(host, str)
        assert found["status"][at].decode() == ("ok" if good else host)
        np.testing.assert_array_equal(found["image"][at], host.pixels if good else 0)
    large = found["status"][len(CASES) + len(BROKEN) :][: len(TOO_LARGE)]
    assert all(b"its size is not between" in status for status in large), large
    assert 50 < (found["status"] == b"ok").sum() < len(rows) - 50
    assert serve(tf.constant([], tf.string))["status"].shape == [0]
    with pytest.raises(UserError, match="picture 2: not a picture"):
        inputs.batch([CASES["jpeg"], b"nothing"])
