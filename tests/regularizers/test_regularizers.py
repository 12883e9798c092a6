"""Tests of each regularizer against its formula, and in a run on one and two devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.conftest import whole_config
from tfft.config import RegularizationConfig
from tfft.config.regularization import Fgm, FreeLb
from tfft.model import Model
from tfft.regularizers import adversarial, attach, distillation, mixout, penalties, r_drop
from tfft.spec import Mask, MaskEntry, Rule
from tfft.utils.errors import UserError

MIRRORED = {"strategy": "mirrored", "devices": ["CPU:0", "CPU:1"]}


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def small_model(rate=0.0):
    """Build embedding -> mean -> dropout -> logits, compiled with tfft's train step."""
    keras.utils.set_random_seed(1)
    ids = keras.Input([None], dtype="int32", name="ids")
    x = keras.layers.Embedding(11, 4, name="token")(ids)
    x = keras.layers.GlobalAveragePooling1D()(x)
    x = keras.layers.Dropout(rate)(x)
    model = Model({"ids": ids}, keras.layers.Dense(3, name="logits")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1.0), loss)
    return model


def batch(rows=4):
    generator = np.random.default_rng(2)
    ids = generator.integers(0, 11, (rows, 5)).astype(np.int32)
    return {"ids": tf.constant(ids)}, tf.constant(generator.integers(0, 3, rows)), None


def model_gradients(model, x, y, weight):
    loss, gradients = model.gradients(
        model.options, x, y, weight, {"loss": tf.constant(float(len(y)))}
    )
    return float(loss), [np.asarray(g) for g in gradients]


def reference_gradients(model, x, y, offset):
    """Return the loss, and its gradients by table, kernel, bias and offset."""
    table, kernel, bias = (tf.constant(v.numpy()) for v in model.trainable_variables)
    with tf.GradientTape() as tape:
        tape.watch([table, kernel, bias, offset])
        hidden = tf.reduce_mean(tf.gather(table, x["ids"]) + offset, axis=1)
        logits = hidden @ kernel + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        loss = tf.reduce_mean(losses)
    gradients = tape.gradient(loss, [table, kernel, bias, offset])
    return float(loss), [tf.convert_to_tensor(g).numpy() for g in gradients]


def normalize(g):
    return g / np.sqrt((g**2).sum(axis=(1, 2), keepdims=True))


def test_divergence_against_numpy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 3)).astype(np.float32)
    p, q = softmax(a), softmax(b)
    expected = 0.5 * ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1))
    np.testing.assert_allclose(r_drop.divergence(a, b), expected, rtol=1e-4, atol=1e-6)


def test_r_drop_is_the_mean_loss_plus_divergence():
    model = small_model(0.5)
    x, y, _ = batch()
    weight = tf.constant([1.0, 2.0, 0.5, 1.0])
    model.configure(consistency=r_drop.RDrop(alpha=3.0))
    outputs = []
    call = Model.__call__

    class Recorded(Model):
        def __call__(self, *args, **kwargs):
            outputs.append(np.asarray(call(self, *args, **kwargs)))
            return outputs[-1]

    model.__class__ = Recorded
    loss, out = model.options.consistency.loss(model, x, y, weight, {"loss": tf.constant(4.0)})
    first, second = np.split(outputs[0], 2)
    assert np.abs(first - second).max() > 0.01  # different dropout masks
    np.testing.assert_array_equal(out, first)
    p, q = softmax(first), softmax(second)
    w, indices = np.asarray(weight), np.arange(4)
    losses = [(-np.log(s[indices, y]) * w).sum() / 4 for s in (p, q)]
    mean_divergence = (0.5 * ((p - q) * np.log(p / q)).sum(-1) * w).sum() / 4
    assert float(loss) == pytest.approx(np.mean(losses) + 3.0 * mean_divergence, rel=1e-4)


