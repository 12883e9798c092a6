"""Text checkpoints of each family against PyTorch's transformers (golden files)."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfft import backbones
from tfft.config import ModelConfig
from tfft.config.tasks import QuestionAnswering, TextClassification, TokenClassification
from tfft.model import assemble
from tfft.spec import HeadStyle
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = sorted(path.name for path in (GOLDEN / "encoders").iterdir())
BOUND = 1e-5


def load(folder, **settings):
    return backbones.load(ModelConfig(backbone=f"hf:{folder}", **settings))


@pytest.fixture(scope="module")
def loaded():
    """A function that loads a golden checkpoint once; the tests only read what it returns."""
    return functools.cache(lambda name: load(GOLDEN / "encoders" / name))


def expected(name):
    return np.load(GOLDEN / "encoders" / name / "expected.npz")


def inputs(values):
    return {name: values[name] for name in ("token_ids", "padding_mask", "segment_ids")}


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_original(name, loaded):
    values = expected(name)
    backbone = loaded(name)
    actual = backbone.model(inputs(values))
    is_token = values["padding_mask"] == 1
    difference = np.abs(np.asarray(actual["sequence"]) - values["sequence"])[is_token]
    assert difference.max() < BOUND
    if "pooled" in values:
        assert np.abs(np.asarray(actual["pooled"]) - values["pooled"]).max() < BOUND


@pytest.mark.parametrize("name", [name for name in CASES if "classifier" in name])
def test_stored_head_gives_the_original_logits_and_labels(name):
    values = expected(name)
    backbone = load(GOLDEN / "encoders" / name, head="checkpoint")
    assert backbone.head.labels == ("zero", "one", "two")
    task = TASKS["text_classification"]
    model = assemble(backbone, task, TextClassification(), backbone.head.labels)
    logits = np.asarray(model(inputs(values)))
    assert np.abs(logits - values["logits"]).max() < BOUND


@pytest.mark.parametrize("name", [name for name in CASES if "classifier" in name])
def test_saved_checkpoint_equals_the_loaded_one(name, tmp_path):
    folder = GOLDEN / "encoders" / name
    backbone = load(folder, head="checkpoint")
    model = assemble(
        backbone, TASKS["text_classification"], TextClassification(), backbone.head.labels
    )
    backbones.huggingface.save(model, backbone, backbone.head.labels, tmp_path)
    original, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    # A pooler that the classifier does not read is not part of the model.
    assert set(saved) == {n for n in original if n in saved or "pooler" not in n}
    for tensor, value in saved.items():
        np.testing.assert_array_equal(value, original[tensor])
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["id2label"] == {"0": "zero", "1": "one", "2": "two"}


TAGS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")


def tagger(folder):
    """Return the model of a classifier of tokens, and its backbone with tags in tfft's order."""
    backbone = load(folder, head="checkpoint")
    task = TASKS["token_classification"]
    backbone = replace(backbone, head=task.stored_head(backbone.head))
    return assemble(backbone, task, TokenClassification(), backbone.head.labels), backbone


@pytest.mark.parametrize("name", [name for name in CASES if "tagger" in name])
def test_stored_tags_give_the_original_logits(name):
    values = expected(name)
    model, backbone = tagger(GOLDEN / "encoders" / name)
    assert backbone.head.labels == TAGS
    logits = np.asarray(model(inputs(values)))
    in_order = values["logits"][:, :, [1, 0, 3, 4, 2]]
    assert np.abs(logits - in_order)[values["padding_mask"] == 1].max() < BOUND


@pytest.mark.parametrize("name", [name for name in CASES if "tagger" in name])
def test_saved_tagger_equals_the_loaded_one(name, tmp_path):
    folder = GOLDEN / "encoders" / name
    model, backbone = tagger(folder)
    backbones.huggingface.save(model, backbone, TAGS, tmp_path, head_kind="tags")
    original, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert set(saved) == set(original)
    for tensor, value in saved.items():
        is_head = tensor.startswith("classifier.")
        expected_value = original[tensor][[1, 0, 3, 4, 2]] if is_head else original[tensor]
        np.testing.assert_array_equal(value, expected_value)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["id2label"] == {str(i): tag for i, tag in enumerate(TAGS)}
    assert settings["architectures"][0].endswith("ForTokenClassification")


def reader(folder):
    """Return the model of question answering in a checkpoint, and its backbone."""
    backbone, task = load(folder, head="checkpoint"), TASKS["question_answering"]
    backbone = replace(backbone, head=task.stored_head(backbone.head))
    return assemble(backbone, task, QuestionAnswering(), backbone.head.labels), backbone


@pytest.mark.parametrize("name", [name for name in CASES if "reader" in name])
def test_a_stored_head_of_answers_is_read_and_written(name, tmp_path):
    folder, values = GOLDEN / "encoders" / name, expected(name)
    model, backbone = reader(folder)
    is_token = values["padding_mask"] == 1
    logits = np.asarray(model(inputs(values)))
    assert np.abs(logits - values["logits"])[is_token].max() < BOUND
    labels = backbone.head.labels
    backbones.huggingface.save(model, backbone, labels, tmp_path, head_kind="answers")
    original, saved = (load_file(f / "model.safetensors") for f in (folder, tmp_path))
    assert set(saved) == set(original)
    for tensor, value in saved.items():
        np.testing.assert_array_equal(value, original[tensor])
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["architectures"][0].endswith("ForQuestionAnswering")


