"""The SavedModel: what it answers, when it is refused, that nothing half-made is left."""

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
from tfft.export import saved_model
from tfft.export.signatures import Signatures, padded
from tfft.export.verify_process import Verifier
from tfft.run import load_run
from tfft.utils import files
from tfft.utils.errors import UserError


@pytest.mark.parametrize("skip", [True, False])
def test_padding_is_left_out_unless_it_should_not(exported, skip):
    """What XLA compiles has no op whose shape follows from the values."""
    made = Signatures(exported._servable, skip_padding=skip)
    graph = made.functions["tensors"].get_concrete_function().graph.as_graph_def()
    nodes = [node for function in graph.library.function for node in function.node_def]
    assert any(node.op == "Where" for node in nodes) is skip


ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20, "é好\x00"]


def test_signatures(exported):
    model = tf.saved_model.load(str(exported.workdir / "export" / "1"))
    live = softmax(exported.logits(ROWS))
    served = model.signatures["serving_default"](text=tf.constant(ROWS))
    assert set(served) == {"probabilities", "label"}
    assert served["probabilities"].dtype == tf.float32 and served["label"].dtype == tf.string
    np.testing.assert_allclose(served["probabilities"], live, atol=1e-5)
    labels = [v.decode() for v in served["label"].numpy()]
    assert labels == [exported.labels[i] for i in live.argmax(1)]
    for rows in (ROWS, ROWS[:2]):  # of any length, padded to the same
        tokens = padded(exported.inputs, exported.inputs.batch(rows))
        assert tokens["token_ids"].shape == (len(rows), exported.config.data.max_length)
        from_ids = model.signatures["tensors"](**{k: tf.constant(v) for k, v in tokens.items()})
        np.testing.assert_allclose(from_ids["probabilities"], live[: len(rows)], atol=1e-5)
    for size in (1, 3):
        part = model.signatures["serving_default"](text=tf.constant(ROWS[:size]))
        np.testing.assert_allclose(part["probabilities"], live[:size], atol=1e-5)


def test_served_object_and_numbers(exported, tmp_path):
    served = export.ExportedModel(exported.workdir / "export")
    found = served.probabilities([(row,) for row in ROWS], 2)
    np.testing.assert_allclose(found, softmax(exported.logits(ROWS)), atol=1e-5)
    copy = load_run(shutil.copytree(exported.workdir, tmp_path / "run"))
    assert copy.export().name == "2"
    assert export.latest(copy.workdir / "export").name == "2"


def test_a_run_that_was_killed_after_its_export_publishes_no_other_version(exported, tmp_path):
    workdir = shutil.copytree(exported.workdir, tmp_path / exported.workdir.name)
    folder = workdir / "export"
    before = {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}
    assert set(before) >= {"models.config", "README.md"}
    for path in (workdir / "metrics.json", *(folder / name for name in before)):
        path.unlink()
    left = folder / f".export-{files.HOST}-00000001"
    left.mkdir()
    os.utime(left, (1e9, time.time() - 100))
    run = train.run(load(workdir / "config.yaml"), workdir)
    assert (workdir / "metrics.json").is_file()
    assert {p.name for p in folder.iterdir()} == {"1", *before}
    assert {name: (folder / name).read_text() for name in before} == before
    # Other weights, or stored otherwise, are another version.
    run.model.weights[0].assign(run.model.weights[0] + 1)
    run.save_weights()
    for kind in ("float32", "int8"):
        assert export.exported_from(folder, run._digest(kind)) is None


def test_no_python_in_the_graph(exported):
    raw = (exported.workdir / "export" / "1" / "saved_model.pb").read_bytes()
    assert b"PyFunc" not in raw and b"EagerPyFunc" not in raw


def test_different_tokens_are_not_published(exported, monkeypatch, tmp_path):
    real = exported.inputs.graph()

    def drops_the_last(text, text_pair=None):
        return {k: v[:, :-1] for k, v in real(text, text_pair).items()}

    monkeypatch.setattr(type(exported.inputs), "graph", lambda self: drops_the_last)
    with pytest.raises(UserError, match=r"host and graph prepare .* differently. Not published"):
        exported.export(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_different_answers_are_not_published(exported, monkeypatch, tmp_path):
    monkeypatch.setitem(saved_model.BOUNDS, "float32", -1.0)
    with pytest.raises(UserError, match=r"the bound for float32 is .* Not published"):
        exported.export(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_does_not_run_alone_is_not_published(exported, monkeypatch, tmp_path):
    probe = tmp_path / "verify.py"
    probe.write_text("import sys\nsys.exit('no such op')\n")
    monkeypatch.setattr(saved_model, "_VERIFIER", Verifier(probe))
    with pytest.raises(UserError, match="does not run in a fresh process: no such op"):
        exported.export(tmp_path / "out")


def test_not_an_export(tmp_path):
    with pytest.raises(UserError, match="must contain a SavedModel"):
        export.ExportedModel(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(UserError, match="was not exported by tfft"):
        export.ExportedModel(tmp_path)


def test_description(exported):
    path = exported.workdir / "export" / "1" / "assets.extra" / "tfft.json"
    assert json.loads(path.read_text())["labels"] == exported.labels


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_an_export_that_is_ended_by_sigterm_leaves_nothing(exported, tmp_path):
    workdir = shutil.copytree(exported.workdir, tmp_path / "run")
    folder = workdir / "export"
    before = sorted(p.name for p in folder.iterdir())
    (folder / f".export-{files.HOST}-00000001").mkdir()  # left by one that was killed
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "for line in sys.stdin:\n"
        "    print(os.getpid(), file=open(__file__ + '.id', 'w'), flush=True)\n"
        "    time.sleep(600)\n"
    )
    setup = partial(verify_with, script)
    command = Command("export", f"--workdir={workdir}", setup=setup)
    verifier = tmp_path / "script.py.id"
    command.wait_for(lambda: verifier.is_file() and verifier.read_text())
    command.send_signal(signal.SIGTERM)
    code, err = command.wait()
    assert code == 3 and err.splitlines()[-1].startswith("tfft: interrupted")
    assert "Traceback" not in err
    assert not running(int(verifier.read_text()))
    assert sorted(p.name for p in folder.iterdir()) == before


def verify_with(script):
    saved_model._VERIFIER = Verifier(script)
