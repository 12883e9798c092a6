"""The SavedModel: its answers, when it is not published, and that no partial files remain."""

import json
import os
import shutil
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 -- its ops

from tests.processes import Command, running
from tfft import export, train
from tfft.config import load
from tfft.evaluation.metrics import softmax
from tfft.export import saved_model, signatures
from tfft.export.signatures import RESULTS, Signatures, padded
from tfft.export.verify import plain
from tfft.export.verify_process import Verifier
from tfft.run import load_run
from tfft.tasks import TASKS
from tfft.utils import files
from tfft.utils.errors import UserError


@pytest.mark.parametrize("skip_padding", [True, False])
def test_padding_is_skipped_only_on_request(exported, skip_padding):
    """XLA cannot compile ops whose output shape depends on values, such as Where."""
    signatures = Signatures(exported._servable, skip_padding=skip_padding)
    graph = signatures.functions["tensors"].get_concrete_function().graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def]
    assert any(node.op == "Where" for node in nodes) is skip_padding


ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20, "é好\x00"]


def test_signatures(exported):
    model = tf.saved_model.load(str(exported.workdir / "export" / "1"))
    live = softmax(exported.logits(ROWS))
    outputs = model.signatures["serving_default"](text=tf.constant(ROWS))
    assert set(outputs) == {"probabilities", "label"}
    assert outputs["probabilities"].dtype == tf.float32 and outputs["label"].dtype == tf.string
    np.testing.assert_allclose(outputs["probabilities"], live, atol=1e-5)
    labels = [v.decode() for v in outputs["label"].numpy()]
    assert labels == [exported.labels[i] for i in live.argmax(1)]
    for rows in (ROWS, ROWS[:2]):  # padded to the same length
        tokens = padded(exported.inputs, exported.inputs.batch(rows))
        assert tokens["token_ids"].shape == (len(rows), exported.config.data.max_length)
        from_ids = model.signatures["tensors"](**{k: tf.constant(v) for k, v in tokens.items()})
        np.testing.assert_allclose(from_ids["probabilities"], live[: len(rows)], atol=1e-5)
    for size in (1, 3):
        batch_outputs = model.signatures["serving_default"](text=tf.constant(ROWS[:size]))
        np.testing.assert_allclose(batch_outputs["probabilities"], live[:size], atol=1e-5)


def test_exported_model_and_version_numbers(exported, tmp_path):
    model = export.ExportedModel(exported.workdir / "export")
    actual = model.outputs([(row,) for row in ROWS], 2)["probabilities"]
    np.testing.assert_allclose(actual, softmax(exported.logits(ROWS)), atol=1e-5)
    copy = load_run(shutil.copytree(exported.workdir, tmp_path / "run"))
    assert copy.export().name == "2"
    assert export.latest(copy.workdir / "export").name == "2"


def test_resumed_run_does_not_publish_its_export_twice(exported, tmp_path):
    workdir = shutil.copytree(exported.workdir, tmp_path / exported.workdir.name)
    folder = workdir / "export"
    contents = {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}
    assert set(contents) >= {"models.config", "README.md"}
    for path in (workdir / "metrics.json", *(folder / name for name in contents)):
        path.unlink()
    abandoned = folder / f".export-{files.HOST}-00000001"
    abandoned.mkdir()
    os.utime(abandoned, (1e9, time.time() - 100))
    run = train.run(load(workdir / "config.yaml"), workdir)
    assert (workdir / "metrics.json").is_file()
    assert {p.name for p in folder.iterdir()} == {"1", *contents}
    assert {name: (folder / name).read_text() for name in contents} == contents
    # Other weights, or another stored form, are another version.
    run.model.weights[0].assign(run.model.weights[0] + 1)
    run.save_weights()
    for kind in ("float32", "int8"):
        assert export.find_version(folder, run._digest(kind)) is None


def test_no_python_in_the_graph(exported):
    raw = (exported.workdir / "export" / "1" / "saved_model.pb").read_bytes()
    assert b"PyFunc" not in raw and b"EagerPyFunc" not in raw


