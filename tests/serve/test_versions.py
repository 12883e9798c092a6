"""Versions that appear, disappear and fail to load behave as in TF Serving's sources."""

import shutil

import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from tests.serve.half_plus_two import CONFIG, NAME
from tests.serve.test_grpc_cases import infer_request, predict_request, single_example_request
from tfft.serve import versions, warmup
from tfft.serve.failure import Failure
from tfft.serve.loaded import LoadedVersion
from tfft.serve.versions import ModelSpec, VersionManager, version_number
from tfft.utils.errors import UserError


def version_states(served):
    statuses = served.status(ModelSpec(NAME)).model_version_status
    return {entry.version: type(entry).State.Name(entry.state) for entry in statuses}


def add_version(folder, model, name, records=None):
    shutil.copytree(model, folder / name)
    if records is not None:
        write_warmup(folder / name, records)


def write_warmup(folder, records):
    path = folder / warmup.FILE
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)


def log(kind, request):
    entry = prediction_log_pb2.PredictionLog()
    getattr(entry, kind).request.CopyFrom(request)
    return entry.SerializeToString()


@pytest.fixture
def serve():
    """Serve the versions of a folder; closed at the end of the test."""
    managers = []

    def serve(folder, name=NAME):
        managers.append(VersionManager(name, folder, warmup.replay))
        return managers[-1]

    yield serve
    for manager in managers:
        manager.close()


def test_version_numbers_of_folder_names():
    numbers = {"1": 1, "00000123": 123, "-5": -5, "+7": 7, " 8 ": 8, str(2**63 - 1): 2**63 - 1}
    assert {name: version_number(name) for name in numbers} == numbers
    for name in ("²", "٣", "1.0", "", "v1", "0x1", str(2**63), "9" * 5000, "1_0"):
        assert version_number(name) is None


def test_invalid_folders_and_broken_versions_do_not_stop_others(
    half_plus_two, tmp_path, serve, monkeypatch
):
    """The thread that scans the folder survives all of them."""
    monkeypatch.setattr(versions, "POLL_SECONDS", 0.05)
    add_version(tmp_path, half_plus_two, "00000001")
    served = serve(tmp_path)
    assert served.find(ModelSpec(NAME)).version == 1
    for name in ("²", "notes", "3.saving"):
        add_version(tmp_path, half_plus_two, name)
    entry = prediction_log_pb2.PredictionLog()
    entry.predict_log.request.inputs["x"].dtype = 99
    broken = {
        "2": [b"\xff\xff no message"],
        "3": [entry.SerializeToString()],
        "4": [log("predict_log", predict_request("nope"))],
    }
    for name, records in broken.items():
        add_version(tmp_path, half_plus_two, name, records)
        for _ in range(200):
            if version_states(served).get(int(name)) == "END":
                break
            served._stop.wait(0.05)
        assert version_states(served)[int(name)] == "END"
        assert served.find(ModelSpec(NAME)).version == 1
    add_version(tmp_path, half_plus_two, "5", [log("predict_log", predict_request(inputs=GOOD))])
    for _ in range(200):
        if served.find(ModelSpec(NAME)).version == 5:
            break
        served._stop.wait(0.05)
    assert served.find(ModelSpec(NAME)).version == 5
    expected = {5: "AVAILABLE", 4: "END", 3: "END", 2: "END", 1: "END"}
    assert version_states(served) == expected and list(version_states(served)) == list(expected)


GOOD = {"x": tf.make_tensor_proto([[1.0]])}


def version_status(served, version):
    (entry,) = served.status(ModelSpec(NAME, version)).model_version_status
    return entry.status


