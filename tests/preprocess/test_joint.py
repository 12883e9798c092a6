"""Rows with a text and an image: equal on the host and in the graph, saved and restored."""

import numpy as np
import pytest
import tensorflow as tf

from tests.tasks.test_image_runs import write_folder
from tfft import preprocess
from tfft.preprocess import tokenizer
from tfft.preprocess.image import ImageInputs
from tfft.preprocess.joint import JointInputs
from tfft.preprocess.text import TextInputs
from tfft.spec import ImageSpec
from tfft.utils.errors import UserError


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_folder(folder, 1, 0)
    return [str(folder / name / "0.png") for name in ("red", "blue")]


@pytest.fixture(scope="module")
def inputs(tiny):
    spec = tokenizer.from_checkpoint(str(tiny), None)
    return JointInputs(TextInputs(spec, 12, pair=True), ImageInputs(ImageSpec((16, 16))))


def test_graph_equals_the_host_and_a_bad_image_has_a_status(inputs, images):
    columns = ("red apple", "the sky"), ("is red", "a grass is blue"), images
    host = inputs.batch(*columns)
    encoded = [inputs.request_row(row)[-1] for row in zip(*columns, strict=True)]
    in_graph = inputs.graph()(*map(tf.constant, (*columns[:2], encoded)))
    assert list(in_graph["status"].numpy()) == [b"ok", b"ok"]
    for name in inputs.input_specs():
        np.testing.assert_array_equal(host[name], in_graph[name].numpy())
    damaged = inputs.graph()(*map(tf.constant, (*columns[:2], [b"no image", encoded[1]])))
    assert damaged["status"].numpy()[0] != b"ok" and damaged["status"].numpy()[1] == b"ok"
    np.testing.assert_array_equal(damaged["image"].numpy()[1], host["image"][1])


def test_rows_are_checked(inputs, images):
    row = ("red", "blue", images[0])
    assert inputs.row(row) == row
    assert inputs.row({"image": images[0], "text_pair": "blue", "text": "red"}) == row
    for wrong in ("red", ("red", images[0]), {"text": "red", "image": images[0]}, (1, "a", b""), 3):
        with pytest.raises(UserError, match="a row must"):
            inputs.row(wrong)
    with pytest.raises(
        UserError, match=r"must have text, text_pair, image. Received: {'text': 'a'"
    ):
        inputs.row({"text": "a", "picture": images[0]})


def test_restored_inputs_are_equal(inputs, images, tmp_path):
    inputs.save(tmp_path)
    restored = preprocess.restore(tmp_path)
    assert restored.columns == ("text", "text_pair", "image")
    assert restored.fingerprint == inputs.fingerprint
    assert restored.text.fingerprint == inputs.text.fingerprint != inputs.fingerprint
