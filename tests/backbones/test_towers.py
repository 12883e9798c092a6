"""Two backbones as one: equal to both of them run separately, and rebuilt from its description."""

import json
import shutil

import numpy as np
import pytest

from tests.conftest import GOLDEN
from tfft import backbones
from tfft.config import parse
from tfft.utils.errors import UserError

VIT = f"hf:{GOLDEN / 'vision' / 'vit'}"


def model_config(text, image):
    text, image = ({"backbone": v} if isinstance(v, str) else v for v in (text, image))
    raw = {"data": {"train": "a.csv", "image": "image"}, "model": {"text": text, "image": image}}
    return parse(raw).model


@pytest.fixture(scope="module")
def mean_pooled(tiny, tmp_path_factory):
    """The checkpoint of texts as sentence-transformers pools it."""
    folder = tmp_path_factory.mktemp("mean") / "checkpoint"
    shutil.copytree(tiny, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": 1}))
    return folder


def prepared_rows(size):
    generator = np.random.default_rng(0)
    mask = np.array([[1] * 6, [1] * 4 + [0] * 2], np.int32)
    texts = {
        "token_ids": generator.integers(5, 20, (2, 6)).astype(np.int32) * mask,
        "padding_mask": mask,
        "segment_ids": np.zeros((2, 6), np.int32),
    }
    return texts, {"image": generator.uniform(0, 255, (2, *size, 3)).astype(np.float32)}


KERAS = {"backbone": "keras:MobileNet", "weights": "none", "image_size": 32}


@pytest.mark.parametrize("image", [VIT, KERAS], ids=["vit", "keras"])
def test_vectors_are_those_of_both_backbones_side_by_side(mean_pooled, image):
    config = model_config(f"hf:{mean_pooled}", image)
    combined = backbones.load(config)
    texts, images = prepared_rows(combined.image_spec.size)
    actual = combined.model.predict_on_batch({**texts, **images})["pooled"]
    parts = {name: backbones.load(tower) for name, tower in config.towers.items()}
    assert parts["text"].head_style.pooling == "mean"
    of_tokens = parts["text"].model.predict_on_batch(texts)["sequence"]
    mask = texts["padding_mask"][:, :, None]
    of_text = (of_tokens * mask).sum(axis=1) / mask.sum(axis=1)
    if image is KERAS:  # both loads draw random weights
        for variable, source in zip(
            [v for v in combined.model.weights if v.path.startswith("image/")],
            parts["image"].model.weights,
            strict=True,
        ):
            source.assign(variable)
    of_image = parts["image"].model.predict_on_batch(images)["pooled"]
    np.testing.assert_allclose(actual, np.concatenate([of_text, of_image], 1), atol=1e-5)
    assert combined.reads == ("text", "image") and combined.features["pooled"].axes == "BD"


def test_paths_and_stages_lie_below_the_names(tiny_two_blocks):
    combined = backbones.load(model_config(f"hf:{tiny_two_blocks}", VIT))
    paths = [v.path for v in combined.model.weights]
    assert {path.split("/")[0] for path in paths} == {"text", "image"}
    names = [stage.name for stage in combined.stages]
    assert names[:4] == ["text/embeddings", "text/block_0", "text/block_1", "text/pooler"]
    assert names[4] == "image/stem" and combined.stages[0].tower == "text"
    rebuilt = backbones.rebuild(json.loads(json.dumps(combined.description)))
    assert [v.path for v in rebuilt.model.weights] == paths
    assert rebuilt.stages == combined.stages and rebuilt.max_length == combined.max_length


def test_fingerprint_depends_on_both(tiny, tiny_two_blocks):
    first, second = (
        backbones.load(model_config(f"hf:{folder}", VIT)) for folder in (tiny, tiny_two_blocks)
    )
    assert first.fingerprint != second.fingerprint


def test_blocks_of_a_backbone_are_dropped(tiny_two_blocks):
    raw = {
        "text": {"backbone": f"hf:{tiny_two_blocks}"},
        "image": {"backbone": VIT},
        "surgery": {"drop": ["text/block_0"]},
    }
    config = parse({"data": {"train": "a.csv", "image": "image"}, "model": raw}).model
    names = [stage.name for stage in backbones.load(config).stages]
    assert "text/block_0" not in names and {"text/block_1", "image/block_0"} <= set(names)


@pytest.mark.parametrize(
    ("text", "image", "expected"),
    [
        (
            VIT,
            VIT,
            r"^model.text.backbone: must read texts. Received: .*vit, which reads images$",
        ),
        ("TINY", "TINY", r"^model.image.backbone: must read images. Received: .* reads texts$"),
        ("hf:./missing", VIT, r"^model.text.backbone: no such folder: ./missing"),
        ("TINY", "keras:Mobile", r"^model.image.backbone: keras.applications has no 'Mobile'"),
    ],
)
def test_wrong_backbone_is_named_by_its_key(text, image, expected, tiny):
    names = [value.replace("TINY", f"hf:{tiny}") for value in (text, image)]
    with pytest.raises(UserError, match=expected):
        backbones.load(model_config(*names))
