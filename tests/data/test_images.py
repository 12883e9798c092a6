"""Image folders, tables, arrays and TFDS datasets: reading, caching, augmentation and profile."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfft.config import AugmentationConfig, parse
from tfft.data import batches, model_inputs
from tfft.data.augmentation import Augmentation, random_resized_crop
from tfft.data.dataset_builder import DatasetSettings, build
from tfft.data.images import PreparedImages
from tfft.preprocess import ImageInputs
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError

INPUTS = ImageInputs(ImageSpec((16, 16)))


def png(colour, size=(20, 24)):
    noise = np.random.default_rng(sum(colour)).integers(0, 40, (*size, 3))
    return tf.io.encode_png((np.array(colour) + noise).astype(np.uint8)).numpy()


COLOURS = {"blue": (10, 20, 200), "green": (20, 180, 30), "red": (200, 10, 20)}


@pytest.fixture
def folder(tmp_path):
    """Write train/COLOUR/N.png, six of each colour."""
    for name, colour in COLOURS.items():
        for number in range(6):
            path = tmp_path / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png([c + number for c in colour]))
    return tmp_path


def splits(path, kind="images", **data):
    raw = {
        "data": {"train": {"source": kind, "path": str(path)}, **data},
        "model": {"backbone": "keras:MobileNetV2", "weights": "none"},
        "task": {"name": "image_classification"},
    }
    return build(parse(raw).data, INPUTS, DatasetSettings())


def test_folder_for_each_class(folder):
    (folder / "train" / "red" / "deeper").mkdir()
    (folder / "train" / "red" / "deeper" / "more.PNG").write_bytes(png((200, 9, 9)))
    (folder / "train" / "red" / "notes.txt").write_text("not an image")
    (folder / "train" / "red" / ".hidden.png").write_text("nor this")
    data = splits(folder / "train", validation={"fraction": 0.2})
    assert data.labels == ("blue", "green", "red")
    assert len(data.train) + len(data.validation) == 19
    assert {tuple(s) for s in data.train.prepared.sizes} == {(20, 24)}
    path = data.train.raw_row(0)[0]
    assert path == str(folder / "train" / "blue" / "0.png")
    assert (data.train.lengths == data.train.lengths[0]).all()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table_of_paths_relative_to_its_folder(folder, kind):
    names = [(f"train/{c}/{i}.png", c) for c in COLOURS for i in range(6)]
    table = folder / f"t.{kind}"
    lines = [",".join(n) for n in [("image", "label"), *names]]
    if kind == "jsonl":
        lines = [json.dumps({"image": i, "label": c}) for i, c in names]
    table.write_text("\n".join(lines))
    data = splits(table, kind, validation=None)
    assert len(data.train) == 18 and data.labels == tuple(COLOURS)
    reference = splits(folder / "train", validation=None)
    batch = batches.Batch(np.arange(18), 8)
    pixels = [
        model_inputs.unaugmented_rows(d.train, INPUTS).arrays(batch)["image"]
        for d in (data, reference)
    ]
    np.testing.assert_array_equal(*pixels)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3)])
def test_npz_arrays_of_pixels(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", image=pixels, label=np.arange(12) % 3)
    data = splits(tmp_path / "a.npz", "npz", validation=None)
    assert data.labels == ("0", "1", "2")
    inputs = ImageInputs(ImageSpec((8, 8)))
    actual = inputs.batch([data.train.raw_row(position)[0] for position in range(12)])["image"]
    expected = pixels.reshape(12, 8, 8, -1)
    np.testing.assert_array_equal(actual, np.broadcast_to(expected, (12, 8, 8, 3)))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.zeros((3, 8, 8)), "label": np.zeros(3)}, "must be uint8.*float64"),
        ({"image": np.zeros((3, 8, 8), np.uint8), "label": np.zeros(2)}, r"\[3, 8, 8\] and \[2\]"),
        ({"images": np.zeros((3, 8, 8), np.uint8), "label": np.zeros(3)}, "no column 'image'"),
        ({"image": np.array([{}, {}]), "label": np.zeros(2)}, "not an npz file of plain arrays"),
    ],
)
def test_invalid_npz_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        splits(tmp_path / "a.npz", "npz")


def test_tfds_images_stay_encoded(tmp_path):
    import tensorflow_datasets as tfds

    class Shades(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(20, 24, 3)),
                "label": tfds.features.ClassLabel(names=list(COLOURS)),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for name, colour in COLOURS.items():
                for number in range(4):
                    pixels = tf.io.decode_png(png([c + number for c in colour])).numpy()
                    yield f"{name}{number}", {"image": pixels, "label": name}

    Shades(data_dir=tmp_path).download_and_prepare()
    raw = {"source": "tfds", "path": "shades", "data_dir": str(tmp_path), "split": "train"}
    config = parse(
        {
            "data": {"train": raw, "validation": None},
            "model": {"backbone": "keras:MobileNetV2", "weights": "none"},
            "task": {"name": "image_classification"},
        }
    )
    data = build(config.data, INPUTS, DatasetSettings())
    assert len(data.train) == 12 and set(data.labels) == set(COLOURS)
    assert isinstance(data.train.raw_row(0)[0], bytes)


def test_broken_image_stops_or_is_skipped_and_listed(folder):
    bad = folder / "train" / "green" / "cut.png"
    bad.write_bytes(png((1, 2, 3))[:60])
    (folder / "train" / "green" / "empty.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"green/cut\.png: broken.*on_bad_row: skip"):
        splits(folder / "train")
    data = splits(folder / "train", on_bad_row="skip", validation=None)
    assert len(data.train) == 18
    assert [line.rpartition("/")[2] for line in data.bad_rows] == [
        "cut.png: broken, cut off, or of a kind that TensorFlow does not decode",
        "empty.jpg: an empty file",
    ]


def test_no_usable_image_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"hello")
    with pytest.raises(UserError, match=r"no usable image \(1 bad, the first: .*x\.png: not a"):
        splits(tmp_path, on_bad_row="skip")


def test_missing_image_is_reported_with_its_row(folder):
    (folder / "t.csv").write_text("image,label\ntrain/red/0.png,red\ntrain/red/no.png,red\n")
    with pytest.raises(UserError, match=r"t\.csv:3: .*no\.png: cannot be read: No such file"):
        splits(folder / "t.csv", "csv")


@pytest.mark.parametrize(
    ("path", "message"),
    [("trian", "no such folder: .*trian.*train"), ("train/red", "each class needs a folder")],
)
def test_wrong_folder_is_refused(folder, path, message):
    with pytest.raises(UserError, match=message):
        splits(folder / path)


def test_unknown_label_is_reported_with_its_file(folder):
    with pytest.raises(UserError, match=r"train/red/0\.png: label 'red' is not a class"):
        splits(folder / "train", labels=["blue", "green", "rad"])


def test_cached_pixels_equal_decoded_pixels(folder):
    cached = splits(folder / "train", validation=None).train
    uncached = splits(folder / "train", validation=None, cache_images=False).train
    assert cached.prepared.pixels is not None and uncached.prepared.pixels is None
    batch = batches.Batch(np.array([3, 0, 17, 9]), 8)
    pixels = [
        model_inputs.unaugmented_rows(s, INPUTS).arrays(batch)["image"] for s in (cached, uncached)
    ]
    np.testing.assert_array_equal(*pixels)
    for split in (cached, uncached):
        source = model_inputs.unaugmented_rows(split, INPUTS)
        weights = np.ones(len(split), np.float32)
        dataset = batches.dataset(source, batches.RowTargets(split.targets, weights), [batch])
        (inputs, targets, _), *_ = list(dataset)
        np.testing.assert_array_equal(inputs["image"], pixels[0])
        np.testing.assert_array_equal(targets, split.targets[batch.positions])


def test_pixels_above_the_limit_are_not_cached(folder, monkeypatch):
    from tfft.data import images

    monkeypatch.setattr(images, "MAX_PIXEL_BYTES", 10 * 16 * 16 * 3)
    split = splits(folder / "train", validation=None).train
    assert split.prepared.pixels is None and len(split) == 18
    assert (split.prepared.folder / "pixels.bin").stat().st_size == 0
    (inputs, _, _), *_ = list(
        batches.dataset(
            model_inputs.unaugmented_rows(split, INPUTS),
            batches.targets_of(split.targets),
            [batches.Batch(np.arange(4), 8)],
        )
    )
    assert inputs["image"].shape == (4, 16, 16, 3)


def test_second_run_decodes_nothing_unless_a_file_changed(folder, monkeypatch):
    first = splits(folder / "train")
    calls = []
    original = ImageInputs.inspect
    monkeypatch.setattr(ImageInputs, "inspect", lambda s, d: calls.append(d) or original(s, d))
    second = splits(folder / "train")
    assert not calls and second.train.prepared.folder == first.train.prepared.folder
    (folder / "train" / "red" / "0.png").write_bytes(png((90, 90, 90)))
    changed = splits(folder / "train")
    assert len(calls) == 18 and changed.train.prepared.folder != first.train.prepared.folder
    assert isinstance(changed.train.prepared, PreparedImages)


# --- augmentation ---

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), dtype=np.uint8)
TARGETS = np.arange(64, dtype=np.int32) % 3
KINDS = {
    "flip": {"flip": "horizontal"},
    "crop": {"crop": {}},
    "rotation": {"rotation": 20},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.3},
    "saturation": {"saturation": 0.5},
    "hue": {"hue": 0.3},
    "rand_augment": {"rand_augment": {}},
    "erasing": {"erasing": 0.5},
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
}


def augment(config, draw, seed=0):
    augmentation = Augmentation(AugmentationConfig(**config), ImageSpec((16, 16)), 3, seed)
    run = tf.function(augmentation.__call__, autograph=False)
    return [
        [
            value.numpy()
            for value in run(tf.constant(PIXELS), tf.constant(TARGETS), tf.constant(seed_of_batch))
        ]
        for seed_of_batch in ([draw, 0], [draw, 0], [draw, 1], [draw + 1, 0])
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_number_alone_decides_the_augmentation(kind):
    first, same, other_replica, later_batch = augment(KINDS[kind], 5)
    np.testing.assert_array_equal(first[0], same[0])
    np.testing.assert_array_equal(first[0], augment(KINDS[kind], 5)[0][0])  # of another object too
    other_seed = augment(KINDS[kind], 5, seed=1)[0]
    for different in (other_replica, later_batch, other_seed):
        assert (first[0] != different[0]).any()
    assert first[0].min() >= 0 and first[0].max() <= 255
    assert first[0].shape == PIXELS.shape and first[0].dtype == np.float32
    assert (first[0] != PIXELS).any((1, 2, 3)).mean() > 0.3


def test_flips_mirror_half_of_the_images():
    pixels, _ = augment({"flip": "horizontal"}, 1)[0]
    same = (pixels == PIXELS).all((1, 2, 3))
    mirrored = (pixels == PIXELS[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all() and 16 < mirrored.sum() < 48


def test_erasing_blanks_a_rectangle_in_a_share_of_images():
    pixels, _ = augment({"erasing": 0.5}, 2)[0]
    changed = (pixels != PIXELS).any(-1)
    assert 16 < changed.any((1, 2)).sum() < 48
    for mask in changed[changed.any((1, 2))]:
        down, across = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
        box = mask[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
        assert box.mean() > 0.9  # noise may hit the old value


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_the_images(kind):
    plain = np.zeros_like(PIXELS)
    plain[..., :] = (TARGETS * 100)[:, None, None, None]
    augmentation = Augmentation(AugmentationConfig(**KINDS[kind]), ImageSpec((16, 16)), 3, 0)
    pixels, targets = augmentation(tf.constant(plain), tf.constant(TARGETS), tf.constant([1, 0]))
    np.testing.assert_allclose(targets.numpy().sum(1), 1, atol=1e-6)
    # An image of class c is 100 c everywhere, so the mean pixel is the mean of the mixed label.
    np.testing.assert_allclose(
        pixels.numpy().mean((1, 2, 3)), targets.numpy() @ [0, 100, 200], atol=1e-3
    )


def test_random_resized_crop_keeps_the_configured_share():
    config = AugmentationConfig(crop={"area": (0.25, 0.25), "ratio": (1, 1)})
    steps = np.broadcast_to(np.arange(64)[:, None, None] * 4, (64, 64, 3)).astype(np.uint8)
    for seed in range(5):
        part = random_resized_crop(
            tf.constant(steps), config.crop, ImageSpec((32, 32)), tf.constant([seed, 1])
        )
        row_values = part.numpy()[:, 0, 0].astype(int)
        np.testing.assert_array_equal(np.diff(row_values), 4)  # half the height, not resized


def test_incompatible_augmentations_are_refused():
    with pytest.raises(ValueError, match="one of `mixup` and `cutmix`"):
        AugmentationConfig(mixup=0.2, cutmix=1.0)
    with pytest.raises(UserError, match="augmentation: is for image_classification"):
        parse(
            {
                "data": {"train": "a.csv"},
                "model": {"backbone": "hf:x"},
                "augmentation": {"flip": "both"},
            }
        )


# --- profile ---


def test_profile_reports_duplicates_leaks_sizes_and_broken_files(folder):
    from tfft.data import image_profile, profile

    (folder / "test" / "red").mkdir(parents=True)
    (folder / "test" / "blue").mkdir()
    same = (folder / "train" / "red" / "0.png").read_bytes()
    (folder / "test" / "red" / "leak.png").write_bytes(same)
    (folder / "test" / "blue" / "own.png").write_bytes(png((1, 90, 250), (40, 60)))
    (folder / "train" / "green" / "same.png").write_bytes(same)
    (folder / "train" / "green" / "cut.png").write_bytes(same[:50])
    config = parse(
        {
            "data": {
                "train": f"{folder / 'train'}/",
                "validation": None,
                "test": f"{folder / 'test'}/",
            },
            "model": {"backbone": "keras:MobileNetV2", "weights": "none", "image_size": 32},
            "task": {"name": "image_classification"},
        }
    )
    result = image_profile.profile(config, ImageInputs(ImageSpec((32, 32))))
    assert result["targets"]["train"] == {"blue": 6, "green": 7, "red": 6}
    assert result["duplicates"]["train"]["exact"] == 1
    assert result["duplicates"]["train"]["contradicting"] == 1
    leak = result["leaks"]["train and test"]
    assert leak["exact"] == 1 and leak["shown"][0].endswith("test/red/leak.png")
    assert result["sizes"]["test"]["quantiles"][0] == "20 x 24"
    assert result["sizes"]["test"]["quantiles"][-1] == "40 x 60"
    assert result["sizes"]["test"]["smaller"] == 1
    assert result["bad_rows"]["train"]["count"] == 1
    text = profile.text(result, image_profile.text(result))
    assert "cut.png: broken" in text and "1 exact (1 under another label)" in text


def test_near_pairs():
    from tfft.data.image_profile import near_pairs

    hashes = np.random.default_rng(0).integers(0, 256, (300, 8), dtype=np.uint8)
    hashes[7], hashes[9] = hashes[5], hashes[5]
    hashes[7, 0] ^= 0b10000001
    hashes[7, 5] ^= 0b00001000
    hashes[9, [0, 2, 4, 6]] ^= 1
    assert sorted(near_pairs(hashes)) == [(5, 7)]
    assert list(near_pairs(hashes, across=6)) == [(5, 7)]
    assert not list(near_pairs(hashes, across=8))


def test_preview_of_augmented_images(folder):
    from tfft.report import write_augmentation_preview

    config = parse(
        {
            "data": {"train": f"{folder / 'train'}/"},
            "model": {"backbone": "keras:MobileNetV2", "weights": "none"},
            "task": {"name": "image_classification"},
            "augmentation": {"flip": "horizontal", "crop": {}},
        }
    )
    write_augmentation_preview(folder / "preview.html", config, INPUTS)
    page = (folder / "preview.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 12 and "blue" in page