def test_different_preprocessing_is_not_published(exported, monkeypatch, tmp_path):
    graph = exported.inputs.graph()

    def drop_last_token(text, text_pair=None):
        return {k: v[:, :-1] for k, v in graph(text, text_pair).items()}

    monkeypatch.setattr(type(exported.inputs), "graph", lambda self: drop_last_token)
    with pytest.raises(UserError, match=r"host and graph prepare .* differently. Not published"):
        exported.export(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_different_answers_are_not_published(exported, monkeypatch, tmp_path):
    monkeypatch.setitem(saved_model.BOUNDS, "float32", -1.0)
    with pytest.raises(UserError, match=r"the bound for float32 is .* Not published"):
        exported.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_every_output_is_compared():
    """Numbers within the bound, other outputs exactly where the live model is decided."""
    task, labels = TASKS["text_classification"], ["a", "b"]
    live = task.decode(tf.constant([[2.0, 0.0], [0.0, 0.0]]), labels, {})
    expected = {
        f"{signature}/{name}": plain(value.numpy())
        for signature in (*signatures.PREDICT, *task.example_signatures(labels))
        for name, value in RESULTS[signature](live, labels).items()
    }
    answers = {key.replace("/", "/2/"): value for key, value in expected.items()}
    decided = task.margin({name: value.numpy() for name, value in live.items()}, {}) > 1e-5
    assert decided.tolist() == [True, False]

    def difference(**changes):
        changed = {key.replace(".", "/"): value for key, value in changes.items()}
        return saved_model._largest_difference({**answers, **changed}, expected, decided)

    assert difference() == 0.0
    shifted = answers["tensors/2/probabilities"] + np.float32([[0.25], [0]])
    assert difference(**{"tensors.2.probabilities": shifted}) == 0.25
    assert np.isnan(difference(**{"tensors.2.probabilities": shifted * np.nan}))
    names = np.array([b"a", b"b"], object)
    assert difference(**{"tensors.2.label": plain(names)}) == 0.0  # the second row is a tie
    with pytest.raises(
        UserError, match=r"label of tensors differs from .* in 1 rows, in batches of 2"
    ):
        difference(**{"tensors.2.label": plain(names[::-1])})
    with pytest.raises(UserError, match="label of tensors has another dtype or shape"):
        difference(**{"tensors.2.label": np.zeros(2, np.float32)})
    with pytest.raises(UserError, match="other of tensors has another dtype or shape"):
        difference(**{"tensors.2.other": np.zeros(2)})
    del answers["classify/2/classes"]
    with pytest.raises(UserError, match="the SavedModel returns no classify/classes"):
        difference()


def test_model_that_fails_in_a_clean_process_is_not_published(exported, monkeypatch, tmp_path):
    script = tmp_path / "verify.py"
    script.write_text("import sys\nsys.exit('no such op')\n")
    monkeypatch.setattr(saved_model, "_VERIFIER", Verifier(script))
    with pytest.raises(UserError, match="does not run in a fresh process: no such op"):
        exported.export(tmp_path / "out")


def test_folder_without_an_export_is_rejected(tmp_path):
    with pytest.raises(UserError, match="must contain a SavedModel"):
        export.ExportedModel(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match="was not exported by tfft"):
        export.ExportedModel(tmp_path)


def test_description(exported):
    path = exported.workdir / "export" / "1" / "assets.extra" / "tfft.json"
    assert json.loads(path.read_text())["labels"] == exported.labels


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_sigterm_leaves_no_files(exported, tmp_path):
    workdir = shutil.copytree(exported.workdir, tmp_path / "run")
    folder = workdir / "export"
    names = sorted(p.name for p in folder.iterdir())
    (folder / f".export-{files.HOST}-00000001").mkdir()  # left by a killed export
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "for line in sys.stdin:\n"
        "    print(os.getpid(), file=open(__file__ + '.id', 'w'), flush=True)\n"
        "    time.sleep(600)\n"
    )
    setup = partial(set_verifier_script, script)
    command = Command("export", f"--workdir={workdir}", setup=setup)
    id_file = tmp_path / "script.py.id"
    command.wait_for(lambda: id_file.is_file() and id_file.read_text())
    command.send_signal(signal.SIGTERM)
    code, err = command.wait()
    assert code == 3 and err.splitlines()[-1].startswith("tfft: interrupted")
    assert "Traceback" not in err
    assert not running(int(id_file.read_text()))
    assert sorted(p.name for p in folder.iterdir()) == names


def set_verifier_script(script):
    saved_model._VERIFIER = Verifier(script)


def test_rows_that_are_divided_differently_are_found():
    host = {
        "token_ids": np.arange(12).reshape(4, 3),
        "padding_mask": np.ones((4, 3), int),
        "row": np.array([0, 1, 1, 2]),
    }
    assert saved_model._different_row(host, dict(host), 3) is None
    # As many windows in all, and the first one is equal.
    graph = {**host, "row": np.array([0, 1, 2, 2])}
    assert saved_model._different_row(host, graph, 3) == 1
    graph = {**host, "token_ids": host["token_ids"] + (np.arange(4) == 3)[:, None]}
    assert saved_model._different_row(host, graph, 3) == 2
