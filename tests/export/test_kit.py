"""What stands beside the versions: it parses, it fits the model, it leaves others' files alone."""

import numpy as np
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tests.console import command
from tfft.export import kit

RATES = {1: 100.0, 2: 190.0, 4: 350.0, 8: 500.0, 16: 540.0, 32: 545.0}


def parsed(text):
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse(text, config)
    (one,) = config.model_config_list.config
    return one


def test_versions_and_labels():
    first = parsed(kit.models_config("colours", [1], None))
    assert (first.name, first.base_path) == ("colours", "/models/colours")
    assert list(first.model_version_policy.specific.versions) == [1]
    assert dict(first.version_labels) == {"stable": 1}
    second = parsed(kit.models_config("colours", [1, 2, 3], 1))
    assert list(second.model_version_policy.specific.versions) == [1, 3]
    assert dict(second.version_labels) == {"stable": 1, "canary": 3}
    gone = parsed(kit.models_config("colours", [2, 3], 1))  # stable was deleted
    assert dict(gone.version_labels) == {"stable": 3}


def test_batches_are_as_large_as_it_was_worth():
    assert kit.batch_sizes(RATES) == [1, 2, 4, 8]  # 16 and 32 answer hardly more a second
    assert kit.batch_sizes({1: 100.0, 2: 90.0, 4: 80.0}) == [1]
    assert kit.batch_sizes({1: 10.0, 2: 10.5, 4: 30.0}) == [1, 2, 4]
    text = kit.batching(RATES)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines[0] == "max_batch_size { value: 8 }"
    assert lines[-1] == "allowed_batch_sizes: 8"  # TF Serving wants the last to be the largest


def test_containers_read_what_is_there():
    (service,) = yaml.safe_load(kit.compose("colours"))["services"].values()
    deployment, balancer = yaml.safe_load_all(kit.kubernetes("colours"))
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert service["command"] == container["args"]
    assert "--model_config_file=/models/colours/models.config" in container["args"]
    assert service["volumes"] == [".:/models/colours:ro"]
    assert container["volumeMounts"][0]["mountPath"] == "/models/colours"
    assert {port["port"] for port in balancer["spec"]["ports"]} == {8500, 8501}
    selected = deployment["spec"]["template"]["metadata"]["labels"]
    assert balancer["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"] == selected


@pytest.mark.parametrize(
    ("text", "name"),
    [("My Run_2", "my-run-2"), ("---", "model"), ("评论", "model"), ("a" * 80, "a" * 50)],
)
def test_names(text, name):
    assert kit.model_name(text) == name


def test_others_files_stay(tmp_path, capsys):
    (tmp_path / "1").mkdir()
    (tmp_path / "README.md").write_text("# my own")
    kit._put(tmp_path, {"README.md": "ours", "models.config": "ours"})
    assert (tmp_path / "README.md").read_text() == "# my own"
    assert "is not tfft's and stays as it is" in capsys.readouterr().err
    kit._put(tmp_path, {"models.config": "newer"})
    assert "newer" in (tmp_path / "models.config").read_text()


def test_a_folder_without_a_run_is_a_line(tmp_path):
    code, _, err = command("export", f"--workdir={tmp_path}")
    assert code == 2 and "Traceback" not in err
    assert np.size(err.splitlines()) == 1