def test_failed_version_reports_its_error_and_is_retried_after_a_change(
    half_plus_two, tmp_path, serve, monkeypatch
):
    """Such as a folder that is still being copied, with its variables last."""
    monkeypatch.setattr(versions, "POLL_SECONDS", 600)
    loads = []
    monkeypatch.setattr(
        versions, "LoadedVersion", lambda *args: loads.append(args[1]) or LoadedVersion(*args)
    )
    add_version(tmp_path, half_plus_two, "1")
    served = serve(tmp_path)
    (tmp_path / "2").mkdir()
    shutil.copy(half_plus_two / "saved_model.pb", tmp_path / "2")
    served.refresh()
    served.refresh()
    assert loads == [1, 2]
    assert version_states(served) == {2: "END", 1: "AVAILABLE"}
    assert version_status(served, 2).error_code != 0
    assert "2: cannot be loaded: " in version_status(served, 2).error_message
    assert version_status(served, 1).error_code == 0 and not version_status(served, 1).error_message
    shutil.copytree(half_plus_two / "variables", tmp_path / "2" / "variables")
    served.refresh()
    assert loads == [1, 2, 2] and served.find(ModelSpec(NAME)).version == 2
    assert version_status(served, 2).error_code == 0 and version_states(served)[1] == "END"


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [3]),
        ("latest { }", [3]),
        ("latest { num_versions: 2 }", [3, 2]),
        ("all { }", [3, 2, 1]),
        ("specific { versions: 1 versions: 3 }", [3, 1]),
    ],
)
def test_version_policies(half_plus_two, tmp_path, serve, policy, expected):
    for name in ("01", "2", "3"):
        add_version(tmp_path, half_plus_two, name)
    (tmp_path / "models.config").write_text(CONFIG.format(policy=policy))
    served = serve(tmp_path)
    assert version_states(served) == dict.fromkeys(expected, "AVAILABLE")
    label = ModelSpec(NAME, None, "label")  # version 123, which does not exist
    with pytest.raises(Failure, match=r"Servable not found for request: Specific\(.*, 123\)"):
        served.find(label)


@pytest.fixture
def logged(monkeypatch):
    """Messages that are logged."""
    messages = []
    monkeypatch.setattr(versions.console, "log", messages.append)
    return messages


def test_dangling_links_and_unreadable_folders(half_plus_two, tmp_path, serve, monkeypatch):
    monkeypatch.setattr(versions, "POLL_SECONDS", 600)
    long_name = "x" * 300  # following such a link is an OSError even for the superuser
    (tmp_path / "3").symlink_to(long_name)
    with pytest.raises(UserError, match=r"3: cannot be loaded: .*name too long"):
        serve(tmp_path)
    add_version(tmp_path, half_plus_two, "1")
    (tmp_path / "models.config").write_text(CONFIG.format(policy="all { }"))
    served = serve(tmp_path)
    assert version_states(served) == {3: "END", 1: "AVAILABLE"}
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "notes").symlink_to("nowhere")
    shutil.copy(half_plus_two / "saved_model.pb", tmp_path / "2")
    served.refresh()
    assert version_states(served)[2] == "END"
    shutil.copytree(half_plus_two / "variables", tmp_path / "2" / "variables")
    served.refresh()
    assert version_states(served) == {3: "END", 2: "AVAILABLE", 1: "AVAILABLE"}


def test_invalid_config_is_logged_once(half_plus_two, tmp_path, serve, monkeypatch, logged):
    monkeypatch.setattr(versions, "POLL_SECONDS", 0.02)
    add_version(tmp_path, half_plus_two, "1")
    served, config = serve(tmp_path), tmp_path / "models.config"
    scans, refresh = [], served.refresh

    def scan():
        scans.append(1)
        refresh()

    def problems_after_change(change):
        """Return what is logged during three scans after a change."""
        logged.clear()
        change()
        scans.clear()
        while len(scans) < 3:
            served._stop.wait(0.02)
        return list(logged)

    monkeypatch.setattr(served, "refresh", scan)
    good = CONFIG.format(policy="")
    for text, message in (
        ("model_config_list { con", "must be a model_config_list"),
        (
            good.replace(f'"{NAME}"', '"other"'),
            f"the model must be one of other. Received: {NAME!r}",
        ),
        (good, None),
        ("model_config_list { con", "must be a model_config_list"),
    ):
        (tmp_path / "new").write_text(text)
        problems = problems_after_change(lambda: (tmp_path / "new").rename(config))
        if message is None:
            assert problems == []
        else:
            (line,) = problems
            assert message in line
    config.unlink()

    def fail():
        scans.append(1)
        raise PermissionError(13, "Permission denied", str(tmp_path))

    (line,) = problems_after_change(lambda: monkeypatch.setattr(served, "refresh", fail))
    assert "PermissionError: [Errno 13] Permission denied" in line


