"""A run on rows with a text and an image: training, reloading, predicting, an export."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tfft
from tests.console import run_command
from tests.tasks.samples import model_section, text_image_data
from tfft import backbones
from tfft.config import parse
from tfft.export import ExportedModel, signatures
from tfft.model import masks
from tfft.tasks import TASKS
from tfft.training import advice
from tfft.utils.errors import UserError


@pytest.fixture(scope="module")
def raw(tiny, tmp_path_factory):
    data, backbones = text_image_data(tiny, tmp_path_factory.mktemp("data"))
    return {
        "data": {**data, "validation": {"fraction": 0.25}},
        "model": model_section(backbones),
        "method": {"name": "lora", "rank": 2},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"epochs": 2, "batch_size": 16},
        "evaluate": {"bootstrap": 0, "baselines": False},
        "export": {"enabled": False, "verify_rows": 32},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    return tfft.train(raw, tmp_path_factory.mktemp("run") / "pairs")


def rows_of(run, count=3):
    return [run.datasets.train.raw_row(index) for index in range(count)]


def test_frozen_weights_are_bit_equal_and_adapters_are_in_both(run):
    values = {v.path: np.array(v.value) for v in run.model.weights}
    for variable in backbones.load(run.config.model).model.weights:
        np.testing.assert_array_equal(values[variable.path], np.array(variable.value))
    changed = [path for path, value in values.items() if path.endswith("/lora/b") and value.any()]
    assert {path.split("/")[0] for path in changed} == {"text", "image"}
    assert values["head/logits/kernel"].shape[0] == run.backbone.features["pooled"].width


def test_reloaded_run_predicts_the_same(run):
    rows = rows_of(run)
    loaded = tfft.load(run.workdir)
    np.testing.assert_array_equal(loaded.logits(rows), run.logits(rows))
    by_column = [dict(zip(("text", "image"), row, strict=True)) for row in rows]
    assert loaded.predict(by_column) == run.predict(rows)
    with pytest.raises(UserError, match="has two backbones"):
        tfft.load(run.workdir, backbone="hf:elsewhere")


def test_head_reads_both_vectors(run):
    (text, image), (other_text, other_image) = rows_of(run, 2)
    logits = run.logits([(text, image), (other_text, image), (text, other_image)])
    assert np.abs(logits[1:] - logits[0]).max(axis=1).min() > 1e-6


def test_report_and_card_show_both(run):
    page = (run.workdir / "report.html").read_text()
    assert "Training images" in page and "size of the training images" in page
    assert "tokens per row" in page and "[&quot;a text&quot;, &quot;image.jpg&quot;]" in page
    card = (run.workdir / "MODEL_CARD.md").read_text()
    assert "Reads texts and images" in card and " + " in card


@pytest.mark.slow
def test_export_answers_good_rows_beside_bad_images(run, tmp_path):
    folder = run.export(tmp_path / "export").parent
    model = tf.saved_model.load(str(folder / "1"))
    signature = model.signatures["serving_default"]
    rows = [run.inputs.request_row(row) for row in rows_of(run)]
    texts, images = zip(*rows, strict=True)
    good = signature(text=tf.constant(texts), image=tf.constant(images))
    bad = signature(text=tf.constant(texts), image=tf.constant([images[0], b"", images[2]]))
    assert [s == b"ok" for s in bad["status"].numpy()] == [True, False, True]
    for index, expected in ((0, good["probabilities"][0]), (1, [0.0] * 3)):
        np.testing.assert_allclose(bad["probabilities"][index], expected, atol=1e-6)
    exported = ExportedModel(folder)
    outputs = exported.outputs(rows_of(run), 2)
    np.testing.assert_allclose(outputs["probabilities"], good["probabilities"], atol=1e-6)
    with pytest.raises(UserError, match="row 2: "):
        exported.outputs([rows[0], ("a", b"no image")], 2)
    readme = (folder / "README.md").read_text()
    assert '"text": "an example", "image": {"b64"' in readme
    assert "--inputs='image=image.npy' --input_exprs='text=[" in readme


def test_predict_command_reads_both_columns(run, tmp_path):
    rows = rows_of(run)
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": text, "picture": image}) for text, image in rows]
    path.write_text("\n".join(lines))
    code, out, err = run_command("predict", f"--workdir={run.workdir}", f"--input={path}")
    assert code == 0, err
    answers = [json.loads(line)["label"] for line in out.splitlines()]
    assert answers == [answer["label"] for answer in run.predict(rows)]
    path.write_text(json.dumps({"text": "red"}))
    code, _, err = run_command("predict", f"--workdir={run.workdir}", f"--input={path}")
    assert code == 2 and "must be an object with strings at 'text' and 'picture'" in err


def test_run_whose_backbones_moved_says_where_they_are_named(run, tmp_path):
    workdir = shutil.copytree(run.workdir, tmp_path / "moved")
    path = workdir / "config.yaml"
    backbone = run.config.model.text.backbone
    path.write_text(path.read_text().replace(backbone, "hf:/elsewhere/text"))
    with pytest.raises(UserError, match=r"text\.backbone: .* set the paths in its config\.yaml to"):
        tfft.load(workdir)


def test_advisor_counts_the_blocks_that_top_may_train(raw):
    facts = advice.measure(parse({**raw, "method": {"name": "auto"}}))
    towers = masks.towers((*backbones.load(parse(raw).model).stages, None))
    counts = [len(masks.block_indices(tower)) for tower in towers]
    assert facts.num_blocks == min(counts) < sum(counts)


def test_a_number_without_a_status_is_not_served_for_images(run):
    regression = TASKS["text_regression"], ["rating"]
    assert signatures.of_examples(*regression, run.inputs.text) == ("regress",)
    assert signatures.of_examples(*regression, run.inputs) == ()
    assert signatures.of_examples(run.task, run.labels, run.inputs) == ("classify",)


def test_no_hugging_face_checkpoint_has_two_backbones(run, tmp_path):
    with pytest.raises(UserError, match=r"needs an hf: backbone\. Received: two backbones"):
        run.export_huggingface(tmp_path / "hf")


@pytest.mark.slow
def test_run_that_trained_all_needs_no_files_of_its_backbones(raw, tmp_path):
    folders = {}
    for name, section in raw["model"].items():
        folders[name] = tmp_path / name
        shutil.copytree(section["backbone"].removeprefix("hf:"), folders[name])
    model = {name: {"backbone": f"hf:{folder}"} for name, folder in folders.items()}
    changes = {"method": {"name": "full"}, "model": model, "export": {"enabled": False}}
    run = tfft.train({**raw, **changes}, tmp_path / "run")
    rows = rows_of(run)
    for folder in folders.values():
        shutil.rmtree(folder)
    np.testing.assert_array_equal(tfft.load(run.workdir).logits(rows), run.logits(rows))


def test_features_are_not_cached_below_a_backbone_that_is_trained(raw, tmp_path):
    changes = {
        "method": {"name": "mask"},
        "mask": [{"match": "text/*", "trainable": False}, {"match": "*"}],
        "train": {"cache_features": True},
    }
    with pytest.raises(UserError, match=r"lowest stage is trainable of the backbone that .* image"):
        tfft.train({**raw, **changes}, tmp_path / "run")
