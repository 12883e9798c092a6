"""A served batch with pictures that cannot be decoded: the other rows are answered."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.preprocess.test_images import BROKEN_FILES, CASES
from tfft.export import exported_model, serving_config, verify
from tfft.export.signatures import Servable, Signatures, example
from tfft.preprocess import ImageInputs
from tfft.spec import ImageSpec
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

LABELS = ("blue", "green", "red")
GOOD = {0: CASES["jpeg"], 3: CASES["gif of two"], 4: CASES["png clear"]}
ROWS = [GOOD.get(at) for at in range(5)]
ROWS[1:3] = BROKEN_FILES["text"][0], BROKEN_FILES["cut jpeg"][0]
STATUS = [
    b"ok",
    b"not an image of a known format (JPEG, PNG, GIF, BMP, WebP)",
    b"broken, cut off, or of a kind that TensorFlow does not decode",
    b"ok",
    b"ok",
]
BAD = [1, 2]


@pytest.fixture(
    scope="module",
    params=["image_classification", pytest.param("image_multilabel", marks=pytest.mark.slow)],
)
def exported(request, tmp_path_factory):
    """A folder with a saved model, its task, and what it answers for the good rows."""
    image = keras.Input([16, 16, 3], name="image")
    vector = keras.layers.GlobalAveragePooling2D()(image)
    keras.utils.set_random_seed(0)
    model = keras.Model({"image": image}, keras.layers.Dense(3)(vector))
    inputs, task = ImageInputs(ImageSpec((16, 16))), TASKS[request.param]
    servable = Servable(model, inputs, task, LABELS, None, None, None)
    folder = tmp_path_factory.mktemp("exported") / "1"
    signatures = Signatures(servable)
    signatures.save(folder)
    exported_model.describe(folder, servable)
    logits = model(inputs.batch(list(GOOD.values())))
    return folder, task, task.probabilities(np.asarray(logits))


def check(answer, task, live):
    np.testing.assert_allclose(answer["probabilities"][list(GOOD)], live, atol=1e-6)
    assert not answer["probabilities"][BAD].any()
    assert list(answer["status"]) == STATUS
    assert list(answer["label"][BAD]) == [b"", b""]
    if task.multi_label:
        assert not answer["chosen"][BAD].any()
    else:
        wanted = [LABELS[at].encode() for at in live.argmax(1)]
        assert list(answer["label"][list(GOOD)]) == wanted


def test_every_signature_that_decodes_answers_the_other_rows(exported, tmp_path):
    folder, task, live = exported
    model = tf.saved_model.load(str(folder))
    serialized = tf.constant([example(["image"], [row]) for row in ROWS])
    for name, request in (("serving_default", ROWS), ("serialized", serialized)):
        (key,) = model.signatures[name].structured_input_signature[1]
        answer = model.signatures[name](**{key: tf.constant(request)})
        check({name: value.numpy() for name, value in answer.items()}, task, live)
    answer = model.signatures["classify"](inputs=serialized)
    scores, classes = answer["scores"].numpy(), answer["classes"].numpy()
    np.testing.assert_allclose(scores[list(GOOD)], live, atol=1e-6)
    assert not scores[BAD].any()
    names = [label.encode() for label in LABELS]
    assert classes.tolist() == [names if at in GOOD else [b"", b"", b""] for at in range(5)]
    assert "status" not in model.signatures["tensors"].structured_outputs
    alone = model.signatures["serving_default"](image=tf.constant(ROWS[1:2]))
    assert alone["status"].numpy() == STATUS[1:2]
    with pytest.raises(ValueError, match="a row was not answered: not an image of a known format"):
        verify.answers(model.signatures["serving_default"], {"image": ROWS}, 3)
    again = exported_model.ExportedModel(folder)
    rows = [(ROWS[at],) for at in (0, 3, 4, 0, 1)]
    with pytest.raises(UserError, match=r"^row 5: not an image of a known format"):
        again.probabilities(rows, 2)
    (tmp_path / "bad.jpg").write_bytes(ROWS[1])
    with pytest.raises(UserError, match=r"bad\.jpg: not an image of a known format"):
        again.probabilities([*rows[:3], (str(tmp_path / "bad.jpg"),)], 2)


def test_in_a_session_as_tf_serving_has_it(exported):
    folder, task, live = exported
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], str(folder))
        signature = graph.signature_def["serving_default"]
        wanted = {name: info.name for name, info in signature.outputs.items()}
        rows = np.array(ROWS, object)
        answer = session.run(wanted, {signature.inputs["image"].name: rows})
        check(answer, task, live)
        again = session.run(wanted, {signature.inputs["image"].name: rows[list(GOOD)]})
        assert list(again["status"]) == [b"ok"] * 3


def test_the_table_of_signatures_says_which_answer_a_status():
    inputs = ImageInputs(ImageSpec((16, 16)))
    servable = Servable(None, inputs, TASKS["image_classification"], LABELS, None, None, None)
    rows = {row.split("`")[1]: row for row in serving_config._table(servable).splitlines()[2:]}
    answering = {name for name, row in rows.items() if "`status` string [B]" in row}
    assert answering == {"serving_default", "serialized"}
