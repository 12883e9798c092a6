"""Each technique against its formula, re-derived here; and on the road, on one device and two."""

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


def small(rate=0.0):
    """Embedding -> mean -> dropout -> logits, with tfft's step."""
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


def gradients(model, x, y, weight):
    loss, found = model._gradients(x, y, weight, tf.constant(float(len(y))))
    return float(loss), [np.asarray(g) for g in found]


def by_hand(model, x, y, offset):
    """Loss, gradients of table, kernel and bias, and of the offset."""
    table, kernel, bias = (tf.constant(v.numpy()) for v in model.trainable_variables)
    with tf.GradientTape() as tape:
        tape.watch([table, kernel, bias, offset])
        hidden = tf.reduce_mean(tf.gather(table, x["ids"]) + offset, axis=1)
        logits = hidden @ kernel + bias
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
        loss = tf.reduce_mean(losses)
    found = tape.gradient(loss, [table, kernel, bias, offset])
    return float(loss), [tf.convert_to_tensor(g).numpy() for g in found]


def unit(g):
    return g / np.sqrt((g**2).sum(axis=(1, 2), keepdims=True))


def test_divergence_against_numpy():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 5, 3)).astype(np.float32)
    p, q = softmax(a), softmax(b)
    expected = 0.5 * ((p * np.log(p / q)).sum(-1) + (q * np.log(q / p)).sum(-1))
    np.testing.assert_allclose(r_drop.divergence(a, b), expected, rtol=1e-4, atol=1e-6)


def test_r_drop_is_the_mean_loss_and_the_divergence():
    model = small(0.5)
    x, y, _ = batch()
    weight = tf.constant([1.0, 2.0, 0.5, 1.0])
    model.consistency = r_drop.RDrop(alpha=3.0)
    outputs = []
    call = Model.__call__

    class Recorded(Model):
        def __call__(self, *args, **kwargs):
            outputs.append(np.asarray(call(self, *args, **kwargs)))
            return outputs[-1]

    model.__class__ = Recorded
    loss, out = model.consistency.loss(model, x, y, weight, tf.constant(4.0))
    first, second = np.split(outputs[0], 2)
    assert np.abs(first - second).max() > 0.01  # other masks
    np.testing.assert_array_equal(out, first)
    p, q = softmax(first), softmax(second)
    w, at = np.asarray(weight), np.arange(4)
    plain = [(-np.log(s[at, y]) * w).sum() / 4 for s in (p, q)]
    apart = (0.5 * ((p - q) * np.log(p / q)).sum(-1) * w).sum() / 4
    assert float(loss) == pytest.approx(np.mean(plain) + 3.0 * apart, rel=1e-4)


def test_r_drop_without_dropout_is_plain():
    plain, model = small(), small()
    model.consistency = r_drop.RDrop(1.0)
    one, two = gradients(plain, *batch()), gradients(model, *batch())
    assert one[0] == pytest.approx(two[0], abs=1e-6)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_fgm_is_two_passes_of_which_one_is_moved():
    model = small()
    x, y, weight = batch()
    zero = tf.zeros([4, 5, 4])
    loss, clean = by_hand(model, x, y, zero)
    _, moved = by_hand(model, x, y, tf.constant(0.3 * unit(clean[3])))
    model.adversary = adversarial.build(model, Fgm(name="fgm", epsilon=0.3, weight=2.0))
    found, grads = gradients(model, x, y, weight)
    assert found == pytest.approx(loss, rel=1e-5)
    for a, b, c in zip(grads, clean, moved, strict=False):
        np.testing.assert_allclose(a, b + 2.0 * c, atol=1e-6)