def test_heads_of_another_kind_are_refused():
    head = load(GOLDEN / "encoders" / "bert_tagger", head="checkpoint").head
    with pytest.raises(UserError, match="the checkpoint's head is for tags; task is"):
        TASKS["text_classification"].stored_head(head)
    head = load(GOLDEN / "encoders" / "bert_classifier", head="checkpoint").head
    with pytest.raises(UserError, match=r"needs the labels O, and B- and I-.*zero, one, two"):
        TASKS["token_classification"].stored_head(head)


def test_head_without_a_transformers_form_is_not_saved(tmp_path):
    """BertForSequenceClassification does not support mean pooling."""
    backbone = load(GOLDEN / "encoders" / "bert")
    task = TASKS["text_classification"]
    model = assemble(backbone, task, TextClassification(pooling="mean"), ["a", "b"])
    with pytest.raises(UserError, match=r"train with task.pooling: pooled"):
        backbones.huggingface.save(model, backbone, ["a", "b"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_minilm_features_equal_the_original(minilm):
    values = np.load(GOLDEN / "minilm.npz")
    backbone = load(minilm)
    segments = np.zeros_like(values["token_ids"])
    actual = backbone.model(
        {
            "token_ids": values["token_ids"],
            "padding_mask": values["padding_mask"],
            "segment_ids": segments,
        }
    )
    is_token = values["padding_mask"][:, ::7] == 1
    sequence = np.asarray(actual["sequence"])[:, ::7]
    assert np.abs(sequence - values["sequence"])[is_token].max() < BOUND
    assert np.abs(np.asarray(actual["pooled"]) - values["pooled"]).max() < BOUND
    assert backbone.head_style == HeadStyle("mean")  # as 1_Pooling/config.json says


@pytest.mark.parametrize("name", CASES)
def test_every_variable_has_one_stage(name, loaded):
    import re

    backbone = loaded(name)
    for variable in backbone.model.weights:
        matches = [s.name for s in backbone.stages if re.match(s.pattern, variable.path)]
        assert len(matches) == 1, variable.path


def test_rebuild_from_the_description_is_identical():
    values = expected("roberta")
    backbone = load(GOLDEN / "encoders" / "roberta")
    rebuilt = backbones.rebuild(json.loads(json.dumps(backbone.description)))
    for new, old in zip(rebuilt.model.weights, backbone.model.weights, strict=True):
        assert new.path == old.path
        new.assign(old.value)
    actual, expected_sequence = (
        np.asarray(b.model(inputs(values))["sequence"]) for b in (rebuilt, backbone)
    )
    np.testing.assert_array_equal(actual, expected_sequence)


def test_bfloat16_shards_are_loaded(tmp_path):
    import ml_dtypes

    source = GOLDEN / "encoders" / "bert"
    shutil.copy(source / "config.json", tmp_path)
    tensors = load_file(source / "model.safetensors")
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}
    names = sorted(half)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in parts.items():
        save_file({n: half[n] for n in members}, tmp_path / file)
    index = {n: file for file, members in parts.items() for n in members}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    backbone = load(tmp_path)
    token = next(v for v in backbone.model.weights if v.path == "embeddings/token/embeddings")
    np.testing.assert_array_equal(
        np.asarray(token.value),
        half["embeddings.word_embeddings.weight"].astype(np.float32),
    )


def test_weights_and_dropout_are_overridden(tmp_path):
    source = GOLDEN / "encoders" / "bert"
    tensors = load_file(source / "model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, tmp_path / "other.safetensors")
    backbone = load(source, weights=str(tmp_path / "other.safetensors"), dropout=0.5)
    token = next(v for v in backbone.model.weights if v.path == "embeddings/token/embeddings")
    expected_value = tensors["embeddings.word_embeddings.weight"] + 1
    np.testing.assert_array_equal(np.asarray(token.value), expected_value)
    assert backbone.fingerprint != load(source).fingerprint
    assert backbone.model.get_layer("block_0").attention.dropout.rate == 0.5
    with pytest.raises(UserError, match=r"model.weights: no such file"):
        load(source, weights="none.safetensors")


def copy_checkpoint(tmp_path, change):
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDEN / "encoders" / "bert", folder)
    change(folder)
    return folder


def edit_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: missing"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (
            edit_config(model_type="bart"),
            "model_type 'bart' is not supported; did you mean 'bert'?",
        ),
        (edit_config(hidden_act="gellu"), "unknown activation 'gellu'; did you mean 'gelu'?"),
        (edit_config(hidden_size=32), "where config.json requires"),
        (edit_config(num_hidden_layers=3), "lacks 'encoder.layer.2"),
        (edit_config(num_attention_heads=5), "no multiple of its 5 attention heads"),
        (edit_config(position_embedding_type="relative_key"), "is not supported"),
        (edit_config(vocab_size="many"), "vocab_size must be a number"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk"), "not a safetensors file"),
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "pytorch_model.bin is a pickle, which tfft never reads",
        ),
    ],
)
def test_broken_checkpoint_is_an_actionable_error(tmp_path, change, message):
    folder = copy_checkpoint(tmp_path, change)
    with pytest.raises(UserError) as error:
        load(folder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("./nowhere", "no such folder"), ("nobody/nothing", "nobody/nothing")],
)
def test_missing_checkpoint_is_an_actionable_error(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        load(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_stored_head_is_refused():
    with pytest.raises(UserError, match="holds no classification head"):
        load(GOLDEN / "encoders" / "bert", head="checkpoint")
