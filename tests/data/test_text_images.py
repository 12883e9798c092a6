"""Rows with a text and an image: prepared together, planned by tokens, images decoded last."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks.samples import model_section, text_image_data
from tfft import preprocess
from tfft.config import parse
from tfft.data import batches, dataset_builder, model_inputs
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

SPEC = ImageSpec((16, 16))


@pytest.fixture(scope="module")
def inputs(tiny):
    """The preprocessing, whose ops of images are traced once."""
    model = {"text": {"backbone": f"hf:{tiny}"}, "image": {"backbone": "keras:X"}}
    data = {"train": "both.csv", "image": "picture", "max_length": 12}
    config = parse({"data": data, "model": model})
    return preprocess.load(config.model, config.data, config.task, SPEC)


@pytest.fixture
def build(tiny, inputs, tmp_path):
    """A function: (lines after the header, changes of `data`) -> splits, inputs and config."""
    data, backbones = text_image_data(tiny, tmp_path)
    path, model = tmp_path / "both.csv", model_section(backbones)
    lines = path.read_text().splitlines()

    def build_lines(rows=None, **changes):
        path.write_text("\n".join([lines[0], *(lines[1:] if rows is None else rows)]) + "\n")
        raw = {"data": {**data, "validation": None, "cache_dir": str(tmp_path / "cache")}}
        config = parse(raw | {"model": model}, changes={"data": changes})
        settings = dataset_builder.DatasetSettings.of(config)
        return dataset_builder.build(config.data, inputs, settings), inputs, config

    return build_lines, lines[1:]


def test_rows_hold_tokens_and_pixels(build, tmp_path):
    build_lines, lines = build
    splits, inputs, _ = build_lines()
    train = splits.train
    assert len(train) == len(lines) == 42
    picture, text, label = lines[3].split(",")
    assert train.raw_row(3) == (text, str(tmp_path / picture)) and train.texts(3) == (text,)
    assert train.target_text(3, splits.labels) == label
    rows = model_inputs.unaugmented_rows(train, inputs)
    positions = np.array([3, 0, 5])
    batch = batches.Batch(positions, 16)
    columns = zip(*(train.raw_row(int(p)) for p in positions), strict=True)
    expected, actual = inputs.batch(*columns), rows.arrays(batch)
    width = expected["token_ids"].shape[1]
    assert actual["token_ids"].shape == (3, 16) and not actual["padding_mask"][:, width:].any()
    for name, values in expected.items():
        got = actual[name] if name == "image" else actual[name][:, :width]
        np.testing.assert_array_equal(got, values)
    # Training reads what is not cached as bytes, and decodes it in the graph.
    for cache_images in (True, False):
        splits, inputs, _ = build_lines(cache_images=cache_images)
        rows = model_inputs.unaugmented_rows(splits.train, inputs)
        raw = {name: tf.constant(value) for name, value in rows.raw_arrays(batch).items()}
        finished, _ = rows.finish(raw, tf.zeros(3))
        assert finished.keys() == actual.keys() == rows.spec(None, None).keys()
        for name, values in actual.items():
            np.testing.assert_array_equal(finished[name].numpy(), values)


def test_batches_have_a_static_shape(build):
    build_lines, _ = build
    splits, inputs, _ = build_lines(cache_images=False)
    rows = model_inputs.unaugmented_rows(splits.train, inputs)
    targets = batches.targets_of(splits.train.targets)
    plan = [batches.Batch(np.arange(3), 16)]
    (element,) = batches.dataset(rows, targets, plan, shape=(4, 16))
    x, _, weights = element
    assert x["token_ids"].shape == (4, 16) and x["image"].shape == (4, 16, 16, 3)
    np.testing.assert_allclose(weights, [4 / 3] * 3 + [0])


def test_augmentation_changes_the_images_alone(build):
    build_lines, _ = build
    splits, inputs, config = build_lines()
    changed = parse(config.model_dump(mode="json"), changes={"augmentation": {"brightness": 0.5}})
    rows = model_inputs.augmented_rows(splits.train, inputs, changed.augmentation, 3, seed=0)
    plain = model_inputs.unaugmented_rows(splits.train, inputs)
    batch = batches.Batch(np.arange(4), 16)
    augmented, original = rows.arrays(batch), plain.arrays(batch)
    np.testing.assert_array_equal(augmented["token_ids"], original["token_ids"])
    assert np.abs(augmented["image"] - original["image"]).max() > 1
    np.testing.assert_array_equal(augmented["image"], rows.arrays(batch)["image"])
    variants = [rows.variant(number).arrays(batch) for number in (0, 0, 1)]
    np.testing.assert_array_equal(variants[0]["image"], variants[1]["image"])
    assert (variants[0]["image"] != variants[2]["image"]).any()
    mirrored = model_inputs.MirroredRows(plain).arrays(batch)
    np.testing.assert_array_equal(mirrored["image"], original["image"][:, :, ::-1])
    np.testing.assert_array_equal(mirrored["token_ids"], original["token_ids"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("images/none.png,the sky,red", r"both.csv:3: .*images/none.png: .*(no such|cannot be)"),
        ("both.csv,the sky,red", r"both.csv:3: .*both.csv: "),
        ("images/red/0.png,,red", r"both.csv:3: column 'text' is empty"),
    ],
)
def test_bad_image_or_text_rejects_the_row(build, line, expected):
    build_lines, lines = build
    rows = [lines[0], line, *lines[1:]]
    with pytest.raises(UserError, match=expected):
        build_lines(rows)
    splits, _, _ = build_lines(rows, on_bad_row="skip")
    assert len(splits.train) == 42 and len(splits.bad_rows) == 1
    assert splits.train.texts(1) == (lines[1].split(",")[1],)  # no text without its image


def test_set_is_prepared_once(build, tmp_path):
    build_lines, _ = build
    build_lines()
    (folder,) = (tmp_path / "cache" / "images").iterdir()
    before = (folder / "ids.bin").stat().st_mtime_ns
    build_lines()
    assert (folder / "ids.bin").stat().st_mtime_ns == before
    (tmp_path / "images" / "red" / "0.png").touch()
    build_lines()
    assert len(list((tmp_path / "cache" / "images").iterdir())) == 2


def test_pixels_and_texts_of_parquet_rows(build, tmp_path):
    build_lines, lines = build
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    columns = list(zip(*(line.split(",") for line in lines), strict=True))
    table = pa.table(dict(zip(("picture", "text", "label"), columns, strict=True)))
    parquet.write_table(table, tmp_path / "both.parquet")
    splits, _, _ = build_lines(train=str(tmp_path / "both.parquet"))
    assert len(splits.train) == 42
    assert splits.train.raw_row(0)[1] == str(tmp_path / columns[0][0])
