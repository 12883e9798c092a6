"""Encoded pictures to pixels, against Pillow."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfft.errors import UserError
from tfft.preprocess import ImageInputs, restore
from tfft.preprocess.graph import pictures
from tfft.spec import Picture

DECODE = tf.function(pictures.decode, [tf.TensorSpec([], tf.string)], autograph=False)


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
        "not between 1 and 33,554,432 pixels",
    ),
    "exif that points nowhere": (
        b"\xff\xd8\xff\xe1\x00\x10Exif\0\0MM\0*\xff\xff\xff\xff",
        "broken",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_pictures_are_told(case):
    data, reason = BROKEN[case]
    assert reason in ImageInputs(Picture((32, 32))).check(data)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(224, 224), (20, 33), (300, 301)])
def test_resizing_is_pillows_within_a_level(interpolation, size):
    big = photo(150, 260)
    found = pictures.fit(tf.constant(np.asarray(big)), Picture(size, "stretch", interpolation))
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
    found = pictures.fit(pixels, Picture((40, 40))).numpy().astype(int)
    assert np.abs(found - np.asarray(want)).max() <= 1
    padded = pictures.fit(pixels, Picture((40, 40), "pad")).numpy()
    scale = 40 / max(shape)
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.BILINEAR)
    top, left = (40 - small.height) // 2, (40 - small.width) // 2
    inside = padded[top : top + small.height, left : left + small.width].astype(int)
    assert np.abs(inside - np.asarray(small)).max() <= 1
    assert int(padded.sum()) == int(inside.sum())


def test_host_graph_and_what_was_saved_agree(tmp_path):
    inputs = ImageInputs(Picture((32, 32), keep=0.875))
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
    inputs = ImageInputs(Picture((32, 32)))
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
    inputs = ImageInputs(Picture((32, 32)))
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"bad\.jpg: not a picture"):
        inputs.batch([CASES["png"], str(tmp_path / "bad.jpg")])
    with pytest.raises(UserError, match=r"nowhere\.jpg: cannot be read: No such file"):
        inputs.batch([str(tmp_path / "nowhere.jpg")])
    with pytest.raises(UserError, match="path or the bytes"):
        inputs.row(3)


def test_like_pictures_have_like_hashes():
    def bits(image):
        return pictures.grey_bits(tf.constant(np.asarray(image))).numpy()

    own = bits(IMAGE)
    assert (bits(IMAGE.resize((45, 30), Image.BILINEAR)) != own).sum() <= 4
    assert (bits(photo(seed=1)) != own).sum() > 15
