"""Images that cannot be decoded do not affect the other rows of a served batch."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.preprocess.test_image_ops import BROKEN_FILES, CASES
from tfft.export import exported_model, serving_config, verify
from tfft.export.signatures import Servable, Signatures, example
from tfft.preprocess import ImageInputs
from tfft.spec import ImageSpec
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

LABELS = ("blue", "green", "red")
VALID = {0: CASES["jpeg"], 3: CASES["gif of two"], 4: CASES["png clear"]}
ROWS = [VALID.get(index) for index in range(5)]
ROWS[1:3] = BROKEN_FILES["text"][0], BROKEN_FILES["cut jpeg"][0]
STATUS = [
    b"ok",
    b"not an image of a known format (JPEG, PNG, GIF, BMP, WebP)",
    b"broken, cut off, or of a kind that TensorFlow does not decode",
    b"ok",
    b"ok",
]
FAILED = [1, 2]


@pytest.fixture(
    scope="module",
    params=["image_classification", pytest.param("image_multilabel", marks=pytest.mark.slow)],
)
def exported(request, tmp_path_factory):
    """Folder of a SavedModel, its task, and its probabilities for the valid rows."""
    image = keras.Input([16, 16, 3], name="image")
    vector = keras.layers.GlobalAveragePooling2D()(image)
    keras.utils.set_random_seed(0)
    model = keras.Model({"image": image}, keras.layers.Dense(3)(vector))
    inputs, task = ImageInputs(ImageSpec((16, 16))), TASKS[request.param]
    servable = Servable(model, inputs, task, LABELS, {}, None, None)
    folder = tmp_path_factory.mktemp("exported") / "1"
    signatures = Signatures(servable)
    signatures.save(folder)
    exported_model.describe(folder, servable)
    logits = model(inputs.batch(list(VALID.values())))
    return folder, task, task.activate(np.asarray(logits), {})


def check_outputs(outputs, task, live):
    np.testing.assert_allclose(outputs["probabilities"][list(VALID)], live, atol=1e-6)
    assert not outputs["probabilities"][FAILED].any()
    assert list(outputs["status"]) == STATUS
    assert list(outputs["label"][FAILED]) == [b"", b""]
    if "chosen" in task.section.outputs:
        assert not outputs["chosen"][FAILED].any()
    else:
        expected = [LABELS[index].encode() for index in live.argmax(1)]
        assert list(outputs["label"][list(VALID)]) == expected


def test_other_rows_of_the_batch_are_answered(exported, tmp_path):
    folder, task, live = exported
    model = tf.saved_model.load(str(folder))
    serialized = tf.constant([example(["image"], [row]) for row in ROWS])
    for name, request in (("serving_default", ROWS), ("serialized", serialized)):
        (key,) = model.signatures[name].structured_input_signature[1]
        outputs = model.signatures[name](**{key: tf.constant(request)})
        check_outputs({name: value.numpy() for name, value in outputs.items()}, task, live)
    outputs = model.signatures["classify"](inputs=serialized)
    scores, classes = outputs["scores"].numpy(), outputs["classes"].numpy()
    np.testing.assert_allclose(scores[list(VALID)], live, atol=1e-6)
    assert not scores[FAILED].any()
    names = [label.encode() for label in LABELS]
    assert classes.tolist() == [names if index in VALID else [b"", b"", b""] for index in range(5)]
    assert "status" not in model.signatures["tensors"].structured_outputs
    single = model.signatures["serving_default"](image=tf.constant(ROWS[1:2]))
    assert single["status"].numpy() == STATUS[1:2]
    with pytest.raises(ValueError, match="a row failed: not an image of a known format"):
        verify.run_signature(model.signatures["serving_default"], {"image": ROWS}, 3)
    loaded = exported_model.ExportedModel(folder)
    rows = [(ROWS[index],) for index in (0, 3, 4, 0, 1)]
    with pytest.raises(UserError, match=r"^row 5: not an image of a known format"):
        loaded.outputs(rows, 2)
    (tmp_path / "bad.jpg").write_bytes(ROWS[1])
    with pytest.raises(UserError, match=r"bad\.jpg: not an image of a known format"):
        loaded.outputs([*rows[:3], (str(tmp_path / "bad.jpg"),)], 2)


def test_session_as_in_tf_serving(exported):
    folder, task, live = exported
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = graph.signature_def["serving_default"]
        fetches = {name: info.name for name, info in signature.outputs.items()}
        rows = np.array(ROWS, object)
        outputs = session.run(fetches, {signature.inputs["image"].name: rows})
        check_outputs(outputs, task, live)
        valid_outputs = session.run(fetches, {signature.inputs["image"].name: rows[list(VALID)]})
        assert list(valid_outputs["status"]) == [b"ok"] * 3


def test_readme_lists_the_signatures_with_a_status():
    inputs = ImageInputs(ImageSpec((16, 16)))
    servable = Servable(None, inputs, TASKS["image_classification"], LABELS, {}, None, None)
    rows = {
        row.split("`")[1]: row for row in serving_config._signature_table(servable).splitlines()[2:]
    }
    with_status = {name for name, row in rows.items() if "`status` string [B]" in row}
    assert with_status == {"serving_default", "serialized"}
