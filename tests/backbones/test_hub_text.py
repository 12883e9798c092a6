"""TF Hub text models, of ids and of strings: features, training and serving."""

import json

import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.conftest import write_csv
from tfft import backbones, preprocess
from tfft.config import DataConfig, ModelConfig
from tfft.config.tasks import TextClassification
from tfft.export import ExportedModel
from tfft.utils.errors import UserError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s", "ü", "!"]
AutoTrackable = tf.__internal__.tracking.AutoTrackable


class Encoder(AutoTrackable):
    """Embedding and two dense blocks with the inputs and outputs of TF Hub's BERT."""

    def __init__(self, vocabulary=None):
        super().__init__()
        generator = tf.random.Generator.from_seed(0)

        def variable(name, *shape):
            return tf.Variable(generator.normal(shape, stddev=0.3), name=name)

        self.table = variable("word_embeddings/embeddings", len(TOKENS), 8)
        self.positions = variable("position_embedding/embeddings", 24, 8)
        self.kernels = [variable(f"transformer/layer_{i}/output/kernel", 8, 8) for i in range(2)]
        self.pooler = variable("pooler_transform/kernel", 8, 8)
        self.variables = [self.table, self.positions, *self.kernels, self.pooler]
        self.trainable_variables = list(self.variables)
        self.regularization_losses = []
        if vocabulary is not None:
            self.vocab_file = tf.saved_model.Asset(str(vocabulary))

    @tf.function
    def __call__(self, inputs, training=False):
        ids, mask = inputs["input_word_ids"], tf.cast(inputs["input_mask"], tf.float32)[..., None]
        x = tf.gather(self.table, ids) + self.positions[: tf.shape(ids)[1]]
        x += 0.1 * tf.cast(inputs["input_type_ids"], tf.float32)[..., None]
        for kernel in self.kernels:
            mean = tf.reduce_sum(x * mask, 1, keepdims=True) / tf.reduce_sum(mask, 1, keepdims=True)
            x = tf.tanh(tf.matmul(x + mean, tf.tile(kernel[None], [tf.shape(x)[0], 1, 1])))
        pooled = tf.tanh(tf.matmul(x[:, 0], self.pooler))
        return {"pooled_output": pooled, "sequence_output": x, "encoder_outputs": [x]}


class Swivel(AutoTrackable):
    """Sum of hashed words' vectors; it takes strings, as nnlm does."""

    def __init__(self):
        super().__init__()
        values = tf.random.Generator.from_seed(0).normal((64, 8))
        self.table = tf.Variable(values, name="embeddings/part_0")
        self.variables, self.trainable_variables = [self.table], [self.table]
        self.regularization_losses = []

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, texts):
        words = tf.strings.split(tf.strings.lower(texts, "utf-8"))
        vectors = tf.ragged.map_flat_values(
            lambda w: tf.gather(self.table, tf.strings.to_hash_bucket_fast(w, 64)), words
        )
        return tf.reduce_sum(vectors, axis=1)


def save_encoder(folder, vocabulary):
    module = Encoder(vocabulary)
    spec = {
        name: tf.TensorSpec([None, None], tf.int32, name)
        for name in ("input_mask", "input_type_ids", "input_word_ids")
    }
    for training in (True, False):
        module.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(module, str(folder))
    return module


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(TOKENS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, vocabulary):
    folder = tmp_path_factory.mktemp("encoder") / "saved"
    return folder, save_encoder(folder, vocabulary)


