"""Exported formats, run without tfft's code, give the live model's answers."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

import tfft
from tests.conftest import GOLDEN, one_epoch
from tests.console import run_command
from tests.tasks.test_multilabel_runs import write_table
from tfft import backbones
from tfft.cli import export as export_command
from tfft.config import ExportConfig, ModelConfig
from tfft.config.tasks import TextClassification
from tfft.export import formats, weight_storage
from tfft.model import assemble
from tfft.tasks import TASKS
from tfft.utils.errors import UserError

ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run with LoRA, which the export merges."""
    folder = tmp_path_factory.mktemp("formats")
    config = one_epoch(tiny, folder, method={"name": "lora"}, export={"enabled": False})
    return tfft.train(config, workdir=folder / "run")


@pytest.fixture(scope="module")
def live(run):
    return run.task.activate(run.logits(ROWS), run.fitted)


def prepared_batch(run):
    return run.inputs.batch(ROWS)


@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_format_is_written_verified_and_described(run, live, form, tmp_path):
    code, out, err = run_command(
        "export", f"--workdir={run.workdir}", f"--format={form}", f"--output={tmp_path / form}"
    )
    assert code == 0, err
    path = tmp_path / form / formats.FORMATS[form].file
    assert out.strip() == str(path if form != "huggingface" else path.parent)
    assert "largest difference" in err
    description = json.loads((tmp_path / form / "tfft.json").read_text())
    assert description["labels"] == run.labels and description["columns"] == ["text"]
    assert (tmp_path / form / "tokenizer.json").is_file()
    run_file = {
        "huggingface": run_huggingface,
        "litert": run_litert,
        "onnx": run_onnx,
        "keras": run_keras,
    }[form]
    np.testing.assert_allclose(run_file(path, prepared_batch(run)), live, atol=1e-5)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_command_lists_all_formats_and_dtypes():
    """The command has its own list, so that `--help` does not load TensorFlow."""
    assert set(export_command.FORMATS) == {"saved_model", *formats.FORMATS}
    dtypes = get_args(ExportConfig.model_fields["weight_dtype"].annotation)
    assert export_command.WEIGHT_DTYPES == dtypes == ("float32", *weight_storage._ENCODERS)


def test_earlier_export_is_replaced_and_other_files_are_kept(run, tmp_path):
    path = run.export_as("keras", tmp_path / "keras")
    (tmp_path / "keras" / "README.md").write_text("# my card")
    (tmp_path / "keras" / "tfft.json").write_text("{}")
    assert run.export_as("keras", tmp_path / "keras") == path
    assert (tmp_path / "keras" / "README.md").read_text() == "# my card"
    assert json.loads((tmp_path / "keras" / "tfft.json").read_text())["labels"] == run.labels
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    with pytest.raises(UserError, match="must be empty or an exported model"):
        run.export_as("keras", tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_foreign_checkpoint_is_not_overwritten(run, tiny, tmp_path):
    """For example if `--output` names the folder of the pretrained model."""
    folder = shutil.copytree(tiny, tmp_path / "pretrained")
    content = (folder / "model.safetensors").read_bytes()
    code, _, err = run_command(
        "export", f"--workdir={run.workdir}", "--format=huggingface", f"--output={folder}"
    )
    assert code == 2 and "must be empty or an exported model.safetensors" in err
    assert (folder / "model.safetensors").read_bytes() == content


def test_weight_dtype_needs_a_saved_model(run):
    code, _, err = run_command(
        "export", f"--workdir={run.workdir}", "--format=onnx", "--weight_dtype=int8"
    )
    assert code == 2
    assert "--weight_dtype: needs --format=saved_model. Received: --format=onnx" in err


def run_huggingface(path, batch):
    """In float32; golden files compare its names and shapes with PyTorch's transformers."""
    backbone = backbones.load(ModelConfig(backbone=f"hf:{path.parent}", head="checkpoint"))
    task = TASKS["text_classification"]
    model = assemble(backbone, task, TextClassification(), backbone.head.labels)
    return task.activate(model.predict_on_batch(batch), {})


def run_litert(path, batch):
    from ai_edge_litert.interpreter import Interpreter

    (probabilities,) = Interpreter(model_path=str(path)).get_signature_runner()(**batch).values()
    return probabilities


def run_onnx(path, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {node.name for node in session.get_inputs()} == set(batch)
    return session.run(["probabilities"], batch)[0]


def run_keras(path, batch):
    """In a fresh process."""
    np.savez(path.parent / "batch.npz", **batch)
    script = (
        "import sys, keras, numpy as np, tfft.export.formats\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "logits = model.predict_on_batch(dict(np.load(sys.argv[2])))\n"
        "np.save(sys.argv[3], logits)\n"
    )
    arguments = [str(path), str(path.parent / "batch.npz"), str(path.parent / "logits.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, capture_output=True)
    logits = np.load(arguments[2]).astype(np.float64)
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_multilabel_images(form, tmp_path):
    config = {
        "data": {"train": write_table(tmp_path / "p", 40, 0), "validation": {"fraction": 0.25}},
        "model": {"backbone": f"hf:{GOLDEN / 'vision' / 'vit'}"},
        "task": {"name": "image_multilabel"},
        "train": {"epochs": 1, "batch_size": 8},
        "export": {"enabled": False},
        "evaluate": {"bootstrap": 0, "baselines": False},
    }
    run = tfft.train(config, tmp_path / "run")
    path = run.export_as(form)
    assert path.parent == run.workdir / form and path.is_file()


def test_different_probabilities_are_not_published(run, monkeypatch, tmp_path):
    form = formats.FORMATS["keras"]
    shifted = replace(form, run=lambda *args: form.run(*args) + 2e-5)
    monkeypatch.setitem(formats.FORMATS, "keras", shifted)
    with pytest.raises(
        UserError, match=r"differ by 2.0e-05 .* for float32 is 1e-05. Not published"
    ):
        run.export_as("keras", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime is needed here: pip install 'tfft\[onnx\]'"):
        run.export_as("onnx", tmp_path / "out")