def test_freelb_is_the_mean_over_its_steps_within_the_ball():
    model = small()
    x, y, weight = batch()
    config = FreeLb(name="freelb", steps=3, step_size=0.2, epsilon=0.25)
    model.adversary = adversarial.build(model, config)
    offset = np.asarray(model.adversary._first(tf.zeros([4, 5, 4])))
    assert 0 < np.sqrt((offset**2).sum((1, 2))).max() <= 0.25
    sums = [0.0, 0.0, 0.0]
    for _ in range(3):
        _, found = by_hand(model, x, y, tf.constant(offset))
        sums = [s + g for s, g in zip(sums, found, strict=False)]
        offset = offset + 0.2 * unit(found[3])
        length = np.sqrt((offset**2).sum((1, 2), keepdims=True))
        offset = offset * np.minimum(1, 0.25 / length)
    _, grads = gradients(model, x, y, weight)
    for a, b in zip(grads, sums, strict=True):
        np.testing.assert_allclose(a, b / 3, atol=1e-6)


def test_freelb_starts_elsewhere_at_each_step():
    model = small()
    model.adversary = adversarial.build(model, FreeLb(name="freelb"))
    first = np.asarray(model.adversary._first(tf.zeros([4, 5, 4])))
    np.testing.assert_array_equal(first, model.adversary._first(tf.zeros([4, 5, 4])))
    model.optimizer.iterations.assign(1)
    assert np.abs(first - model.adversary._first(tf.zeros([4, 5, 4]))).max() > 0.01


def test_a_model_without_embeddings_has_no_adversary():
    inputs = keras.Input([3])
    model = Model(inputs, keras.layers.Dense(1)(inputs))
    with pytest.raises(UserError, match="no token embeddings"):
        adversarial.build(model, Fgm(name="fgm"))


def entries(model, head=("logits",)):
    rule = Rule("*", True)
    rows = []
    for v in model.weights:
        stage = "head" if v.path.split("/")[0] in head else "token"
        rows.append(MaskEntry(v.path, stage, 1, True, 1.0, rule))
    return Mask(tuple(rows))