def test_r_drop_without_dropout_is_the_plain_loss():
    plain, model = small_model(), small_model()
    model.configure(consistency=r_drop.RDrop(1.0))
    expected, actual = model_gradients(plain, *batch()), model_gradients(model, *batch())
    assert expected[0] == pytest.approx(actual[0], abs=1e-6)
    for a, b in zip(expected[1], actual[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_fgm_sums_a_clean_and_a_shifted_pass():
    model = small_model()
    x, y, weight = batch()
    zero = tf.zeros([4, 5, 4])
    expected_loss, clean = reference_gradients(model, x, y, zero)
    _, shifted = reference_gradients(model, x, y, tf.constant(0.3 * normalize(clean[3])))
    model.configure(adversary=adversarial.build(model, Fgm(name="fgm", epsilon=0.3, weight=2.0)))
    loss, gradients = model_gradients(model, x, y, weight)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for a, b, c in zip(gradients, clean, shifted, strict=False):
        np.testing.assert_allclose(a, b + 2.0 * c, atol=1e-6)


def test_freelb_averages_gradients_of_bounded_offsets():
    model = small_model()
    x, y, weight = batch()
    config = FreeLb(name="freelb", steps=3, step_size=0.2, epsilon=0.25)
    model.configure(adversary=adversarial.build(model, config))
    offset = np.asarray(model.options.adversary._initial_offset(tf.zeros([4, 5, 4])))
    assert 0 < np.sqrt((offset**2).sum((1, 2))).max() <= 0.25
    sums = [0.0, 0.0, 0.0]
    for _ in range(3):
        _, step_gradients = reference_gradients(model, x, y, tf.constant(offset))
        sums = [s + g for s, g in zip(sums, step_gradients, strict=False)]
        offset = offset + 0.2 * normalize(step_gradients[3])
        length = np.sqrt((offset**2).sum((1, 2), keepdims=True))
        offset = offset * np.minimum(1, 0.25 / length)
    _, gradients = model_gradients(model, x, y, weight)
    for a, b in zip(gradients, sums, strict=True):
        np.testing.assert_allclose(a, b / 3, atol=1e-6)


def test_freelb_draws_new_noise_in_each_step():
    model = small_model()
    model.configure(adversary=adversarial.build(model, FreeLb(name="freelb")))
    first = np.asarray(model.options.adversary._initial_offset(tf.zeros([4, 5, 4])))
    np.testing.assert_array_equal(
        first, model.options.adversary._initial_offset(tf.zeros([4, 5, 4]))
    )
    model.optimizer.iterations.assign(1)
    assert np.abs(first - model.options.adversary._initial_offset(tf.zeros([4, 5, 4]))).max() > 0.01


def test_adversary_needs_token_embeddings():
    inputs = keras.Input([3])
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(UserError, match="no token embeddings"):
        adversarial.build(model, Fgm(name="fgm"))


def trainable_mask(model, head=("logits",)):
    """Return a mask in which every variable of a model is trainable."""
    rule = Rule("*", True)
    entries = []
    for v in model.weights:
        stage = "head" if v.path.split("/")[0] in head else "token"
        entries.append(MaskEntry(v.path, stage, 1, True, 1.0, rule))
    return Mask(tuple(entries))


def test_penalties_are_added_to_the_gradients_once():
    config = RegularizationConfig(l1=0.1, l2=0.2, l2_sp={"alpha": 0.3, "beta": 0.4})
    plain, model = small_model(), small_model()
    start = {v.path: v.numpy().copy() for v in model.weights}
    new = [p for p in start if p.startswith("logits/")]
    for m in (plain, model):
        for variable in m.weights:
            variable.assign(variable + 0.5)
    model.configure(penalties=penalties.build(model, trainable_mask(model), new, config))
    reference = {v.path: v.numpy().copy() for v in model.weights}
    for variable in model.weights:  # L2-SP starts from the values when the penalty was built
        variable.assign(variable + 0.25)
        next(v for v in plain.weights if v.path == variable.path).assign(variable)
    values = {v.path: v.numpy().copy() for v in model.weights}
    x, y, _ = batch()
    for m in (plain, model):
        m.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(plain.weights, model.weights, strict=True):
        w = values[b.path]
        expected = 0.4 * w if b.path in new else 0.3 * (w - reference[b.path])
        if w.ndim > 1:
            expected = expected + 0.1 * np.sign(w) + 0.2 * w
        np.testing.assert_allclose(a.numpy() - b.numpy(), expected, atol=1e-5, err_msg=b.path)


def test_mixout_is_unbiased_and_off_in_inference():
    inputs = keras.Input([3])
    dense = keras.layers.Dense(2, name="dense")
    model = Model(inputs, dense(inputs))
    pretrained = dense.kernel.numpy().copy()
    mixout.attach(model, trainable_mask(model), 0.7)
    trained = pretrained + 1.0
    dense.kernel.assign(trained)
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(model(x, training=False), trained, atol=1e-6)
    outputs = np.stack([np.asarray(model(x, training=True)) for _ in range(400)])
    # An element is the pretrained one, or differs from it by 1 / (1 - p) times the difference.
    is_pretrained = np.isclose(outputs, pretrained + 0.0 - 0.7 * 0, atol=1e-4)
    is_trained = np.isclose(outputs, pretrained + 1.0 / 0.3, atol=1e-4)
    assert (is_pretrained | is_trained).all()
    assert is_pretrained.mean() == pytest.approx(0.7, abs=0.05)
    np.testing.assert_allclose(outputs.mean(0), trained, atol=0.35)


def test_distillation_loss_against_numpy():
    generator = np.random.default_rng(4)
    teacher, student = generator.normal(size=(2, 5, 3)).astype(np.float32)
    ids = np.array([0, 2, 1, 1, 0])
    from tfft.tasks.classification import CrossEntropy

    loss = distillation.DistillationLoss(CrossEntropy(), 2.0, 0.25)
    actual = loss.call(distillation.targets(ids, teacher, "abc", "abc"), student)
    p, q = softmax(teacher / 2), softmax(student / 2)
    divergence = 4 * (p * np.log(p / q)).sum(-1)
    cross_entropy = -np.log(softmax(student)[np.arange(5), ids])
    np.testing.assert_allclose(
        actual, 0.75 * cross_entropy + 0.25 * divergence, rtol=1e-4, atol=1e-6
    )


def test_teacher_logits_are_reordered_to_the_classes_of_the_student():
    actual = distillation.targets(np.array([1]), np.array([[1.0, 2.0, 3.0]]), "abc", "cab")
    np.testing.assert_array_equal(actual, [[1, 3, 1, 2]])
    with pytest.raises(UserError, match="'d' on one side only"):
        distillation.targets(np.array([1]), np.zeros((1, 4)), "abcd", "abc")


SECTIONS = {
    "l2_sp": {"l2_sp": {}},
    "mixout": {"mixout": 0.5},
    "r_drop": {"r_drop": {}},
    "fgm": {"adversarial": {"name": "fgm"}},
    "freelb": {"adversarial": {"name": "freelb"}},
}


def without_dropout(config, head=0.0):
    """Change a config so that gradients depend on weights and data only."""
    config["model"]["dropout"] = 0.0
    config["task"] = {"dropout": head}
    # The gradient of a key bias is rounding noise, which Adam would scale up to a full step.
    config["optimizer"] = {"name": "sgd", "learning_rate": 0.05}
    return config


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """A finished run without regularization."""
    folder = tmp_path_factory.mktemp("plain")
    return tfft.train(without_dropout(whole_config(tiny, folder)), workdir=folder / "run")


@pytest.mark.parametrize(
    "name",
    # FreeLB is an adversary, as FGM is.
    [pytest.param(n, marks=pytest.mark.slow if n == "freelb" else ()) for n in SECTIONS],
)
def test_run_is_changed_saved_and_equal_on_two_replicas(config, plain, tmp_path, name):
    """Two replicas are compared where the noise does not depend on the replica."""
    config = without_dropout(config, head=0.1 if name == "r_drop" else 0.0)
    if name == "r_drop":
        plain = tfft.train(config, workdir=tmp_path / "plain")
    config["regularization"] = SECTIONS[name]
    one = tfft.train(config, workdir=tmp_path / "one")
    differences = [
        np.abs(np.asarray(a.value) - b.value).max()
        for a, b in zip(plain.model.weights, one.model.weights, strict=True)
    ]
    assert max(differences) > 1e-6
    rows = ["a red sky", "green"]
    np.testing.assert_allclose(tfft.load(one.workdir).logits(rows), one.logits(rows), atol=1e-6)
    if name in ("l2_sp", "fgm"):
        two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
        for a, b in zip(one.model.weights, two.model.weights, strict=True):
            np.testing.assert_allclose(a.value, keras.ops.convert_to_numpy(b), atol=1e-5)


def test_student_run_with_a_teacher(config, plain, tmp_path):
    section = {"distillation": {"teacher": str(plain.workdir), "weight": 1.0}}
    config["optimizer"] = {"learning_rate": 1e-2}
    run = tfft.train({**config, "regularization": section}, workdir=tmp_path / "student")
    assert run.metrics["steps"] == 12
    with pytest.raises(UserError, match="holds no run"):
        section["distillation"]["teacher"] = str(tmp_path / "nothing")
        tfft.train({**config, "regularization": section}, workdir=tmp_path / "none")


def test_mixout_needs_a_trainable_kernel(config, tmp_path):
    config["regularization"] = {"mixout": 0.5}
    config["method"] = {"name": "head"}
    with pytest.raises(UserError, match="needs a trainable kernel in the backbone"):
        tfft.train(config, workdir=tmp_path / "run")


def test_attach_without_regularization_changes_nothing():
    model = small_model()
    attach(model, trainable_mask(model), (), RegularizationConfig())
    assert (
        model.options.consistency is None
        and model.options.adversary is None
        and model.options.penalties == ()
    )
