"""Configs of earlier runs."""

import pytest
import yaml

from tfft.config import dump, load_saved, parse
from tfft.training import run_directory
from tfft.utils.errors import UserError

TEXTS = {"data": {"train": "a.csv"}, "model": {"backbone": "hf:a"}}


def test_column_of_images_that_a_model_of_texts_did_not_read(tmp_path):
    """Earlier versions wrote it into the config of each run."""
    config, path = parse(TEXTS), tmp_path / "config.yaml"
    raw = yaml.safe_load(dump(config))
    raw["data"]["image"] = "image"
    path.write_text(yaml.safe_dump(raw))
    assert load_saved(path) == config
    run_directory.check_same(path, dump(config))  # it can be resumed
    with pytest.raises(UserError, match=r"data\.image"):  # not in a config that a user writes
        parse(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {**TEXTS, "task": {"name": "image_classification"}},
        {
            "data": {"train": "a.csv", "image": "picture"},
            "model": {"text": {"backbone": "hf:a"}, "image": {"backbone": "hf:b"}},
        },
    ],
    ids=["images", "both"],
)
def test_column_of_images_that_is_read(raw, tmp_path):
    config, path = parse(raw), tmp_path / "config.yaml"
    path.write_text(dump(config))
    assert load_saved(path) == config and "image" in config.columns


def test_broken_config_is_an_error(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: 3\nmodel: {backbone: 'hf:a'}\n")
    with pytest.raises(UserError, match="data"):
        load_saved(path)