def test_config_that_moves_a_label_to_an_unloaded_version_is_rejected(
    half_plus_two, tmp_path, serve, monkeypatch, logged
):
    """For example by a promotion that came too early. A starting server accepts any label."""
    monkeypatch.setattr(versions, "POLL_SECONDS", 600)
    for name in ("123", "124"):
        add_version(tmp_path, half_plus_two, name)
    config, label = tmp_path / "models.config", ModelSpec(NAME, None, "label")
    text = CONFIG.format(policy="specific { versions: 123 }")
    config.write_text(text)
    served = serve(tmp_path)
    both_versions = text.replace("versions: 123", "versions: 123 versions: 124")
    config.write_text(both_versions.replace("value: 123", "value: 124"))
    del logged[:]
    served.refresh()
    served.refresh()
    assert version_states(served) == {123: "AVAILABLE"} and served.find(label).version == 123
    (line,) = logged
    assert (
        f"Request to assign label to version 124 of model {NAME}, which is not currently "
        "available for inference" in line
    )
    config.write_text(both_versions)
    served.refresh()
    assert version_states(served) == {124: "AVAILABLE", 123: "AVAILABLE"}
    assert served.find(label).version == 123
    config.write_text(both_versions.replace("value: 123", "value: 124"))
    served.refresh()
    assert served.find(label).version == 124
    config.write_text("model_config_list { con")  # half written
    served.refresh()
    assert served.find(label).version == 124


def test_invalid_configs_are_rejected(half_plus_two, tmp_path, serve):
    with pytest.raises(UserError, match="must contain a version"):
        serve(tmp_path)
    add_version(tmp_path, half_plus_two, "1")
    for text, message in (
        ("model_config_list { con", "must be a model_config_list"),
        (
            CONFIG.format(policy="specific { versions: 7 }"),
            r"version of the folder, \[1\]\. Received: \[7\]",
        ),
    ):
        (tmp_path / "models.config").write_text(text)
        with pytest.raises(UserError, match=message):
            serve(tmp_path)
    (tmp_path / "models.config").write_text(CONFIG.format(policy=""))
    with pytest.raises(
        UserError, match=r"the model must be one of half_plus_two\. Received: 'other'"
    ):
        serve(tmp_path, "other")
    served = serve(tmp_path)
    config = model_server_config_pb2.ModelServerConfig()
    with pytest.raises(Failure, match="Only ModelConfigList is currently supported"):
        served.reload(config)
    config.model_config_list.config.add(name="other")
    with pytest.raises(Failure, match="this server has one model"):
        served.reload(config)


def test_warmup_records(half_plus_two, tmp_path):
    """All kinds of requests are run, and the message names the record that fails."""
    from tensorflow_serving.apis import classification_pb2, regression_pb2

    shutil.copytree(half_plus_two, tmp_path / "1")
    loaded, calls = LoadedVersion(tmp_path / "1", 1), []

    def run(signature, inputs):
        calls.append(signature.name)
        return signature.run(inputs)

    valid = [
        log("predict_log", predict_request(inputs=GOOD)),
        log(
            "classify_log",
            single_example_request(classification_pb2.ClassificationRequest, "classify_x_to_y"),
        ),
        log(
            "regress_log",
            single_example_request(regression_pb2.RegressionRequest, "regress_x_to_y"),
        ),
        log("multi_inference_log", infer_request(("regress_x_to_y2", "regress"))),
        b"",  # no log type; TF Serving skips it
    ]
    write_warmup(tmp_path / "1", valid)
    warmup.replay(loaded, run)
    assert calls == ["serving_default", "classify_x_to_y", "regress_x_to_y", "regress_x_to_y2"]
    large = predict_pb2.PredictRequest(inputs={"x": GOOD["x"]})
    large.inputs["x"].tensor_shape.dim[0].size = 2**40
    session = prediction_log_pb2.PredictionLog()
    session.session_run_log.SetInParent()
    for records, code, message in (
        ([*valid, b"\xff\xff"], "INVALID_ARGUMENT", "record 6 is not a PredictionLog"),
        ([log("predict_log", large)], "RESOURCE_EXHAUSTED", "record 1: input x: its shape"),
        (
            [valid[0], session.SerializeToString()],
            "UNIMPLEMENTED",
            "record 2: Unsupported log_type",
        ),
        ([b""] * 1001, "INVALID_ARGUMENT", r"exceeds the maximum \(1000\)"),
    ):
        write_warmup(tmp_path / "1", records)
        with pytest.raises(Failure, match=message) as error:
            warmup.replay(loaded)
        assert error.value.code == code
    write_warmup(tmp_path / "1", valid)
    path = tmp_path / "1" / warmup.FILE
    for data in (b"no record" * 20, path.read_bytes()[:-3]):
        path.write_bytes(data)
        with pytest.raises(Failure, match="must be a complete TFRecord file") as error:
            warmup.replay(loaded)
        assert error.value.code == "DATA_LOSS"
    with pytest.raises(UserError, match="must be a complete TFRecord file"):
        VersionManager("model", tmp_path, warmup.replay)