def test_penalties_are_added_to_the_gradient_once():
    config = RegularizationConfig(l1=0.1, l2=0.2, l2_sp={"alpha": 0.3, "beta": 0.4})
    plain, model = small(), small()
    start = {v.path: v.numpy().copy() for v in model.weights}
    new = [p for p in start if p.startswith("logits/")]
    for one in (plain, model):
        for variable in one.weights:
            variable.assign(variable + 0.5)
    model.penalties = penalties.build(model, entries(model), new, config)
    shifted = {v.path: v.numpy().copy() for v in model.weights}
    for variable in model.weights:  # the start is what it was when it was built
        variable.assign(variable + 0.25)
        next(v for v in plain.weights if v.path == variable.path).assign(variable)
    before = {v.path: v.numpy().copy() for v in model.weights}
    x, y, _ = batch()
    for one in (plain, model):
        one.fit(x, y, batch_size=4, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(plain.weights, model.weights, strict=True):
        w = before[b.path]
        expected = 0.4 * w if b.path in new else 0.3 * (w - shifted[b.path])
        if w.ndim > 1:
            expected = expected + 0.1 * np.sign(w) + 0.2 * w
        np.testing.assert_allclose(a.numpy() - b.numpy(), expected, atol=1e-5, err_msg=b.path)


def test_mixout_mixes_in_training_alone_and_is_unbiased():
    inputs = keras.Input([3])
    dense = keras.layers.Dense(2, name="dense")
    model = Model(inputs, dense(inputs))
    pretrained = dense.kernel.numpy().copy()
    mixout.attach(model, entries(model), 0.7)
    trained = pretrained + 1.0
    dense.kernel.assign(trained)
    x = np.eye(3, dtype=np.float32)
    np.testing.assert_allclose(model(x, training=False), trained, atol=1e-6)
    seen = np.stack([np.asarray(model(x, training=True)) for _ in range(400)])
    # An element is the pretrained one, or further away by 1 / (1 - p) of the difference.
    near = np.isclose(seen, pretrained + 0.0 - 0.7 * 0, atol=1e-4)
    far = np.isclose(seen, pretrained + 1.0 / 0.3, atol=1e-4)
    assert (near | far).all()
    assert near.mean() == pytest.approx(0.7, abs=0.05)
    np.testing.assert_allclose(seen.mean(0), trained, atol=0.35)


def test_distilled_loss_against_numpy():
    generator = np.random.default_rng(4)
    teacher, student = generator.normal(size=(2, 5, 3)).astype(np.float32)
    ids = np.array([0, 2, 1, 1, 0])
    from tfft.tasks.classification import CrossEntropy

    loss = distillation.Distilled(CrossEntropy(), 2.0, 0.25)
    found = loss.call(distillation.targets(ids, teacher, "abc", "abc"), student)
    p, q = softmax(teacher / 2), softmax(student / 2)
    apart = 4 * (p * np.log(p / q)).sum(-1)
    plain = -np.log(softmax(student)[np.arange(5), ids])
    np.testing.assert_allclose(found, 0.75 * plain + 0.25 * apart, rtol=1e-4, atol=1e-6)


def test_the_teachers_classes_are_put_in_our_order():
    found = distillation.targets(np.array([1]), np.array([[1.0, 2.0, 3.0]]), "abc", "cab")
    np.testing.assert_array_equal(found, [[1, 3, 1, 2]])
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
    """The config with gradients that depend on nothing but weights and data."""
    config["model"]["dropout"] = 0.0
    config["task"] = {"dropout": head}
    # A bias of the keys has no gradient but rounding, which Adam would make as large as any.
    config["optimizer"] = {"name": "sgd", "learning_rate": 0.05}
    return config


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """A run without regularization."""
    folder = tmp_path_factory.mktemp("plain")
    return tfft.train(without_dropout(whole_config(tiny, folder)), workdir=folder / "run")


@pytest.mark.parametrize("name", SECTIONS)
def test_on_the_road(config, plain, tmp_path, name):
    """It changes the training, is saved and loaded, and two replicas do the same (mixout aside)."""
    config = without_dropout(config, head=0.1 if name == "r_drop" else 0.0)
    if name == "r_drop":
        plain = tfft.train(config, workdir=tmp_path / "plain")
    config["regularization"] = SECTIONS[name]
    one = tfft.train(config, workdir=tmp_path / "one")
    apart = [
        np.abs(np.asarray(a.value) - b.value).max()
        for a, b in zip(plain.model.weights, one.model.weights, strict=True)
    ]
    assert max(apart) > 1e-6
    rows = ["a red sky", "green"]
    np.testing.assert_allclose(tfft.load(one.workdir).logits(rows), one.logits(rows), atol=1e-6)
    if name in ("l2_sp", "fgm"):
        two = tfft.train(config, workdir=tmp_path / "two", distribute=MIRRORED)
        for a, b in zip(one.model.weights, two.model.weights, strict=True):
            np.testing.assert_allclose(a.value, keras.ops.convert_to_numpy(b), atol=1e-5)


def test_a_student_learns_from_a_teacher(config, plain, tmp_path):
    section = {"distillation": {"teacher": str(plain.workdir), "weight": 1.0}}
    config["optimizer"] = {"learning_rate": 1e-2}
    run = tfft.train({**config, "regularization": section}, workdir=tmp_path / "student")
    assert run.metrics["steps"] == 12
    with pytest.raises(UserError, match="holds no run"):
        section["distillation"]["teacher"] = str(tmp_path / "nothing")
        tfft.train({**config, "regularization": section}, workdir=tmp_path / "none")


def test_nothing_to_mix(config, tmp_path):
    config["regularization"] = {"mixout": 0.5}
    config["method"] = {"name": "head"}
    with pytest.raises(UserError, match="no kernel of the backbone moves"):
        tfft.train(config, workdir=tmp_path / "run")


def test_attach_leaves_a_plain_model_alone():
    model = small()
    attach(model, entries(model), (), RegularizationConfig())
    assert model.consistency is None and model.adversary is None and model.penalties == []