@pytest.fixture(scope="module")
def strings(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("strings") / "saved", Swivel()
    tf.saved_model.save(module, str(folder))
    return folder, module


def load(folder, **settings):
    return backbones.load(ModelConfig(backbone=f"hub:{folder}", **settings))


def inputs_of(backbone, folder, length=24, **data):
    config = DataConfig(train="a.csv", max_length=length, **data)
    model = ModelConfig(backbone=f"hub:{folder}")
    return preprocess.load(model, config, TextClassification(), None, backbone.tokenizer)


def test_encoder_of_ids_equals_the_original(encoder):
    folder, module = encoder
    backbone = load(folder)
    assert backbone.reads == ("text",) and backbone.max_length == 24
    assert [s.name for s in backbone.stages] == ["embeddings", "block_0", "block_1", "pooler"]
    batch = inputs_of(backbone, folder).batch(["A good films !", "bad Ü"])
    assert batch["token_ids"][0].tolist() == [2, 5, 6, 8, 9, 11, 3]
    assert batch["token_ids"][1].tolist()[:4] == [2, 7, 1, 3]  # an uncased model drops accents
    actual = backbone.model.predict_on_batch(batch)
    input_names = ("input_word_ids", "token_ids"), ("input_mask", "padding_mask")
    input_names += (("input_type_ids", "segment_ids"),)
    expected = module({hub_name: tf.constant(batch[name]) for hub_name, name in input_names})
    np.testing.assert_allclose(actual["pooled"], expected["pooled_output"], atol=1e-6)
    np.testing.assert_allclose(actual["sequence"], expected["sequence_output"], atol=1e-6)


def test_model_of_strings_equals_the_original(strings):
    folder, module = strings
    backbone = load(folder)
    texts = ["Good FILM", "größer als 日本 🎬", "", "a"]
    batch = inputs_of(backbone, folder, 64).batch(texts)
    actual = backbone.model.predict_on_batch(batch)
    np.testing.assert_allclose(actual["pooled"], module(tf.constant(texts)), atol=1e-6)
    assert set(backbone.features) == {"pooled"} and backbone.max_length is None
    # Truncation within a character drops its remaining bytes.
    truncated = backbone.model.predict_on_batch(inputs_of(backbone, folder, 4).batch(["abcü"]))
    np.testing.assert_allclose(truncated["pooled"], module(tf.constant(["abc"])), atol=1e-6)


def test_text_pair_is_joined_by_a_space(strings):
    folder, module = strings
    backbone = load(folder)
    batch = inputs_of(backbone, folder, 64, text_pair="b").batch(["good"], ["film"])
    actual = backbone.model.predict_on_batch(batch)
    np.testing.assert_allclose(actual["pooled"], module(tf.constant(["good film"])), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("encoder", "full"),
        ("strings", "head"),
        pytest.param("encoder", "head", marks=pytest.mark.slow),
        pytest.param("strings", "full", marks=pytest.mark.slow),
    ],
)
def test_training_loading_and_serving_agree(kind, method, request, tmp_path):
    folder, module = request.getfixturevalue(kind)
    config = {
        "data": {"train": str(write_csv(tmp_path / "rows.csv", 60)), "max_length": 24},
        "model": {"backbone": f"hub:{folder}"},
        "method": {"name": method},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    initial = [v.numpy() for v in module.variables]
    run = tfft.train(config, tmp_path / "run")
    texts = ["a good film", "bad films !", "ü"]
    predictions = run.predict(texts)
    served = ExportedModel(run.workdir / "export").outputs([(t,) for t in texts], 2)[
        "probabilities"
    ]
    probabilities = [list(a["probabilities"].values()) for a in predictions]
    np.testing.assert_allclose(served, probabilities, atol=1e-5)
    assert tfft.load(run.workdir).predict(texts) == predictions
    backbone = [v for v in run.model.weights if not v.path.startswith("head/")]
    changed = [not np.array_equal(v.numpy(), b) for v, b in zip(backbone, initial, strict=True)]
    assert any(changed) == (method == "full")


def test_vocabulary_comes_from_a_preprocessing_model(tmp_path, vocabulary):
    save_encoder(tmp_path / "bare", None)
    with pytest.raises(UserError, match=r"hold no vocabulary; set model\.tokenizer to the"):
        load(tmp_path / "bare")
    save_encoder(tmp_path / "other", vocabulary)
    backbone = load(tmp_path / "bare", tokenizer=str(tmp_path / "other"))
    assert json.loads(backbone.tokenizer)["model"]["type"] == "WordPiece"
    bad = tmp_path / "bad.txt"
    bad.write_text("a\nb")
    save_encoder(tmp_path / "odd", bad)
    (tmp_path / "odd" / "assets" / "bad.txt").rename(tmp_path / "odd" / "assets" / "vocab.txt")
    with pytest.raises(UserError, match=r"vocab.txt: holds no \[CLS\]"):
        load(tmp_path / "bare", tokenizer=str(tmp_path / "odd"))


def test_image_settings_are_refused_for_text(encoder):
    with pytest.raises(UserError, match="this SavedModel reads texts"):
        load(encoder[0], image_size=32)
    assert len(load(encoder[0], stages=["embedding", "."]).stages) == 2
